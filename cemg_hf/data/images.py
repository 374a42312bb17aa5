"""Product pictures on disk: which file belongs to which item, and their bytes. Nothing is decoded here; the image encoder does that."""

from __future__ import annotations

import hashlib
import logging
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import polars as pl
from PIL import Image

from ..artefacts import fingerprint
from ..errors import CEMGError

logger = logging.getLogger(__name__)

R = TypeVar("R")

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for bytes that are no picture or half of one."""
_READERS = 8
"""Threads that read files; reading waits for the disk, not for the processor."""


def attach_files(items: pl.DataFrame, images: Path | None, base: Path | None) -> pl.DataFrame:
    """Add `image_file` (string, null where there is none): the file to read for items whose table row carries no image bytes.

    A file of `images`, at any depth, named after the item's id comes first (of several the first in path order), then the path in the
    table, relative to `images`, without it to `base`; that order lets a folder of downloads stand in for a column of URLs.

    Args:
        items: normalised items.
        images: the user's folder of pictures.
        base: folder of the items table.

    Raises:
        CEMGError: `images` is no folder, or it serves no item at all.
    """
    data, path = pl.col("image").struct.field("bytes"), pl.col("image").struct.field("path")
    root = images if images is not None else base
    resolved = pl.when(path.str.starts_with("/") | (root is None)).then(path).otherwise(pl.concat_str(pl.lit(f"{root}/"), path))
    items = items.with_columns(image_file=pl.when(data.is_null()).then(resolved))
    if images is None:
        return items
    named = files_by_stem(images)
    with_files = items.join(named, left_on="item_id", right_on="stem", how="left", maintain_order="left")
    if with_files["named_file"].null_count() == len(items) and items["image_file"].null_count() == len(items):
        raise CEMGError(
            f"{images}: no image file there is named after an item (expected e.g. {items['item_id'][0]}.jpg); rename them or give paths"
        )
    return with_files.with_columns(image_file=pl.when(data.is_null()).then(pl.coalesce("named_file", "image_file"))).drop("named_file")


def files_by_stem(folder: Path) -> pl.DataFrame:
    """`stem` and `named_file` of the image files in a folder, at any depth; of several of one name the first in path order.

    Raises:
        CEMGError: no such folder.
    """
    if not folder.is_dir():
        raise CEMGError(f"{folder}: no such folder of images; correct the setting `images` or leave it out")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    table = pl.DataFrame(
        {"stem": [path.stem for path in files], "named_file": [str(path) for path in files]},
        schema={"stem": pl.String, "named_file": pl.String},
    )
    return table.unique("stem", keep="first", maintain_order=True)


def fingerprint_files(files: pl.Series) -> str:
    """Fingerprint of the contents behind a column of paths (null: no file); a missing file has one of its own."""
    return fingerprint(*_in_threads(_digest, files.to_list()))


def read_files(files: pl.Series) -> pl.Series:
    """Bytes of each file (binary); null where the path is null, or the file is missing, unreadable or empty."""
    return pl.Series("bytes", _in_threads(_read, files.to_list()), dtype=pl.Binary)


def _in_threads(function: Callable[[str | None], R], files: Sequence[str | None]) -> list[R]:
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(function, files, chunksize=1))


def _digest(file: str | None) -> str:
    if file is None:
        return "none"
    try:
        with Path(file).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, ValueError):  # ValueError: a path with a null byte
        return "missing"


def _read(file: str | None) -> bytes | None:
    if file is None:
        return None
    try:
        return Path(file).read_bytes() or None
    except (OSError, ValueError) as error:
        logger.debug("%s: %s", file, error)
        return None
