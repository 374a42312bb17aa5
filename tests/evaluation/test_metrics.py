"""HR@K, NDCG@K and MRR@K: properties, brute force, an independent library, and the `evaluate` modules."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score, top_k_accuracy_score

from cemg_hf.errors import CEMGError
from cemg_hf.evaluation import check_rankings, hit_ranks, list_metrics, metric_path, per_case_metrics, rank_from_scores, ranking_metrics
from cemg_hf.evaluation.metrics import METRICS, MISSED

KS = (1, 5, 10, 20)


@dataclass(frozen=True)
class RaggedLists:
    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, rows: list[list[int]]) -> RaggedLists:
        lengths = [len(row) for row in rows]
        return cls(
            np.array([item for row in rows for item in row], dtype=np.int64), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        )


def random_rankings(cases: int, items: int, places: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rankings of different lengths (-1 behind them) and targets, about half of them in their list."""
    generator = np.random.default_rng(seed)
    ranked = generator.random((cases, items)).argsort(axis=1)[:, :places]
    lengths = generator.integers(0, places + 1, cases)
    lengths[::2] = places
    ranked[np.arange(places) >= lengths[:, None]] = -1
    return ranked, generator.integers(0, items, cases)


def brute_force(ranked: np.ndarray, targets: np.ndarray, k: int) -> tuple[float, float, float]:
    hits, gains, reciprocals = 0.0, 0.0, 0.0
    for row, target in zip(ranked.tolist(), targets.tolist(), strict=True):
        if target in row[:k]:
            hits += 1
            gains += 1 / math.log2(row.index(target) + 2)
            reciprocals += 1 / (row.index(target) + 1)
    return hits / len(ranked), gains / len(ranked), reciprocals / len(ranked)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(20, 60), st.integers(0, 10**6))
def test_properties_of_the_metrics(cases: int, items: int, seed: int) -> None:
    ranked, targets = random_rankings(cases, items, 20, seed)
    found = ranking_metrics(ranked, targets, KS)
    for smaller, larger in itertools.pairwise(KS):
        assert all(found[f"{name}@{smaller}"] <= found[f"{name}@{larger}"] for name in METRICS)
    for k in KS:
        assert 0 <= found[f"mrr@{k}"] <= found[f"ndcg@{k}"] <= found[f"hr@{k}"] <= 1
        assert tuple(found[f"{name}@{k}"] for name in METRICS) == pytest.approx(brute_force(ranked, targets, k), abs=1e-12)
    assert found["hr@1"] == found["ndcg@1"] == found["mrr@1"]

    order = np.random.default_rng(seed).permutation(cases)
    assert ranking_metrics(ranked[order], targets[order], KS) == pytest.approx(found, abs=1e-12)
    names = np.random.default_rng(seed + 1).permutation(items)
    renamed = np.where(ranked >= 0, names[ranked], -1)
    assert ranking_metrics(renamed, names[targets], KS) == found


def test_perfect_and_hopeless_rankings() -> None:
    ranked, _ = random_rankings(50, 30, 20, seed=0)
    ranked[:, 0] = np.arange(50) % 30
    perfect = ranking_metrics(ranked, ranked[:, 0], KS)
    assert set(perfect.values()) == {1.0}
    assert set(ranking_metrics(ranked, np.full(50, 99), KS).values()) == {0.0}


def test_short_lists_miss_what_they_do_not_hold() -> None:
    ranked = np.array([[4, 2, -1, -1, -1], [-1, -1, -1, -1, -1], [0, 1, 2, 3, 4]])
    assert hit_ranks(ranked, np.array([2, 0, 9])).tolist() == [1, 5, 5]
    assert ranking_metrics(ranked, np.array([2, 0, 9]), (5,)) == pytest.approx(
        {"hr@5": 1 / 3, "ndcg@5": 1 / math.log2(3) / 3, "mrr@5": 1 / 6}
    )


def test_arrays_and_tensors_of_any_integer_type_agree() -> None:
    ranked, targets = random_rankings(30, 25, 20, seed=3)
    expected = ranking_metrics(ranked, targets)
    ranked.setflags(write=False)
    assert ranking_metrics(torch.tensor(ranked), torch.tensor(targets)) == expected
    assert ranking_metrics(ranked.astype(np.int32), targets.astype(np.uint16)) == expected
    assert ranking_metrics(ranked[:, ::-1][:, ::-1], targets) == expected


