"""Files of one record per line, as large as they are published: read block by block, plain or gzip, and errors know their line."""

from __future__ import annotations

import ast
import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from ...errors import CEMGError
from ..readers import PARQUET_SUFFIXES

BLOCK_BYTES = 8 << 20
"""Text held at a time; what is kept of it is a tenth."""
BATCH_ROWS = 1 << 14
"""Rows of a Parquet file held at a time."""

_GZIP = b"\x1f\x8b"
_SHOWN = 60
"""Characters of a bad line that its error quotes."""


@dataclass(frozen=True)
class Part:
    """Some rows of a file."""

    table: pl.DataFrame = field(metadata={"help": "The columns asked for; null where a row lacks one."})
    where: Callable[[int], str] = field(metadata={"help": "Place of a row of the table, for errors: file and line."})


class Record(NamedTuple):
    """One record as Python values, and its place for errors."""

    where: str
    values: dict[str, Any]


@dataclass(frozen=True)
class _Block:
    path: Path
    first: int
    """Number of the first line, from 1."""
    lines: list[bytes]

    def numbered(self) -> Iterator[tuple[int, bytes]]:
        """The lines that are not blank, with their numbers."""
        return ((number, line) for number, line in enumerate(self.lines, start=self.first) if not line.isspace())

    def where(self, row: int) -> str:
        """Place of the row-th line that is not blank."""
        return f"{self.path}: line {[number for number, _ in self.numbered()][row]}"


def read_columns(path: Path, schema: Mapping[str, pl.DataType], csv: tuple[str, ...] | None = None, header: bool = False) -> Iterator[Part]:
    """Columns of a JSON lines, CSV or Parquet file, in the file's order, part by part; other columns are skipped.

    Args:
        schema: name and type of each column.
        csv: names of the columns of a CSV file (`.csv`, `.csv.gz`); None where the data set has no such file.
        header: whether the first line of a CSV file holds these names.

    Raises:
        CEMGError: no such file, damaged, without a row, or a line that is not what it should be (the message names it).
    """
    found = False
    for part in _parts(path, schema, csv, header):
        found = found or not part.table.is_empty()
        yield part
    if not found:
        raise CEMGError(f"{path}: the file is empty; give the file as it is published")


def read_records(path: Path, python_literals: bool = False) -> Iterator[Record]:
    """Records of a file in which fields change their type from one line to the next, as metadata files do.

    Args:
        python_literals: also read lines that are Python dictionaries (single quotes), which are parsed, never evaluated.

    Raises:
        CEMGError: no such file, damaged, without a row, or a line that holds no record (the message names it).
    """
    found = False
    for record in _records(path, python_literals):
        found = True
        yield record
    if not found:
        raise CEMGError(f"{path}: the file is empty; give the file as it is published")


def _parts(path: Path, schema: Mapping[str, pl.DataType], csv: tuple[str, ...] | None, header: bool) -> Iterator[Part]:
    if _is_parquet(path):
        for start, batch in _batches(path, list(schema)):
            table = cast(pl.DataFrame, pl.from_arrow(batch)).select(
                pl.col(name).cast(dtype, strict=False) for name, dtype in schema.items()
            )
            yield Part(table, partial(_row, path, start))
    elif path.name.lower().removesuffix(".gz").endswith(".csv"):
        if csv is None:
            raise CEMGError(f"{path}: this data set is not published as CSV; give its JSON file")
        for block in _blocks(path):
            if header and block.first == 1:
                block = _without_header(block, csv)
            yield Part(_csv_table(block, schema, csv), block.where)
    else:
        for block in _blocks(path):
            yield Part(_json_table(block, schema), block.where)


def _row(path: Path, start: int, row: int) -> str:
    return f"{path}: row {start + row}"


def _records(path: Path, python_literals: bool) -> Iterator[Record]:
    if _is_parquet(path):
        for start, batch in _batches(path, None):
            yield from (Record(_row(path, start, row), values) for row, values in enumerate(batch.to_pylist()))
        return
    for block in _blocks(path):
        for number, line in block.numbered():
            yield Record(f"{path}: line {number}", _parse_record(line, python_literals, f"{path}: line {number}"))


