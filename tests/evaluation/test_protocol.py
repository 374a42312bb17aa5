"""Slices and the intervals of their means."""

from __future__ import annotations

import numpy as np
import pytest

from cemg_hf.errors import CEMGError
from cemg_hf.evaluation import bootstrap_interval, evaluate_rankings, intra_list_distances, ranking_intervals, ranking_metrics

ITEMS, CASES = 60, 300


@pytest.fixture
def cases() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    ranked, excluding = (generator.random((CASES, ITEMS)).argsort(axis=1)[:, :20] for _ in range(2))
    targets = generator.integers(0, ITEMS, CASES)
    counts = generator.integers(0, 12, ITEMS)
    counts[:3] = [0, 5, 6]
    targets[:3] = [0, 1, 2]
    return ranked, excluding, targets, counts


def test_slices_are_the_metrics_of_their_cases(cases: tuple[np.ndarray, ...]) -> None:
    ranked, excluding, targets, counts = cases
    results = evaluate_rankings(ranked, excluding, targets, counts)
    seen = counts[targets]
    expected_rows = {"test": seen >= 0, "test_cold": seen <= 5, "test_cold_0": seen == 0, "test_cold_1_5": (seen > 0) & (seen < 6)}
    assert set(results) == {name + suffix for name in expected_rows for suffix in ("", "_excluding_history")}
    for name, rows in expected_rows.items():
        for suffix, lists in (("", ranked), ("_excluding_history", excluding)):
            found = results[name + suffix]
            assert found["n"] == rows.sum() > 0
            expected = ranking_metrics(lists[rows], targets[rows])
            assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-12)
    parts = results["test_cold_0"], results["test_cold_1_5"]
    assert sum(part["n"] for part in parts) == results["test_cold"]["n"]
    together = sum(part["ndcg@10"] * part["n"] for part in parts) / results["test_cold"]["n"]
    assert together == pytest.approx(results["test_cold"]["ndcg@10"])


def test_an_empty_slice_has_n_0_and_no_metrics(cases: tuple[np.ndarray, ...]) -> None:
    ranked, excluding, targets, _ = cases
    results = evaluate_rankings(ranked, excluding, targets, np.full(ITEMS, 100))
    for name in ("test_cold", "test_cold_0", "test_cold_1_5_excluding_history"):
        assert results[name] == {f"{metric}@{k}": None for metric in ("hr", "ndcg", "mrr") for k in (5, 10, 20)} | {"n": 0}
    nobody = evaluate_rankings(ranked[:0], excluding[:0], targets[:0], np.full(ITEMS, 100))
    assert nobody["test"]["n"] == 0
    assert nobody["test"]["hr@10"] is None
    assert nobody["test"]["coverage@10"] is None


def test_the_threshold_moves_the_slices(cases: tuple[np.ndarray, ...]) -> None:
    ranked, excluding, targets, counts = cases
    results = evaluate_rankings(ranked, excluding, targets, counts, cold_threshold=8, ks=(10,))
    assert results["test_cold"]["n"] == (counts[targets] <= 8).sum()
    assert "test_cold_1_8" in results
    assert "test_cold_1_5" not in results


def test_rankings_that_hide_a_fault_are_refused(cases: tuple[np.ndarray, ...]) -> None:
    ranked, excluding, targets, counts = cases
    with pytest.raises(CEMGError, match="ranked_excluding_history: 9 places are too few"):
        evaluate_rankings(ranked, excluding[:, :9], targets, counts, ks=(5,))
    repeated = ranked.copy()
    repeated[7, 3] = repeated[7, 0]
    with pytest.raises(CEMGError, match="ranked: row 7 lists an item twice"):
        evaluate_rankings(repeated, excluding, targets, counts)
    with pytest.raises(CEMGError, match="outside the catalogue of 10 items"):
        evaluate_rankings(ranked, excluding, targets, counts[:10])
    with pytest.raises(CEMGError, match="row 4 holds -1"):
        evaluate_rankings(ranked, excluding, np.where(np.arange(CASES) == 4, -1, targets), counts)


def test_intervals_are_those_of_the_cases_of_each_slice(cases: tuple[np.ndarray, ...]) -> None:
    ranked, excluding, targets, counts = cases
    vectors = np.random.default_rng(1).normal(size=(ITEMS, 3))
    results = evaluate_rankings(ranked, excluding, targets, counts, item_vectors=vectors)
    intervals = ranking_intervals(ranked, excluding, targets, counts, item_vectors=vectors, resamples=300)
    assert set(intervals) == set(results)
    for name, metrics in intervals.items():
        for metric, interval in metrics.items():
            assert interval is not None
            assert interval[0] <= results[name][metric] <= interval[1]
    cold = counts[targets] <= 5
    hits = (excluding[cold][:, :10] == targets[cold, None]).any(axis=1).astype(float)
    found = bootstrap_interval(hits, 300)
    assert intervals["test_cold_excluding_history"]["hr@10"] == [found.low, found.high]
    found = bootstrap_interval(intra_list_distances(ranked[:, :10], vectors), 300)
    assert intervals["test"]["intra_list_distance@10"] == pytest.approx([found.low, found.high])
    assert "coverage@10" not in intervals["test"]
    nobody = ranking_intervals(ranked, excluding, targets, np.full(ITEMS, 100), resamples=10)
    assert nobody["test_cold"]["hr@10"] is None
