"""What tables and figures of results have in common: names as people read them, colours, and the way to a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import CEMGError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SLICE_TITLES = {
    "test": "Test",
    "test_excluding_history": "Test, history items excluded",
    "test_cold": "Cold start",
    "test_cold_excluding_history": "Cold start, history items excluded",
    "test_cold_0": "Cold start, 0 training interactions",
    "test_cold_0_excluding_history": "Cold start, 0 training interactions, history items excluded",
    "test_cold_1_5": "Cold start, 1–5 training interactions",
    "test_cold_1_5_excluding_history": "Cold start, 1–5 training interactions, history items excluded",
}
# Okabe & Ito: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")


def slice_title(slice_name: str) -> str:
    """What a slice is called in headings."""
    return SLICE_TITLES.get(slice_name, slice_name.replace("_", " ").capitalize())


def metric_label(metric: str) -> str:
    """ "ndcg@10" -> "NDCG@10"; "coverage@10" -> "Coverage@10"."""
    name, at, k = metric.partition("@")
    return {"hr": "HR", "ndcg": "NDCG", "mrr": "MRR", "n": "n"}.get(name, name.replace("_", " ").capitalize()) + at + k


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    # Imported here: metrics are computed in many processes that draw nothing. A bare Figure draws through Agg, without a display.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=150)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure atomically; its suffix (.png, .svg, .pdf) is the format. Raises CEMGError for another one."""
    path = Path(path)
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise CEMGError(f'{path}: figures are written as .png, .svg or .pdf, not "{path.suffix}"')
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.partial")
    figure.savefig(scratch, format=path.suffix[1:])
    scratch.replace(path)


def whiskers(values: Sequence[float | int | None], intervals: Sequence[Sequence[float] | None]) -> np.ndarray:
    """(2, values) lengths of the error bars below and above; 0 where there is no interval."""
    lengths = [
        (0.0, 0.0) if value is None or not interval else (value - interval[0], interval[1] - value)
        for value, interval in zip(values, intervals, strict=True)
    ]
    return np.maximum(np.array(lengths, dtype=float).T, 0)
