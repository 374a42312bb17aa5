"""What an optimizer step of a generator costs under either softmax: over all codes of a level, or over the permissible ones."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate.utils import send_to_device

from ..data import PreparedDataset
from .dropout import use_byte_dropout
from .evaluate import load_generator
from .finetune import has_repeats, training_batches
from .identifiers import load_identifiers
from .measurement import measured_once, measurement_manifest
from .optimizer import build_optimizer
from .sampler import GlobalBatchSampler

if TYPE_CHECKING:
    from ..recipes import Recipe

logger = logging.getLogger(__name__)

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepConfig:
    """What is timed."""

    steps: int = field(default=16, metadata={"help": "Batches that are timed under each softmax, after one that is not."})


def measure_steps(recipe: Recipe, folders: Mapping[str, Path], output: Path, config: StepConfig | None = None) -> dict[str, float]:
    """Time optimizer steps of a trained generator; read from `output` where they were measured on this machine already.

    Batches are spread over an epoch (those of similar length lie together), and both kinds of step take turns on each of them, so that
    a busy machine slows both alike. Weights move as in training, in memory only.

    Args:
        recipe: the experiment.
        folders: stage → folder of its finished run.
        output: folder to write.
        config: what is timed (default: `StepConfig()`).

    Returns: median milliseconds: `all_codes_ms`, `permissible_ms`, and `ms`, the one of them that the recipe trains by;
    `permissible_extra`: the median over batches of how much more the permissible step takes, as a share of the other, in seconds of the
    processor on a CPU, which what else runs there changes little, and in seconds on a GPU.

    Raises:
        NothingToMeasure: the run's data set or model is missing.
        OutOfTime: it was not measured yet, and the time of this call is used up.
    """
    config = StepConfig() if config is None else config

    def measure() -> dict[str, float]:
        step = _Steps(recipe, folders)
        first, *timed = step.batches(config.steps + 1)
        for constrained in (False, True):
            step(first, constrained)
        taken = np.empty((len(timed), 2, 2))
        for number, batch in enumerate(timed):
            for constrained in (False, True) if number % 2 else (True, False):  # the second finds the batch's memory warm
                taken[number, int(constrained)] = step(batch, constrained)
        everything, permissible = np.median(taken[..., 0], axis=0)
        work = taken[..., 0 if step.model.device.type == "cuda" else 1]
        found = {
            "ms": 1000 * float(permissible if recipe.finetune.objective.constrained else everything),
            "all_codes_ms": 1000 * float(everything),
            "permissible_ms": 1000 * float(permissible),
            "permissible_extra": float(np.median(work[:, 1] / work[:, 0])) - 1,
        }
        logger.info(
            "training step of %s: %.0f ms over all codes, %.0f over the permissible", recipe.system, 1e3 * everything, 1e3 * permissible
        )
        return found

    return measured_once(output, measurement_manifest("steps", recipe, folders, asdict(config)), measure)


class _Steps:
    """Optimizer steps as the training loop takes them, on one process."""

    def __init__(self, recipe: Recipe, folders: Mapping[str, Path]) -> None:
        self.config, self.seed = recipe.finetune, recipe.seed
        data = PreparedDataset.load(folders["prepare"])
        torch.manual_seed(recipe.seed)
        self.model = load_generator(folders["finetune"], data)
        assert self.model.tokenizer is not None
        self.config.objective.apply(self.model, has_repeats(data.train_sequences()))
        if self.model.dense is not None:
            self.model.dense.requires_grad_(False)
        use_byte_dropout(self.model)
        identifiers = load_identifiers(folders["tokenize"], self.model.tokenizer)
        self.windows, self.collate = training_batches(self.config, self.model, data, identifiers, recipe.seed, recipe.streams)
        self.model.train()
        fused = self.model.device.type in ("cpu", "cuda")
        self.optimizer, self.schedule = build_optimizer(self.model, self.config.loop, total_steps=1000, fused=fused)

    def batches(self, count: int) -> list[list[int]]:
        """Windows of so many batches, spread over an epoch."""
        size = self.config.loop.batch_size
        sampler = GlobalBatchSampler(len(self.windows), size, self.seed, lengths=self.windows.size)
        order = sampler.order(0)
        whole = max(1, len(order) // size)
        return [order[start * size : (start + 1) * size].tolist() for start in (number * whole // count for number in range(count))]

    def __call__(self, batch: list[int], constrained: bool) -> tuple[float, float]:
        """Seconds, and seconds of the processor, of one step on these windows."""
        self.model.config.constrained_softmax = constrained
        device = self.model.device
        started, worked = time.perf_counter(), time.process_time()
        inputs = send_to_device(self.collate(batch), device)
        precision = self.config.loop.mixed_precision
        with torch.autocast(device.type, dtype=PRECISIONS.get(precision, torch.bfloat16), enabled=precision in PRECISIONS):
            loss = self.model(**inputs).loss
        loss.backward()
        if self.config.loop.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.loop.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started, time.process_time() - worked
