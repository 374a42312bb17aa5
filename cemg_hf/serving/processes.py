"""Which processes work together, and on which device each of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from ..errors import CEMGError

T = TypeVar("T")

PATIENCE = timedelta(hours=12)
"""How long processes wait for each other: for the one that checks the input, and for the slowest at the end."""


def join_processes(device: str = "auto") -> tuple[PartialState, torch.device]:
    """This process among those that `accelerate launch` or `torchrun` started (often it is alone), and its device.

    Args:
        device: "auto" (a GPU where there is one), "cpu", "cuda" or, for a single process, "cuda:1".

    Raises:
        CEMGError: an unknown or missing device, or one GPU for several processes.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    kind, _, number = device.partition(":")
    if device != "auto" and (kind not in ("cpu", "cuda") or (number and not number.isdecimal())):
        raise CEMGError(f"device {device!r}: give auto, cpu, cuda or cuda:<number>")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise CEMGError(f"device {device!r}: this machine has {torch.cuda.device_count()} CUDA devices; give auto or cpu")
    if several and number:
        raise CEMGError(f"device {device!r}: every process takes a GPU of its own; give auto, cpu or cuda")
    if device == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    # Unless told to use the CPU, Accelerate takes several processes without a GPU for as many independent runs.
    state = PartialState(cpu=several and kind == "cpu", timeout=PATIENCE)
    return state, state.device if several else torch.device(kind if device == "auto" else device)


def from_main_process(state: PartialState, work: Callable[[], T]) -> T:
    """What `work` returns on the main process, which alone does it, on all of them.

    Raises:
        CEMGError: as `work` does, on all of them, so that nobody waits for a process that has ended.
    """
    outcome: list[T | CEMGError | None] = [None]
    if state.is_main_process:
        try:
            outcome = [work()]
        except CEMGError as error:
            outcome = [error]
    (result,) = broadcast_object_list(outcome)
    if isinstance(result, CEMGError):
        raise result
    return result
