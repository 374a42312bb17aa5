"""What a published data set looks like, and its two tables in the package's columns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl

from ...errors import CEMGError
from .. import parsing
from .lines import Part, read_columns, read_records

ITEM_SCHEMA = {
    "item_id": pl.String(),
    "title": pl.String(),
    "brand": pl.String(),
    "categories": pl.List(pl.String()),
    "description": pl.String(),
    "image_url": pl.String(),
}
_ITEMS_HELD = 1 << 14
"""Items held as Python values before they become columns."""


@dataclass(frozen=True)
class RawFormat:
    """One published data set: the names of its fields and how its metadata becomes an item."""

    name: str = field(metadata={"help": "Name in commands."})
    user: str = field(metadata={"help": "Field of the user's id in the reviews."})
    item: str = field(metadata={"help": "Field of the item's id, in the reviews and in the metadata."})
    rating: str = field(metadata={"help": "Field of the rating."})
    time: str = field(metadata={"help": "Field of the time."})
    unit: Literal["seconds", "milliseconds", "date"] = field(metadata={"help": 'What the time counts in; "date" is text.'})
    fields: Callable[[Mapping[str, Any]], dict[str, Any]] = field(metadata={"help": "Title, brand, … of a metadata record."})
    csv: tuple[str, ...] | None = field(default=None, metadata={"help": "Columns of its file of ratings only, where it has one."})
    csv_header: bool = field(default=False, metadata={"help": "Whether that file names its columns in the first line."})
    python_literals: bool = field(default=False, metadata={"help": "Whether metadata lines may be printed Python dictionaries."})
    has_images: bool = field(default=True, metadata={"help": "Whether the metadata names the URL of a picture."})


def read_interactions(raw: RawFormat, path: Path, start: int | None = None, end: int | None = None) -> tuple[pl.DataFrame, int]:
    """All reviews as interactions, in the order of the file. Memory holds these columns, never the texts.

    Args:
        start, end: Unix seconds; keep start ≤ timestamp < end. None: no bound.

    Returns:
        user_id, item_id (strings), timestamp (int64, Unix seconds), rating (float64), instant (int64, the published resolution) and
        row (1-based number among those kept); and how many lay outside the bounds.

    Raises:
        CEMGError: no such file, or a line without user, item or time (the message names it), or nothing within the bounds.
    """
    time_type = pl.String() if raw.unit == "date" else pl.Float64()
    schema = {raw.user: pl.String(), raw.item: pl.String(), raw.time: time_type, raw.rating: pl.Float64()}
    parts, outside = [], 0
    for part in read_columns(path, schema, raw.csv, raw.csv_header):
        typed = _typed(raw, part)
        since = pl.col("timestamp") >= start if start is not None else pl.lit(True)
        until = pl.col("timestamp") < end if end is not None else pl.lit(True)
        kept = typed.filter(since & until)
        outside += len(typed) - len(kept)
        parts.append(kept)
    table = pl.concat(parts).with_columns(row=pl.int_range(1, pl.len() + 1, dtype=pl.Int64))
    if table.is_empty():
        raise CEMGError(f"{path}: none of the {outside:,} reviews lies between the dates; choose others")
    return table, outside


def read_items(raw: RawFormat, path: Path, wanted: Collection[str]) -> tuple[pl.DataFrame, int]:
    """The metadata of the wanted items, in the order of the file; of repeated items the first stays.

    Returns:
        item_id, title, brand, categories (list), description, image_url; null where there is none; and how many repeats were left out.

    Raises:
        CEMGError: no such file, or a line that is no record or has no id (the message names it).
    """
    wanted, seen, repeated = set(wanted), set(), 0
    held: list[dict[str, Any]] = []
    parts = [pl.DataFrame(schema=ITEM_SCHEMA)]
    for where, record in read_records(path, raw.python_literals):
        item_id = record.get(raw.item)
        if not isinstance(item_id, str) or not item_id:
            raise CEMGError(f"{where}: field {raw.item} is missing or no text; correct or remove the line")
        if item_id not in wanted:
            continue
        if item_id in seen:
            repeated += 1
            continue
        seen.add(item_id)
        held.append({"item_id": item_id, **raw.fields(record)})
        if len(held) == _ITEMS_HELD:
            parts.append(pl.DataFrame(held, schema=ITEM_SCHEMA))
            held = []
    parts.append(pl.DataFrame(held, schema=ITEM_SCHEMA))
    return pl.concat(parts), repeated


def text(value: Any) -> str | None:
    """A string, or the strings of a list one after the other, with single spaces; None where nothing is left."""
    if isinstance(value, list):
        value = " ".join(part for part in value if isinstance(part, str))
    return (" ".join(value.split()) or None) if isinstance(value, str) else None


def flat(value: Any) -> list[str] | None:
    """The strings of a list of strings or of lists, each once, in order; None where there is none."""
    return list(dict.fromkeys(part for part in map(text, _leaves(value)) if part is not None)) or None


def _leaves(value: Any) -> Iterable[Any]:
    if not isinstance(value, list):
        return [value]
    return (leaf for part in value for leaf in _leaves(part))


def _typed(raw: RawFormat, part: Part) -> pl.DataFrame:
    times = part.table[raw.time]
    if raw.unit == "date":
        seconds = instant = parsing.timestamps(times).stored if len(times) else times.cast(pl.Int64)
    else:
        instant = times.floor().cast(pl.Int64, strict=False)
        seconds = instant // 1000 if raw.unit == "milliseconds" else instant
    users, items = (parsing.identifiers(part.table[name]) for name in (raw.user, raw.item))
    for name, column in ((raw.user, users), (raw.item, items), (raw.time, seconds)):
        if column.null_count():
            row = column.is_null().arg_max()
            assert row is not None
            raise CEMGError(
                f"{part.where(row)}: field {name} is missing or unreadable ({part.table[name][row]!r}); correct or remove the line"
            )
    return pl.DataFrame({"user_id": users, "item_id": items, "timestamp": seconds, "rating": part.table[raw.rating], "instant": instant})
