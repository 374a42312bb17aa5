"""Column parsers: identifiers, timestamps, numbers, texts, category lists, images; each a pure function on one column.

A parser returns the typed column with null where a value has no reading; whether null is an error is the schema's business.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import polars as pl

IMAGE_DTYPE = pl.Struct({"bytes": pl.Binary, "path": pl.String})

# Date, then optionally time, seconds, fraction and offset; the groups are put together again in one canonical form.
_ISO = r"^\s*(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}:\d{2})(?::(\d{2})(?:[.,](\d{1,9}))?)?\s*(Z|z|[+-]\d{2}:?\d{2})?)?\s*$"
_ISO_FORMAT = "%Y-%m-%dT%H:%M:%S%.f%:z"


class UnreadableColumn(ValueError):
    """The column's type has no reading at all; the message says what was expected."""


@dataclass(frozen=True)
class Timestamps:
    """`stored` is int64 (null where unparsable); `instant` orders at full resolution, so sub-second order survives the rounding."""

    stored: pl.Series
    instant: pl.Series


def identifiers(column: pl.Series) -> pl.Series:
    """Strings; whole floats (integers that met a null in pandas) lose their ".0"; empty strings and other floats become null."""
    if column.dtype.is_float():
        whole = column.is_finite() & (column == column.floor())
        return _where(column.cast(pl.Int64, strict=False), whole.fill_null(False)).cast(pl.String)
    if column.dtype.is_nested() or column.dtype in (pl.Boolean, pl.Binary, pl.Object):
        raise UnreadableColumn(f"holds {column.dtype}, expected strings or integers")
    text = column.cast(pl.String)
    return _where(text, text != "")


def timestamps(column: pl.Series) -> Timestamps:
    """Numbers as they are (floored), date-times and ISO 8601 strings as Unix seconds (without an offset: UTC).

    Strings get one reading for the whole column, the one that fits most values: integer, float or ISO 8601.
    """
    if column.dtype == pl.String:
        integers, floats, instants = (
            column.str.strip_chars().cast(pl.Int64, strict=False),
            _finite(column.str.strip_chars().cast(pl.Float64, strict=False)),
            _iso(column),
        )
        fits = [len(reading) - reading.null_count() for reading in (integers, floats, instants)]
        column = (integers, floats, instants)[fits.index(max(fits))]
    if column.dtype == pl.Date:
        column = column.cast(pl.Datetime("us"))
    if isinstance(column.dtype, pl.Datetime):
        return Timestamps(column.dt.epoch("s").cast(pl.Int64), column.to_physical())
    if column.dtype.is_integer() or column.dtype == pl.Null:
        whole = column.cast(pl.Int64, strict=False)
        return Timestamps(whole, whole)
    if column.dtype.is_numeric():
        number = _finite(column.cast(pl.Float64))
        return Timestamps(number.floor().cast(pl.Int64, strict=False), number)
    raise UnreadableColumn(f"holds {column.dtype}, expected a number, a date-time or an ISO 8601 string")


def numbers(column: pl.Series) -> pl.Series:
    """float64, null where there is no finite number."""
    if column.dtype.is_nested() or column.dtype.is_temporal():
        raise UnreadableColumn(f"holds {column.dtype}, expected numbers")
    text_or_number = column.str.strip_chars() if column.dtype == pl.String else column
    return _finite(text_or_number.cast(pl.Float64, strict=False))


def texts(column: pl.Series) -> pl.Series:
    """Stripped strings; a list of paragraphs is joined by spaces; blank becomes null. A list of floats is a vector, not text."""
    if isinstance(column.dtype, pl.List) and not column.dtype.inner.is_float():
        column = column.cast(pl.List(pl.String)).list.drop_nulls().list.join(" ")
    elif column.dtype.is_nested() or column.dtype in (pl.Binary, pl.Object):
        raise UnreadableColumn(f"holds {column.dtype}, expected text")
    text = column.cast(pl.String).str.strip_chars()
    return _where(text, text != "")


def categories(column: pl.Series) -> pl.Series:
    """list<string> from lists, lists of paths (flattened), JSON lists, or strings such as "a|b"; repeats and blanks go, order stays.

    An unreadable JSON list becomes null here; `unreadable_json_lists` tells it from a missing value.
    """
    if column.dtype == pl.Null:
        return column.cast(pl.List(pl.String))
    if column.dtype == pl.String:
        column = _lists_from_strings(column)
    while isinstance(column.dtype, pl.List) and isinstance(column.dtype.inner, pl.List):
        column = column.to_frame("c").select(pl.col("c").list.eval(pl.element().explode())).to_series()
    if not isinstance(column.dtype, pl.List) or column.dtype.inner.is_nested() or column.dtype.inner.is_float():
        raise UnreadableColumn(f'holds {column.dtype}, expected lists of strings, JSON lists or strings such as "a|b"')
    cleaned = column.cast(pl.List(pl.String)).to_frame("c").select(pl.col("c").list.eval(pl.element().str.strip_chars()))
    kept = cleaned.select(pl.col("c").list.eval(pl.element().filter(pl.element() != "")).list.unique(maintain_order=True)).to_series()
    return _where(kept, kept.list.len() > 0)


