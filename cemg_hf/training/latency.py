"""How long a trained system takes to answer: milliseconds per user, one user at a time and in batches."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..artefacts import Manifest, fingerprint_path, is_current, machine, write_folder, write_json
from ..data import EvaluationCases, PreparedDataset
from .deadline import OutOfTime, time_is_up
from .evaluate import load_generator
from .systems import FAMILIES

if TYPE_CHECKING:
    from ..recipes import Recipe

logger = logging.getLogger(__name__)

LATENCY_NAME = "latency.json"


@dataclass(frozen=True)
class LatencyConfig:
    """What is timed."""

    batch_sizes: tuple[int, ...] = field(default=(1, 64), metadata={"help": "Users who are answered at once."})
    batches: int = field(default=20, metadata={"help": "Batches that are timed at each size, after one that is not; the median counts."})
    k: int = field(default=10, metadata={"help": "Items per list, those of the history left out."})


def latency_manifest(recipe: Recipe, folders: Mapping[str, Path], config: LatencyConfig) -> Manifest:
    """What a measurement depends on, the machine included."""
    where = {"threads": torch.get_num_threads(), **{name: machine()[name] for name in ("processor", "cores", "accelerator")}}
    settings = asdict(config) | where | {"num_beams": recipe.evaluate.num_beams, "system": recipe.system}
    trained = folders["finetune"].is_dir()
    inputs = {"dataset": fingerprint_path(folders["prepare"])} | ({"model": fingerprint_path(folders["finetune"])} if trained else {})
    return Manifest("latency", settings, inputs, recipe.seed)


def measure_latency(recipe: Recipe, folders: Mapping[str, Path], output: Path, config: LatencyConfig | None = None) -> dict[str, float]:
    """Time a trained system on test users drawn by the seed; read from `output` where it was measured on this machine already.

    A generator answers through `recommend`, as many beams as in its evaluation; every other system through its ranker.

    Args:
        recipe: the experiment.
        folders: stage → folder of its finished run.
        output: folder to write.
        config: what is timed (default: `LatencyConfig()`).

    Returns: "batch_<size>_ms" → median milliseconds per user.

    Raises:
        OutOfTime: it was not measured yet, and the time of this call is used up.
    """
    config = LatencyConfig() if config is None else config
    manifest = latency_manifest(recipe, folders, config)
    if not is_current(output, manifest):
        if time_is_up():
            raise OutOfTime(f"{output}: the time of this call is used up; run the same command again to measure it")
        data = PreparedDataset.load(folders["prepare"])
        cases = data.evaluation_cases("test")
        answer = _answers(recipe, folders, data, cases, config.k)
        generator = np.random.default_rng(recipe.seed)
        found: dict[str, float] = {}
        with write_folder(output, manifest) as scratch:
            for size in config.batch_sizes:
                batches = [generator.choice(len(cases), min(size, len(cases)), replace=False) for _ in range(config.batches + 1)]
                seconds = [_timed(answer, rows) / len(rows) for rows in batches]
                found[f"batch_{size}_ms"] = 1000 * float(np.median(seconds[1:]))
            write_json(scratch / LATENCY_NAME, found)
        logger.info("latency of %s: %s", recipe.system, ", ".join(f"{name} {value:.2f}" for name, value in found.items()))
    return json.loads((output / LATENCY_NAME).read_text(encoding="utf-8"))


def _answers(
    recipe: Recipe, folders: Mapping[str, Path], data: PreparedDataset, cases: EvaluationCases, k: int
) -> Callable[[np.ndarray], Any]:
    """The call that is timed: rows of `cases` in, lists out."""
    if recipe.family == "cemg":
        model, ids = load_generator(folders["finetune"], data), data.item_ids
        histories = [[ids[item] for item in history] for history in cases.histories.to_lists()]

        def recommend(rows: np.ndarray) -> Any:
            users = [histories[row] for row in rows]
            return model.recommend(users, k=k, exclude_history=True, num_beams=recipe.evaluate.num_beams, batch_size=len(users))

        return recommend
    rank = FAMILIES[recipe.family].ranker(recipe, folders, data)

    def ranked(rows: np.ndarray) -> Any:
        return rank(EvaluationCases(cases.users[rows], cases.histories.take(rows), cases.targets[rows]), k, exclude_history=True)

    return ranked


def _timed(answer: Callable[[np.ndarray], Any], rows: np.ndarray) -> float:
    started = time.perf_counter()
    answer(rows)  # lists on the host: nothing is left running on a GPU
    return time.perf_counter() - started