def test_values_per_case_average_to_the_metrics() -> None:
    ranked, targets = random_rankings(200, 40, 20, seed=4)
    values = per_case_metrics(hit_ranks(ranked, targets), KS)
    assert {name: pytest.approx(array.mean()) for name, array in values.items()} == ranking_metrics(ranked, targets, KS)


def test_no_cases_have_no_mean() -> None:
    assert ranking_metrics(np.empty((0, 20), dtype=np.int64), np.empty(0, dtype=np.int64), (5,)) == {
        "hr@5": None,
        "ndcg@5": None,
        "mrr@5": None,
    }


def test_agrees_with_scikit_learn() -> None:
    generator = np.random.default_rng(9)
    scores, targets = generator.random((200, 60)), generator.integers(0, 60, 200)
    ours = ranking_metrics(np.argsort(-scores, axis=1), targets, KS)
    for k in KS:
        assert ours[f"hr@{k}"] == pytest.approx(top_k_accuracy_score(targets, scores, k=k, labels=np.arange(60)), abs=1e-12)
        assert ours[f"ndcg@{k}"] == pytest.approx(ndcg_score(np.eye(60)[targets], scores, k=k), abs=1e-12)


@pytest.mark.slow
def test_agrees_with_ranx() -> None:
    """Slow because numba compiles ranx's metrics: 26 s the first time, 6 s from its cache."""
    import ranx

    ranked, targets = random_rankings(60, 40, 20, seed=5)
    ranked[:, 0] = np.where(ranked[:, 0] < 0, 0, ranked[:, 0])  # ranx knows no empty list
    qrels = ranx.Qrels({f"u{user}": {f"i{target}": 1} for user, target in enumerate(targets)})
    run = ranx.Run(
        {f"u{user}": {f"i{item}": float(-place) for place, item in enumerate(row) if item >= 0} for user, row in enumerate(ranked.tolist())}
    )
    theirs = ranx.evaluate(qrels, run, [name for k in KS for name in (f"hit_rate@{k}", f"ndcg@{k}", f"mrr@{k}")])
    ours = ranking_metrics(ranked, targets, KS)
    assert 0.1 < ours["hr@20"] < 0.9
    assert {name.replace("hit_rate", "hr"): value for name, value in theirs.items()} == pytest.approx(ours, abs=1e-9)


@pytest.fixture(scope="module")
def modules_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where `evaluate` copies module scripts to, kept out of the user's cache. Python imports them as one package, hence one folder."""
    folder = tmp_path_factory.mktemp("modules")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluate.config.HF_MODULES_CACHE", folder)
        patch.syspath_prepend(str(folder))
        yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "evaluate_modules"]:
        del sys.modules[name]


@pytest.mark.parametrize("metric", METRICS)
def test_evaluate_modules_load_offline_and_agree(metric: str, modules_cache: Path, tmp_path: Path) -> None:
    module = evaluate.load(metric_path(f"{metric}_at_k"), cache_dir=str(tmp_path / "cache"))
    ranked, targets = random_rankings(80, 50, 20, seed=6)
    expected = ranking_metrics(ranked, targets, KS)
    expected = {name: value for name, value in expected.items() if name.startswith(f"{metric}@")}

    lists = [[item for item in row if item >= 0] for row in ranked.tolist()]
    assert module.compute(predictions=lists, references=targets.tolist(), k=list(KS)) == expected
    ids = [f"B{item:04d}" for item in range(50)]
    named = [[ids[item] for item in row] for row in lists]
    for start in range(0, 80, 16):
        module.add_batch(predictions=named[start : start + 16], references=[ids[target] for target in targets[start : start + 16]])
    assert module.compute(k=10) == {f"{metric}@10": expected[f"{metric}@10"]}
    # "7" and "007" are different items.
    assert module.compute(predictions=[["7", "1"]], references=["007"], k=2) == {f"{metric}@2": 0.0}


