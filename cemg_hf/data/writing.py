"""The files of a dataset folder, written slice by slice so that a catalogue of pictures need not fit into memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from . import images
from .ragged import Ragged
from .schema import ITEM_COLUMNS
from .splits import EvaluationCases, SplitPoints, evaluation_cases, training_cases

if TYPE_CHECKING:
    from datasets import Features

TABLE_SLICE = 1 << 17
HISTORY_SLICE = 1 << 14
"""Rows of splits per slice: histories are lists, a row is heavier."""
IMAGE_SLICE = 256
"""Items per slice: with pictures of 1 MB a quarter of a gigabyte."""


def write_interactions(path: Path, interactions: pl.DataFrame) -> None:
    """user_id, item_id, timestamp[, rating] in the given order."""
    from datasets import Features, Value

    columns = {"user_id": "string", "item_id": "string", "timestamp": "int64", "rating": "float64"}
    features = Features({name: Value(dtype) for name, dtype in columns.items() if name in interactions.columns})
    with _writer(path, features) as writer:
        for part in interactions.select(list(features)).iter_slices(TABLE_SLICE):
            _write(writer, part)


def write_items(path: Path, items: pl.DataFrame) -> pl.DataFrame:
    """The catalogue, image files embedded as bytes.

    Args:
        items: normalised items with `image_file` (see `images.attach_files`).

    Returns:
        One row per item: has_image (the image's bytes were written), unreadable (there was a file to read, and no bytes came of it).
    """
    from datasets import Features, Image, List, Value

    text = Value("string")
    features = Features({"item_id": text, "title": text, "brand": text, "categories": List(text), "description": text, "image": Image()})
    slice_rows = IMAGE_SLICE if items["image"].null_count() < len(items) or items["image_file"].null_count() < len(items) else TABLE_SLICE
    outcome = []
    with _writer(path, features) as writer, tqdm(total=len(items), desc="items", unit="item") as progress:
        for part in items.iter_slices(slice_rows):
            read = images.read_files(part["image_file"])
            data = pl.coalesce(pl.col("image").struct.field("bytes"), read)
            name = pl.coalesce("image_file", pl.col("image").struct.field("path")).str.extract(r"([^/\\]+)$")
            image = pl.when(data.is_not_null()).then(pl.struct(bytes=data, path=name))
            part = part.with_columns(image=image)
            outcome.append(
                part.select(
                    has_image=pl.col("image").is_not_null(), unreadable=pl.col("image").is_null() & pl.col("image_file").is_not_null()
                )
            )
            _write(writer, part.select(ITEM_COLUMNS))
            progress.update(len(part))
    return pl.concat(outcome)


def write_splits(folder: Path, sequences: Ragged, user_ids: pl.Series, item_ids: pl.Series, points: SplitPoints | None = None) -> int:
    """`folder/{train,validation,test}.parquet` of item indices per user; `points` None: leave-one-out.

    Returns:
        The number of test cases.
    """
    write_cases(folder / "train.parquet", training_cases(sequences, points), user_ids, item_ids)
    write_cases(folder / "validation.parquet", evaluation_cases(sequences, "validation", points), user_ids, item_ids)
    test = evaluation_cases(sequences, "test", points)
    write_cases(folder / "test.parquet", test, user_ids, item_ids)
    return len(test)


def write_cases(path: Path, cases: EvaluationCases, user_ids: pl.Series, item_ids: pl.Series) -> None:
    """user_id, history (list of item ids), target (item id), one row per case."""
    from datasets import Features, List, Value

    features = Features({"user_id": Value("string"), "history": List(Value("string")), "target": Value("string")})
    with _writer(path, features) as writer:
        for start in range(0, max(len(cases), 1), HISTORY_SLICE):
            rows = np.arange(start, min(start + HISTORY_SLICE, len(cases)))
            part = pl.DataFrame(
                {
                    "user_id": user_ids.gather(cases.users[rows]),
                    "history": _lists(cases.histories.take(rows), item_ids),
                    "target": item_ids.gather(cases.targets[rows]),
                }
            )
            _write(writer, part)


def _lists(histories: Ragged, item_ids: pl.Series) -> pl.Series:
    values = item_ids.gather(histories.values).to_arrow()
    return pl.Series(pa.LargeListArray.from_arrays(pa.array(histories.offsets), values))


def _writer(path: Path, features: Features) -> pq.ParquetWriter:
    """A writer whose schema carries the `datasets` features, by which `load_dataset` knows images from structs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return pq.ParquetWriter(path, features.arrow_schema)


def _write(writer: pq.ParquetWriter, part: pl.DataFrame) -> None:
    writer.write_table(part.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(writer.schema))
