"""Settings of the loss on their way to the model, and runs that continue under their own settings only."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from cemg_hf.artefacts import Manifest
from cemg_hf.errors import CEMGError
from cemg_hf.models.cemg import Objective
from cemg_hf.training.finetune import FinetuneConfig, GeneratorConfig, _settings_beside_the_loop
from cemg_hf.training.loop_config import LoopConfig
from cemg_hf.training.objective import ObjectiveConfig


@pytest.mark.parametrize("wrong", [{"label_smoothing": 1.0}, {"temperature": 0.0}, {"teacher_weight": -0.5}])
def test_impossible_settings_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(CEMGError, match=next(iter(wrong))):
        ObjectiveConfig(**wrong)


def test_the_default_is_the_default_of_the_model() -> None:
    assert ObjectiveConfig().objective() == Objective()
    assert ObjectiveConfig(0.1, True, 0.7, 0.2).objective() == Objective(0.1, 0.7, 0.2)


def test_everything_but_the_loop_decides_which_run_continues() -> None:
    def kept(config: FinetuneConfig) -> dict[str, Any]:
        return _settings_beside_the_loop(Manifest("finetune", asdict(config), {}, 0))

    base = kept(FinetuneConfig())
    assert kept(FinetuneConfig(loop=LoopConfig(time_budget_s=5.0))) == base
    for changed in (
        FinetuneConfig(item_dropout=0.1),
        FinetuneConfig(objective=ObjectiveConfig(temperature=0.7)),
        FinetuneConfig(generator=GeneratorConfig(dropout_rate=0.2)),
        FinetuneConfig(validation_users=7),
    ):
        assert kept(changed) != base
    with pytest.raises(CEMGError, match="item_dropout"):
        FinetuneConfig(item_dropout=1.0)
