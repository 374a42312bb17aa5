"""Training steps are timed on the trained model, which stays as it is on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_samples import write_shop

from cemg_hf.artefacts import fingerprint_path
from cemg_hf.recipes import Recipe, load_recipe
from cemg_hf.training.pipeline import FOLDERS, run
from cemg_hf.training.step_cost import StepConfig, _Steps, measure_steps


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, dict[str, Path]]:
    folder = tmp_path_factory.mktemp("steps")
    tower = "finetune.dense={content: true, settings: {hidden_size: 8, num_heads: 2, num_layers: 1}, loop: {epochs: 1, batch_size: 16}}"
    taught = "finetune.objective={constrained: true, teacher_weight: 0.5}"
    recipe = load_recipe(write_shop(folder / "shop"), ["tokenize.epochs=1", "finetune.loop.batch_size=8", tower, taught])
    run(recipe, folder / "run", until="finetune")
    return recipe, {stage: folder / "run" / name for stage, name in FOLDERS.items()}


def test_the_recipes_own_softmax_is_its_step(trained: tuple[Recipe, dict[str, Path]], tmp_path: Path) -> None:
    recipe, folders = trained
    before = fingerprint_path(folders["finetune"])
    found = measure_steps(recipe, folders, tmp_path / "steps", StepConfig(steps=3))
    assert found["ms"] == found["permissible_ms"] > 0
    assert found["all_codes_ms"] > 0
    assert found["permissible_extra"] > -1
    assert fingerprint_path(folders["finetune"]) == before


def test_steps_train_under_either_softmax_on_batches_from_all_over_an_epoch(trained: tuple[Recipe, dict[str, Path]]) -> None:
    step = _Steps(*trained)
    batches = step.batches(4)
    assert [len(batch) for batch in batches] == [8] * 4
    assert len(np.unique(np.concatenate(batches))) == 32, "four different batches"
    before, tower = step.model.shared.weight.detach().clone(), step.model.dense
    assert tower is not None
    teacher = tower.item_embedding.weight.detach().clone()
    for constrained in (False, True):
        assert min(step(batches[0], constrained)) > 0
        assert step.model.config.constrained_softmax == constrained
    assert (step.model.shared.weight != before).any()
    assert (tower.item_embedding.weight == teacher).all(), "the teacher is not trained"