def unreadable_json_lists(column: pl.Series) -> pl.Series:
    """Mask of strings that open like a JSON list and are none."""
    if column.dtype != pl.String:
        return pl.repeat(False, len(column), eager=True)
    return _looks_like_json(column) & _lists_from_strings(column).is_null()


def images(column: pl.Series) -> pl.Series:
    """struct{bytes, path}, null where there is neither; from bytes, from paths, or from the `datasets` Image feature."""
    empty = pl.lit(None)
    frame = column.to_frame("c")
    if isinstance(column.dtype, pl.Struct):
        names = {field.name for field in column.dtype.fields}
        if not names & {"bytes", "path"}:
            raise UnreadableColumn(f"holds {column.dtype}, expected bytes, a path, or a struct of bytes and path")
        data = pl.col("c").struct.field("bytes") if "bytes" in names else empty
        path = pl.col("c").struct.field("path") if "path" in names else empty
    elif column.dtype == pl.Binary:
        data, path = pl.col("c"), empty
    elif column.dtype in (pl.String, pl.Null):
        data, path = empty, pl.col("c")
    else:
        raise UnreadableColumn(f"holds {column.dtype}, expected bytes, a path, or a struct of bytes and path")
    frame = frame.select(bytes=data.cast(pl.Binary), path=path.cast(pl.String))
    frame = frame.select(
        bytes=pl.when(pl.col("bytes").bin.size() > 0).then(pl.col("bytes")),
        path=pl.when(pl.col("path").str.strip_chars() != "").then(pl.col("path").str.strip_chars()),
    )
    present = pl.col("bytes").is_not_null() | pl.col("path").is_not_null()
    return frame.select(image=pl.when(present).then(pl.struct("bytes", "path"))).to_series()


def _looks_like_json(column: pl.Series) -> pl.Series:
    return column.str.contains(r"^\s*\[").fill_null(False)


def _lists_from_strings(column: pl.Series) -> pl.Series:
    is_json = _looks_like_json(column)
    nested = column.str.contains(r"^\s*\[\s*\[").fill_null(False)
    flat_lists = _json_lists(_where(column, is_json & ~nested), pl.List(pl.String))
    nested_lists = _json_lists(_where(column, nested), pl.List(pl.List(pl.String)))
    frame = pl.DataFrame({"flat": flat_lists, "nested": nested_lists, "bars": _where(column, ~is_json).str.split("|")})
    flattened = pl.col("nested").list.eval(pl.element().explode())
    return frame.select(c=pl.coalesce("flat", flattened, "bars")).to_series()


def _json_lists(column: pl.Series, dtype: pl.DataType) -> pl.Series:
    try:
        return column.str.json_decode(dtype)
    except pl.exceptions.PolarsError:
        # One bad value fails the whole column, without saying which: drop the bad ones and decode the rest.
        return _where(column, pl.Series([_is_json_of_depth(value, dtype) for value in column], dtype=pl.Boolean)).str.json_decode(dtype)


def _is_json_of_depth(value: str | None, dtype: pl.DataType) -> bool:
    try:
        levels = [json.loads(value)] if value is not None else []
    except ValueError:
        return False
    while isinstance(dtype, pl.List):
        if not all(isinstance(level, list) for level in levels):
            return False
        levels, dtype = [inner for level in levels for inner in level if inner is not None], dtype.inner  # type: ignore[assignment]
    return not any(isinstance(level, list | dict) for level in levels)


def _iso(column: pl.Series) -> pl.Series:
    parts = column.to_frame("c").select(pl.col("c").str.extract_groups(_ISO)).unnest("c")
    date, clock, seconds, fraction, offset = (pl.col(name) for name in parts.columns)
    offset = pl.when(offset.is_in(["Z", "z"])).then(pl.lit("+00:00")).otherwise(offset.str.replace(r"^([+-]\d{2}):?(\d{2})$", "${1}:${2}"))
    canonical = pl.concat_str(
        date,
        pl.lit("T"),
        clock.fill_null("00:00"),
        pl.lit(":"),
        seconds.fill_null("00"),
        pl.lit("."),
        fraction.fill_null("0"),
        offset.fill_null("+00:00"),
    )
    return parts.select(c=canonical.str.to_datetime(_ISO_FORMAT, time_unit="us", strict=False)).to_series()


def _finite(column: pl.Series) -> pl.Series:
    return _where(column, column.is_finite())


def _where(column: pl.Series, condition: pl.Series) -> pl.Series:
    """The column with null where the condition is false or null."""
    return pl.select(pl.when(condition).then(column)).to_series()
