"""The one evaluator: what it writes for any system, and that a generator is one of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from command_samples import write_shop

from cemg_hf.artefacts import Manifest
from cemg_hf.data import EvaluationCases, PrepareConfig, PreparedDataset, prepare
from cemg_hf.errors import CEMGError
from cemg_hf.evaluation import PopularityRecommender, evaluate_rankings, format_comparison, ranking_intervals, read_predictions, read_runs
from cemg_hf.evaluation.comparison import compare
from cemg_hf.recipes import load_recipe
from cemg_hf.training.evaluate import EvaluateConfig, GeneratorRanker, PopularityRanker, evaluate_ranker, load_generator
from cemg_hf.training.hold_out import hold_out_items
from cemg_hf.training.pipeline import run

USERS, ITEMS, LENGTH = 50, 30, 7


class SeededRanker:
    """Random lists that change with the seed; the target is put first for some users."""

    def __init__(self, seed: int, hits: float) -> None:
        self.seed = seed
        self.hits = hits
        self.seen: list[bool] = []

    def __call__(
        self, cases: EvaluationCases, k: int, *, exclude_history: bool, progress: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        self.seen.append(exclude_history)
        generator = np.random.default_rng([self.seed, exclude_history])
        keys = generator.random((len(cases), ITEMS))
        known = generator.random(len(cases)) < self.hits
        keys[np.flatnonzero(known), cases.targets[known]] = -1
        if exclude_history:
            keys[cases.histories.rows, cases.histories.values] = np.inf
        ranked = keys.argsort(axis=1)[:, :k]
        values = np.take_along_axis(keys, ranked, axis=1)
        return np.where(np.isinf(values), -1, ranked), np.where(np.isinf(values), -np.inf, -values).astype(np.float32)


@pytest.fixture(scope="module", params=["leave_one_out", "time"])
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    folder = tmp_path_factory.mktemp(request.param)
    generator = np.random.default_rng(0)
    bought = np.concatenate([generator.choice(ITEMS, LENGTH, replace=False, p=np.arange(1, ITEMS + 1) / 465) for _ in range(USERS)])
    table = {
        "user_id": [f"u{user}" for user in np.repeat(np.arange(USERS), LENGTH)],
        "item_id": [f"i{item}" for item in bought],
        "timestamp": 1_000_000 + generator.permutation(USERS * LENGTH),
    }
    pl.DataFrame(table).write_parquet(folder / "log.parquet")
    names = [f"i{item}" for item in range(ITEMS)]
    pl.DataFrame({"item_id": names, "categories": [[f"c{item % 3}", f"d{item % 5}"] for item in range(ITEMS)]}).write_parquet(
        folder / "items.parquet"
    )
    config = PrepareConfig(
        "shop", str(folder / "log.parquet"), str(folder / "items.parquet"), min_interactions=0, split=request.param, keep_unseen_items=True
    )
    return PreparedDataset.load(prepare(config, folder / "dataset"))


Evaluate = Callable[..., Path]


@pytest.fixture
def evaluated(data: PreparedDataset, tmp_path: Path) -> Evaluate:
    def evaluate(run: str, seed: int = 0, hits: float = 0.3, name: str = "system", **extra: Any) -> Path:
        return evaluate_ranker(
            SeededRanker(seed, hits),
            data,
            EvaluateConfig(resamples=200),
            tmp_path / run / "evaluation",
            name=name,
            manifest=Manifest("evaluate", {}, {}, seed),
            command="cemg evaluate",
            seed=seed,
            started=time.perf_counter(),
            extra=extra,
        ).parent

    return evaluate


def test_saved_predictions_give_the_saved_metrics(data: PreparedDataset, evaluated: Evaluate) -> None:
    folder = evaluated("run", parameters=12) / "evaluation"
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        "metrics.json",
        "metrics.png",
        "predictions.parquet",
        "catalogue.parquet",
    }
    envelope = json.loads((folder / "metrics.json").read_text())
    assert (envelope["system"], envelope["seeds"], envelope["parameters"]) == ("system", [0], 12)
    assert envelope["protocol"] == data.protocol() | {"cold_threshold": 5}
    saved = read_predictions(folder)
    cases = data.evaluation_cases("test")
    assert saved.user_ids == [data.user_ids[user] for user in cases.users]
    np.testing.assert_array_equal(saved.targets, cases.targets)
    lists = (saved.ranked, saved.ranked_excluding_history, saved.targets, saved.train_item_counts)
    vectors = data.category_vectors()
    assert evaluate_rankings(*lists, item_vectors=vectors) == envelope["metrics"]["system"]
    assert ranking_intervals(*lists, item_vectors=vectors, resamples=200) == envelope["intervals"]["system"]
    assert "intra_list_distance@10" in envelope["metrics"]["system"]["test"]
    for history, row in zip(cases.histories.to_lists(), saved.ranked_excluding_history, strict=True):
        assert not set(history) & set(row.tolist())
    floor = PopularityRecommender(data.train_item_counts())
    expected = [floor.rank(cases.histories, 20, exclude_history=excluded) for excluded in (False, True)]
    assert envelope["metrics"]["popularity"] == evaluate_rankings(*expected, *lists[2:], item_vectors=vectors)
    assert set(envelope["intervals"]) == set(envelope["metrics"]) == {"system", "popularity"}


def test_cut_offs_are_a_setting(data: PreparedDataset, tmp_path: Path) -> None:
    options: dict[str, Any] = {"manifest": Manifest("evaluate", {}, {}, 0), "command": "", "seed": 0, "started": 0.0}
    folder = evaluate_ranker(
        SeededRanker(0, 0.5), data, EvaluateConfig(ks=[25, 10], resamples=20), tmp_path / "evaluation", name="system", **options
    )
    saved = read_predictions(folder)
    assert saved.ranked.shape[1] == saved.ranked_excluding_history.shape[1] == 25
    envelope = json.loads((folder / "metrics.json").read_text())
    names = {f"{metric}@{k}" for metric in ("hr", "ndcg", "mrr") for k in (10, 25)}
    for slices in (*envelope["metrics"].values(), *envelope["intervals"].values()):
        assert all({name for name in values if name.partition("@")[0] in ("hr", "ndcg", "mrr")} == names for values in slices.values())


@pytest.mark.parametrize(
    ("ks", "message"),
    [([5, 20], r"\[5, 20\] lacks 10, at which"), ([10, 10], "twice"), ([0, 10], "positive integers"), ([], "positive integers")],
)
def test_cut_offs_that_cannot_be(ks: list[int], message: str) -> None:
    with pytest.raises(CEMGError, match=rf"^ks: .*{message}"):
        EvaluateConfig(ks=ks)


def test_beams_that_cannot_fill_the_lists_are_refused_before_anything_is_trained() -> None:
    with pytest.raises(CEMGError, match=r"num_beams = 50: cannot fill lists of 100"):
        load_recipe("sample", ["evaluate.ks=[10,100]"])
    assert load_recipe("sample", ["evaluate.ks=[10,100]", "evaluate.num_beams=100"]).evaluate.ks == [10, 100]
    assert load_recipe("sample", ["evaluate.ks=[10,100]"], system="sasrec").evaluate.ks == [10, 100]  # it scores every item


def test_popularity_is_a_system_too(data: PreparedDataset, tmp_path: Path) -> None:
    rank = PopularityRanker(PopularityRecommender(data.train_item_counts()))
    manifest = Manifest("evaluate", {}, {}, 0)
    options: dict[str, Any] = {"manifest": manifest, "command": "", "seed": 0, "started": time.perf_counter()}
    folder = evaluate_ranker(rank, data, EvaluateConfig(resamples=50), tmp_path / "evaluation", name="popularity", **options)
    assert set(json.loads((folder / "metrics.json").read_text())["metrics"]) == {"popularity"}


def test_a_run_against_itself_and_against_a_better_one(evaluated: Evaluate) -> None:
    first, better = evaluated("first", 0, 0.1), evaluated("better", 1, 0.9, name="better")
    same = compare(read_runs([first, first]), resamples=500)
    assert len(same.systems) == 3
    for part in ("test", "test_excluding_history"):
        (pair,) = same.pairs_of(part)
        assert (pair.difference, pair.low, pair.high, pair.p_value, pair.p_holm) == (0, 0, 0, 1, 1)
    (pair,) = compare(read_runs([first, better]), "hr@10", "test", resamples=500).pairs
    assert (pair.a, pair.b) == ("system", "better")
    assert pair.high < 0
    assert pair.p_value < 0.01
    assert "| system − better |" in format_comparison(compare(read_runs([first, better]), "hr@10", "test", resamples=500))


def test_nobody_to_evaluate(tmp_path: Path) -> None:
    pl.DataFrame({"user_id": ["u", "u"], "item_id": ["a", "b"], "timestamp": [1, 2]}).write_parquet(tmp_path / "log.parquet")
    data = PreparedDataset.load(prepare(PrepareConfig("two", str(tmp_path / "log.parquet"), min_interactions=0), tmp_path / "dataset"))
    options: dict[str, Any] = {"name": "x", "manifest": Manifest("evaluate", {}, {}, 0), "command": "", "seed": 0, "started": 0.0}
    with pytest.raises(CEMGError, match="nobody has a test case"):
        evaluate_ranker(SeededRanker(0, 0.5), data, EvaluateConfig(), tmp_path / "evaluation", **options)


def test_a_split_by_time_runs_through_every_stage(tmp_path: Path) -> None:
    """The shop's users come one after the other: those of validation and test are all new, their histories empty."""
    recipe = load_recipe(write_shop(tmp_path / "shop"), ["prepare.split=time", "prepare.min_interactions=0"])
    folder = tmp_path / "run"
    result = run(recipe, folder)
    data = PreparedDataset.load(folder / "dataset")
    cases = data.evaluation_cases("test")
    assert 0 < len(cases) == result["metrics"]["cemg"]["test"]["n"] < data.num_users
    assert (cases.histories.lengths == 0).sum() >= 3
    saved = read_predictions(folder / "evaluation")
    assert (saved.ranked[:, : min(20, data.num_items)] >= 0).all()
    assert json.loads((folder / "evaluation" / "metrics.json").read_text())["protocol"]["split"] == "time"
    model = load_generator(folder / "model", data)
    ranked, scores = GeneratorRanker(model, num_beams=20)(cases, 20, exclude_history=False)
    np.testing.assert_array_equal(ranked, saved.ranked)
    np.testing.assert_allclose(scores, saved.scores, rtol=1e-5)
    reduced = PreparedDataset.load(hold_out_items(folder / "dataset", tmp_path / "reduced", share=0.1))
    assert reduced.cuts == data.cuts
    before = {(data.user_ids[user], data.item_ids[item]) for user, item in zip(*data.train_pairs(), strict=True)}
    assert {(reduced.user_ids[user], reduced.item_ids[item]) for user, item in zip(*reduced.train_pairs(), strict=True)} < before
