"""Commands that answer say what the model does."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from command_samples import NUM_ITEMS, Command, save_model


def test_recommend_for_a_new_user_and_past_unknown_ids(cemg: Command, tmp_path: Path) -> None:
    ids = [f"item-{row:02d}" for row in range(NUM_ITEMS)]
    model = save_model(tmp_path / "model", ids)
    expected = [f"{item_id}  {score:.4f}" for item_id, score in model.recommend([], k=3)]
    assert [line[5:] for line in cemg("recommend", tmp_path / "model", "-k", 3).output.splitlines()] == expected
    known = cemg("recommend", tmp_path / "model", "item-01", "-k", 3)
    assert cemg("recommend", tmp_path / "model", "item-01", "gone", "-k", 3, "--skip-unknown").output == known.output


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
