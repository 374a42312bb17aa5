"""Settings of the training loop, and what it reports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..artefacts import fingerprint
from ..errors import CEMGError

SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup", "inverse_sqrt": "inverse_sqrt"}
PRECISIONS = ("no", "bf16", "fp16")
FREE_TO_CHANGE = ("time_budget_s", "log_every_steps", "tracker", "checkpoint_every_s", "keep_checkpoints", "dataloader_workers")
AT_LEAST = {
    1: ("epochs", "batch_size", "gradient_accumulation_steps", "eval_every", "max_steps", "keep_checkpoints", "log_every_steps"),
    0: (
        *("weight_decay", "warmup_ratio", "warmup_steps", "max_grad_norm", "ema_decay"),
        *("patience", "time_budget_s", "checkpoint_every_s", "dataloader_workers"),
    ),
}


@dataclass
class LoopConfig:
    """Settings of the training loop. AdamW; weight decay spares norms, biases (all vectors) and embeddings."""

    epochs: int = field(default=30, metadata={"help": "Passes over the training samples; also the length of the learning-rate schedule."})
    batch_size: int = field(default=256, metadata={"help": "Samples per optimizer step, over all processes and accumulation steps."})
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "Micro-batches a process cuts its share of a step into; saves memory."}
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.01, metadata={"help": "Decoupled weight decay of weight matrices."})
    warmup_ratio: float = field(default=0.05, metadata={"help": "Share of all steps over which the learning rate rises from 0."})
    warmup_steps: int | None = field(default=None, metadata={"help": "Warm-up as a number of steps; wins over warmup_ratio."})
    schedule: str = field(default="cosine", metadata={"help": "Learning rate after the warm-up: cosine, linear, constant or inverse_sqrt."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are scaled down to this norm; 0 = off."})
    mixed_precision: str = field(default="no", metadata={"help": "no (fp32), bf16, or fp16 (GPU only)."})
    ema_decay: float = field(
        default=0.0, metadata={"help": "Decay of a moving average of the weights, evaluated and returned in their place; 0 = off."}
    )
    eval_every: int = field(default=1, metadata={"help": "Epochs between evaluations; the last epoch is always evaluated."})
    patience: int = field(default=10, metadata={"help": "Evaluations without improvement after which training stops; 0 = never."})
    metric_for_best: str = field(
        default="ndcg@10", metadata={"help": "Metric (higher is better) that chooses the best weights; empty: the last ones win."}
    )
    label_key: str = field(
        default="labels", metadata={"help": "Entry of a batch that holds the targets; -100 marks positions without one."}
    )
    max_steps: int | None = field(default=None, metadata={"help": "Stop after this many optimizer steps; shortens the schedule too."})
    time_budget_s: float | None = field(
        default=None, metadata={"help": "Stop cleanly after this many seconds of one call; calling again continues."}
    )
    checkpoint_every_s: float = field(
        default=600.0, metadata={"help": "Seconds between checkpoints within an epoch; each epoch ends with one."}
    )
    keep_checkpoints: int = field(default=2, metadata={"help": "Checkpoints to keep."})
    log_every_steps: int = field(default=50, metadata={"help": "Optimizer steps between log lines."})
    tracker: str = field(default="none", metadata={"help": "none, tensorboard, trackio, or another of Accelerate's trackers."})
    dataloader_workers: int = field(
        default=0, metadata={"help": "Processes that load batches; keep 0 if dataset or collate_fn draw from random states."}
    )
    compile: bool = field(default=False, metadata={"help": "Compile the model with torch.compile; a GPU then replays CUDA graphs."})

    def __post_init__(self) -> None:
        for bound, names in AT_LEAST.items():
            for name in names:
                value = getattr(self, name)
                if value is not None and value < bound:
                    raise CEMGError(f"{name}: must be at least {bound}, got {value}")
        if not self.learning_rate > 0:
            raise CEMGError(f"learning_rate: must be above 0, got {self.learning_rate}")
        for name in ("warmup_ratio", "ema_decay"):
            if getattr(self, name) >= 1:
                raise CEMGError(f"{name}: must be below 1, got {getattr(self, name)}")
        for name, choices in (("schedule", tuple(SCHEDULES)), ("mixed_precision", PRECISIONS)):
            if getattr(self, name) not in choices:
                raise CEMGError(f"{name}: unknown value {getattr(self, name)!r}; choose one of {', '.join(choices)}")

    def trajectory(self) -> dict[str, Any]:
        """The settings that decide what a run computes; the others say how it is watched and saved, and may change when it continues."""
        return {name: value for name, value in asdict(self).items() if name not in FREE_TO_CHANGE}


def run_identity(inputs: Mapping[str, str], settings: Mapping[str, Any], *made: bytes) -> str:
    """The `identity` of a run: it continues under the same inputs and settings only, those of its validation among them.

    What chooses the best weights decides the run as much as what trains them. Of the loop's settings, which `train` compares itself, some
    may change.

    Args:
        inputs: fingerprints, as in the manifest of the stage.
        settings: those of the stage; its loop's, under `loop`, are left out.
        made: what else the run starts from.
    """
    beside = {name: value for name, value in settings.items() if name != "loop"}
    return fingerprint(json.dumps({**inputs, **beside}, sort_keys=True), *made)


@dataclass
class TrainingReport:
    """What a training run did, over all calls that continued it."""

    history: list[dict[str, Any]] = field(
        metadata={"help": "Per evaluation: epoch (from 1), step, train_loss, lr, the metrics, seconds so far."}
    )
    best_epoch: int | None = field(metadata={"help": "Epoch of the weights the model was left with; null where nothing was evaluated."})
    best_metrics: dict[str, float] = field(metadata={"help": "Metrics of those weights."})
    stopped_by: str = field(metadata={"help": "epochs, max_steps, patience, or time_budget (unfinished: the same call continues)."})
    seconds: float = field(metadata={"help": "Wall time, evaluations and checkpoints included."})
    steps: int = field(metadata={"help": "Optimizer steps."})
    samples_per_second: float = field(metadata={"help": "Samples per second of training alone."})