def _parse_record(line: bytes, python_literals: bool, where: str) -> dict[str, Any]:
    # A printed dictionary has its keys in single quotes, JSON never has.
    literal = python_literals and line.lstrip().startswith((b"{'", b"{u'"))
    try:
        values = ast.literal_eval(line.decode().strip()) if literal else json.loads(line)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:  # what literal_eval is documented to raise
        raise CEMGError(f"{where}: {_bad(line, python_literals)}") from error
    if not isinstance(values, dict):
        raise CEMGError(f"{where}: {_bad(line, python_literals)}")
    return values


def _json_table(block: _Block, schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    content = b"".join(block.lines)
    if not content.strip():
        return pl.DataFrame(schema=dict(schema))
    try:
        return pl.read_ndjson(content, schema=dict(schema)).select(list(schema))
    except pl.exceptions.PolarsError as error:
        for number, line in block.numbered():  # polars does not say which line it was
            try:
                pl.read_ndjson(line, schema=dict(schema))
            except pl.exceptions.PolarsError as reason:
                raise CEMGError(f"{block.path}: line {number}: {_bad(line)}: {_one_line(reason)}") from error
        last = block.first + len(block.lines) - 1
        raise CEMGError(f"{block.path}: lines {block.first} to {last}: cannot be read as JSON lines: {_one_line(error)}") from error


def _without_header(block: _Block, names: tuple[str, ...]) -> _Block:
    found = block.lines[0].decode(errors="replace").strip().split(",")
    if found[: len(names)] != list(names):
        raise CEMGError(f"{block.path}: line 1: the columns are {', '.join(found)}, expected {', '.join(names)}; give the published file")
    return _Block(block.path, 2, block.lines[1:])


def _csv_table(block: _Block, schema: Mapping[str, pl.DataType], names: tuple[str, ...]) -> pl.DataFrame:
    lines = list(block.numbered())
    if not lines:
        return pl.DataFrame(schema=dict(schema))
    bad = next(((number, line) for number, line in lines if line.count(b",") + 1 < len(names)), None)
    if bad is not None:
        raise CEMGError(f"{block.path}: line {bad[0]}: expected {','.join(names)}, got {_quoted(bad[1])}; correct or remove the line")
    content = b"".join(line for _, line in lines)
    table = pl.read_csv(content, has_header=False, infer_schema=False, quote_char=None, truncate_ragged_lines=True)
    # What follows the named columns (the histories of 2023's benchmark files) is not used.
    place = dict(zip(names, table.columns, strict=False))
    return table.select(pl.col(place[name]).str.strip_chars().cast(dtype, strict=False).alias(name) for name, dtype in schema.items())


def _blocks(path: Path) -> Iterator[_Block]:
    """The lines of a file, plain or gzip whatever its name says, a few megabytes at a time."""
    _check_is_file(path)
    first = 1
    with path.open("rb") as file, tqdm(total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True) as progress:
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if file.peek(2).startswith(_GZIP) else file
        while True:
            try:
                lines = stream.readlines(BLOCK_BYTES)
            except (OSError, EOFError, zlib.error) as error:
                raise CEMGError(f"{path}: damaged after line {first - 1} ({_one_line(error)}); download it again") from error
            if not lines:
                return
            if first == 1:
                lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
            yield _Block(path, first, lines)
            first += len(lines)
            progress.update(file.tell() - progress.n)


def _batches(path: Path, columns: list[str] | None) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches of a Parquet file and the number of their first row, from 1."""
    _check_is_file(path)
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in columns or [] if name not in file.schema_arrow.names]
            if missing:
                raise CEMGError(f"{path}: column {missing[0]} is missing (present: {', '.join(file.schema_arrow.names)})")
            start = 1
            for batch in file.iter_batches(BATCH_ROWS, columns=columns):
                yield start, batch
                start += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise CEMGError(f"{path}: cannot be read as Parquet: {_one_line(error)}; download it again") from error


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() in PARQUET_SUFFIXES


def _check_is_file(path: Path) -> None:
    if not path.is_file():
        raise CEMGError(f"{path}: no such file; give the file as it is published (plain or .gz)")


def _bad(line: bytes, python_literals: bool = False) -> str:
    kinds = "a JSON object or a Python dictionary" if python_literals else "a JSON object with the published fields"
    return f"{_quoted(line)} is not {kinds}; correct or remove the line, or download the file again"


def _quoted(line: bytes) -> str:
    text = line.decode(errors="replace").strip()
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
