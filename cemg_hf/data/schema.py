"""The column contract: which columns the two tables have, under which names they may arrive, and what is an error in them.

interactions: user_id, item_id, timestamp, optional rating. items: item_id and, all nullable, title, brand, categories, description, image.
Rows in messages count from 1; a CSV header does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import polars as pl

from ..errors import CEMGError
from . import parsing

T = TypeVar("T")

INTERACTION_COLUMNS = ("user_id", "item_id", "timestamp", "rating")
TEXT_COLUMNS = ("title", "brand", "categories", "description")
ITEM_COLUMNS = ("item_id", *TEXT_COLUMNS, "image")
COLUMNS = tuple(dict.fromkeys((*INTERACTION_COLUMNS, *ITEM_COLUMNS)))

_ITEM_PARSERS: Mapping[str, Callable[[pl.Series], pl.Series]] = {
    "title": parsing.texts,
    "brand": parsing.texts,
    "categories": parsing.categories,
    "description": parsing.texts,
    "image": parsing.images,
}
_MAPPING_REMEDY = "name yours in the setting `columns`, e.g. columns: {%s: your_column}"


def check_mapping(columns: Mapping[str, str], *tables: tuple[str, pl.DataFrame]) -> None:
    """Every mapped column must exist in one of the (source, table) pairs, else a misspelt name would silently count as "not given".

    Raises:
        CEMGError: names the mapping and the columns there are.
    """
    for ours, theirs in columns.items():
        if not any(theirs in table.columns for _, table in tables):
            present = "; ".join(f"{source} has {', '.join(table.columns)}" for source, table in tables)
            raise CEMGError(f"columns: {{{ours}: {theirs}}}: there is no column {theirs!r} ({present})")


def normalise_interactions(table: pl.DataFrame, columns: Mapping[str, str], source: str, require_rating: bool = False) -> pl.DataFrame:
    """Typed interactions in file order.

    Returns:
        user_id, item_id (strings), timestamp (int64), instant (int64 or float64: the timestamp at full resolution), row (1-based),
        and rating (float64) where the table has one.

    Raises:
        CEMGError: a column is missing, or a user_id, item_id or timestamp is null or unparsable (the message names the row).
    """
    users = _required(table, "user_id", columns, source, parsing.identifiers)
    items = _required(table, "item_id", columns, source, parsing.identifiers)
    raw_times = _find(table, "timestamp", columns, source)
    times = _parse(raw_times, parsing.timestamps, source)
    _no_nulls(times.stored, raw_times, source)
    typed = {"user_id": users, "item_id": items, "timestamp": times.stored, "instant": times.instant}
    if require_rating or _name(table, "rating", columns) is not None:
        raw_ratings = _find(table, "rating", columns, source)
        typed["rating"] = _parse(raw_ratings, parsing.numbers, source)
        _no_new_nulls(typed["rating"], raw_ratings, source, "a number or null")
    return pl.DataFrame(typed).with_columns(row=pl.int_range(1, pl.len() + 1, dtype=pl.Int64))


def normalise_items(table: pl.DataFrame, columns: Mapping[str, str], source: str) -> pl.DataFrame:
    """Typed items in file order: item_id, title, brand, categories (list), description, image (struct{bytes, path}).

    Raises:
        CEMGError: item_id is missing, null or repeated, or another column cannot be read (the message names the row where there is one).
    """
    ids = _required(table, "item_id", columns, source, parsing.identifiers)
    repeated = _first(~ids.is_first_distinct())
    if repeated is not None:
        first = _first(ids == ids[repeated])
        assert first is not None
        where = f"{source}: column {_name(table, 'item_id', columns)}, row {repeated + 1}"
        raise CEMGError(f"{where}: {ids[repeated]!r} stands already in row {first + 1}; keep one row per item")
    typed = {"item_id": ids}
    for name, parser in _ITEM_PARSERS.items():
        own_name = _name(table, name, columns)
        raw = table[own_name] if own_name is not None else pl.Series(name, [None] * len(ids), dtype=pl.Null)
        typed[name] = _parse(raw, parser, source)
        bad = _first(parsing.unreadable_json_lists(raw)) if name == "categories" else None
        if bad is not None:
            where = f"{source}: column {raw.name}, row {bad + 1}"
            raise CEMGError(f'{where}: {raw[bad]!r} is not a JSON list of strings; write ["a", "b"] or a|b')
    return pl.DataFrame(typed)


def items_from_ids(interactions: pl.DataFrame) -> pl.DataFrame:
    """An items table of identifiers only, in order of first appearance, where the user has no items table."""
    return normalise_items(interactions.select(pl.col("item_id").unique(maintain_order=True)), {}, "interactions")


def has_text(items: pl.DataFrame) -> pl.Series:
    """Mask of the items with a title, brand, category or description."""
    return items.select(pl.any_horizontal(pl.col(name).is_not_null() for name in TEXT_COLUMNS)).to_series()


def _name(table: pl.DataFrame, ours: str, columns: Mapping[str, str]) -> str | None:
    """The table's own name for a column: the mapped one where this table has it, else ours, else None."""
    return next((name for name in (columns.get(ours), ours) if name is not None and name in table.columns), None)


def _find(table: pl.DataFrame, ours: str, columns: Mapping[str, str], source: str) -> pl.Series:
    name = _name(table, ours, columns)
    if name is None:
        raise CEMGError(f"{source}: column {ours} is missing (present: {', '.join(table.columns)}); {_MAPPING_REMEDY % ours}")
    return table[name]


def _required(
    table: pl.DataFrame, ours: str, columns: Mapping[str, str], source: str, parser: Callable[[pl.Series], pl.Series]
) -> pl.Series:
    raw = _find(table, ours, columns, source)
    parsed = _parse(raw, parser, source)
    _no_nulls(parsed, raw, source)
    return parsed


def _parse(raw: pl.Series, parser: Callable[[pl.Series], T], source: str) -> T:
    try:
        return parser(raw)
    except parsing.UnreadableColumn as error:
        raise CEMGError(f"{source}: column {raw.name}: {error}; choose another column or convert it") from error


def _no_nulls(parsed: pl.Series, raw: pl.Series, source: str) -> None:
    bad = _first(parsed.is_null())
    if bad is not None:
        value = raw[bad]
        what = "is empty" if value is None or value == "" else f"cannot be read: {value!r}"
        count = parsed.null_count()
        more = f" ({count} such rows)" if count > 1 else ""
        raise CEMGError(f"{source}: column {raw.name}, row {bad + 1}: the value {what}{more}; correct or remove the row")


def _no_new_nulls(parsed: pl.Series, raw: pl.Series, source: str, expected: str) -> None:
    bad = _first(parsed.is_null() & raw.is_not_null() & ~_is_nan(raw))
    if bad is not None:
        raise CEMGError(f"{source}: column {raw.name}, row {bad + 1}: {raw[bad]!r} cannot be read, expected {expected}; correct the row")


def _is_nan(column: pl.Series) -> pl.Series:
    """NaN is how pandas writes a missing number."""
    return column.is_nan().fill_null(False) if column.dtype.is_float() else pl.repeat(False, len(column), eager=True)


def _first(mask: pl.Series) -> int | None:
    """Position of the first True."""
    mask = mask.fill_null(False)
    return mask.arg_max() if mask.any() else None
