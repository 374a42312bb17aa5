"""The popularity floor against a plain loop, and on real sequences."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cemg_hf.errors import CEMGError
from cemg_hf.evaluation import PopularityRecommender, check_rankings, evaluate_rankings


@dataclass(frozen=True)
class Histories:
    values: np.ndarray
    offsets: np.ndarray


def histories_of(rows: list[list[int]]) -> Histories:
    lengths = [len(row) for row in rows]
    return Histories(
        np.array([item for row in rows for item in row], dtype=np.int64), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=15), st.integers(1, 18), st.data())
def test_against_a_loop(counts: list[int], k: int, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.lists(st.integers(0, len(counts) - 1), max_size=20), max_size=6))
    recommender = PopularityRecommender(np.array(counts))
    by_popularity = sorted(range(len(counts)), key=lambda item: (-counts[item], item))
    for exclude in (False, True):
        expected = []
        for history in rows:
            left = [item for item in by_popularity if not (exclude and item in history)][:k]
            expected.append(left + [-1] * (k - len(left)))
        found = recommender.rank(histories_of(rows), k, exclude_history=exclude)
        assert found.shape == (len(rows), k)
        assert found.tolist() == expected
        check_rankings(found, len(counts))


def test_scores_are_the_counts() -> None:
    recommender = PopularityRecommender(np.array([3, 9, 9]))
    ranked = recommender.rank(histories_of([[1], []]), 3, exclude_history=True)
    assert ranked.tolist() == [[2, 0, -1], [1, 2, 0]]
    assert recommender.scores(ranked).tolist() == [[9, 3, -np.inf], [9, 9, 3]]


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(CEMGError, match="at least one item"):
        PopularityRecommender(np.array([1])).rank(histories_of([[0]]), 0)
    with pytest.raises(CEMGError, match="between 0 and 0"):
        PopularityRecommender(np.array([1])).rank(histories_of([[5]]), 1, exclude_history=True)
    with pytest.raises(CEMGError, match="one count per catalogue item"):
        PopularityRecommender(np.empty(0))


def test_floor_on_beauty(shared_data: Path) -> None:
    """Whole protocol on 22,363 real users, from sequences made here: fast, and no target ever stands in its own history."""
    frame = pl.read_parquet(shared_data / "beauty" / "interactions.parquet").sort("user_id", "timestamp", maintain_order=True)
    items, users = (frame[column].cast(pl.Categorical).to_physical().to_numpy().astype(np.int64) for column in ("item_id", "user_id"))
    items, users = (np.unique(column, return_inverse=True)[1] for column in (items, users))
    order = np.argsort(users, kind="stable")
    items, users = items[order], users[order]
    sizes = np.bincount(users)
    assert len(sizes) == 22_363
    from_end = np.repeat(np.cumsum(sizes), sizes) - np.arange(len(users))
    counts = np.bincount(items[from_end > 2], minlength=items.max() + 1)
    history = from_end > 1
    histories = Histories(items[history], np.concatenate([[0], np.bincount(users[history]).cumsum()]))

    started = time.perf_counter()
    recommender = PopularityRecommender(counts)
    results = evaluate_rankings(recommender.rank(histories, 20), recommender.rank(histories, 20, True), items[from_end == 1], counts)
    assert time.perf_counter() - started < 5
    assert results["test"]["n"] == 22_363
    assert 0.003 < results["test"]["hr@10"] <= results["test_excluding_history"]["hr@10"] < 0.03
    assert results["test_cold"]["hr@20"] == 0.0
    assert results["test_cold"]["n"] > 1000
    assert results["test"]["popularity_percentile@10"] > 0.99
    assert results["test"]["coverage@10"] == 10 / len(counts)
