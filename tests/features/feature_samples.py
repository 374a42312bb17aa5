"""Words, pictures and item tables that the tests of features are made of."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import polars as pl
from PIL import Image

WORDS = [
    "red",
    "blue",
    "green",
    "shoe",
    "shirt",
    "lamp",
    "wool",
    "leather",
    "cotton",
    "warm",
    "light",
    "soft",
    "hard",
    "old",
    "new",
    "by",
    "for",
]


def jpeg(seed: int, size: tuple[int, int] = (40, 48)) -> bytes:
    """A picture of random blocks of colour."""
    blocks = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(buffer, "JPEG")
    return buffer.getvalue()


def item_table(titles: list[str | None], images: list[bytes | None] | None = None) -> pl.DataFrame:
    pictures = images or [None] * len(titles)
    return pl.DataFrame(
        {
            "item_id": [f"i{row}" for row in range(len(titles))],
            "title": titles,
            "image": [{"bytes": data, "path": None} for data in pictures],
        },
        schema_overrides={"title": pl.String, "image": pl.Struct({"bytes": pl.Binary, "path": pl.String})},
    )
