from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

import pytest
from demo_samples import picture
from PIL import Image

from cemg_hf.demo import pictures
from cemg_hf.demo.pictures import NOTHING, SIDE, Thumbnails, data_uri, thumbnail


def opened(content: bytes | None) -> Image.Image:
    assert content is not None
    image = Image.open(BytesIO(content))
    assert image.format == "WEBP"
    return image


def test_pictures_are_small_and_keep_their_shape() -> None:
    buffer = BytesIO()
    Image.new("RGB", (3000, 1000), "red").save(buffer, "JPEG")
    assert opened(thumbnail(buffer.getvalue())).size == (SIDE, SIDE // 3)
    assert opened(thumbnail(picture("blue"))).size == (48, 48)  # none is blown up


def test_a_picture_is_decoded_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []
    original = pictures.thumbnail
    monkeypatch.setattr(pictures, "thumbnail", lambda content: calls.append(content) or original(content))
    (tmp_path / "a.png").write_bytes(picture("red"))
    kept = Thumbnails([tmp_path / "a.png", picture("green"), None, b"no picture", tmp_path / "gone.png"])
    first = kept.get(0)
    assert kept.get(0) is first
    assert opened(first).size == opened(kept.get(1)).size
    assert len(calls) == 2
    assert kept.get(2) is None
    assert kept.get(99) is None
    assert kept.get(-1) is None
    assert kept.get(3) == kept.get(4) == NOTHING  # what is drawn behind the picture shows
    assert [kept.address(row) is None for row in range(5)] == [False, False, True, False, False]
    assert kept.edition != Thumbnails([]).edition


def test_a_picture_may_be_its_own_address() -> None:
    kind, content = data_uri(thumbnail(picture("amber"))).split(",")
    assert kind == "data:image/webp;base64"
    opened(base64.b64decode(content))
