"""User histories in Parquet files, checked once and read a stretch of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from ..artefacts import fingerprint
from ..data import Ragged
from ..data.readers import PARQUET_SUFFIXES
from ..errors import CEMGError

READ_ROWS = 4096
BUFFER_BYTES = 1 << 20
"""Columns are decoded through a buffer of this size. Left to itself, pyarrow fetches a row group as a whole, however large it is."""


class Stretch(NamedTuple):
    """Consecutive rows of one file."""

    file: Path
    row: int  # of the file, from 0
    place: int  # the same row, counted over all files
    batch: pa.RecordBatch  # user column, history column


@dataclass(frozen=True)
class HistoryFiles:
    """One Parquet file of users, or all of a folder in the order of their names: a user id and a list of item ids per row."""

    files: tuple[Path, ...]
    rows: tuple[int, ...]
    """Rows of each file."""
    user_column: str
    history_column: str
    user_type: pa.DataType
    """String or an integer type, the same in all files."""

    @classmethod
    def open(cls, path: str | Path, user_column: str = "user_id", history_column: str = "history") -> HistoryFiles:
        """Find the files and check their columns; no row is read.

        Raises:
            CEMGError: nothing there, no Parquet, no rows, or a column that is missing or of another type (names file and column).
        """
        files = _parquet_files(Path(path))
        rows: list[int] = []
        types: list[pa.DataType] = []
        for file in files:
            try:
                with pq.ParquetFile(file) as opened:
                    schema, count = opened.schema_arrow, opened.metadata.num_rows
            except (pa.ArrowInvalid, OSError) as error:
                raise CEMGError(f"{file}: cannot be read as Parquet: {' '.join(str(error).split())}") from error
            users = _plain(_column_type(file, schema, user_column, "--user-column"))
            if not (pa.types.is_string(users) or pa.types.is_integer(users)):
                raise CEMGError(f"{file}: column {user_column}: holds {users}, expected strings or integers; choose another --user-column")
            if types and users != types[0]:
                raise CEMGError(f"{file}: column {user_column}: holds {users}, but {types[0]} in {files[0]}; give all files one type")
            history = _column_type(file, schema, history_column, "--history-column")
            if not _is_list_of_ids(history):
                raise CEMGError(
                    f"{file}: column {history_column}: holds {history}, expected lists of item ids (strings or integers); "
                    "choose another --history-column"
                )
            types.append(users)
            rows.append(count)
        if sum(rows) == 0:
            raise CEMGError(f"{path}: no rows; give at least one user")
        return cls(tuple(files), tuple(rows), user_column, history_column, types[0])

    def __len__(self) -> int:
        return sum(self.rows)

    def fingerprint(self) -> str:
        """Fingerprint of the files' bytes, whatever they are called."""
        return fingerprint(*self.files)

    def check(self, catalogue: pa.Array, on_unknown: str = "error") -> int:
        """Read everything once and return how many entries of the histories are not in the catalogue.

        Args:
            catalogue: item ids, large_string.
            on_unknown: "error" or "skip".

        Raises:
            CEMGError: an empty user id, history or item id, an unreadable file, or, unless skipped, an unknown item id (names file,
                column and row, from 1).
        """
        unknown = 0
        with tqdm(total=len(self), desc="check histories", unit=" users", leave=False) as bar:
            for stretch in self._stretches([range(len(self))]):
                users, histories = stretch.batch.columns
                _no_null(stretch, self.user_column, users.is_null(), "the user id is empty; give every user one")
                _no_null(stretch, self.history_column, histories.is_null(), "the history is null; write an empty list for a new user")
                values, rows = histories.flatten(), pc.list_parent_indices(histories)
                _no_null(stretch, self.history_column, values.is_null(), "the history has an empty item id; leave it out", rows)
                missing = pc.is_null(pc.index_in(_strings(values), catalogue))
                if on_unknown == "error" and (first := _first(missing)) is not None:
                    raise CEMGError(
                        f"{_where(stretch, self.history_column, rows[first].as_py())}: item id {values[first].as_py()!r} is not among the "
                        f"{len(catalogue)} items of the catalogue; correct it, or use --skip-unknown"
                    )
                unknown += missing.true_count
                bar.update(stretch.batch.num_rows)
        return unknown

    def tables(self, ranges: Sequence[range]) -> Iterator[pa.Table]:
        """One table of user and history column per range of rows; ranges are ascending, disjoint and not empty."""
        waiting = iter(ranges)
        wanted = next(waiting, None)
        pieces: list[pa.RecordBatch] = []
        for stretch in self._stretches(ranges):
            stop = stretch.place + stretch.batch.num_rows
            while wanted is not None and wanted.start < stop:
                first = max(wanted.start, stretch.place)
                pieces.append(stretch.batch.slice(first - stretch.place, min(wanted.stop, stop) - first))
                if wanted.stop > stop:
                    break
                yield pa.Table.from_batches(pieces)
                pieces, wanted = [], next(waiting, None)

    def users(self, table: pa.Table) -> pa.Array:
        """The user ids of a table, as they are."""
        return table[self.user_column].cast(self.user_type).combine_chunks()

    def items(self, table: pa.Table, catalogue: pa.Array) -> Ragged:
        """Indices in the catalogue of a table's histories; unknown ids are left out."""
        histories = table[self.history_column].combine_chunks()
        indices = pc.fill_null(pc.index_in(_strings(histories.flatten()), catalogue), -1).to_numpy(zero_copy_only=False).astype(np.int64)
        rows = pc.list_parent_indices(histories).to_numpy(zero_copy_only=False)
        known = indices >= 0
        return Ragged.from_lengths(indices[known], np.bincount(rows[known], minlength=len(table)))

    def _stretches(self, wanted: Sequence[range]) -> Iterator[Stretch]:
        """The row groups that hold wanted rows, in order, cut into short stretches."""
        place = 0
        for path in self.files:
            row = 0
            try:
                with pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
                    for group in range(file.num_row_groups):
                        stop = row + file.metadata.row_group(group).num_rows
                        if any(part.start < place + stop and place + row < part.stop for part in wanted):
                            columns = [self.user_column, self.history_column]
                            for batch in file.iter_batches(READ_ROWS, row_groups=[group], columns=columns):
                                yield Stretch(path, row, place + row, batch.select(columns))
                                row += batch.num_rows
                        row = stop
            except (pa.ArrowInvalid, OSError) as error:
                raise CEMGError(f"{path}: cannot be read after row {row}: {' '.join(str(error).split())}") from error
            place += row


