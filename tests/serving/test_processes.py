from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from accelerate.state import AcceleratorState

from cemg_hf.errors import CEMGError
from cemg_hf.serving.processes import from_main_process, join_processes


@pytest.fixture(autouse=True)
def fresh_accelerate_state() -> Iterator[None]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_process_alone_takes_what_is_there() -> None:
    state, device = join_processes()
    assert (state.num_processes, state.process_index, state.is_main_process) == (1, 0, True)
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert join_processes("cpu")[1] == torch.device("cpu")


@pytest.mark.parametrize("device", ["gpu", "cpu:x", "cuda:", "cuda:-1", "", "cuda:64"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(CEMGError, match=f"device '{device}': "):
        join_processes(device)


def test_processes_do_not_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(CEMGError, match="every process takes a GPU of its own"):
        join_processes("cuda:1")


def test_the_outcome_of_the_main_process_is_handed_on() -> None:
    state, _ = join_processes("cpu")

    def failing() -> int:
        raise CEMGError("row 3")

    assert from_main_process(state, lambda: 5) == 5
    with pytest.raises(CEMGError, match="row 3"):
        from_main_process(state, failing)
