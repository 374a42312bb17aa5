"""Checkpoints between the epochs of trainings that have a loop of their own, LightGCN and the RQ-VAE.

Small networks that train for long on large catalogues: one file holds all that the next epoch depends on, so that a training that was
stopped, by the time of its call or by a kill, ends where an uninterrupted one does.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..artefacts import Manifest, fingerprint, room_in
from .deadline import OutOfTime, time_is_up

logger = logging.getLogger(__name__)

EVERY_S = 600.0


class State(NamedTuple):
    """What an epoch leaves behind: tensors by name, and plain JSON values."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


class EpochCheckpoint:
    """The last state of one training, in one safetensors file.

    Args:
        path: the file; its folder is made when there is something to write, and removed by the stage when its output is written.
        manifest: of the stage that trains. A file that another one left is written over.
        every_s: seconds between two states that are written.
    """

    def __init__(self, path: Path, manifest: Manifest, every_s: float = EVERY_S) -> None:
        self.path, self.every_s = path, every_s
        self.identity = fingerprint(json.dumps(manifest.as_dict(), sort_keys=True))
        self.written = time.monotonic()

    def load(self) -> State | None:
        """The state to go on from, on the CPU; None where there is none of this training."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                about = file.metadata() or {}
                if about.get("identity") != self.identity:
                    return None
                state = State({name: file.get_tensor(name) for name in file.keys()}, json.loads(about["values"]))  # noqa: SIM118
        except SafetensorError as error:
            logger.warning("%s: cannot be read (%s); starting over", self.path, " ".join(str(error).split()))
            return None
        logger.info("%s: continuing after epoch %d", self.path, state.values["epoch"])
        return state

    def save(self, state: State) -> None:
        """Write `state`, whose values have an `epoch`, in the place of the last one.

        Raises:
            CEMGError: the disk is full; the last one stays.
        """
        scratch = self.path.with_name(f".{self.path.name}.partial")
        tensors = {name: value.detach().cpu().clone().contiguous() for name, value in state.tensors.items()}
        try:
            with room_in(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                save_file(tensors, scratch, {"identity": self.identity, "values": json.dumps(state.values)})
                scratch.replace(self.path)
        finally:
            scratch.unlink(missing_ok=True)
        self.written = time.monotonic()

    def between_epochs(self, state: Callable[[], State]) -> None:
        """Write the state where that is due.

        Raises:
            OutOfTime: the time of this call is used up; the state is written.
        """
        late = time_is_up()
        if late or time.monotonic() - self.written >= self.every_s:
            self.save(state())
        if late:
            raise OutOfTime(f"the time of this call is used up; run the same command again to continue from {self.path}")


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under `<prefix>.<name>`."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the tensors that `prefixed` put under `prefix`, by their own names."""
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What Adam keeps of every parameter, by `<number of the parameter>.<name>`."""
    kept = optimizer.state_dict()["state"]
    return {f"{number}.{name}": torch.as_tensor(value) for number, values in kept.items() for name, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give back what `optimizer_tensors` took; settings such as the learning rate stay."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
