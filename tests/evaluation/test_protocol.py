"""Slices, catalogue coverage and the table of predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cemg_hf.errors import CEMGError
from cemg_hf.evaluation import evaluate_rankings, predictions_table, ranking_metrics, write_predictions
from cemg_hf.evaluation.protocol import describe_recommendations

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
        assert results[name] == {"hr@5": None, "ndcg@5": None, "hr@10": None, "ndcg@10": None, "hr@20": None, "ndcg@20": None, "n": 0}
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


def test_coverage_and_popularity_of_what_is_recommended() -> None:
    counts = np.array([7, 7, 3, 0, 0, 1])
    everything = np.array([[0, 1, 2, 3, 4, 5]])
    assert describe_recommendations(everything, counts, k=6) == pytest.approx({"coverage@6": 1.0, "popularity_percentile@6": 0.5})
    assert describe_recommendations(everything[:, :2], counts, k=2) == pytest.approx(
        {"coverage@2": 2 / 6, "popularity_percentile@2": 5 / 6}
    )
    short = np.array([[3, -1], [4, -1]])
    assert describe_recommendations(short, counts, k=2) == pytest.approx({"coverage@2": 2 / 6, "popularity_percentile@2": 1 / 6})


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


def test_predictions_round_trip_through_parquet(tmp_path: Path) -> None:
    ranked = np.array([[2, 0, -1], [-1, -1, -1], [1, 2, 0]])
    scores = np.array([[-0.5, -1.25, -np.inf], [np.nan] * 3, [3.0, 2.0, 1.0]])
    table = predictions_table(["u1", "u2", "u3"], ["a", "b", "ç"], ranked, scores, np.array([0, 1, 2]))
    path = tmp_path / "deep" / "predictions.parquet"
    write_predictions(path, table)
    write_predictions(path, table)
    assert [file.name for file in path.parent.iterdir()] == ["predictions.parquet"]
    assert pq.read_table(path).to_pylist() == [
        {"user_id": "u1", "target": "a", "items": ["ç", "a"], "scores": [-0.5, -1.25]},
        {"user_id": "u2", "target": "b", "items": [], "scores": []},
        {"user_id": "u3", "target": "ç", "items": ["b", "ç", "a"], "scores": [3.0, 2.0, 1.0]},
    ]


def test_predictions_that_do_not_fit_are_refused() -> None:
    ranked, scores, targets = np.array([[0, 1]]), np.array([[1.0, np.nan]]), np.array([0])
    with pytest.raises(CEMGError, match="not finite"):
        predictions_table(["u"], ["a", "b"], ranked, scores, targets)
    with pytest.raises(CEMGError, match="one row per case"):
        predictions_table(["u", "v"], ["a", "b"], ranked, scores, targets)
    with pytest.raises(CEMGError, match="no item"):
        predictions_table(["u"], ["a"], ranked, np.ones((1, 2)), targets)
