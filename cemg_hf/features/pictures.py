"""Pictures of items: where they are, and how their bytes become RGB images, in threads and never fatally."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl
from PIL import Image, ImageOps

from ..data.images import UNREADABLE
from ..errors import CEMGError
from .cache import Batches, content_key

TRANSPARENT_MODES = ("RGBA", "LA", "PA", "La", "RGBa")

Decoded = TypeVar("Decoded")


def image_sources(items: pl.DataFrame, base: Path | None = None) -> list[bytes | Path | None]:
    """Where each item's picture is: its bytes, a file (relative to `base`), or None where the item has none.

    The column is the `datasets` Image feature (struct of bytes and path), or plain bytes or paths.
    """
    if "image" not in items.columns:
        return [None] * items.height
    column = items["image"]
    if isinstance(column.dtype, pl.Struct):
        fields = {name.name for name in column.dtype.fields}
        contents = column.struct.field("bytes").to_list() if "bytes" in fields else [None] * items.height
        paths = column.struct.field("path").to_list() if "path" in fields else [None] * items.height
    elif column.dtype == pl.Binary:
        contents, paths = column.to_list(), [None] * items.height
    elif column.dtype in (pl.String, pl.Null):
        contents, paths = [None] * items.height, column.to_list()
    else:
        raise CEMGError(
            f"items, column image: type {column.dtype} is neither bytes, a path nor a struct of both; convert it to one of them"
        )
    root = base or Path()
    return [content or (root / path if path else None) for content, path in zip(contents, paths, strict=True)]


def read_bytes(source: bytes | Path) -> bytes:
    """Content of a picture. Errors: OSError."""
    return source if isinstance(source, bytes) else source.read_bytes()


def open_image(content: bytes) -> Image.Image:
    """Decoded RGB picture, turned upright, transparent parts white. Errors: one of UNREADABLE."""
    file = Image.open(BytesIO(content))
    file.load()
    image = ImageOps.exif_transpose(file)
    if image.mode in TRANSPARENT_MODES or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    return image.convert("RGB")


def decode_ahead(
    sources: Sequence[bytes | Path | None],
    batches: Batches,
    convert: Callable[[Image.Image], Decoded],
    workers: int,
    unreadable: dict[int, str],
) -> Iterator[tuple[np.ndarray, list[Decoded]]]:
    """For each batch of rows, those that decode and what `convert` makes of them; the others go into `unreadable` with the reason.

    Two batches are decoded ahead, so that decoding overlaps with the network.
    """

    def decode(row: int) -> Decoded | str:
        source = sources[row]
        assert source is not None
        try:
            return convert(open_image(read_bytes(source)))
        except UNREADABLE as error:
            return f"{type(error).__name__}: {error}"

    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[tuple[np.ndarray, list[Future[Decoded | str]]]] = deque()
        remaining = iter(batches)
        while True:
            while len(ahead) < 2 and (rows := next(remaining, None)) is not None:
                ahead.append((rows, [pool.submit(decode, row) for row in rows.tolist()]))
            if not ahead:
                return
            rows, futures = ahead.popleft()
            results = [future.result() for future in futures]
            failed = np.array([isinstance(result, str) for result in results])
            unreadable.update((int(row), result) for row, result in zip(rows, results, strict=True) if isinstance(result, str))
            yield rows[~failed], [result for result in results if not isinstance(result, str)]


def picture_keys(sources: Sequence[bytes | Path | None], workers: int, unreadable: dict[int, str]) -> tuple[np.ndarray, np.ndarray]:
    """Rows that have a picture (n,) and their content keys (n,) "S32"; files that cannot be read go into `unreadable`."""
    with ThreadPoolExecutor(workers) as pool:
        keys = list(pool.map(_key, sources))
    unreadable.update({row: key for row, key in enumerate(keys) if isinstance(key, str)})
    present = {row: key for row, key in enumerate(keys) if isinstance(key, bytes)}
    return np.array(list(present), dtype=np.int64), np.array(list(present.values()), dtype="S32")


def _key(source: bytes | Path | None) -> bytes | str | None:
    """Content key, None without a picture, or the reason why it cannot be read."""
    if source is None:
        return None
    try:
        return content_key(read_bytes(source))
    except OSError as error:
        return f"{type(error).__name__}: {error}"
