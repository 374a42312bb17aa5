"""Runs continue under their own inputs and settings only."""

from __future__ import annotations

from dataclasses import asdict

from cemg_hf.training.finetune import FinetuneConfig, GeneratorConfig
from cemg_hf.training.loop_config import LoopConfig, run_identity
from cemg_hf.training.objective import ObjectiveConfig


def test_everything_but_the_loop_decides_which_run_continues() -> None:
    def identity(config: FinetuneConfig, dataset: str = "one", made: bytes = b"") -> str:
        return run_identity({"dataset": dataset}, asdict(config), made)

    base = identity(FinetuneConfig())
    assert identity(FinetuneConfig(loop=LoopConfig(time_budget_s=5.0))) == base
    for changed in (
        FinetuneConfig(item_dropout=0.1),
        FinetuneConfig(objective=ObjectiveConfig(temperature=0.7)),
        FinetuneConfig(generator=GeneratorConfig(dropout_rate=0.2)),
        FinetuneConfig(validation_users=7),
    ):
        assert identity(changed) != base
    assert len({base, identity(FinetuneConfig(), "other"), identity(FinetuneConfig(), made=b"other")}) == 3
