"""The one training loop: every gradient-trained sequence model of the package goes through `train`, around Accelerate."""

from __future__ import annotations

import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, InitProcessGroupKwargs, broadcast_object_list, send_to_device, set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..artefacts import fingerprint
from ..data.collators import IGNORED_LABEL
from ..errors import CEMGError
from .checkpoint import CheckpointStore, Progress
from .deadline import OutOfTime, time_is_up
from .ema import WeightAverage
from .loop_config import LoopConfig, TrainingReport
from .optimizer import build_optimizer
from .run_log import RunLog
from .sampler import GlobalBatchSampler
from .stop_signals import StopSignals

logger = logging.getLogger(__name__)

LOG_NAME = "training_log.jsonl"
# Processes agree on stopping and timed checkpoints only every so many steps: reading the answer waits for the device.
AGREE_EVERY_STEPS = 10
SHARDED = (DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM, DistributedType.XLA)


def train(
    model: nn.Module,
    *,
    config: LoopConfig,
    dataset: Dataset[Any],
    collate_fn: Callable[[list[Any]], Mapping[str, Any]],
    lengths: Sequence[int] | np.ndarray | None = None,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    folder: str | Path,
    seed: int,
    accelerator: Accelerator | None = None,
    identity: str = "",
    on_epoch: Callable[[int], None] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> TrainingReport:
    """Train `model` in place and leave it with its best weights, in evaluation mode.

    The loss of an optimizer step is Σ token losses / its target tokens, over all processes and accumulation steps. A run that was
    killed, interrupted (Ctrl-C and SIGTERM write a checkpoint first) or out of time continues from its last checkpoint in `folder`
    when it is called again with the same settings; on one machine, with deterministic operations, it ends with the very weights
    and metrics of the uninterrupted run. A finished run returns its report and weights at once. The global random states are
    seeded from `seed` (and the process index, so that processes draw different dropout masks).

    Args:
        model: `forward(**batch, num_items_in_batch=n)` returns an object whose `loss` is Σ token losses / n.
        config: settings.
        dataset: map-style data set.
        collate_fn: list of samples → batch, a mapping of tensors with `config.label_key`.
        lengths: length of every sample; batches are then made of samples of similar length.
        evaluate: metrics of the model it is given (in evaluation mode, without gradients, under the run's autocast). Every process
            calls it at the same time, so it may share the work; what it returns on the main process counts. None: the last weights win.
        folder: checkpoints, best weights, `training_log.jsonl` and tracker files of this run.
        seed: seed of sample order and dropout.
        accelerator: an Accelerator of this run alone (default: one made from `config`).
        identity: fingerprint of what else decides the run (data, initial weights), so that its checkpoints are not mixed with another's.
        on_epoch: told the number of an epoch, from 0, before its batches are loaded, also where a run continues within it: what
            `collate_fn` draws has to depend on that number and on the samples alone.
        on_step: told the number of every optimizer step, from 1, right after it: what it changes has to be part of the model's state.

    Raises:
        CEMGError: settings that do not fit the data, the machine or the checkpoint found in `folder`; a loss that is not finite;
            metrics without `config.metric_for_best`.
        OutOfTime: the `time_limit` around this call has passed, with a checkpoint written.
        KeyboardInterrupt, SystemExit: after Ctrl-C or SIGTERM, with a checkpoint written.
    """
    folder = Path(folder)
    accelerator = _accelerator(config, folder) if accelerator is None else accelerator
    _check_accelerator(accelerator, config)
    try:
        report = _Run(
            model, config, dataset, collate_fn, lengths, evaluate, folder, seed, accelerator, identity, on_epoch, on_step
        ).complete()
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
        accelerator.trackers = []
        accelerator.free_memory()
    if report.stopped_by == "time_budget" and time_is_up():
        raise OutOfTime(f"the time of this call is used up; run the same command again to continue from {folder}")
    return report


class _LossOnly(nn.Module):
    """The model reduced to its training loss.

    Accelerate wraps and patches this module and leaves the model itself as it is; logits stay in low precision and are freed early.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Any) -> Tensor:
        return self.model(**batch).loss


class _Run:
    """One call of `train`."""

    def __init__(
        self,
        model: nn.Module,
        config: LoopConfig,
        dataset: Dataset[Any],
        collate_fn: Callable[[list[Any]], Mapping[str, Any]],
        lengths: Sequence[int] | np.ndarray | None,
        evaluate: Callable[[nn.Module], Mapping[str, float]] | None,
        folder: Path,
        seed: int,
        accelerator: Accelerator,
        identity: str,
        on_epoch: Callable[[int], None] | None,
        on_step: Callable[[int], None] | None,
    ) -> None:
        self.model, self.config, self.evaluate, self.accelerator = model, config, evaluate, accelerator
        self.on_epoch, self.on_step = on_epoch, on_step
        self.started = self.last_checkpoint = time.monotonic()
        self.sampler = GlobalBatchSampler(
            len(dataset),  # type: ignore[arg-type]
            config.batch_size,
            seed,
            micro_batches=config.gradient_accumulation_steps,
            num_processes=accelerator.num_processes,
            process_index=accelerator.process_index,
            lengths=lengths,
        )
        self.total_steps = min(config.epochs * self.sampler.steps_per_epoch, config.max_steps or sys.maxsize)
        self.loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=self.sampler,
            collate_fn=collate_fn,
            num_workers=config.dataloader_workers,
            persistent_workers=config.dataloader_workers > 0,
            pin_memory=accelerator.device.type == "cuda",
            # Without a generator of its own the loader draws from the global one whenever an epoch is begun, so also on resuming.
            generator=torch.Generator().manual_seed(seed),
        )

        set_seed(seed, device_specific=True)
        network = _LossOnly(model)
        if config.compile:
            network.compile(mode=compile_mode(accelerator.device.type, config.gradient_accumulation_steps))
        # With fp16 the fused step hides from Accelerate that an overflow skipped it.
        fused = accelerator.device.type in ("cpu", "cuda") and accelerator.mixed_precision != "fp16"
        optimizer, self.schedule = build_optimizer(model, config, self.total_steps, fused=fused)
        self.network, self.optimizer = accelerator.prepare(network, optimizer)
        # Registered for checkpoints, but stepped here: Accelerate's wrapper steps once per process.
        accelerator.prepare_scheduler(self.schedule)
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.average = WeightAverage(model, config.ema_decay) if config.ema_decay else None

        settings = config.trajectory() | {
            "seed": seed,
            "processes": accelerator.num_processes,
            "samples": self.sampler.num_samples,
            "identity": identity,
        }
        settings["lengths"] = None if lengths is None else fingerprint(np.asarray(lengths, dtype=np.int64).tobytes())[:12]
        shapes = [f"{name} {tuple(parameter.shape)} {parameter.requires_grad}" for name, parameter in model.named_parameters()]
        settings["parameters"] = fingerprint(*shapes)[:12]
        self.store = CheckpointStore(folder, accelerator, settings, config.keep_checkpoints, self.average)

        progress = self.store.load_latest()
        self.progress = Progress() if progress is None else progress
        self.seconds_before = self.progress.seconds
        if progress is not None:
            logger.info("%s: continuing after step %d of %d", folder, progress.step, self.total_steps)
        self.loss_sums = torch.zeros(2, device=accelerator.device)
        if self.progress.loss_sums:
            self.loss_sums += torch.tensor(self.progress.loss_sums[accelerator.process_index], device=accelerator.device)
        self.log = RunLog(folder / LOG_NAME, self.progress.log_bytes) if accelerator.is_main_process else None
        _start_tracker(accelerator, config)

    # ---- the run ------------------------------------------------------------------------------------------------------------

    def complete(self) -> TrainingReport:
        """Train until something stops the run, and put the best weights in place."""
        progress = self.progress
        stopped_by = progress.stopped_by
        main = self.accelerator.is_main_process
        with (
            StopSignals() as self.signals,
            tqdm(total=self.total_steps, initial=progress.step, disable=not main, unit="step", dynamic_ncols=True) as self.bar,
        ):
            while stopped_by is None:
                stopped_by = self._train_epoch() or self._end_epoch()
        self.accelerator.wait_for_everyone()
        if progress.best_weights is not None:
            self.store.restore_best(self.model, progress.best_weights)
        elif self.average is not None:
            self.average.copy_to_model()
        self.model.eval()
        best = progress.best or {}
        return TrainingReport(
            history=progress.history,
            best_epoch=best.get("epoch"),
            best_metrics={name: value for name, value in best.items() if name not in ("epoch", "step", "train_loss", "lr", "seconds")},
            stopped_by=stopped_by,
            seconds=round(progress.seconds, 3),
            steps=progress.step,
            samples_per_second=round(progress.samples / max(progress.training_seconds, 1e-9), 2),
        )

    def _train_epoch(self) -> str | None:
        """The optimizer steps that are left of the epoch; "time_budget" where time ends before it."""
        progress, config = self.progress, self.config
        self.sampler.set_position(progress.epoch, progress.position)
        last = min(self.sampler.steps_per_epoch, self.total_steps - progress.step + progress.position)
        if progress.position >= last:
            return None
        self.model.train()
        self.bar.set_description(f"epoch {progress.epoch + 1}/{config.epochs}")
        if self.on_epoch is not None:
            self.on_epoch(progress.epoch)
        batches = iter(self.loader)
        logged_at, logged_samples = time.monotonic(), progress.samples
        for position in range(progress.position, last):
            started = time.monotonic()
            self._step(batches, position)
            progress.step += 1
            progress.position += 1
            progress.samples += self.sampler.samples_in(position)
            progress.window_steps += 1
            if progress.step % config.log_every_steps == 0:
                now = time.monotonic()
                self._log_step((progress.samples - logged_samples) / max(now - logged_at, 1e-9))
                logged_at, logged_samples = now, progress.samples
            progress.training_seconds += time.monotonic() - started
            self.bar.update()
            stop, out_of_time, checkpoint_due = self._agree(wait=False)
            if stop or out_of_time or checkpoint_due:
                self._checkpoint()
            self._leave_on(stop)
            if out_of_time:
                return "time_budget"
        return None

    def _step(self, batches: Iterator[Mapping[str, Any]], position: int) -> None:
        """One optimizer step: the gradient of Σ token losses / target tokens, over all processes and micro-batches."""
        accelerator, key = self.accelerator, self.config.label_key
        count = self.sampler.micro_batches_in(position)
        micro_batches = [dict(batch) for batch in islice(batches, count)]
        for index, batch in enumerate(micro_batches):
            if key not in batch:
                raise CEMGError(
                    f"label_key: collate_fn returns no {key!r} (it returns {', '.join(map(str, batch))}); name the entry with the targets"
                )
            if self.sampler.is_filler(position, index):
                batch[key] = torch.full_like(batch[key], IGNORED_LABEL)
        targets = torch.stack([(batch[key] != IGNORED_LABEL).sum() for batch in micro_batches]).sum()
        targets = targets.to(accelerator.device, non_blocking=True)  # otherwise every step waits here for the one before
        targets = accelerator.reduce(targets, reduction="sum").clamp(min=1)
        # Data parallelism averages gradients over processes and Accelerate divides by its accumulation steps; the loss needs neither.
        scale = accelerator.num_processes * accelerator.gradient_accumulation_steps
        for index, batch in enumerate(micro_batches):
            there = send_to_device(batch, accelerator.device, non_blocking=True)
            if self.config.compile:
                _let_vary(there)
            with nullcontext() if index == count - 1 else accelerator.no_sync(self.network):
                loss = self.network(**there, num_items_in_batch=targets)
                accelerator.backward(loss * scale)
            self.loss_sums += loss.detach()
        if self.config.max_grad_norm:
            accelerator.clip_grad_norm_(self.trained, self.config.max_grad_norm)
        self.optimizer.step()
        if not self.optimizer.step_was_skipped:
            self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.progress.step + 1)
        if self.on_step is not None:
            self.on_step(self.progress.step + 1)

    def _end_epoch(self) -> str | None:
        """Evaluate where it is due, keep the best, write a checkpoint; the reason to stop, if there is one."""
        progress, config = self.progress, self.config
        exhausted = progress.step >= self.total_steps
        row: dict[str, Any] = {"epoch": progress.epoch + 1, "step": progress.step, "train_loss": self._mean_loss(0, progress.position)}
        row["lr"] = self.schedule.get_last_lr()[0]
        if self.evaluate is not None and (exhausted or row["epoch"] % config.eval_every == 0):
            row |= self._metrics()
            row["seconds"] = round(self._seconds(), 3)
            progress.history.append(row)
            wanted = config.metric_for_best
            if not wanted or progress.best is None or row[wanted] > progress.best[wanted]:
                self._keep_best(row)
            else:
                progress.evaluations_since_best += 1
            if config.patience and progress.evaluations_since_best >= config.patience:
                progress.stopped_by = "patience"
            shown = f", {wanted} {row[wanted]:.5f}" if wanted else ""
            logger.info("epoch %d: train loss %.4f%s", row["epoch"], row["train_loss"], shown)
        if exhausted:
            progress.stopped_by = "epochs" if progress.step == config.epochs * self.sampler.steps_per_epoch else "max_steps"
        self._log({"event": "epoch", "seconds": round(self._seconds(), 3), **row})
        progress.epoch += 1
        progress.position = 0
        self.loss_sums[0] = 0
        self._checkpoint()
        stop, out_of_time, _ = self._agree(wait=True)
        if progress.stopped_by is None:
            self._leave_on(stop)
        return progress.stopped_by or ("time_budget" if out_of_time else None)

    def _metrics(self) -> dict[str, float]:
        """The callback's metrics on the main process, given to all."""
        assert self.evaluate is not None
        self.model.eval()
        with self.average.applied() if self.average is not None else nullcontext(), torch.no_grad(), self.accelerator.autocast():
            found: list[Any] = [dict(self.evaluate(self.model))]
        broadcast_object_list(found, from_process=0)
        metrics = {str(name): float(value) for name, value in found[0].items()}
        wanted = self.config.metric_for_best
        if not wanted:
            return metrics
        if wanted not in metrics:
            raise CEMGError(f"metric_for_best: the evaluation returns no {wanted!r}; choose one of {', '.join(metrics) or 'none'}")
        if not math.isfinite(metrics[wanted]):
            raise CEMGError(f"metric_for_best: {wanted} is {metrics[wanted]} after step {self.progress.step}; check the evaluation's cases")
        return metrics

    def _keep_best(self, row: dict[str, Any]) -> None:
        self.progress.best, self.progress.evaluations_since_best = row, 0
        with self.average.applied() if self.average is not None else nullcontext():
            self.progress.best_weights = self.store.save_best(self.model, self.progress.step)

    # ---- watching and stopping ------------------------------------------------------------------------------------------------

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def _agree(self, wait: bool) -> tuple[int, bool, bool]:
        """What all processes do next: signal to leave on (0 = none), whether time is up, whether a checkpoint is due."""
        now, main = time.monotonic(), self.accelerator.is_main_process
        used_up = self.config.time_budget_s is not None and now - self.started >= self.config.time_budget_s
        out_of_time = main and (used_up or time_is_up())
        checkpoint_due = main and now - self.last_checkpoint >= self.config.checkpoint_every_s
        if self.accelerator.num_processes == 1:
            return self.signals.received, out_of_time, checkpoint_due
        if not wait and self.progress.step % AGREE_EVERY_STEPS:
            return 0, False, False
        own = torch.tensor([[self.signals.received, out_of_time, checkpoint_due]], device=self.accelerator.device)
        stop, late, due = self.accelerator.gather(own).amax(dim=0).tolist()
        return stop, bool(late), bool(due)

    def _leave_on(self, stop: int) -> None:
        if stop == signal.SIGINT:
            raise KeyboardInterrupt
        if stop:
            raise SystemExit(128 + stop)

    def _checkpoint(self) -> None:
        self.progress.seconds = self._seconds()
        self.progress.loss_sums = self.accelerator.gather(self.loss_sums.unsqueeze(0)).tolist()
        self.progress.log_bytes = self.log.size if self.log is not None else 0
        self.store.save(self.progress)
        self.last_checkpoint = time.monotonic()

    def _mean_loss(self, which: int, steps: int) -> float:
        """Mean step loss of the epoch (0) or since the last log line (1)."""
        loss = self.accelerator.reduce(self.loss_sums.clone(), reduction="sum")[which].item() / steps
        if not math.isfinite(loss):
            raise CEMGError(
                f"the training loss is {loss} at step {self.progress.step}; "
                "lower learning_rate, or use mixed_precision bf16 or no instead of fp16"
            )
        return loss

    def _log_step(self, rate: float) -> None:
        progress = self.progress
        values = {
            "loss": self._mean_loss(1, progress.window_steps),
            "lr": self.schedule.get_last_lr()[0],
            "samples_per_second": round(rate, 1),
        }
        self.loss_sums[1] = 0
        progress.window_steps = 0
        self.bar.set_postfix({"loss": f"{values['loss']:.4f}", "lr": f"{values['lr']:.2e}", "samples/s": f"{rate:.0f}"}, refresh=False)
        self._log({"event": "step", "step": progress.step, "epoch": progress.epoch + 1, **values, "seconds": round(self._seconds(), 3)})

    def _log(self, row: dict[str, Any]) -> None:
        if self.log is not None:
            self.log.append(row)
        numbers = {f"{row['event']}/{name}": value for name, value in row.items() if name not in ("event", "step")}
        self.accelerator.log(numbers, step=row["step"])


def compile_mode(device_type: str, micro_batches: int) -> str | None:
    """How `torch.compile` makes the one graph of all lengths.

    On a GPU it is replayed as a whole, for each of them, instead of launched kernel by kernel; but a replay writes gradients where the
    last one left them, so it cannot sum them over several micro-batches.
    """
    return "reduce-overhead" if device_type == "cuda" and micro_batches == 1 else None


def _let_vary(batch: Mapping[str, Any]) -> None:
    """Let one compiled graph take batches of other sizes and lengths than this one's."""
    for tensor in batch.values():
        if isinstance(tensor, Tensor):
            torch._dynamo.maybe_mark_dynamic(tensor, list(range(tensor.ndim)))


def _accelerator(config: LoopConfig, folder: Path) -> Accelerator:
    # A process holds one precision, and a run trains networks one after another that differ in theirs. What is known of processes and
    # devices stays.
    AcceleratorState._reset_state()
    try:
        return Accelerator(
            mixed_precision=config.mixed_precision,
            log_with=None if config.tracker == "none" else config.tracker,
            project_dir=str(folder),
            # One process may evaluate while the others wait.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],
        )
    except ValueError as error:
        raise CEMGError(
            f"mixed_precision={config.mixed_precision!r}, tracker={config.tracker!r}: {' '.join(str(error).split())}"
        ) from error


def _check_accelerator(accelerator: Accelerator, config: LoopConfig) -> None:
    if accelerator.distributed_type in SHARDED:
        raise CEMGError(
            f"accelerate: {accelerator.distributed_type.value} is not supported; launch with plain data parallelism (--multi_gpu or --cpu)"
        )
    if accelerator.mixed_precision != config.mixed_precision:
        raise CEMGError(
            f"mixed_precision: the accelerator was made with {accelerator.mixed_precision!r}, the settings say {config.mixed_precision!r}"
        )
    if config.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise CEMGError("mixed_precision: fp16 needs a GPU; use bf16 or no on this machine")


def _start_tracker(accelerator: Accelerator, config: LoopConfig) -> None:
    if config.tracker == "none":
        return
    values = {name: value for name, value in asdict(config).items() if isinstance(value, bool | int | float | str)}
    accelerator.init_trackers("training", config=values)
    if accelerator.is_main_process and not accelerator.trackers:
        raise CEMGError(
            f"tracker: {config.tracker!r} is not installed (pip install {config.tracker}), or the accelerator was made without log_with"
        )
