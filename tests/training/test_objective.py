"""Settings of the loss on their way to the model, and runs that continue under their own settings only."""

from __future__ import annotations

import pytest

from cemg_hf.errors import CEMGError
from cemg_hf.models.cemg import Objective
from cemg_hf.training.finetune import FinetuneConfig, _learned_otherwise
from cemg_hf.training.objective import ObjectiveConfig


@pytest.mark.parametrize("wrong", [{"label_smoothing": 1.0}, {"temperature": 0.0}, {"teacher_weight": -0.5}])
def test_impossible_settings_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(CEMGError, match=next(iter(wrong))):
        ObjectiveConfig(**wrong)


def test_the_default_is_the_default_of_the_model() -> None:
    assert ObjectiveConfig().objective() == Objective()
    assert ObjectiveConfig(0.1, True, 0.7, 0.2).objective() == Objective(0.1, 0.7, 0.2)


def test_a_run_is_told_apart_by_what_changes_it() -> None:
    assert _learned_otherwise(FinetuneConfig()) == {}  # checkpoints of runs without these settings go on
    assert _learned_otherwise(FinetuneConfig(item_dropout=0.1)) == {"item_dropout": 0.1}
    assert "objective" in _learned_otherwise(FinetuneConfig(objective=ObjectiveConfig(temperature=0.7)))
    with pytest.raises(CEMGError, match="item_dropout"):
        FinetuneConfig(item_dropout=1.0)
