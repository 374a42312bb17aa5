"""How long a trained system takes to answer: milliseconds per user, one user at a time and in batches."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import EvaluationCases, PreparedDataset
from .evaluate import load_generator
from .measurement import measured_once, measurement_manifest
from .systems import FAMILIES

if TYPE_CHECKING:
    from ..recipes import Recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LatencyConfig:
    """What is timed."""

    batch_sizes: tuple[int, ...] = field(default=(1, 64), metadata={"help": "Users who are answered at once."})
    batches: int = field(default=20, metadata={"help": "Batches that are timed at each size, after one that is not; the median counts."})
    k: int = field(default=10, metadata={"help": "Items per list, those of the history left out."})


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
        NothingToMeasure: the run's data set or model is missing.
        OutOfTime: it was not measured yet, and the time of this call is used up.
    """
    config = LatencyConfig() if config is None else config

    def measure() -> dict[str, float]:
        data = PreparedDataset.load(folders["prepare"])
        cases = data.evaluation_cases("test")
        answer = answers(recipe, folders, data, cases, config.k)
        generator = np.random.default_rng(recipe.seed)
        found: dict[str, float] = {}
        for size in config.batch_sizes:
            batches = [generator.choice(len(cases), min(size, len(cases)), replace=False) for _ in range(config.batches + 1)]
            seconds = [_timed(answer, rows) / len(rows) for rows in batches]
            found[f"batch_{size}_ms"] = 1000 * float(np.median(seconds[1:]))
        logger.info("latency of %s: %s", recipe.system, ", ".join(f"{name} {value:.2f}" for name, value in found.items()))
        return found

    settings = asdict(config) | {"num_beams": recipe.evaluate.num_beams}
    return measured_once(output, measurement_manifest("latency", recipe, folders, settings), measure)


def answers(
    recipe: Recipe, folders: Mapping[str, Path], data: PreparedDataset, cases: EvaluationCases, k: int
) -> Callable[[np.ndarray], Any]:
    """The call that a request is: rows of `cases` in, lists of k out."""
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
