"""RecBole's atomic files, `.inter` and `.item`: tables whose header says what type a column has.

Format: https://recbole.io/docs/user_guide/data/atomic_files.html; separators as RecBole has them by default (`field_separator` a tab,
`seq_separator` a space).
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ..errors import CEMGError

ATOMIC_SUFFIXES = (".inter", ".item")
TYPES = ("token", "token_seq", "float", "float_seq")
_SEPARATOR = "\t"
_ENTRY = "[^ ]+"


def read_atomic_file(path: Path) -> pl.DataFrame:
    """The table under the bare names of its columns.

    Cells are taken as they are: RecBole's conversion tools write no quotes, so one in a title is part of it.

    Returns:
        token and float columns as strings, as those of a CSV file (typing is the schema's work); token_seq as lists of strings, which a
        text column joins by spaces again and categories take one by one; float_seq as lists of float64, which are no text.

    Raises:
        CEMGError: a column without one of RecBole's types, two of one name, or an entry of a float_seq column that is no number.
        polars.exceptions.PolarsError, OSError: no such table; a row with more cells than the header.
    """
    table = pl.read_csv(path, separator=_SEPARATOR, infer_schema=False, quote_char=None)
    columns: dict[str, pl.Series] = {}
    for header in table.columns:
        name, colon, kind = header.partition(":")
        if not name or not colon or kind not in TYPES:
            raise CEMGError(
                f"{path}: column {header!r} is not name:type with one of the types {', '.join(TYPES)}; write a header such as "
                f"user_id:token, item_id:token, timestamp:float, with tabs between the columns"
            )
        if name in columns:
            raise CEMGError(f"{path}: column {name} stands twice in the header; keep one of them")
        columns[name] = _entries(path, name, table[header], kind) if kind.endswith("_seq") else table[header]
    return pl.DataFrame(columns)


def _entries(path: Path, name: str, column: pl.Series, kind: str) -> pl.Series:
    """The lists of a sequence column, null where there is no cell."""
    words = column.str.extract_all(_ENTRY)
    if kind == "token_seq":
        return words
    numbers = words.cast(pl.List(pl.Float64), strict=False)
    counted = numbers.to_frame("n").select(bad=pl.col("n").list.eval(pl.element().is_null()).list.any())["bad"].fill_null(False)
    if counted.any():
        row = counted.arg_max()
        assert row is not None
        raise CEMGError(f"{path}: column {name}, row {row + 1}: {column[row]!r} is not numbers with spaces between, as float_seq says")
    return numbers
