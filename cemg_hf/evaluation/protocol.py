"""The protocol: full ranking, with and without the items already in the history, the cold-start slices, and how sure the means are.

Cold start means few *training* interactions of the target item; the items themselves are all known. Every slice carries its
number of cases, because a slice of 40 cases says little whatever its mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np

from ..errors import CEMGError
from .beyond_accuracy import DESCRIBED_AT, ItemVectors, case_descriptions, describe_recommendations
from .confidence import bootstrap_interval
from .metrics import DEFAULT_KS, check_rankings, check_width, checked_ks, hit_ranks, mean_metrics, per_case_metrics

EXCLUDING = "_excluding_history"

SliceMetrics: TypeAlias = dict[str, float | int | None]


def evaluate_rankings(
    ranked: np.ndarray,
    ranked_excluding_history: np.ndarray,
    targets: np.ndarray,
    train_item_counts: np.ndarray,
    cold_threshold: int = 5,
    ks: Sequence[int] = DEFAULT_KS,
    item_vectors: ItemVectors | None = None,
) -> dict[str, SliceMetrics]:
    """All figures of one system on one set of cases.

    Args:
        ranked: (cases, places) item indices of the whole catalogue's ranking, best first, -1 behind a shorter list.
        ranked_excluding_history: the same with the items of each history left out.
        targets: (cases,) the item that came next.
        train_item_counts: (items,) training interactions of every catalogue item.
        cold_threshold: a target with at most this many training interactions is cold.
        ks: cut-offs; both rankings need max(ks) places, and at least 10.
        item_vectors: (items, d) vectors that say how alike two items are; without them there is no "intra_list_distance@10".

    Returns:
        Slices "test", "test_cold" (targets with 0 … threshold training interactions), "test_cold_0" and "test_cold_1_5" (its two
        parts), each also with the suffix "_excluding_history". A slice holds "hr@K", "ndcg@K" and "mrr@K" (None if it is empty) and
        "n", its number of cases. The two whole slices also hold what `beyond_accuracy` says of the lists: "coverage@10",
        "popularity_percentile@10", "average_popularity@10", "gini@10", "inter_user_diversity@10", "intra_list_distance@10".

    Raises:
        CEMGError: rankings that are too narrow, list an item twice or hold what is no item; targets outside the catalogue.
    """
    targets, counts = _checked_targets(targets, train_item_counts, cold_threshold)
    slices = cold_start_slices(targets, counts, cold_threshold)
    results: dict[str, SliceMetrics] = {}
    for suffix, lists, values in _case_values(ranked, ranked_excluding_history, targets, len(counts), ks):
        for part, rows in slices.items():
            results[part + suffix] = {**mean_metrics({key: array[rows] for key, array in values.items()}), "n": int(rows.sum())}
        results["test" + suffix].update(describe_recommendations(lists, counts, item_vectors))
    return results


def ranking_intervals(
    ranked: np.ndarray,
    ranked_excluding_history: np.ndarray,
    targets: np.ndarray,
    train_item_counts: np.ndarray,
    cold_threshold: int = 5,
    ks: Sequence[int] = DEFAULT_KS,
    item_vectors: ItemVectors | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, dict[str, list[float] | None]]:
    """Percentile bootstrap intervals over users of the figures of `evaluate_rankings` that are means over users.

    Coverage, concentration and diversity between users have none: a resample repeats users, so it covers less of the catalogue than
    the users it was drawn from, and its interval would not hold the figure itself.

    Args: as for `evaluate_rankings`; resamples, seed, level: as `n`, `seed` and `level` of `bootstrap_interval`.

    Returns:
        slice -> metric -> [low, high], None where a slice has no case.
    """
    targets, counts = _checked_targets(targets, train_item_counts, cold_threshold)
    slices = cold_start_slices(targets, counts, cold_threshold)
    results: dict[str, dict[str, list[float] | None]] = {}

    def interval(values: np.ndarray) -> list[float] | None:
        known = values[~np.isnan(values)]
        if len(known) == 0:
            return None
        found = bootstrap_interval(known, resamples, seed, level)
        return [found.low, found.high]

    for suffix, lists, values in _case_values(ranked, ranked_excluding_history, targets, len(counts), ks):
        for part, rows in slices.items():
            results[part + suffix] = {key: interval(array[rows]) for key, array in values.items()}
        described = case_descriptions(lists, counts, item_vectors)
        results["test" + suffix].update({key: interval(array) for key, array in described.items()})
    return results


def _checked_targets(targets: np.ndarray, train_item_counts: np.ndarray, cold_threshold: int) -> tuple[np.ndarray, np.ndarray]:
    targets, counts = np.asarray(targets), np.asarray(train_item_counts)
    if cold_threshold < 1:
        raise CEMGError(f"cold_threshold: {cold_threshold}; it must be at least 1")
    if targets.ndim != 1 or counts.ndim != 1:
        raise CEMGError(f"targets and train_item_counts: shapes {targets.shape} and {counts.shape}; both must be one-dimensional")
    if len(targets) and targets.max() >= len(counts):
        raise CEMGError(f"targets: item index {targets.max()} is outside the catalogue of {len(counts)} items; use one dataset for both")
    return targets, counts


def _case_values(
    ranked: np.ndarray, ranked_excluding_history: np.ndarray, targets: np.ndarray, items: int, ks: Sequence[int]
) -> Iterator[tuple[str, np.ndarray, dict[str, np.ndarray]]]:
    """Of both rankings: its suffix, its checked lists, and the accuracy of every case."""
    for suffix, lists in (("", ranked), (EXCLUDING, ranked_excluding_history)):
        name = "ranked" + suffix
        check_width(lists, [*checked_ks(ks), DESCRIBED_AT], name)
        check_rankings(lists, items, name)
        yield suffix, lists, per_case_metrics(hit_ranks(lists, targets), ks)


def cold_start_slices(targets: np.ndarray, train_item_counts: np.ndarray, cold_threshold: int = 5) -> dict[str, np.ndarray]:
    """Boolean masks (cases,) of the slices of `evaluate_rankings`, "test" (every case) among them."""
    seen = train_item_counts[targets.astype(np.int64)]
    return {
        "test": np.ones(len(targets), dtype=bool),
        "test_cold": seen <= cold_threshold,
        "test_cold_0": seen == 0,
        f"test_cold_1_{cold_threshold}": (seen >= 1) & (seen <= cold_threshold),
    }
