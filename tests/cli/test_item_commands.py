"""A trained tokenizer is looked at, and takes new items."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import torch
from command_samples import NUM_ITEMS, Command, write_shop

from cemg_hf import CEMGTokenizer
from cemg_hf.models.mscgrec import MSCGRecTokenizer


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
