"""The whole walk on a very small shop: files in, a measured, loadable recommender out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from cemg_hf import CEMGForConditionalGeneration
from cemg_hf.errors import CEMGError
from cemg_hf.recipes import Recipe, load_recipe
from cemg_hf.training import finetune as finetune_module
from cemg_hf.training.finetune import finetune
from cemg_hf.training.pipeline import STAGES, run, without_modality

USERS, ITEMS = 60, 40
QUICK = [
    "encode.dimension=16",
    "encode.sequential.loop={epochs: 1, batch_size: 16}",
    "tokenize.dimension=16",
    "tokenize.codebook_size=8",
    "tokenize.latent_dim=8",
    "tokenize.hidden_dims=[16]",
    "tokenize.num_levels=3",
    "tokenize.epochs=3",
    "finetune.generator={d_model: 16, d_kv: 8, d_ff: 32, num_heads: 2, num_layers: 1, num_decoder_layers: 1, max_history: 6}",
    "finetune.loop={epochs: 2, batch_size: 16, learning_rate: 0.01, eval_every: 1}",
    "finetune.dense.loop={epochs: 1, batch_size: 16}",
    "evaluate.num_beams=20",
]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CSV interactions, JSON-lines items and a folder of pictures; one picture is broken, one item has neither picture nor text."""
    folder = tmp_path_factory.mktemp("shop")
    rng = np.random.default_rng(0)
    rows = [(f"u{user}", f"i{item}", step) for user in range(USERS) for step, item in enumerate(rng.choice(ITEMS, 8, replace=False))]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(folder / "interactions.csv")
    kinds = np.array(["mug", "lamp", "shoe", "bag"])[np.arange(ITEMS) % 4]
    items = [{"item_id": f"i{item}", "title": f"{kinds[item]} number {item} for {kinds[item // 4 % 4]} lovers"} for item in range(ITEMS)]
    items[1]["title"] = ""
    (folder / "items.jsonl").write_text("\n".join(json.dumps(item) for item in items))
    (folder / "images").mkdir()
    for item in range(ITEMS):
        if item != 1:
            pixels = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((48, 48)).save(folder / "images" / f"i{item}.jpg")
    broken = folder / "images" / "i2.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    return folder


@pytest.fixture(scope="module")
def recipe(shop: Path) -> Recipe:
    inputs = {
        "prepare.interactions": str(shop / "interactions.csv"),
        "prepare.items": str(shop / "items.jsonl"),
        "prepare.images": str(shop / "images"),
    }
    return load_recipe("own-data", QUICK, {**inputs, "prepare.min_interactions": 2})


@pytest.fixture(scope="module")
def finished(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("run")
    return folder, run(recipe, folder, command="test")


def test_a_run_leaves_the_envelope_and_a_loadable_model(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, result = finished
    stored = json.loads((folder / "metrics.json").read_text())
    assert stored["metrics"] == result["metrics"]
    assert {"command", "commit", "seeds", "versions", "machine", "seconds"} <= set(stored)
    assert set(stored["metrics"]) == {"cemg", "cemg, codes only", "popularity"}
    for system in stored["metrics"].values():
        assert {"test", "test_excluding_history", "test_cold"} <= set(system)
        assert system["test"]["n"] == USERS
        assert 0 <= system["test"]["ndcg@10"] <= system["test"]["hr@10"] <= 1
    levels = stored["tokenizer"]["levels"]
    assert len(levels) == 3
    assert all(0 < level["used_codes"] <= 1 and level["perplexity"] >= 1 for level in levels)
    assert stored["tokenizer"]["collision_rate_after"] == 0 <= stored["tokenizer"]["collision_rate_before"]
    model = CEMGForConditionalGeneration.from_pretrained(folder / "model")
    assert {item for item, _ in model.recommend(["i0", "i3"], k=ITEMS)} == {f"i{item}" for item in range(ITEMS)}


def test_every_prediction_is_a_catalogue_item(finished: tuple[Path, dict[str, Any]]) -> None:
    predictions = pl.read_parquet(finished[0] / "evaluation" / "predictions.parquet")
    assert len(predictions) == USERS
    assert set(predictions["items"].explode()) <= {f"i{item}" for item in range(ITEMS)}
    assert (predictions["items"].list.n_unique() == predictions["items"].list.len()).all()


def test_broken_and_missing_content_is_counted_and_masked(finished: tuple[Path, dict[str, Any]]) -> None:
    report = json.loads((finished[0] / "features" / "report.json").read_text())
    image = report["modalities"]["image"] if "modalities" in report else report["image"]
    assert image["unreadable"] == 1
    assert image["masked"] == 2


def test_a_second_run_repeats_nothing(recipe: Recipe, finished: tuple[Path, dict[str, Any]]) -> None:
    folder, result = finished
    manifests = {name: (folder / name / "manifest.json").stat().st_mtime_ns for name in STAGES.values()}
    again = run(recipe, folder, command="test")
    assert again["metrics"] == result["metrics"]
    assert manifests == {name: (folder / name / "manifest.json").stat().st_mtime_ns for name in STAGES.values()}


def test_a_killed_finetune_continues_to_the_same_model(
    recipe: Recipe, finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = finished
    calls = 0
    validate = finetune_module.Validation.__call__

    def fail_once(self: Any, model: Any) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == 3:  # the tower's epoch, the generator's first, its second
            raise MemoryError("killed")
        return validate(self, model)

    monkeypatch.setattr(finetune_module.Validation, "__call__", fail_once)
    arguments = (recipe.finetune, folder / "dataset", folder / "tokenizer", tmp_path / "model", recipe.seed)
    with pytest.raises(MemoryError):
        finetune(*arguments)
    assert not (tmp_path / "model").exists()
    finetune(*arguments)
    assert calls == 4
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == (folder / "model" / "model.safetensors").read_bytes()


def test_interactions_alone_and_a_catalogue_smaller_than_a_codebook_will_do(
    recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quick = [change for change in QUICK if "codebook_size" not in change]
    alone = load_recipe("own-data", [*quick, "prepare.min_interactions=2"], {"prepare.interactions": recipe.prepare.interactions})
    assert alone.tokenize.codebook_size > ITEMS
    result = run(alone, tmp_path)
    assert set(result["metrics"]) == {"cemg", "cemg, codes only", "popularity"}
    assert "the tower knows items by their ids alone" in caplog.text
    assert f"codebook_size {alone.tokenize.codebook_size} is large for {ITEMS} items" in caplog.text


def test_a_tokenizer_of_another_catalogue_is_refused(recipe: Recipe, finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = finished
    run(
        load_recipe("own-data", [*QUICK, "prepare.min_interactions=2"], {"prepare.interactions": recipe.prepare.interactions}),
        tmp_path,
        until="prepare",
    )
    (tmp_path / "dataset" / "items.parquet").write_bytes((folder / "dataset" / "items.parquet").read_bytes())
    table = pl.read_parquet(tmp_path / "dataset" / "items.parquet")
    table.reverse().write_parquet(tmp_path / "dataset" / "items.parquet")
    with pytest.raises(CEMGError, match="run `cemg tokenize`"):
        finetune(recipe.finetune, tmp_path / "dataset", folder / "tokenizer", tmp_path / "model")


def test_an_ablation_drops_one_encoder_only(recipe: Recipe) -> None:
    ablated = without_modality(recipe, "image")
    assert ablated.encode.modalities == ["text", "collaborative"]
    assert ablated.tokenize == recipe.tokenize
    assert ablated.finetune == recipe.finetune
