"""One reader for every kind of table: Parquet, CSV, JSON lines, RecBole's atomic files, a `datasets` folder, a data set on the Hub."""

from __future__ import annotations

import codecs
import gzip
import json
import logging
import re
import zlib
from pathlib import Path

import polars as pl

from ..errors import CEMGError
from .atomic_files import ATOMIC_SUFFIXES, read_atomic_file

logger = logging.getLogger(__name__)

PARQUET_SUFFIXES = (".parquet", ".pq")
DELIMITED_SUFFIXES = {".csv": ",", ".tsv": "\t"}
JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
SUPPORTED = (
    "Parquet (.parquet), CSV (.csv, .tsv, also .gz), JSON lines (.jsonl, .ndjson, also .gz), RecBole's atomic files (.inter, .item, also "
    ".gz), a `datasets` folder or a Hub id (org/name)"
)

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def read_table(source: str | Path, kind: str | None = None) -> pl.DataFrame:
    """Read a whole table.

    CSV columns arrive as strings, so that an identifier such as "007" stays what it is; typing is the schema's work. The `datasets`
    Image feature arrives as struct{bytes, path}, never decoded. For the types of atomic files see `read_atomic_file`.

    Args:
        source: a file (its type is told by its suffix), a folder that `datasets.load_from_disk` or `load_dataset` opens, or a Hub id
            "org/name". Behind a folder or a Hub id ":config" chooses a configuration. All splits are read, one after the other.
        kind: "interactions" or "items": the configuration taken where the source has one of that name and none is chosen.

    Raises:
        CEMGError: nothing there, unsupported type, unreadable, or without a row.
    """
    path, config = _split_config(str(source))
    if path.is_dir():
        table = _read_datasets(path, config, kind, str(source))
    elif path.is_file():
        table = _read_file(path)
    elif _table_suffix(path) is None and path.suffix != ".gz" and _HUB_ID.fullmatch(path.as_posix()):
        table = _read_datasets(path, config, kind, str(source))
    else:
        raise CEMGError(f"{source}: no such file or folder; give {SUPPORTED}")
    if table.is_empty():
        raise CEMGError(f"{source}: the table is empty (no rows); give a file with at least one row")
    return table


def is_local(source: str | Path) -> bool:
    """Whether `source` names a file or folder here, not a data set on the Hub."""
    return _split_config(str(source))[0].exists()


def local_path(source: str | Path) -> Path:
    """The file or folder behind a local source, without the configuration's name."""
    return _split_config(str(source))[0]


def _split_config(source: str) -> tuple[Path, str | None]:
    if ":" not in source or Path(source).exists():
        return Path(source), None
    path, _, config = source.rpartition(":")
    return Path(path), config


def _table_suffix(path: Path) -> str | None:
    """The suffix that tells the format, ".gz" set aside, or None."""
    name = path.name.lower().removesuffix(".gz")
    known = (*PARQUET_SUFFIXES, *DELIMITED_SUFFIXES, *JSON_LINES_SUFFIXES, *ATOMIC_SUFFIXES)
    return next((suffix for suffix in known if name.endswith(suffix)), None)


def _read_file(path: Path) -> pl.DataFrame:
    suffix = _table_suffix(path)
    if suffix is None or (suffix in PARQUET_SUFFIXES and path.suffix.lower() == ".gz"):
        raise CEMGError(f"{path}: unsupported file type; give {SUPPORTED}")
    if path.stat().st_size == 0:
        raise CEMGError(f"{path}: the file is empty (0 bytes); give a file with at least one row")
    try:
        if suffix in PARQUET_SUFFIXES:
            return pl.read_parquet(path)
        if suffix in DELIMITED_SUFFIXES:
            return pl.read_csv(path, separator=DELIMITED_SUFFIXES[suffix], infer_schema=False)
        if suffix in ATOMIC_SUFFIXES:
            return read_atomic_file(path)
        return _read_json_lines(path)
    except pl.exceptions.NoDataError as error:
        raise CEMGError(f"{path}: the file is empty; give a file with at least one row") from error
    except (pl.exceptions.PolarsError, OSError, EOFError, zlib.error) as error:
        raise CEMGError(f"{path}: cannot be read as {suffix.removeprefix('.')}: {_one_line(error)}") from error


def _read_json_lines(path: Path) -> pl.DataFrame:
    content = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
    content = content.removeprefix(codecs.BOM_UTF8)
    if not content.strip():
        raise CEMGError(f"{path}: the file is empty; give a file with at least one row")
    try:
        return pl.read_ndjson(content, infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        row = _first_bad_json_line(content)
        if row is None:
            raise
        raise CEMGError(f"{path}: row {row} is not a JSON object; write one {{...}} per line") from error


def _first_bad_json_line(content: bytes) -> int | None:
    """1-based number of the first line that is no JSON object; None when every line is one."""
    for row, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            try:
                if not isinstance(json.loads(line), dict):
                    return row
            except ValueError:
                return row
    return None


def _read_datasets(path: Path, config: str | None, kind: str | None, source: str) -> pl.DataFrame:
    # Imported here: it takes a second that plain files need not pay.
    import datasets

    saved = path.is_dir() and ((path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file())
    try:
        if saved:
            opened = datasets.load_from_disk(str(path))
        else:
            if config is None and kind in datasets.get_dataset_config_names(path.as_posix()):
                config = kind
            opened = datasets.load_dataset(path.as_posix(), config)
    # `datasets` raises whatever its builders, the file system and the network raise; all of it means: this source does not open.
    except Exception as error:
        where = "cannot be opened as a `datasets` folder" if path.is_dir() else "no such file or folder, and the Hub did not give it"
        raise CEMGError(f"{source}: {where}: {_one_line(error)}") from error
    splits = dict(opened) if isinstance(opened, dict) else {"": opened}
    if len(splits) > 1:
        logger.info("%s: reading the splits %s one after the other", source, ", ".join(splits))
    return pl.concat([_to_polars(split) for split in splits.values()], how="vertical_relaxed")


def _to_polars(split: object) -> pl.DataFrame:
    from datasets import Dataset

    assert isinstance(split, Dataset)
    table = pl.from_arrow(split.with_format("arrow")[:])
    assert isinstance(table, pl.DataFrame)
    return table


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