def test_lists_shorter_than_k_and_unlike_types() -> None:
    assert list_metrics("hr", [["a"], []], ["a", "b"], k=10) == {"hr@10": 0.5}
    assert list_metrics("ndcg", [], [], k=(5, 10)) == {"ndcg@5": None, "ndcg@10": None}
    with pytest.raises(CEMGError, match="strings or integers"):
        list_metrics("hr", [[1.5]], [1], k=1)
    with pytest.raises(CEMGError, match="one of hr, ndcg, mrr"):
        list_metrics("map", [["a"]], ["a"], k=1)
    with pytest.raises(CEMGError, match="hr_at_k, ndcg_at_k, mrr_at_k"):
        metric_path("mrr")


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(2, 30), st.integers(1, 6), st.integers(0, 10**6))
def test_ranks_from_scores_against_a_loop(cases: int, items: int, levels: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, levels, (cases, items)).astype(np.float32)  # few levels: many ties
    targets = generator.integers(0, items, cases)
    excluded = [generator.integers(0, items, generator.integers(0, items)).tolist() for _ in range(cases)]
    pessimistic = rank_from_scores(scores, targets, RaggedLists.of(excluded))
    catalogue = rank_from_scores(torch.tensor(scores), torch.tensor(targets), RaggedLists.of(excluded), ties="catalogue")
    for case, (target, out) in enumerate(zip(targets.tolist(), excluded, strict=True)):
        own = scores[case, target]
        others = [item for item in range(items) if item != target and item not in out]
        if target in out:
            assert pessimistic[case] == catalogue[case] == MISSED
            continue
        assert pessimistic[case] == sum(scores[case, item] >= own for item in others)
        assert catalogue[case] == sum(scores[case, item] > own or (scores[case, item] == own and item < target) for item in others)


def test_ranks_from_scores_are_those_of_the_sorted_list() -> None:
    generator = np.random.default_rng(8)
    scores = generator.integers(0, 50, (100, 80)).astype(np.float64)
    targets = generator.integers(0, 80, 100)
    ranked = np.argsort(-scores, axis=1, kind="stable")
    assert rank_from_scores(scores, targets, ties="catalogue").tolist() == hit_ranks(ranked, targets).tolist()


def test_a_model_that_scores_everything_alike_earns_nothing() -> None:
    assert rank_from_scores(np.zeros((3, 100)), np.array([0, 50, 99])).tolist() == [99, 99, 99]


def test_scores_that_cannot_be_ranked_are_refused() -> None:
    scores = np.zeros((2, 4))
    scores[1, 2] = np.nan
    with pytest.raises(CEMGError, match="NaN"):
        rank_from_scores(scores, np.array([0, 1]))
    with pytest.raises(CEMGError, match="between 0 and 3"):
        rank_from_scores(np.zeros((1, 4)), np.array([4]))
    with pytest.raises(CEMGError, match="exclude: 1 rows for 2 cases"):
        rank_from_scores(np.zeros((2, 4)), np.array([0, 1]), RaggedLists.of([[1]]))


@pytest.mark.parametrize(
    ("ranked", "targets", "ks", "message"),
    [
        ([[0, 1]], [0], (5,), "2 places are too few for K = 5"),
        ([[0, 1]], [0, 1], (1,), "2 of them for 1 rows"),
        ([[0, 1]], [-1], (1,), "row 0 holds -1"),
        ([[0.5, 1.0]], [0], (1,), "pass integers"),
        ([0, 1], [0], (1,), "1 dimensions where 2"),
        ([[0, 1]], [0], (0,), "positive integers"),
        ([[0, 1]], [0], (), "positive integers"),
    ],
)
def test_input_that_does_not_fit_is_refused(ranked: list, targets: list, ks: tuple[int, ...], message: str) -> None:
    with pytest.raises(CEMGError, match=message) as error:
        ranking_metrics(np.array(ranked), np.array(targets), ks)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [([0, 0, 1], "row 1 lists an item twice"), ([0, -1, 1], "behind a missing one"), ([0, 9, -1], "no item"), ([-2, 0, 1], "no item")],
)
def test_invalid_lists_are_refused(row: list[int], message: str) -> None:
    check_rankings(np.array([[0, 1, 2], [3, -1, -1], [-1, -1, -1]]), items=4)
    with pytest.raises(CEMGError, match=message):
        check_rankings(np.array([[0, 1, 2], row]), items=4)
