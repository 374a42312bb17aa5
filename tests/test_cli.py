from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import typer
from command_samples import NUM_ITEMS, Command, save_model, write_shop
from safetensors.torch import load_file

from cemg_hf import CEMGTokenizer, cli
from cemg_hf.artefacts import MANIFEST_NAME
from cemg_hf.cli import app
from cemg_hf.data import PreparedDataset
from cemg_hf.errors import CEMGError
from cemg_hf.models.mscgrec import MSCGRecTokenizer
from cemg_hf.recipes import recipe_names, system_names
from cemg_hf.training import cold_start, pipeline, studies
from cemg_hf.training.pipeline import STAGES

COMMANDS = {"run", "quickstart", "prepare", "encode", "tokenize", "finetune", "evaluate", "recommend", "recipes"} | {
    "inspect",
    "describe",
    "add-items",
    "cold-start",
    "compare",
    "study",
    "serve",
    "demo",
    "convert",
    "publish",
    "download-images",
    "rq-dino",
    "export",
}


@pytest.fixture
def cemg(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


def test_every_command_and_option_is_explained() -> None:
    group: Any = typer.main.get_command(app)
    assert set(group.commands) == COMMANDS
    for command in group.commands.values():
        assert command.help
        assert all(option.help for option in command.params), command.name


def test_recipes_are_listed(cemg: Command) -> None:
    listed = cemg("recipes")
    assert listed.status == 0
    recipes, systems = listed.output.split("\nsystems: ")
    assert [line.split()[0] for line in recipes.splitlines()] == recipe_names()
    assert systems.strip().split(", ") == system_names()


def test_misused_commands_end_with_status_2(cemg: Command) -> None:
    assert cemg("recomend").status == 2
    assert cemg("run").status == 2
    assert cemg("run", "sample", "--sede", "3").status == 2


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


def test_runs_are_compared(cemg: Command, tmp_path: Path) -> None:
    recipe = write_shop(tmp_path / "shop")
    runs = [tmp_path / name for name in ("popularity", "item_knn")]
    for run in runs:
        assert cemg("run", recipe, "--system", run.name, "--output", run).status == 0
    compared = cemg("compare", *runs, "--output", tmp_path / "out", "--metric", "hr@10", "--slice", "test")
    assert compared.status == 0, compared.errors
    assert "| item_knn − popularity |" in compared.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["compare.json", "compare.md", "compare.png"]
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["command"].startswith("cemg compare ")
    refused = cemg("compare", *runs, "--metric", "coverage@10")
    assert refused.status == 2
    assert "no value per user" in refused.error_lines[0]


def test_a_tokenizer_is_inspected_described_and_takes_new_items(cemg: Command, tmp_path: Path) -> None:
    recipe = write_shop(tmp_path / "shop")
    run = tmp_path / "run"
    assert cemg("run", recipe, "--output", run).status == 0
    inspected = cemg("inspect", run / "tokenizer")
    assert inspected.status == 0, inspected.errors
    assert "collisions before → after" in inspected.output
    assert {path.name for path in (run / "inspection").iterdir()} == {"inspection.json", "inspection.png", "tree.html"}
    described = cemg("describe", run / "model")
    assert f"{NUM_ITEMS} items, 100" in described.output
    assert "<z_1>" in cemg("describe", run / "model", "<z_1>").error_lines[0]

    table = pl.DataFrame({"item_id": ["new-1", "new-2", "item-03x"], "title": ["red wool shirt", None, "green leather lamp"]})
    table.write_csv(tmp_path / "new.csv")
    options = ["--items", tmp_path / "new.csv", "--features", run / "features", "--output", tmp_path / "grown"]
    grown = cemg("add-items", run / "model", *options)
    assert grown.status == 0, grown.errors
    assert grown.output.startswith("2 items added")
    before, after = (CEMGTokenizer.from_pretrained(folder) for folder in (run / "model", tmp_path / "grown"))
    assert after.item_ids == [*before.item_ids, "new-1", "item-03x"]
    assert torch.equal(after.item_codes[:-2], before.item_codes)
    answer = cemg("recommend", tmp_path / "grown", "new-1", "-k", 26, "--new-item-boost", 100)
    assert {line.split()[1] for line in answer.output.splitlines()[:2]} == {"new-1", "item-03x"}
    assert (
        "'new-1' and 1 more exists in the catalogue"
        in cemg("add-items", tmp_path / "grown", *options[:4], "--output", tmp_path / "again").errors
    )
    assert not (tmp_path / "again").exists()


def test_a_model_of_code_streams_takes_new_items(cemg: Command, tmp_path: Path) -> None:
    recipe, run = write_shop(tmp_path / "shop"), tmp_path / "run"
    quick = ("encode.sequential.loop.epochs=1", "encode.sequential.settings.hidden_size=16", "streams.modalities=[collaborative,text]")
    trained = cemg("run", recipe, *(part for setting in quick for part in ("--set", setting)), "--system", "mscgrec", "--output", run)
    assert trained.status == 0, trained.errors
    table = pl.DataFrame({"item_id": ["new-1", "new-2"], "title": ["red wool shirt", None]})
    table.write_csv(tmp_path / "new.csv")
    options = ["--items", tmp_path / "new.csv", "--features", run / "features", "--output", tmp_path / "grown"]
    grown = cemg("add-items", run / "model", *options)
    assert grown.status == 0, grown.errors
    assert grown.output.startswith("1 items added")
    before, after = (MSCGRecTokenizer.from_pretrained(folder) for folder in (run / "model", tmp_path / "grown"))
    assert after.item_ids == [*before.item_ids, "new-1"]
    assert torch.equal(after.stream_codes[:-1], before.stream_codes)
    assert after.stream_mask[-1].tolist() == [False, True]
    answer = cemg("recommend", tmp_path / "grown", "new-1", "-k", 5, "--new-item-boost", 100)
    assert answer.output.splitlines()[0].split()[1] == "new-1"
    masked = cemg("add-items", run / "model", *options[:-1], tmp_path / "again", "--collaborative", "masked")
    assert "collaborative='predicted'" in masked.error_lines[0]
    assert not (tmp_path / "again").exists()


def test_cold_start_hands_the_settings_on(cemg: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def called(recipe: Any, output: Path, config: Any, **options: Any) -> dict[str, Any]:
        calls.append((recipe.name, output, config.share, config.seed))
        raise CEMGError("stopped here")

    monkeypatch.setattr(cold_start, "run_cold_start", called)
    assert cemg("cold-start", "sample", "--share", 0.2, "--seed", 5).status == 2
    assert calls == [("sample", Path("runs/sample-cold-start"), 0.2, 5)]


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


def test_a_study_hands_the_settings_on_and_shows_its_table(cemg: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def answered(self: studies.Study) -> dict[str, Any]:
        asked.append((self.config, self.command))
        if self.config.question == "rq4":
            self.failed["sample", "K = 512"] = "too few items"
        (tmp_path / f"{self.config.question}.md").write_text("the table")
        return {}

    monkeypatch.setattr(studies.Study, "run", answered)
    options = ["--output", tmp_path, "--set", "finetune.loop.epochs=2", "--seeds", 3, "--time-budget", 500]
    shown = cemg("study", "rq1", "sample", "own-data", "--systems", "cemg, tiger", *options)
    assert shown.status == 0, shown.errors
    assert shown.output.startswith("the table\n")
    config, command = asked[0]
    assert (config.question, config.recipes, config.output) == ("rq1", ["sample", "own-data"], tmp_path)
    assert (config.systems, config.seeds, config.time_budget_s) == (["cemg", "tiger"], 3, 500)
    assert config.assignments == ["finetune.loop.epochs=2"]
    assert command.startswith("cemg study rq1 sample own-data --systems")
    swept = cemg("study", "rq4", "sample", "--sweep", "K", *options)
    assert swept.status == 2
    assert "the table" in swept.output
    assert swept.error_lines == ["error: 1 of the variants cannot be run, among them sample, K = 512: too few items"]
    assert "choose one of rq1, rq2, rq3, rq4, rq5" in cemg("study", "rq9", "sample").error_lines[0]


@pytest.mark.slow
def test_two_launched_processes_train_the_model_of_one(tmp_path: Path) -> None:
    recipe = write_shop(tmp_path / "shop")
    script = Path(__file__).resolve().parents[1] / "training" / "finetune.py"
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


def test_recommend_for_a_new_user_and_past_unknown_ids(cemg: Command, tmp_path: Path) -> None:
    ids = [f"item-{row:02d}" for row in range(NUM_ITEMS)]
    model = save_model(tmp_path / "model", ids)
    expected = [f"{item_id}  {score:.4f}" for item_id, score in model.recommend([], k=3)]
    assert [line[5:] for line in cemg("recommend", tmp_path / "model", "-k", 3).output.splitlines()] == expected
    known = cemg("recommend", tmp_path / "model", "item-01", "-k", 3)
    assert cemg("recommend", tmp_path / "model", "item-01", "gone", "-k", 3, "--skip-unknown").output == known.output


def test_the_example_names_the_user_whose_history_it_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = [f"item-{row:02d}" for row in range(NUM_ITEMS)]
    bought = {"first": ids[:2], "second": ids[2:6]}  # nobody with two interactions is evaluated
    (tmp_path / "dataset").mkdir()
    users = [user for user, items in bought.items() for _ in items]
    interactions = {"user_id": users, "item_id": [*bought["first"], *bought["second"]], "timestamp": range(len(users))}
    pl.DataFrame(interactions).write_parquet(tmp_path / "dataset" / "interactions.parquet")
    pl.DataFrame({"item_id": ids, "title": ids}).write_parquet(tmp_path / "dataset" / "items.parquet")
    save_model(tmp_path / "model", ids)
    cli._example(tmp_path)
    _, said, *lines = capsys.readouterr().out.splitlines()
    assert said == "user second bought (last 5):"
    assert [line.split()[0] for line in lines[:3]] == bought["second"][:-1]


def test_recommend_to_a_file_of_users(cemg: Command, tmp_path: Path) -> None:
    """The lists of the file are those of the same command with the same ids; run again, it has nothing to do."""
    ids = [f"item-{row:02d}" for row in range(NUM_ITEMS)]
    save_model(tmp_path / "model", ids)
    histories = [["item-01", "gone", "item-02"], [], ids]
    pl.DataFrame({"who": [3, 1, 2], "bought": histories}).write_parquet(tmp_path / "users.parquet")
    options = ["-k", 4, "--exclude-history", "--num-beams", 24, "--skip-unknown", "--device", "cpu"]
    files = ["--histories", tmp_path / "users.parquet", "--output", tmp_path / "recs.parquet"]
    columns = ["--user-column", "who", "--history-column", "bought", "--rows-per-part", 2, "--batch-size", 1]
    ran = cemg("recommend", tmp_path / "model", *files, *columns, *options)
    assert ran.status == 0, ran.errors
    assert re.fullmatch(rf"3 users in [\d.]+ s, [\d.,]+ users/s, 1 unknown item ids skipped; in {tmp_path}/recs.parquet\n", ran.output)
    found = pl.read_parquet(tmp_path / "recs.parquet" / "*.parquet")
    assert found["who"].to_list() == [3, 1, 2]
    for history, items, scores in zip(histories, found["item_ids"], found["scores"], strict=True):
        lines = [line.split()[1:] for line in cemg("recommend", tmp_path / "model", *history, *options).output.splitlines()]
        assert [item for item, _ in lines] == items.to_list()
        assert [float(score) for _, score in lines] == pytest.approx(scores.to_list(), abs=1e-4)
    again = cemg("recommend", tmp_path / "model", *files, *columns, *options)
    assert (again.status, again.output) == (
        0,
        f"all 3 users are there already, 1 unknown item ids skipped; in {tmp_path}/recs.parquet\n",
    )


def test_the_demo_shows_models_or_exports_a_space(cemg: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from cemg_hf.demo import app as page

    shown: list[dict[str, Any]] = []
    monkeypatch.setattr(page, "launch", lambda engine, title, **options: shown.append({"engine": engine, "title": title, **options}))
    for name in ("first", "second"):
        save_model(tmp_path / name, ["a", "b", "c"])
    assert cemg("demo", tmp_path / "first", tmp_path / "second", "--port", 8123, "--host", "0.0.0.0").status == 0
    assert [model.name for model in shown[0]["engine"].models] == ["first", "second"]
    assert (shown[0]["title"], shown[0]["host"], shown[0]["port"], shown[0]["share"]) == (
        "Next items by first and second",
        "0.0.0.0",
        8123,
        False,
    )
    assert cemg("demo", tmp_path / "first", "--title", "My shop", "--share").status == 0
    assert (shown[1]["title"], shown[1]["port"], shown[1]["share"]) == ("My shop", None, True)
    exported = cemg("demo", "org/cemg-tiny", "--dataset", "org/tiny-data", "--export-space", tmp_path / "space")
    assert exported.status == 0, exported.errors
    assert "Next items by cemg-tiny" in (tmp_path / "space" / "app.py").read_text()
    refused = cemg("demo", tmp_path / "first", "--export-space", tmp_path / "other")
    assert refused.status == 2
    assert "a Space loads from the Hub" in refused.error_lines[0]
    refused = cemg("demo", "org/cemg-tiny", "--items", "items.parquet", "--export-space", tmp_path / "other")
    assert "--items: a Space shows the items of a data set on the Hub" in refused.error_lines[0]
    assert len(shown) == 2


def test_the_demo_says_what_it_lacks(cemg: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("cemg_hf.demo")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    refused = cemg("demo", "org/cemg-tiny")
    assert refused.status == 2
    assert "`cemg demo` needs gradio, which is not installed; pip install 'cemg-hf[demo]'" in refused.error_lines[0]
