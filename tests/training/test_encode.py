from __future__ import annotations

import json
import logging
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from cemg_hf.data import PreparedDataset
from cemg_hf.errors import CEMGError
from cemg_hf.features import FeatureStore, ImageConfig, TextConfig, encode_items
from cemg_hf.models.sasrec import SASRecForNextItem
from cemg_hf.training import encode as stage
from cemg_hf.training.collaborative import CollaborativeConfig
from cemg_hf.training.encode import EncodeConfig, encode
from cemg_hf.training.loop import LoopConfig
from cemg_hf.training.sequential import SequentialConfig, train_sequential

N_ITEMS = 30
NO_TEXT, NO_IMAGE, TRUNCATED, NOTHING = 3, 5, 7, 11
WORDS = np.array(["red", "blue", "green", "shoe", "shirt", "lamp", "wool", "leather"])


def picture(seed: int) -> bytes:
    buffer = BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((40, 40), Image.Resampling.NEAREST).save(buffer, "JPEG")
    return buffer.getvalue()


def write_dataset(folder: Path, titles: list[str | None], images: list[bytes | None]) -> Path:
    """A dataset folder as `prepare` writes it: the last item has no interactions at all."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    ids = [f"i{row}" for row in range(len(titles))]
    users = np.repeat(np.arange(40), 6)
    interactions = {
        "user_id": [f"u{user}" for user in users],
        "item_id": [ids[item] for item in generator.integers(0, len(ids) - 1, len(users))],
        "timestamp": np.arange(len(users)),
    }
    pl.DataFrame(interactions).write_parquet(folder / "interactions.parquet")
    pl.DataFrame(
        {"item_id": ids, "title": titles, "image": [{"bytes": data, "path": None} for data in images]},
        schema_overrides={"title": pl.String, "image": pl.Struct({"bytes": pl.Binary, "path": pl.String})},
    ).write_parquet(folder / "items.parquet")
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    generator = np.random.default_rng(1)
    titles: list[str | None] = [" ".join(generator.choice(WORDS, 4)) for _ in range(N_ITEMS)]
    images: list[bytes | None] = [picture(row) for row in range(N_ITEMS)]
    titles[NO_TEXT] = titles[NOTHING] = images[NO_IMAGE] = images[NOTHING] = None
    images[TRUNCATED] = picture(TRUNCATED)[:300]
    return write_dataset(tmp_path / "dataset", titles, images)


def settings(**changes: Any) -> EncodeConfig:
    defaults: dict[str, Any] = {
        "modalities": ["image", "text"],
        "text": TextConfig(encoder="tfidf", components=8),
        "image": ImageConfig(encoder="colour-gradient"),
    }
    return EncodeConfig(**defaults | changes)


def test_store_masks_and_report(dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    output = encode(settings(), dataset, tmp_path / "features", seed=0)
    store = FeatureStore.load(output)
    report = json.loads((output / "report.json").read_text())
    assert store.item_ids == PreparedDataset.load(dataset).item_ids
    masked = {"image": {NO_IMAGE, TRUNCATED, NOTHING}, "text": {NO_TEXT, NOTHING}}
    for name, missing in masked.items():
        features, entry = store.modalities[name], report["modalities"][name]
        assert set(np.flatnonzero(~features.mask)) == missing
        assert not features.vectors[~features.mask].any()
        assert (features.vectors[features.mask] ** 2).sum(axis=1).mean() == pytest.approx(features.dimension, rel=1e-4)
        assert (entry["present"], entry["masked"], entry["dimension"]) == (N_ITEMS - len(missing), len(missing), features.dimension)
        assert 0 < entry["explained_variance"] <= 1 + 1e-9
        assert entry["encoder"] == features.encoder["name"]
    assert report["modalities"]["image"]["unreadable"] == 1
    assert list(report["modalities"]["image"]["unreadable_items"]) == [f"i{TRUNCATED}"]
    assert (report["items_without_content"], report["first_items_without_content"]) == (1, [f"i{NOTHING}"])
    assert "text by TF-IDF + truncated SVD (8-d)" in caplog.text
    assert "colour histogram + oriented gradients" in caplog.text


def test_same_seed_same_bytes_and_current_output_is_kept(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = encode(settings(), dataset, tmp_path / "a", seed=0)
    second = encode(settings(), dataset, tmp_path / "b", seed=0)
    for name in ("features.safetensors", "encoders.json", "item_ids.json", "text_encoder.json", "text_encoder.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    written = (first / "manifest.json").stat().st_mtime_ns
    monkeypatch.setattr(stage, "_encode", lambda *_: pytest.fail("encoded again"))
    encode(settings(), dataset, tmp_path / "a", seed=0)
    assert (first / "manifest.json").stat().st_mtime_ns == written
    # Settings of a modality that is not used do not count.
    encode(settings(collaborative=CollaborativeConfig(dimension=8)), dataset, tmp_path / "a", seed=0)
    with pytest.raises(pytest.fail.Exception):
        encode(settings(dimension=4), dataset, tmp_path / "a", seed=0)


def test_raw_vectors_of_the_catalogue_project_onto_the_stored_ones(dataset: Path, tmp_path: Path) -> None:
    output = encode(settings(dimension=6), dataset, tmp_path / "features", seed=0)
    store = FeatureStore.load(output)
    items = PreparedDataset.load(dataset).items_table()
    for name, (vectors, mask) in encode_items(items, output).items():
        features = store.modalities[name]
        np.testing.assert_array_equal(mask, features.mask)
        np.testing.assert_allclose(features.projection.transform(vectors, mask), features.vectors, atol=1e-5)


def test_collaborative_vectors_are_projected_and_masked(dataset: Path, tmp_path: Path) -> None:
    output = encode(settings(modalities=["text", "collaborative"]), dataset, tmp_path / "features", seed=0)
    features = FeatureStore.load(output).modalities["collaborative"]
    trained = PreparedDataset.load(dataset).train_item_counts() > 0
    np.testing.assert_array_equal(features.mask, trained)
    assert not features.mask[-1]
    assert features.dimension <= N_ITEMS - 1
    assert features.encoder["kind"] == "lightgcn"
    assert json.loads((output / "report.json").read_text())["modalities"]["collaborative"]["training"]


def test_a_network_over_items_can_give_the_collaborative_vectors(dataset: Path, tmp_path: Path) -> None:
    network = SequentialConfig(settings={"hidden_size": 8, "num_heads": 1}, loop=LoopConfig(epochs=2, batch_size=16))
    config = settings(modalities=["text", "collaborative"], sequential=network)
    output = encode(config, dataset, tmp_path / "features", seed=0)
    features = FeatureStore.load(output).modalities["collaborative"]
    trained = PreparedDataset.load(dataset).train_item_counts() > 0
    np.testing.assert_array_equal(features.mask, trained)
    assert not trained.all()
    model = SASRecForNextItem.from_pretrained(train_sequential(network, dataset, tmp_path / "model", seed=0))
    vectors = model.item_vectors().detach().numpy()
    projected = features.projection.transform(vectors, trained)
    np.testing.assert_allclose(features.vectors, projected, atol=1e-5)
    assert features.encoder["kind"] == "sasrec"
    assert json.loads((output / "report.json").read_text())["modalities"]["collaborative"]["training"]["steps"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [".locks", "dataset", "features", "model"], "no scratch is left behind"
    written = (output / "features.safetensors").stat().st_mtime_ns
    encode(config, dataset, output, seed=0)
    assert (output / "features.safetensors").stat().st_mtime_ns == written
    with pytest.raises(CEMGError, match=r"encode\.sequential\.content"):
        encode(settings(sequential=replace(network, content=True)), dataset, tmp_path / "other", seed=0)


def test_which_network_gives_collaborative_vectors_matters_only_where_there_are_any(dataset: Path, tmp_path: Path) -> None:
    output = encode(settings(), dataset, tmp_path / "features", seed=0)
    written = (output / "features.safetensors").stat().st_mtime_ns
    encode(settings(sequential=SequentialConfig()), dataset, output, seed=0)
    assert (output / "features.safetensors").stat().st_mtime_ns == written


def test_modality_that_no_item_has_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    dataset = write_dataset(tmp_path / "dataset", ["red shoe", "blue lamp", "green shoe"], [None, None, picture(1)])
    output = encode(settings(), dataset, tmp_path / "features", seed=0)
    assert list(FeatureStore.load(output).modalities) == ["text"]
    assert json.loads((output / "report.json").read_text())["modalities"]["image"]["used"] is False
    assert "image is left out: 1 of 3 items have it" in caplog.text
    bare = write_dataset(tmp_path / "bare", [None] * 3, [None] * 3)
    with pytest.raises(CEMGError, match="no two items have image or text"):
        encode(settings(), bare, tmp_path / "nothing", seed=0)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modalities": ["image", "sound"]}, "modalities = "),
        ({"modalities": []}, "modalities = "),
        ({"modalities": ["text", "text"]}, "each once"),
        ({"dimension": 0}, "dimension = 0"),
        ({"text": TextConfig(encoder="/no/such/folder")}, "no folder /no/such/folder"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], message: str, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match=message):
        encode(settings(**changes), dataset, tmp_path / "features", seed=0)


def test_folder_that_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match="not a prepared dataset"):
        encode(settings(), tmp_path, tmp_path / "features", seed=0)


def test_beauty_has_no_images(shared_data: Path, tmp_path: Path) -> None:
    items = pl.read_parquet(shared_data / "beauty" / "items.parquet")
    (tmp_path / "dataset").mkdir()
    items.write_parquet(tmp_path / "dataset" / "items.parquet")
    pl.read_parquet(shared_data / "beauty" / "interactions.parquet").head(100).write_parquet(tmp_path / "dataset" / "interactions.parquet")
    output = encode(settings(), tmp_path / "dataset", tmp_path / "features", seed=0)
    store = FeatureStore.load(output)
    assert list(store.modalities) == ["text"]
    assert store.modalities["text"].mask.all()
