"""Checkpoints of a training run: complete or absent, and continued only under the settings they were made with."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import load_model, save_model
from torch import nn

from ..artefacts import replace_folder, write_json
from ..errors import CEMGError
from .ema import WeightAverage

logger = logging.getLogger(__name__)

PROGRESS_NAME = "progress.json"
AVERAGE_NAME = "average.safetensors"


@dataclass
class Progress:
    """Where a run stands, apart from tensors and random states."""

    step: int = field(default=0, metadata={"help": "Optimizer steps done."})
    epoch: int = field(default=0, metadata={"help": "Epochs done, their evaluation included."})
    position: int = field(default=0, metadata={"help": "Optimizer steps done of the epoch under way."})
    samples: int = field(default=0, metadata={"help": "Samples trained on, over all processes."})
    seconds: float = field(default=0.0, metadata={"help": "Wall time so far, evaluation and checkpoints included."})
    training_seconds: float = field(default=0.0, metadata={"help": "Wall time of optimizer steps alone."})
    loss_sums: list[list[float]] = field(
        default_factory=list,
        metadata={"help": "Per process, its part of the sum of step losses: of the epoch, and since the last log line."},
    )
    window_steps: int = field(default=0, metadata={"help": "Optimizer steps since the last log line."})
    history: list[dict[str, Any]] = field(default_factory=list, metadata={"help": "One entry per evaluation."})
    best: dict[str, Any] | None = field(default=None, metadata={"help": "The best evaluation's entry."})
    best_weights: str | None = field(default=None, metadata={"help": "File of the best weights, in `best/`."})
    evaluations_since_best: int = field(default=0, metadata={"help": "Evaluations without improvement."})
    stopped_by: str | None = field(default=None, metadata={"help": "Why the run is finished; null while it is not."})
    log_bytes: int = field(default=0, metadata={"help": "Size of the log that belongs to this state."})


@contextmanager
def _without_tied_weights_warning() -> Iterator[None]:
    """Accelerate warns at every save that tied weights are stored once, which is as it should be."""

    def other(record: logging.LogRecord) -> bool:
        return "Removed shared tensor" not in record.getMessage()

    source = logging.getLogger("accelerate.utils.other")
    source.addFilter(other)
    try:
        yield
    finally:
        source.removeFilter(other)


@contextmanager
def own_storage(model: nn.Module) -> Iterator[None]:
    """No weight of `model` is a part of a larger buffer inside the block.

    On a GPU cuDNN lays all weights of a recurrent network into one buffer. Accelerate and safetensors take tensors of one storage for tied
    ones: the first saves only one of them, the other refuses to save and to load. Afterwards they are laid together again.
    """
    parts = [weight for weight in model.parameters() if weight.nbytes < weight.untyped_storage().nbytes()]
    for weight in parts:
        weight.data = weight.data.clone()
    try:
        yield
    finally:
        for module in model.modules() if parts else ():
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()


class CheckpointStore:
    """`folder/checkpoints/step_…` (what a run continues from) and `folder/best/step_….safetensors` (the best weights).

    Every process calls every method, together with the others.

    Args:
        folder: the run's folder.
        accelerator: holds the prepared model, optimizer and scheduler.
        settings: JSON values that determine the run; a checkpoint with others is refused.
        keep: checkpoints to keep.
        average: saved and restored along, if the run keeps one.
    """

    def __init__(
        self, folder: Path, accelerator: Accelerator, settings: Mapping[str, Any], keep: int, average: WeightAverage | None = None
    ) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.best = folder / "best"
        self.accelerator = accelerator
        self.settings = json.loads(json.dumps(settings))
        self.keep = keep
        self.average = average

    def complete(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(self.checkpoints.glob("step_*"))

    def save(self, progress: Progress) -> None:
        """Write a checkpoint and drop old ones with the best weights only they refer to."""
        final = self.checkpoints / f"step_{progress.step:08d}"
        scratch = final.with_name(f".{final.name}.partial")
        if self.accelerator.is_main_process:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        with _without_tied_weights_warning(), self._own_storage():
            self.accelerator.save_state(str(scratch), safe_serialization=True)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            if self.average is not None:
                self.average.save(scratch / AVERAGE_NAME)
            write_json(scratch / PROGRESS_NAME, {"settings": self.settings, "progress": asdict(progress)})
            replace_folder(scratch, final)
            self._prune(1 if progress.stopped_by else self.keep)
        self.accelerator.wait_for_everyone()

    def load_latest(self) -> Progress | None:
        """Restore model, optimizer, scheduler, average and random states from the newest checkpoint; None without one.

        Raises:
            CEMGError: the checkpoint was made with other settings, or its files are incomplete.
        """
        if self.accelerator.is_main_process:
            self._repair()
        self.accelerator.wait_for_everyone()
        found = self.complete()
        if not found:
            return None
        content = json.loads((found[-1] / PROGRESS_NAME).read_text())
        self._check_settings(found[-1], content["settings"])
        # Accelerate only logs when it cannot restore random states; a run would go on, but differently.
        if not (found[-1] / f"random_states_{self.accelerator.process_index}.pkl").is_file():
            raise CEMGError(
                f"{found[-1]}: random states of process {self.accelerator.process_index} are missing; delete this checkpoint folder"
            )
        with self._own_storage():
            self.accelerator.load_state(str(found[-1]))
        if self.average is not None:
            self.average.load(found[-1] / AVERAGE_NAME)
        return Progress(**content["progress"])

    def save_best(self, model: nn.Module, step: int) -> str:
        """Write the weights of a new best evaluation and return the file's name; older ones stay for the checkpoints that need them."""
        name = f"step_{step:08d}.safetensors"
        if self.accelerator.is_main_process:
            self.best.mkdir(parents=True, exist_ok=True)
            scratch = self.best / f".{name}.partial"
            with own_storage(model):
                save_model(model, str(scratch))
            scratch.replace(self.best / name)
        return name

    def restore_best(self, model: nn.Module, name: str) -> None:
        """Load the best weights into the model, in place."""
        if not (self.best / name).is_file():
            raise CEMGError(f"{self.best / name}: the best weights of the run are missing; delete {self.folder} to train again")
        with own_storage(model):
            load_model(model, self.best / name)

    @contextmanager
    def _own_storage(self) -> Iterator[None]:
        """`own_storage` of every prepared model."""
        with ExitStack() as stack:
            for model in self.accelerator._models:
                stack.enter_context(own_storage(model))
            yield

    def _check_settings(self, checkpoint: Path, made_with: Mapping[str, Any]) -> None:
        names = sorted(made_with.keys() | self.settings.keys())
        changed = [
            f"{name} {made_with.get(name)!r} → {self.settings.get(name)!r}"
            for name in names
            if made_with.get(name) != self.settings.get(name)
        ]
        if changed:
            raise CEMGError(
                f"{checkpoint}: was made with other settings ({', '.join(changed)}); "
                f"delete {self.folder} to start over, or choose another output folder"
            )

    def _repair(self) -> None:
        """Undo what a kill in the middle of `save` leaves behind."""
        for leftover in self.checkpoints.glob(".step_*.old"):
            final = leftover.with_name(re.sub(r"^\.(.*)\.old$", r"\1", leftover.name))
            if not final.exists():
                leftover.rename(final)
        for leftover in [*self.checkpoints.glob(".step_*"), *self.best.glob(".step_*")]:
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()

    def _prune(self, keep: int) -> None:
        found = self.complete()
        for old in found[:-keep]:
            # Out of sight first: a kill during the removal must not leave half a folder under a checkpoint's name.
            removed = old.with_name(f".{old.name}.partial")
            old.rename(removed)
            shutil.rmtree(removed)
        needed = {json.loads((path / PROGRESS_NAME).read_text())["progress"]["best_weights"] for path in found[-keep:]}
        for weights in self.best.glob("step_*.safetensors"):
            if weights.name not in needed:
                weights.unlink()
