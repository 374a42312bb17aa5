"""Checkpoints of trainings with a loop of their own: whole or absent, of one training, and exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cemg_hf.artefacts import Manifest
from cemg_hf.training import epoch_checkpoint
from cemg_hf.training.deadline import OutOfTime
from cemg_hf.training.epoch_checkpoint import EpochCheckpoint, State, optimizer_tensors, prefixed, restore_optimizer, under

MANIFEST = Manifest("train", {"size": 3}, {"dataset": "a"}, 0)
STATE = State({"one.a": torch.randn(3, 2).T, "one.b": torch.empty(0), "other": torch.tensor(7)}, {"epoch": 3, "state": 2**100})


def test_what_was_saved_is_loaded_by_the_same_training_only(tmp_path: Path) -> None:
    path = tmp_path / "work" / "state.safetensors"
    assert EpochCheckpoint(path, MANIFEST).load() is None
    EpochCheckpoint(path, MANIFEST).save(STATE)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    found = EpochCheckpoint(path, MANIFEST).load()
    assert found is not None
    assert found.values == STATE.values
    assert found.tensors.keys() == STATE.tensors.keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in STATE.tensors.items())
    for other in (Manifest("train", {"size": 4}, {"dataset": "a"}, 0), Manifest("train", {"size": 3}, {"dataset": "a"}, 1)):
        assert EpochCheckpoint(path, other).load() is None
    path.write_bytes(path.read_bytes()[:40])
    assert EpochCheckpoint(path, MANIFEST).load() is None


def test_it_is_written_when_due_and_when_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.safetensors"
    EpochCheckpoint(path, MANIFEST, every_s=100.0).between_epochs(lambda: pytest.fail("not due"))
    EpochCheckpoint(path, MANIFEST, every_s=0.0).between_epochs(lambda: STATE)
    assert path.is_file()
    path.unlink()
    monkeypatch.setattr(epoch_checkpoint, "time_is_up", lambda: True)
    with pytest.raises(OutOfTime, match=r"continue from .*state\.safetensors"):
        EpochCheckpoint(path, MANIFEST).between_epochs(lambda: STATE)
    assert EpochCheckpoint(path, MANIFEST).load() is not None


@pytest.mark.parametrize("settings", [{"fused": True}, {"weight_decay": 0.1}])
def test_an_optimizer_goes_on_as_if_nothing_had_been(settings: dict[str, float]) -> None:
    def steps(weight: torch.nn.Parameter, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            weight.square().sum().backward()
            optimizer.step()

    one = torch.nn.Parameter(torch.arange(4.0))
    first = torch.optim.AdamW([one], lr=0.1, **settings)  # type: ignore[arg-type]
    steps(one, first, 3)
    kept = {name: value.clone() for name, value in prefixed("adam", optimizer_tensors(first)).items()}
    two = torch.nn.Parameter(one.detach().clone())
    second = torch.optim.AdamW([two], lr=0.1, **settings)  # type: ignore[arg-type]
    restore_optimizer(second, under("adam", kept))
    steps(one, first, 3)
    steps(two, second, 3)
    assert torch.equal(one, two)
