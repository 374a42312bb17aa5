"""The pictures of a catalogue as one array of squares, decoded once: what a network that sees them many times over is trained on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ..data import PreparedDataset
from ..data.images import files_by_stem
from ..errors import CEMGError
from .pictures import decode_ahead, image_sources
from .store import scratch_array

logger = logging.getLogger(__name__)

ITEMS_NAME = "items.parquet"
DECODED_AT_ONCE = 64
RESIDENT_BYTES = 2**33
"""Pictures of up to this size together are put on the device once; of more, a batch travels at a time."""


@dataclass
class Pictures:
    """P pictures that could be read, each squeezed to a square of `side` pixels, whatever its shape was."""

    pixels: np.ndarray = field(metadata={"help": "(P, 3, side, side) uint8; a memory map of a temporary file where large."})
    aspect: np.ndarray = field(metadata={"help": "(P,) float32 width / height before squeezing."})
    item_ids: list[str] = field(metadata={"help": "Ids of all N items, with and without a picture."})
    rows: np.ndarray = field(metadata={"help": "(P,) int64 rows among the items."})
    unreadable: dict[str, str] = field(metadata={"help": "Item id and reason of pictures that are there but cannot be read."})

    def __post_init__(self) -> None:
        self._resident: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        """P."""
        return len(self.pixels)

    def batch(self, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, side, side) uint8 and aspects (B,) of the pictures `rows` (B,), on `device`."""
        if self.pixels.nbytes > RESIDENT_BYTES:
            chosen = rows.cpu().numpy()
            return torch.from_numpy(self.pixels[chosen]).to(device), torch.from_numpy(self.aspect[chosen]).to(device)
        if self._resident is None or self._resident[0].device != device:
            self._resident = torch.from_numpy(self.pixels).to(device), torch.from_numpy(self.aspect).to(device)
        pixels, aspect = self._resident
        rows = rows.to(device)
        return pixels[rows], aspect[rows]


def read_pictures(source: str | Path, side: int, workers: int = 2) -> Pictures:
    """Decode the pictures of a data set folder written by `prepare`, or of a folder of image files, whose names are the item ids.

    Pictures that cannot be read are logged and left out.

    Raises:
        CEMGError: neither kind of folder, no pictures, or fewer than two that can be read.
    """
    source = Path(source)
    if not source.is_dir():
        raise CEMGError(f"{source}: no such folder; give a folder of images, or a data set written by `cemg prepare`")
    if (source / ITEMS_NAME).is_file():
        prepared = PreparedDataset.load(source)
        item_ids, sources = list(prepared.item_ids), image_sources(prepared.items_table(["item_id", "image"]), source)
    else:
        files = files_by_stem(source)
        item_ids, sources = files["stem"].to_list(), image_sources(files.select(image=pl.col("named_file")))
    rows = np.array([row for row, entry in enumerate(sources) if entry is not None], dtype=np.int64)
    if not len(rows):
        raise CEMGError(f"{source}: holds no images; expected files such as item-1.jpg or item-2.png, or a data set whose items have them")
    return _decode(source, item_ids, sources, rows, side, workers)


def _decode(
    folder: Path, item_ids: list[str], sources: Sequence[bytes | Path | None], rows: np.ndarray, side: int, workers: int
) -> Pictures:
    pixels = scratch_array((len(rows), 3, side, side), np.uint8)
    aspect, kept = np.empty(len(rows), dtype=np.float32), np.empty(len(rows), dtype=np.int64)
    batches = [rows[start : start + DECODED_AT_ONCE] for start in range(0, len(rows), DECODED_AT_ONCE)]
    unreadable: dict[int, str] = {}
    done = 0

    def squeeze(image: Image.Image) -> tuple[np.ndarray, float]:
        # Pillow's filters look at all pixels under an output pixel, so shrinking does not alias.
        square = image.resize((side, side), Image.Resampling.BICUBIC, reducing_gap=3.0)
        return np.asarray(square, dtype=np.uint8).transpose(2, 0, 1), image.width / image.height

    with tqdm(total=len(rows), desc="pictures", unit="item") as bar:
        for batch, (read, decoded) in zip(batches, decode_ahead(sources, batches, squeeze, workers, unreadable), strict=True):
            for row, (square, ratio) in zip(read, decoded, strict=True):
                pixels[done], aspect[done], kept[done] = square, ratio, row
                done += 1
            bar.update(len(batch))
    reasons = {item_ids[row]: reason for row, reason in sorted(unreadable.items())}
    if reasons:
        item_id, reason = next(iter(reasons.items()))
        logger.warning("%s: %d pictures cannot be read and are left out (first: %s, %s)", folder, len(reasons), item_id, reason)
    if done < 2:
        first = f" ({next(iter(reasons))}: {next(iter(reasons.values()))})" if reasons else ""
        raise CEMGError(f"{folder}: {done} of {len(rows)} pictures can be read{first}; at least two are needed")
    return Pictures(pixels[:done], aspect[:done], item_ids, kept[:done], reasons)
