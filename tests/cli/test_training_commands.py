"""Commands that train hand their settings on, and make the same by one command or stage by stage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from command_samples import NUM_ITEMS, Command, save_model, write_shop
from safetensors.torch import load_file

from cemg_hf.artefacts import MANIFEST_NAME
from cemg_hf.cli.training_commands import _example
from cemg_hf.data import PreparedDataset
from cemg_hf.recipes import recipe_names, system_names
from cemg_hf.training import pipeline
from cemg_hf.training.pipeline import STAGES


def test_recipes_are_listed(cemg: Command) -> None:
    listed = cemg("recipes")
    assert listed.status == 0
    recipes, systems = listed.output.split("\nsystems: ")
    assert [line.split()[0] for line in recipes.splitlines()] == recipe_names()
    assert systems.strip().split(", ") == system_names()


def test_run_and_quickstart_hand_the_settings_on(cemg: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def called(recipe: Any, output: Path, *arguments: Any, **options: Any) -> dict[str, Any]:
        calls.append({"recipe": recipe, "output": output, "seeds": arguments, **options})
        return {}

    monkeypatch.setattr(pipeline, "run", called)
    monkeypatch.setattr(pipeline, "run_ablations", called)
    given = ["--interactions", "a.csv", "--items", "b.csv", "--images", "pictures", "--seed", 3, "--set", "finetune.loop.epochs=2"]
    assert cemg("run", "own-data", *given, "--set", "encode.dimension=16", "--until", "encode").status == 0
    recipe = calls[0]["recipe"]
    assert (recipe.prepare.interactions, recipe.prepare.items, recipe.prepare.images) == ("a.csv", "b.csv", "pictures")
    assert (recipe.seed, recipe.finetune.loop.epochs, recipe.encode.dimension) == (3, 2, 16)
    assert calls[0]["output"] == Path("runs/own-data")
    assert calls[0]["until"] == "encode"
    assert calls[0]["command"].startswith("cemg run own-data --interactions a.csv")

    assert cemg("run", "own-data", "--system", "gru4rec", "--set", "sequential.loop.epochs=3", "--until", "train").status == 0
    other = calls.pop()
    assert (other["recipe"].system, other["recipe"].family, other["recipe"].sequential.loop.epochs) == ("gru4rec", "sequential", 3)
    assert (other["output"], other["until"]) == (Path("runs/own-data-gru4rec"), "train")
    unknown = cemg("run", "own-data", "--system", "gru4reg")
    assert unknown.status != 0
    assert "system: 'gru4reg' is unknown; choose one of cemg, " in unknown.error_lines[0]

    cemg("run", "own-data", "--output", "elsewhere")
    assert calls[1]["output"] == Path("elsewhere")
    assert calls[1]["recipe"].prepare.interactions == "interactions.parquet"


def test_ablations_run_over_consecutive_seeds(cemg: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def called(recipe: Any, output: Path, seeds: list[int], **options: Any) -> dict[str, Any]:
        calls.append((recipe.name, output, seeds))
        return {"metrics": {"cemg": {"test": {"hr@10": 0.5}}}, "seconds": 1.0}

    monkeypatch.setattr(pipeline, "run_ablations", called)
    shown = cemg("quickstart", "--ablations", "--seeds", 2, "--seed", 5)
    assert calls == [("sample", Path("runs/quickstart"), [5, 6])]
    assert "0.5000" in shown.output


def test_one_command_and_the_stages_one_by_one_make_the_same(cemg: Command, tmp_path: Path) -> None:
    recipe = write_shop(tmp_path / "shop")
    together = tmp_path / "together"
    ran = cemg("run", recipe, "--output", together)
    assert ran.status == 0, ran.errors
    assert "popularity" in ran.output
    assert str(together) in ran.output
    envelope = json.loads((together / "metrics.json").read_text())
    assert {"test", "test_excluding_history", "test_cold"} <= set(envelope["metrics"]["cemg"])
    assert {"hr@10", "ndcg@10"} <= set(envelope["metrics"]["popularity"]["test"])
    assert envelope["command"].startswith(f"cemg run {recipe}")
    assert envelope["seeds"] == [1]

    apart = {stage: tmp_path / "apart" / name for stage, name in STAGES.items()}
    dataset, output = ("--dataset", apart["prepare"]), "--output"
    assert cemg("prepare", recipe, output, apart["prepare"]).status == 0
    assert cemg("encode", recipe, *dataset, output, apart["encode"]).status == 0
    assert cemg("tokenize", recipe, "--features", apart["encode"], *dataset, output, apart["tokenize"]).status == 0
    assert cemg("finetune", recipe, *dataset, "--tokenizer", apart["tokenize"], output, apart["finetune"]).status == 0
    assert cemg("evaluate", recipe, *dataset, "--model", apart["finetune"], output, apart["evaluate"]).status == 0
    assert json.loads((apart["evaluate"] / "metrics.json").read_text())["metrics"] == envelope["metrics"]

    manifests = [together / name / MANIFEST_NAME for name in STAGES.values()]
    written = [path.stat().st_mtime_ns for path in manifests]
    assert cemg("run", recipe, "--output", together).status == 0
    assert [path.stat().st_mtime_ns for path in manifests] == written, "what is up to date must be left alone"

    data = PreparedDataset.load(together / "dataset")
    history = data.item_ids[:3]
    answer = cemg("recommend", together / "model", *history, "-k", 4, "--exclude-history")
    rows = [line.split() for line in answer.output.splitlines()]
    assert [int(place) for place, _, _ in rows] == [1, 2, 3, 4]
    assert {item for _, item, _ in rows} <= set(data.item_ids) - set(history)
    scores = [float(score) for _, _, score in rows]
    assert scores == sorted(scores, reverse=True)
    predictions = pl.read_parquet(together / "evaluation" / "predictions.parquet")
    assert predictions["items"].list.explode().is_in(data.item_ids).all()


def test_another_system_runs_on_the_same_recipe(cemg: Command, tmp_path: Path) -> None:
    recipe = write_shop(tmp_path / "shop")
    run = tmp_path / "run"
    ran = cemg("run", recipe, "--system", "sasrec", "--output", run, "--set", "sequential.loop.epochs=1")
    assert ran.status == 0, ran.errors
    assert all(f"| {system} |" in ran.output for system in ("sasrec", "popularity"))
    envelope = json.loads((run / "metrics.json").read_text())
    assert envelope["system"] == "sasrec"
    assert set(envelope["metrics"]) == set(envelope["intervals"]) == {"sasrec", "popularity"}
    assert "--system sasrec" in envelope["command"]
    assert (run / "evaluation" / "predictions.parquet").is_file()


def test_the_example_names_the_user_whose_history_it_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = [f"item-{row:02d}" for row in range(NUM_ITEMS)]
    bought = {"first": ids[:2], "second": ids[2:6]}  # nobody with two interactions is evaluated
    (tmp_path / "dataset").mkdir()
    users = [user for user, items in bought.items() for _ in items]
    interactions = {"user_id": users, "item_id": [*bought["first"], *bought["second"]], "timestamp": range(len(users))}
    pl.DataFrame(interactions).write_parquet(tmp_path / "dataset" / "interactions.parquet")
    pl.DataFrame({"item_id": ids, "title": ids}).write_parquet(tmp_path / "dataset" / "items.parquet")
    save_model(tmp_path / "model", ids)
    _example(tmp_path)
    _, said, *lines = capsys.readouterr().out.splitlines()
    assert said == "user second bought (last 5):"
    assert [line.split()[0] for line in lines[:3]] == bought["second"][:-1]


@pytest.mark.slow
def test_two_launched_processes_train_the_model_of_one(tmp_path: Path) -> None:
    recipe = write_shop(tmp_path / "shop")
    script = Path(__file__).resolve().parents[2] / "training" / "finetune.py"
    weights = []
    for processes in (1, 2):
        output = tmp_path / f"{processes}"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), str(script)]
        settings = ["--set", "finetune.loop.epochs=3", "--set", "finetune.generator.dropout_rate=0.0"]
        done = subprocess.run(
            [*launcher, "--config", str(recipe), "--output", str(output), *settings],
            capture_output=True,
            text=True,
            timeout=900,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stderr.count("stage 3/5: tokenize took") == 1, "one process makes what comes before, the others wait"
        weights.append(load_file(output / "model" / "model.safetensors"))
    for name, expected in weights[0].items():
        torch.testing.assert_close(weights[1][name], expected, atol=1e-5, rtol=1e-4)
