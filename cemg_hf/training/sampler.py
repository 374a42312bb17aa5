"""Which samples make up which optimizer step, independent of how many processes and micro-batches share the work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from ..errors import CEMGError

BUCKET_BATCHES = 50


class GlobalBatchSampler(Sampler[list[int]]):
    """Shuffled, optionally length-bucketed batches of one optimizer step each, of which a process draws its share.

    An epoch's order depends on (seed, epoch) alone. A global batch is cut into contiguous pieces, dealt to micro-batches first and
    processes second, so that every sample is drawn exactly once per epoch whatever the number of processes. Every process gets
    the same number of micro-batches; where the last, smaller batch does not reach all of them, the piece of a process without
    samples is a *filler* (`is_filler`): one sample that the caller must not learn from.

    With `lengths`, the shuffled samples are sorted by length within buckets of 50 batches and the batches shuffled again, so that
    a batch holds samples of similar length; the last, smaller batch is a random draw.

    Args:
        num_samples: samples of the data set.
        batch_size: samples per optimizer step, over all processes and micro-batches.
        seed: seed of the shuffling.
        micro_batches: pieces a process cuts its share of a step into (gradient accumulation).
        num_processes: processes that share a step.
        process_index: the process that draws here.
        lengths: length of every sample, for bucketing.

    Raises:
        CEMGError: no samples, a batch that does not reach all processes and micro-batches, or lengths of another number of samples.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        *,
        micro_batches: int = 1,
        num_processes: int = 1,
        process_index: int = 0,
        lengths: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        if num_samples < 1:
            raise CEMGError("dataset: holds no samples, so there is nothing to train on; check the data that was prepared")
        if batch_size < micro_batches * num_processes:
            raise CEMGError(
                f"batch_size: {batch_size} samples cannot be shared by {num_processes} processes × {micro_batches} accumulation steps; "
                "raise batch_size or lower gradient_accumulation_steps"
            )
        if lengths is not None and len(lengths) != num_samples:
            raise CEMGError(f"lengths: {len(lengths)} values for a dataset of {num_samples} samples; give one per sample")
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.micro_batches = micro_batches
        self.num_processes = num_processes
        self.process_index = process_index
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.epoch = 0
        self.first_step = 0

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def set_position(self, epoch: int, step: int) -> None:
        """Let the next iteration start at optimizer step `step` of `epoch` (both from 0); earlier batches are never loaded."""
        self.epoch, self.first_step = epoch, step

    def samples_in(self, step: int) -> int:
        """Samples of an optimizer step, over all processes."""
        return min(self.batch_size, self.num_samples - step * self.batch_size)

    def micro_batches_in(self, step: int) -> int:
        """Micro-batches every process draws for an optimizer step; fewer than usual where a small last batch does not fill them."""
        return min(self.micro_batches, -(-self.samples_in(step) // self.num_processes))

    def is_filler(self, step: int, micro_batch: int) -> bool:
        """Whether this process has no samples in a micro-batch and draws one only to take part in it."""
        return micro_batch * self.num_processes + self.process_index >= self.samples_in(step)

    def order(self, epoch: int) -> np.ndarray:
        """(num_samples,) int64: the samples of an epoch; consecutive blocks of `batch_size` are its optimizer steps."""
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(self.num_samples)
        if self.lengths is None:
            return order
        whole = self.num_samples // self.batch_size
        body, rest = np.split(order, [whole * self.batch_size])
        bucket = np.arange(len(body)) // (BUCKET_BATCHES * self.batch_size)
        body = body[np.lexsort((self.lengths[body], bucket))]
        batches = body.reshape(whole, self.batch_size)[generator.permutation(whole)]
        return np.concatenate([batches.ravel(), rest])

    def __iter__(self) -> Iterator[list[int]]:
        """Sample indices of this process's micro-batches, from the position on: `micro_batches_in(step)` lists per optimizer step."""
        order = self.order(self.epoch)
        for step in range(self.first_step, self.steps_per_epoch):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            count = self.micro_batches_in(step)
            pieces = np.array_split(batch, count * self.num_processes)
            for micro_batch in range(count):
                piece = pieces[micro_batch * self.num_processes + self.process_index]
                yield piece.tolist() if len(piece) else batch[:1].tolist()

    def __len__(self) -> int:
        return sum(self.micro_batches_in(step) for step in range(self.first_step, self.steps_per_epoch))
