from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from command_samples import write_shop

from cemg_hf.artefacts import MANIFEST_NAME
from cemg_hf.errors import CEMGError
from cemg_hf.models.cemg import CEMGTokenizer
from cemg_hf.recipes import Recipe, load_recipe
from cemg_hf.training import epoch_checkpoint, tokenizer_training
from cemg_hf.training.deadline import OutOfTime
from cemg_hf.training.pipeline import run
from cemg_hf.training.tokenize import REPORT_NAME, tokenize


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A recipe and its run folder with data set, features and tokenizer."""
    folder = tmp_path_factory.mktemp("shop")
    recipe = load_recipe(str(write_shop(folder / "shop")), [], {})
    run(recipe, folder / "run", until="tokenize")
    return recipe, folder / "run"


def report(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / REPORT_NAME).read_text()))


def test_the_report_has_what_scripts_outside_read(made: tuple[Recipe, Path]) -> None:
    written = report(made[1] / "tokenizer")
    assert {"used_codes", "perplexity"} <= set(written["levels"][0])
    assert written["collision_rate_after"] == 0
    assert written["collision_rate_before"] <= written["collision_rate_before_last_level"] <= 1
    assert {"collision_rate_before", "reconstruction_error", "pca_error", "alpha", "fusion", "content_head", "history"} <= set(written)
    assert written["fusion"]["pairs"] > 0


def test_the_data_set_is_part_of_what_the_stage_is_made_of(made: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, folder = made
    output = tmp_path / "tokenizer"
    tokenize(recipe.tokenize, folder / "features", output, 1, folder / "dataset")
    first = (output / MANIFEST_NAME).stat().st_mtime_ns
    tokenize(recipe.tokenize, folder / "features", output, 1, folder / "dataset")
    assert (output / MANIFEST_NAME).stat().st_mtime_ns == first
    tokenize(recipe.tokenize, folder / "features", output, 1)
    assert "fusion" not in report(output), "without interactions the fusion learns from reconstruction alone"


def test_a_stage_that_time_ends_continues_and_leaves_nothing_behind(
    made: tuple[Recipe, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, folder = made
    monkeypatch.setattr(epoch_checkpoint, "time_is_up", lambda: True)
    with pytest.raises(OutOfTime, match="run the same command again"):
        tokenize(recipe.tokenize, folder / "features", tmp_path / "tokenizer", 1, folder / "dataset")
    monkeypatch.undo()
    assert (tmp_path / ".tokenizer.training" / "rqvae.safetensors").is_file()
    monkeypatch.setattr(tokenizer_training, "train_fusion", lambda *_: pytest.fail("started over"))
    tokenize(recipe.tokenize, folder / "features", tmp_path / "tokenizer", 1, folder / "dataset")
    assert not list(tmp_path.glob(".tokenizer*"))
    expected, found = ((where / "tokenizer" / "item_codes.safetensors").read_bytes() for where in (folder, tmp_path))
    assert found == expected


def test_one_modality_is_enough_and_an_absent_one_an_error(made: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, folder = made
    output = tmp_path / "tokenizer"
    tokenize(replace(recipe.tokenize, modalities=["text"]), folder / "features", output, 1, folder / "dataset")
    loaded = CEMGTokenizer.from_pretrained(output)
    assert set(loaded.projections) == {"text"}
    assert loaded.rqvae is not None
    assert loaded.rqvae.content_head is None
    before = (output / "item_codes.safetensors").read_bytes()
    with pytest.raises(CEMGError, match=r"modalities = \['sound'\]"):
        replace(recipe.tokenize, modalities=["sound"])
    with pytest.raises(CEMGError, match="do not fit into 2"):
        tokenize(replace(recipe.tokenize, codebook_size=2), folder / "features", output, 1, folder / "dataset")
    assert (output / "item_codes.safetensors").read_bytes() == before


def test_retraining_from_the_tokenizer_in_use_reports_the_codes_kept(made: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, folder = made
    again = replace(recipe.tokenize, start_from=str(folder / "tokenizer"), learning_rate=1e-6)
    tokenize(again, folder / "features", tmp_path / "tokenizer", 1, folder / "dataset")
    kept = report(tmp_path / "tokenizer")["kept_codes"]
    assert kept["items"] == len(CEMGTokenizer.from_pretrained(folder / "tokenizer").item_ids)
    assert kept["depths"][-1]["kept"] > 0.5
