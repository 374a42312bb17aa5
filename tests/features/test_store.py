from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cemg_hf.errors import CEMGError
from cemg_hf.features import store as store_module
from cemg_hf.features.projection import Projection
from cemg_hf.features.store import FeatureBlocks, FeatureStore, ModalityFeatures, row_blocks, scratch_array, taken_rows, write_features


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


def test_vectors_are_read_only_maps_of_the_file_and_their_rows_are_read_alone(store: FeatureStore, tmp_path: Path) -> None:
    store.save(tmp_path)
    for name, features in FeatureStore.load(tmp_path).modalities.items():
        assert isinstance(features.vectors, np.memmap)
        assert not features.vectors.flags.writeable
        rows = np.array([7, 0, 19, 7])
        np.testing.assert_array_equal(features.vectors[rows], store.modalities[name].vectors[rows])
        np.testing.assert_array_equal(np.asarray(features.vectors[3:9]), store.modalities[name].vectors[3:9])


def test_a_loaded_store_can_be_saved_over_itself(store: FeatureStore, tmp_path: Path) -> None:
    store.save(tmp_path)
    before = (tmp_path / "features.safetensors").read_bytes()
    FeatureStore.load(tmp_path).save(tmp_path)
    assert (tmp_path / "features.safetensors").read_bytes() == before


@pytest.mark.parametrize(("dtype", "stored"), [("F16", np.float16), ("F32", np.float32)])
def test_blocks_of_any_size_make_the_file_that_safetensors_reads(store: FeatureStore, tmp_path: Path, dtype: str, stored: type) -> None:
    image = store.modalities["image"]
    for size in (1, 7, 20):
        parts = FeatureBlocks(row_blocks(image.vectors, size), 4, image.mask, image.projection, image.encoder, dtype)
        write_features(tmp_path / str(size), store.item_ids, {"image": parts})
        arrays = load_file(tmp_path / str(size) / "features.safetensors")
        assert arrays["image.vectors"].dtype == stored
        np.testing.assert_array_equal(arrays["image.vectors"], image.vectors.astype(stored))
        np.testing.assert_array_equal(arrays["image.mask"], image.mask)
        np.testing.assert_array_equal(arrays["image.scale"], image.projection.scale)
        loaded = FeatureStore.load(tmp_path / str(size)).modalities["image"].vectors
        assert loaded.dtype == stored
        assert loaded.flags.aligned


def test_a_write_that_fails_leaves_the_old_folder(store: FeatureStore, tmp_path: Path) -> None:
    store.save(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    image = store.modalities["image"]

    def parts(blocks: list[np.ndarray]) -> dict[str, FeatureBlocks]:
        return {"image": FeatureBlocks(blocks, 4, image.mask, image.projection, image.encoder)}

    with pytest.raises(CEMGError, match=r"image\.vectors: 13 rows were given"):
        write_features(tmp_path, store.item_ids, parts([image.vectors[:13]]))
    with pytest.raises(CEMGError, match=r"image\.vectors: a block of shape \(20, 3\)"):
        write_features(tmp_path, store.item_ids, parts([image.vectors[:, :3]]))
    with pytest.raises(CEMGError, match="a mask of shape"):
        write_features(tmp_path, store.item_ids[:-1], parts([image.vectors]))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def damaged_header(content: bytes, change: dict[str, object]) -> bytes:
    """The file with entries of `image.vectors` changed in its header."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["image.vectors"] |= change
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "I64"}, "stored as I64"),
        ({"shape": [20, 5]}, "its shape"),
        ({"shape": [-20, -4]}, "has the shape"),
        ({"data_offsets": [10_000, 10_320]}, "beyond the file"),
        ({"data_offsets": None}, "not a safetensors file"),
    ],
)
def test_a_header_that_lies_is_an_error_not_a_crash(store: FeatureStore, tmp_path: Path, change: dict[str, object], message: str) -> None:
    store.save(tmp_path)
    path = tmp_path / "features.safetensors"
    path.write_bytes(damaged_header(path.read_bytes(), change))
    with pytest.raises(CEMGError, match=message):
        FeatureStore.load(tmp_path)


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_file_cut_short_is_an_error(store: FeatureStore, tmp_path: Path, length: int) -> None:
    store.save(tmp_path)
    path = tmp_path / "features.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CEMGError, match=r"features\.safetensors: not a safetensors file"):
        FeatureStore.load(tmp_path)


def test_a_catalogue_without_items_is_a_store_too(store: FeatureStore, tmp_path: Path) -> None:
    image = store.modalities["image"]
    empty = ModalityFeatures(image.vectors[:0], image.mask[:0], image.projection, {})
    FeatureStore([], {"image": empty}).save(tmp_path)
    assert FeatureStore.load(tmp_path).modalities["image"].vectors.shape == (0, 4)


def test_large_scratch_arrays_lie_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not isinstance(scratch_array((4, 3)), np.memmap)
    monkeypatch.setattr(store_module, "BYTES_IN_MEMORY", 47)
    array = scratch_array((4, 3), folder=tmp_path)
    assert isinstance(array, np.memmap)
    assert not array.any()
    array[2] = 5
    assert array.sum() == 15
    assert not list(tmp_path.iterdir())
    with pytest.raises(CEMGError, match="make room or set TMPDIR"):
        scratch_array((2**50, 3), folder=tmp_path)


@pytest.mark.parametrize("bound", [0, 2**26])
def test_taken_rows_are_those_asked_for_also_on_disk(bound: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "BYTES_IN_MEMORY", bound)
    monkeypatch.setattr(store_module, "ROWS_AT_ONCE", 2)
    vectors = np.arange(30, dtype=np.float16).reshape(10, 3)
    rows = np.array([1, 2, 5, 8, 9])
    found = taken_rows(vectors, rows)
    assert isinstance(found, np.memmap) is (bound == 0)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, vectors[rows])
    assert taken_rows(vectors, rows[:0]).shape == (0, 3)
