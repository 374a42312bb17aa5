"""The protocol: full ranking, leave-one-out, with and without the items already in the history, and the cold-start slices.

Cold start means few *training* interactions of the target item; the items themselves are all known. Every slice carries its
number of cases, because a slice of 40 cases says little whatever its mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import CEMGError
from .metrics import DEFAULT_KS, check_rankings, check_width, checked_ks, hit_ranks, mean_metrics, per_case_metrics

# The list length at which what is recommended (not whether it hits) is described.
COVERAGE_AT = 10
EXCLUDING = "_excluding_history"

SliceMetrics: TypeAlias = dict[str, float | int | None]


def evaluate_rankings(
    ranked: np.ndarray,
    ranked_excluding_history: np.ndarray,
    targets: np.ndarray,
    train_item_counts: np.ndarray,
    cold_threshold: int = 5,
    ks: Sequence[int] = DEFAULT_KS,
) -> dict[str, SliceMetrics]:
    """All figures of one system on one set of cases.

    Args:
        ranked: (cases, places) item indices of the whole catalogue's ranking, best first, -1 behind a shorter list.
        ranked_excluding_history: the same with the items of each history left out.
        targets: (cases,) the item that came next.
        train_item_counts: (items,) training interactions of every catalogue item.
        cold_threshold: a target with at most this many training interactions is cold.
        ks: cut-offs; both rankings need max(ks) places, and at least 10.

    Returns:
        Slices "test", "test_cold" (targets with 0 … threshold training interactions), "test_cold_0" and "test_cold_1_5" (its two
        parts), each also with the suffix "_excluding_history". A slice holds "hr@K" and "ndcg@K" (None if it is empty) and "n", its
        number of cases. The two whole slices also hold "coverage@10", the share of the catalogue that stands in at least one top 10,
        and "popularity_percentile@10", the mean percentile of the recommended items in training popularity (0.5 for random items, near
        1 for popular ones).

    Raises:
        CEMGError: rankings that are too narrow, list an item twice or hold what is no item; targets outside the catalogue.
    """
    targets, counts = np.asarray(targets), np.asarray(train_item_counts)
    if cold_threshold < 1:
        raise CEMGError(f"cold_threshold: {cold_threshold}; it must be at least 1")
    if targets.ndim != 1 or counts.ndim != 1:
        raise CEMGError(f"targets and train_item_counts: shapes {targets.shape} and {counts.shape}; both must be one-dimensional")
    if len(targets) and targets.max() >= len(counts):
        raise CEMGError(f"targets: item index {targets.max()} is outside the catalogue of {len(counts)} items; use one dataset for both")
    slices = cold_start_slices(targets, counts, cold_threshold)
    results: dict[str, SliceMetrics] = {}
    for suffix, lists in (("", ranked), (EXCLUDING, ranked_excluding_history)):
        name = "ranked" + suffix
        check_width(lists, [*checked_ks(ks), COVERAGE_AT], name)
        check_rankings(lists, len(counts), name)
        values = per_case_metrics(hit_ranks(lists, targets), ks)
        for part, rows in slices.items():
            results[part + suffix] = {**mean_metrics({key: array[rows] for key, array in values.items()}), "n": int(rows.sum())}
        results["test" + suffix].update(describe_recommendations(lists, counts))
    return results


def cold_start_slices(targets: np.ndarray, train_item_counts: np.ndarray, cold_threshold: int = 5) -> dict[str, np.ndarray]:
    """Boolean masks (cases,) of the slices of `evaluate_rankings`, "test" (every case) among them."""
    seen = train_item_counts[targets.astype(np.int64)]
    return {
        "test": np.ones(len(targets), dtype=bool),
        "test_cold": seen <= cold_threshold,
        "test_cold_0": seen == 0,
        f"test_cold_1_{cold_threshold}": (seen >= 1) & (seen <= cold_threshold),
    }


def describe_recommendations(ranked: np.ndarray, train_item_counts: np.ndarray, k: int = COVERAGE_AT) -> dict[str, float | None]:
    """Catalogue coverage and mean popularity percentile of the first k places of `ranked`; None if nothing is recommended.

    The percentile of an item is the share of the catalogue with fewer training interactions, ties counted half; its mean over the
    catalogue is therefore exactly 0.5.
    """
    top = np.asarray(ranked)[:, :k]
    recommended = np.bincount(top[top >= 0].astype(np.int64), minlength=len(train_item_counts))
    coverage_name, percentile_name = f"coverage@{k}", f"popularity_percentile@{k}"
    if recommended.sum() == 0:
        return {coverage_name: None, percentile_name: None}
    _, inverse, sizes = np.unique(train_item_counts, return_inverse=True, return_counts=True)
    percentile = ((np.cumsum(sizes) - sizes / 2) / len(train_item_counts))[inverse]
    return {coverage_name: float((recommended > 0).mean()), percentile_name: float(recommended @ percentile / recommended.sum())}


def predictions_table(
    user_ids: Sequence[str], item_ids: Sequence[str], ranked: np.ndarray, scores: np.ndarray, targets: np.ndarray
) -> pa.Table:
    """Ranked lists in the ids of the data: columns user_id, target, items (list of string), scores (list of float32).

    Args:
        user_ids: the user of every case (cases, not all users of the data set).
        item_ids: the catalogue, by item index.
        ranked: (cases, places) item indices; -1 (no item) leaves the list shorter.
        scores: (cases, places) finite wherever there is an item.
        targets: (cases,) item indices.
    """
    ranked, scores, targets = np.asarray(ranked), np.asarray(scores), np.asarray(targets)
    if not len(user_ids) == len(ranked) == len(targets) or scores.shape != ranked.shape:
        shapes = f"{len(user_ids)} users, ranked {ranked.shape}, scores {scores.shape}, targets {targets.shape}"
        raise CEMGError(f"predictions: {shapes} do not fit together; pass one row per case")
    check_rankings(ranked, len(item_ids))
    if len(targets) and not 0 <= targets.min() <= targets.max() < len(item_ids):
        raise CEMGError(f"targets: item indices must lie between 0 and {len(item_ids) - 1}; found {targets.min()} to {targets.max()}")
    present = ranked >= 0
    if not np.isfinite(scores[present]).all():
        raise CEMGError("scores: an item in the list has a score that is not finite; look for a diverged model")
    catalogue = pa.array(item_ids, type=pa.string())
    offsets = pa.array(np.concatenate([[0], present.sum(axis=1).cumsum()]), type=pa.int32())
    return pa.table(
        {
            "user_id": pa.array(user_ids, type=pa.string()),
            "target": catalogue.take(pa.array(targets, type=pa.int64())),
            "items": pa.ListArray.from_arrays(offsets, catalogue.take(pa.array(ranked[present], type=pa.int64()))),
            "scores": pa.ListArray.from_arrays(offsets, pa.array(scores[present], type=pa.float32())),
        }
    )


def write_predictions(path: str | Path, table: pa.Table) -> None:
    """Write a table of predictions as Parquet, atomically (a reader sees the old file or the new one)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.partial")
    pq.write_table(table, scratch, compression="zstd")
    scratch.replace(path)
