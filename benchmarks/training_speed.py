"""What an epoch of generator training costs: every prefix of a history in one pass, and length buckets, against the usual ways.

Variants cover the same targets of the same data set: windows whose prefixes are all trained in one pass of an item-causal model
(the package's default) or one sample per prefix (a bidirectional T5, as TIGER trains), with batches of similar length or drawn at
random and padded. Some optimizer steps of each are timed, spread over an epoch and in turns, and scaled to the whole epoch by targets.
All variants have the recipe's batch size, in samples: where a sample is one target, an epoch has more and smaller optimizer steps. CPU
seconds are those of the process over all threads; their standard error is that of the ratio over the timed steps.

    OMP_NUM_THREADS=2 python benchmarks/training_speed.py --run runs/beauty
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bars import draw_bars

from cemg_hf.artefacts import result_envelope, write_json
from cemg_hf.data import PreparedDataset
from cemg_hf.data.collators import TrainingWindows, WindowCollator
from cemg_hf.models.cemg import CEMGForConditionalGeneration
from cemg_hf.recipes import load_recipe
from cemg_hf.training.finetune import FinetuneConfig, build_generator, load_tokenizer
from cemg_hf.training.optimizer import build_optimizer
from cemg_hf.training.sampler import GlobalBatchSampler

DEFAULT_OUTPUT = Path(__file__).parent / "results" / "training_speed.json"
DEFAULT, BASELINE = "all prefixes in one pass, length buckets", "one sample per prefix, padded batches"
VARIANTS = {
    DEFAULT: (True, True),
    "all prefixes in one pass, padded batches": (True, False),
    "one sample per prefix, length buckets": (False, True),
    BASELINE: (False, False),
}
COLUMNS = {
    "CPU s per epoch": "cpu_seconds_per_epoch",
    "± standard error": "cpu_seconds_standard_error",
    "optimizer steps": "steps_per_epoch",
    "epochs per hour": "epochs_per_hour",
    "targets/s": "targets_per_second",
    "tokens/s": "tokens_per_second",
    "padding": "padding",
    "times the CPU seconds of the first": "relative_cost",
}


@dataclass
class Variant:
    """A model with its batches; `step` does one optimizer step of an epoch and returns its cost."""

    model: CEMGForConditionalGeneration
    windows: TrainingWindows
    collate: WindowCollator
    sampler: GlobalBatchSampler
    optimizer: torch.optim.Optimizer
    clip: float
    precision: str

    def step(self, order: np.ndarray, number: int) -> dict[str, float]:
        size = self.sampler.batch_size
        device = self.model.device
        wall, cpu = time.perf_counter(), time.process_time()
        batch = self.collate(order[number * size : (number + 1) * size].tolist())
        inputs = {name: values.to(device) for name, values in batch.items()}
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            loss = self.model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        attended = int(batch["attention_mask"].sum())
        targets = int((batch["labels"] != -100).sum())
        return {
            "wall": time.perf_counter() - wall,
            "cpu": time.process_time() - cpu,
            "tokens": attended + targets,
            "slots": batch["attention_mask"].numel() + batch["labels"].numel(),
            "targets": targets / self.model.config.num_levels,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run folder with dataset/ and tokenizer/")
    parser.add_argument("--recipe", default="beauty", help="whose generator and batch size are used")
    parser.add_argument("--steps", type=int, default=12, help="timed optimizer steps per variant")
    parser.add_argument("--precision", default="no", choices=["no", "bf16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    arguments = parser.parse_args()
    started = time.perf_counter()
    data = PreparedDataset.load(arguments.run / "dataset")
    config = load_recipe(arguments.recipe).finetune
    variants = {name: build(data, arguments, config, *choice) for name, choice in VARIANTS.items()}
    orders = {name: variant.sampler.order(0) for name, variant in variants.items()}
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for repetition in range(arguments.steps + 1):
        for name, variant in variants.items():
            whole = variant.sampler.num_samples // variant.sampler.batch_size
            cost = variant.step(orders[name], (repetition * whole) // (arguments.steps + 1))
            if repetition:  # the first warms up
                measured[name].append(cost)
    metrics = {name: summarise(variants[name], rows) for name, rows in measured.items()}
    for values in metrics.values():
        values["relative_cost"] = values["cpu_seconds_per_epoch"] / metrics[DEFAULT]["cpu_seconds_per_epoch"]
    for name, values in metrics.items():
        print(f"{name}: {values}")
    operators = profile(variants[DEFAULT], orders[DEFAULT])
    print(operators)
    envelope = result_envelope(
        metrics,
        command=shlex.join(["python", *sys.argv]),
        seeds=[arguments.seed],
        seconds=time.perf_counter() - started,
        columns=COLUMNS,
        threads=torch.get_num_threads(),
        profile=operators,
    )
    write_json(arguments.output, envelope)
    rows = [(name, values["cpu_seconds_per_epoch"]) for name, values in metrics.items()]
    draw_bars(arguments.output.with_suffix(".png"), {"": rows}, "CPU seconds per epoch", "s")


def build(data: PreparedDataset, arguments: argparse.Namespace, config: FinetuneConfig, item_causal: bool, buckets: bool) -> Variant:
    """A new generator of the recipe and its batches."""
    torch.manual_seed(arguments.seed)
    config.generator.item_causal = item_causal
    model = build_generator(config.generator, load_tokenizer(arguments.run / "tokenizer", data)).to(arguments.device)
    windows = TrainingWindows(data.train_sequences(), model.config.max_history, item_causal, config.window_stride)
    assert model.tokenizer is not None
    collate = WindowCollator(windows, model.tokenizer.item_tokens, model.config.bos_token_id, item_causal)
    sampler = GlobalBatchSampler(len(windows), config.loop.batch_size, arguments.seed, lengths=windows.size if buckets else None)
    optimizer, _ = build_optimizer(model, config.loop, total_steps=1000, fused=True)
    return Variant(model.train(), windows, collate, sampler, optimizer, config.loop.max_grad_norm, arguments.precision)


def summarise(variant: Variant, rows: list[dict[str, float]]) -> dict[str, Any]:
    """Costs per epoch, from the mean over steps that are spread over one (buckets make steps unequal)."""
    total = {key: sum(row[key] for row in rows) for key in rows[0]}
    epoch_targets = variant.windows.num_targets
    per_target = total["wall"] / total["targets"]
    ratio = total["cpu"] / total["targets"]
    spread = statistics.stdev(row["cpu"] - ratio * row["targets"] for row in rows) / (total["targets"] / len(rows))
    return {
        "cpu_seconds_standard_error": epoch_targets * spread / len(rows) ** 0.5,
        "steps_per_epoch": variant.sampler.steps_per_epoch,
        "cpu_seconds_per_epoch": epoch_targets * total["cpu"] / total["targets"],
        "seconds_per_epoch": epoch_targets * per_target,
        "epochs_per_hour": 3600 / (epoch_targets * per_target),
        "targets_per_second": 1 / per_target,
        "tokens_per_second": total["tokens"] / total["wall"],
        "padding": 1 - total["tokens"] / total["slots"],
        "samples": variant.sampler.num_samples,
        "median_step_ms": 1e3 * statistics.median(row["wall"] for row in rows),
    }


def profile(variant: Variant, order: np.ndarray, top: int = 8) -> dict[str, float]:
    """Share of the CPU (or GPU) time of some steps by operator, the largest first."""
    with torch.profiler.profile() as recorded:
        for number in range(3):
            variant.step(order, number)
    on_gpu = variant.model.device.type == "cuda"
    times = {event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total for event in recorded.key_averages()}
    whole = max(sum(times.values()), 1)
    return {name: round(value / whole, 4) for name, value in sorted(times.items(), key=lambda pair: -pair[1])[:top]}


if __name__ == "__main__":
    main()
