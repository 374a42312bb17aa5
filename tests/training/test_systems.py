"""Every system that is compared runs on a data recipe unchanged, and leaves metrics, intervals and predictions behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from shop_samples import ITEMS, USERS, walks

from cemg_hf.artefacts import read_manifest
from cemg_hf.errors import CEMGError
from cemg_hf.recipes import Recipe, load_recipe, recipe_names, system_names
from cemg_hf.training import pipeline, systems
from cemg_hf.training.deadline import OutOfTime
from cemg_hf.training.pipeline import run
from cemg_hf.training.run_folder import SUPERSEDED, result_of
from cemg_hf.training.systems import FAMILIES, stages_of

COMPARED = ["popularity", "item_knn", "lightgcn", "gru4rec", "sasrec"]
QUICK = [
    "encode.collaborative={dimension: 8, epochs: 2, eval_every: 1}",
    "sequential.loop.epochs=1",
    "evaluate.resamples=50",
    "prepare.min_interactions=0",
]


@pytest.fixture(scope="module")
def interactions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("systems") / "interactions.csv"
    rows = [(f"u{user}", f"i{item}", step) for user, row in enumerate(walks()) for step, item in enumerate(row)]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(path)
    return path


def recipe_of(system: str, interactions: Path, *assignments: str) -> Recipe:
    own = {"prepare.interactions": str(interactions), "prepare.items": None, "prepare.images": None}
    return load_recipe("own-data", [*QUICK, *assignments], own, system)


@pytest.mark.parametrize("system", COMPARED)
def test_a_system_runs_to_its_metrics(system: str, interactions: Path, tmp_path: Path) -> None:
    recipe = recipe_of(system, interactions)
    result = run(recipe, tmp_path, command="test")
    assert result == json.loads((tmp_path / "metrics.json").read_text())
    assert result["system"] == system
    assert set(result["metrics"]) == set(result["intervals"]) == {system, "popularity"}
    assert {"test", "test_excluding_history"} <= set(result["metrics"][system])
    for name, parts in result["intervals"].items():
        for part, intervals in parts.items():
            for metric, bounds in intervals.items():
                if bounds is not None and result["metrics"][name][part][metric] is not None:
                    assert bounds[0] - 1e-9 <= result["metrics"][name][part][metric] <= bounds[1] + 1e-9
    assert result["protocol"]["split"] == "leave_one_out"
    stages = stages_of(recipe)
    assert set(result["seconds_by_stage"]) == set(stages)
    assert stages == ("prepare", *(() if system in ("popularity", "item_knn") else ("train",)), "evaluate")
    predictions = pl.read_parquet(tmp_path / "evaluation" / "predictions.parquet")
    assert len(predictions) == USERS
    assert set(predictions["items"].explode().drop_nulls()) <= {f"i{item}" for item in range(ITEMS)}
    assert not (tmp_path / "tokenizer").exists()

    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("manifest.json")}
    assert run(recipe, tmp_path, command="test")["metrics"] == result["metrics"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("manifest.json")} == written


def test_a_run_may_stop_after_the_training(interactions: Path, tmp_path: Path) -> None:
    recipe = recipe_of("gru4rec", interactions)
    assert run(recipe, tmp_path, until="train") == {}
    assert (tmp_path / "model" / "config.json").is_file()
    assert not (tmp_path / "evaluation").exists()
    with pytest.raises(CEMGError, match="'finetune' is no stage; choose one of prepare, train, evaluate"):
        run(recipe, tmp_path, until="finetune")


def test_settings_that_decide_the_lists_decide_whether_an_evaluation_is_current(
    interactions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    original = systems.evaluate_ranker

    def counted(*arguments: Any, **options: Any) -> Path:
        calls.append(options["name"])
        return original(*arguments, **options)

    monkeypatch.setattr(systems, "evaluate_ranker", counted)
    for assignments in ((), ("evaluate.ks=[20,5,10]",), ("item_knn.shrink=1.0",), ("evaluate.cold_threshold=2",), ("evaluate.ks=[3,10]",)):
        run(recipe_of("item_knn", interactions, *assignments), tmp_path)
    assert calls == ["item_knn"] * 4
    values = json.loads((tmp_path / "metrics.json").read_text())["metrics"]["item_knn"]["test"]
    assert {name for name in values if name.startswith(("hr", "mrr"))} == {"hr@3", "mrr@3", "hr@10", "mrr@10"}


def test_an_evaluation_from_before_the_cut_offs_were_a_choice_is_current(interactions: Path, tmp_path: Path) -> None:
    recipe = recipe_of("item_knn", interactions)
    run(recipe, tmp_path)
    written = read_manifest(tmp_path / "evaluation")
    assert written is not None
    assert {"num_beams", "cold_threshold", "batch_size", "resamples"} <= written["settings"].keys()
    assert "ks" not in written["settings"]


@pytest.mark.parametrize("system", system_names())
@pytest.mark.parametrize("name", recipe_names())
def test_stages_of_every_system_on_every_recipe(name: str, system: str) -> None:
    recipe = load_recipe(name, system=system)
    stages = stages_of(recipe)
    assert (stages[0], stages[-1]) == ("prepare", "evaluate")
    assert len(set(stages)) == len(stages)
    if recipe.family == "cemg":
        assert stages == ("prepare", "encode", "tokenize", "finetune", "evaluate")
    else:
        assert ("train" in stages) == (FAMILIES[recipe.family].train is not None)
        assert ("tokenize" in stages) == (recipe.family == "sequential" and recipe.sequential.content)


def test_the_result_of_other_settings_stays_until_there_is_a_new_one(
    interactions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = (recipe_of("popularity", interactions, f"evaluate.cold_threshold={count}") for count in (5, 3))
    measured = run(first, tmp_path)
    with monkeypatch.context() as late:
        late.setattr(pipeline, "time_is_up", lambda: True)
        with pytest.raises(OutOfTime):
            run(other, tmp_path)
    assert result_of(first, tmp_path) == measured, "a run that did not begin changes nothing"
    with monkeypatch.context() as killed:
        killed.setattr(systems, "evaluate_ranker", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(other, tmp_path)
    assert result_of(other, tmp_path) is None
    assert result_of(first, tmp_path / SUPERSEDED) == measured
    assert run(other, tmp_path) == result_of(other, tmp_path) != measured
    assert not (tmp_path / SUPERSEDED).exists()