def _parquet_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise CEMGError(f"{path}: no such file or folder; give a Parquet file of users, or a folder of them")
    found = sorted(file for file in path.iterdir() if file.suffix in PARQUET_SUFFIXES and file.is_file() and not file.name.startswith("."))
    if not found:
        raise CEMGError(f"{path}: holds no Parquet files ({', '.join(PARQUET_SUFFIXES)})")
    return found


def _column_type(file: Path, schema: pa.Schema, name: str, option: str) -> pa.DataType:
    if schema.names.count(name) != 1:
        state = "is missing" if name not in schema.names else "stands there more than once"
        raise CEMGError(f"{file}: column {name} {state} (present: {', '.join(schema.names)}); name yours with {option}")
    return schema.field(name).type


def _is_list_of_ids(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return False
    value = _plain(kind.value_type)
    # A column without a single item has no type of its own.
    return pa.types.is_string(value) or pa.types.is_integer(value) or pa.types.is_null(value)


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type without its encoding: pandas and polars write strings in several, and categories as dictionaries."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.string() if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) else kind


def _strings(values: pa.Array) -> pa.Array:
    return values.cast(pa.large_string())


def _first(mask: pa.Array) -> int | None:
    place = pc.index(mask, True).as_py()
    return None if place < 0 else place


def _where(stretch: Stretch, column: str, row: int) -> str:
    return f"{stretch.file}: column {column}, row {stretch.row + row + 1}"


def _no_null(stretch: Stretch, column: str, null: pa.Array, what: str, rows: pa.Array | None = None) -> None:
    """`rows` says which row of the stretch each value belongs to (default: one value per row)."""
    first = _first(null)
    if first is not None:
        raise CEMGError(f"{_where(stretch, column, first if rows is None else rows[first].as_py())}: {what}")
