"""Thumbnails: every picture is decoded once, when a browser first asks for it, and served under an address that the browser may keep."""

from __future__ import annotations

import secrets
from base64 import b64encode
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path

from PIL import Image

from ..data.images import UNREADABLE
from ..features.pictures import open_image, read_bytes

SIDE = 360  # pixels of the longer side: a card on a screen of double density
QUALITY = 82
MEDIA_TYPE = "image/webp"
KEPT = 4096  # thumbnails in memory, some 10 kB each

NOTHING_BUFFER = BytesIO()
Image.new("RGBA", (1, 1), (0, 0, 0, 0)).save(NOTHING_BUFFER, "WEBP")
NOTHING = NOTHING_BUFFER.getvalue()
"""A transparent picture, in the place of one that cannot be read: what is drawn behind it shows."""


class Thumbnails:
    """Small pictures of the items of a shop.

    Args:
        sources: per item its picture's bytes or file, None without a picture.
    """

    def __init__(self, sources: Sequence[bytes | Path | None]) -> None:
        self._sources = sources
        # Another process shows another shop under the same address and port; a browser keeps what it has for a year.
        self.edition = secrets.token_hex(4)
        self.get = lru_cache(KEPT)(self._encode)
        """Row -> WebP, or None for an item that has no picture."""

    def address(self, row: int) -> str | None:
        """Where the page finds the thumbnail of an item, relative to the app; None for an item without a picture."""
        return None if self._sources[row] is None else f"thumbnails/{self.edition}/{row}.webp"

    def _encode(self, row: int) -> bytes | None:
        source = self._sources[row] if 0 <= row < len(self._sources) else None
        if source is None:
            return None
        try:
            return thumbnail(read_bytes(source))
        except UNREADABLE:
            return NOTHING


def thumbnail(content: bytes) -> bytes:
    """A picture as a small WebP. Errors: one of UNREADABLE."""
    image = open_image(content)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
    buffer = BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY)
    return buffer.getvalue()


def data_uri(content: bytes) -> str:
    """A thumbnail as an address of its own, for pictures that only one visitor may see."""
    return f"data:{MEDIA_TYPE};base64,{b64encode(content).decode()}"
