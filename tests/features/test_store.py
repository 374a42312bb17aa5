from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cemg_hf.errors import CEMGError
from cemg_hf.features.projection import Projection
from cemg_hf.features.store import FeatureStore, ModalityFeatures


@pytest.fixture
def store() -> FeatureStore:
    generator = np.random.default_rng(0)
    modalities = {}
    for name, width in (("image", 7), ("text", 5)):
        mask = generator.random(20) < 0.7
        vectors = np.where(mask[:, None], generator.normal(size=(20, width)), 0).astype(np.float32)
        projection, _ = Projection.fit(vectors, mask, 4)
        description = {"kind": "test", "name": name, "fingerprint": "f"}
        modalities[name] = ModalityFeatures(projection.transform(vectors, mask), mask, projection, description)
    return FeatureStore([f"é{row}" for row in range(20)], modalities)


def test_round_trip_is_exact(store: FeatureStore, tmp_path: Path) -> None:
    store.save(tmp_path / "one")
    loaded = FeatureStore.load(tmp_path / "one")
    assert loaded.item_ids == store.item_ids
    assert list(loaded.modalities) == list(store.modalities)
    for name, expected in store.modalities.items():
        found = loaded.modalities[name]
        pairs = [(found.vectors, expected.vectors), (found.mask, expected.mask)]
        pairs += [(getattr(found.projection, part), getattr(expected.projection, part)) for part in ("mean", "components", "scale")]
        for one, two in pairs:
            assert one.dtype == two.dtype
            assert one.shape == two.shape
            np.testing.assert_array_equal(one, two)
        assert dict(found.encoder) == dict(expected.encoder)
        assert found.dimension == 4
    loaded.save(tmp_path / "two")
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_projection_of_the_raw_vectors_gives_the_stored_ones(tmp_path: Path) -> None:
    raw = np.random.default_rng(0).normal(size=(20, 7)).astype(np.float32)
    mask = np.ones(20, dtype=bool)
    projection, _ = Projection.fit(raw, mask, 4)
    FeatureStore(list("abcdefghijklmnopqrst"), {"text": ModalityFeatures(projection.transform(raw, mask), mask, projection, {})}).save(
        tmp_path
    )
    arrays = load_file(tmp_path / "features.safetensors")
    by_hand = (raw - arrays["text.mean"]) @ arrays["text.components"].T * arrays["text.scale"]
    np.testing.assert_allclose(arrays["text.vectors"], by_hand, atol=1e-6)


def test_errors_name_the_file(store: FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match=r"features\.safetensors is missing"):
        FeatureStore.load(tmp_path)
    store.save(tmp_path)
    (tmp_path / "item_ids.json").write_text(json.dumps(store.item_ids[:-1]))
    with pytest.raises(CEMGError, match="20 image vectors for 19 item ids"):
        FeatureStore.load(tmp_path)
    arrays = load_file(tmp_path / "features.safetensors")
    del arrays["text.mask"]
    store.save(tmp_path)
    save_file(arrays, tmp_path / "features.safetensors")
    with pytest.raises(CEMGError, match=r"text\.mask"):
        FeatureStore.load(tmp_path)
    (tmp_path / "features.safetensors").write_bytes(b"broken")
    with pytest.raises(CEMGError, match="not a safetensors file"):
        FeatureStore.load(tmp_path)
