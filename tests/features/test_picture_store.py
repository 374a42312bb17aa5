from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from feature_samples import jpeg
from PIL import Image

from cemg_hf.data.prepare import PrepareConfig, prepare
from cemg_hf.errors import CEMGError
from cemg_hf.features import picture_store
from cemg_hf.features.picture_store import read_pictures


def folder(tmp_path: Path) -> Path:
    place = tmp_path / "pictures"
    (place / "deeper").mkdir(parents=True)
    for number, name in enumerate(("b.jpg", "deeper/a.jpg", "c.jpg")):
        (place / name).write_bytes(jpeg(number, (40, 20 + 10 * number)))
    (place / "notes.txt").write_text("no picture")
    return place


def test_pictures_are_squeezed_whole_and_their_shape_is_kept(tmp_path: Path) -> None:
    found = read_pictures(folder(tmp_path), 16)
    assert found.pixels.shape == (3, 3, 16, 16)
    assert found.pixels.dtype == np.uint8
    assert found.item_ids == ["b", "c", "a"]
    assert found.rows.tolist() == [0, 1, 2]
    np.testing.assert_allclose(found.aspect, [40 / 20, 40 / 40, 40 / 30])
    whole = Image.open(tmp_path / "pictures" / "b.jpg").convert("RGB")
    np.testing.assert_allclose(found.pixels[0].mean((1, 2)), np.asarray(whole).mean((0, 1)), atol=3)


@pytest.mark.parametrize("resident", [2**30, 0])
def test_batches_are_the_same_from_the_device_and_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resident: int) -> None:
    monkeypatch.setattr(picture_store, "RESIDENT_BYTES", resident)
    found = read_pictures(folder(tmp_path), 8)
    pixels, aspect = found.batch(torch.tensor([2, 0, 2]), torch.device("cpu"))
    np.testing.assert_array_equal(pixels.numpy(), found.pixels[[2, 0, 2]])
    np.testing.assert_array_equal(aspect.numpy(), found.aspect[[2, 0, 2]])


def test_pictures_that_cannot_be_read_are_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = folder(tmp_path)
    (place / "aa.png").write_bytes(b"half a picture")
    found = read_pictures(place, 8)
    assert len(found) == 3
    assert list(found.unreadable) == ["aa"]
    assert found.item_ids[0] == "aa"
    assert found.rows.tolist() == [1, 2, 3]
    assert "1 pictures cannot be read and are left out (first: aa" in caplog.text


def test_a_prepared_data_set_brings_its_own_pictures(tmp_path: Path) -> None:
    place = folder(tmp_path)
    (tmp_path / "items.csv").write_text("item_id,title\na,A\nb,B\nc,C\nd,D\n")
    rows = [f"u{user},{item},{time}" for user in range(3) for time, item in enumerate("abcd")]
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    config = PrepareConfig(
        name="x",
        interactions=str(tmp_path / "interactions.csv"),
        items=str(tmp_path / "items.csv"),
        images=str(place),
        min_interactions=0,
    )
    prepare(config, tmp_path / "dataset", 0)
    found = read_pictures(tmp_path / "dataset", 8)
    by_name = read_pictures(place, 8)
    assert sorted(found.item_ids) == ["a", "b", "c", "d"]
    assert len(found) == 3
    for item_id in "abc":
        row = list(found.rows).index(found.item_ids.index(item_id))
        np.testing.assert_array_equal(found.pixels[row], by_name.pixels[by_name.item_ids.index(item_id)])


def test_folders_without_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match=r"nothing: no such folder; give a folder of images"):
        read_pictures(tmp_path / "nothing", 8)
    with pytest.raises(CEMGError, match=r"holds no images; expected files such as"):
        read_pictures(tmp_path, 8)
    (tmp_path / "x.png").write_bytes(b"none")
    (tmp_path / "y.png").write_bytes(b"none")
    with pytest.raises(CEMGError, match=r"0 of 2 pictures can be read \(x: UnidentifiedImageError"):
        read_pictures(tmp_path, 8)
