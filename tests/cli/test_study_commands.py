"""Systems are compared, and studies asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_samples import Command, write_shop

from cemg_hf.errors import CEMGError
from cemg_hf.training import cold_start, studies


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


def test_cold_start_hands_the_settings_on(cemg: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def called(recipe: Any, output: Path, config: Any, **options: Any) -> dict[str, Any]:
        calls.append((recipe.name, output, config.share, config.seed))
        raise CEMGError("stopped here")

    monkeypatch.setattr(cold_start, "run_cold_start", called)
    assert cemg("cold-start", "sample", "--share", 0.2, "--seed", 5).status == 2
    assert calls == [("sample", Path("runs/sample-cold-start"), 0.2, 5)]


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
