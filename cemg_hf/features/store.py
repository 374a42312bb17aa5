"""The folder that `encode` hands to `tokenize`: vectors, masks, projections and the encoders' descriptions.

Vectors stay on disk: they are written block by block and read by rows through a memory map, so a catalogue larger than memory
takes pages that the system can drop, not memory of the process.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..artefacts import write_json
from ..errors import CEMGError
from .projection import ROWS_AT_ONCE, Projection

CONTENT_MODALITIES = ("image", "text")
MODALITIES = (*CONTENT_MODALITIES, "collaborative")
ARRAYS_NAME = "features.safetensors"
ITEM_IDS_NAME = "item_ids.json"
ENCODERS_NAME = "encoders.json"

PARTS = ("vectors", "mask", "mean", "components", "scale")
DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BOOL": np.dtype(bool)}
LONGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
BYTES_IN_MEMORY = 2**26  # scratch arrays above this size go to a temporary file


@dataclass(frozen=True)
class ModalityFeatures:
    """One modality of the catalogue: `vectors` (N, d_m) float32 or float16, zero rows where `mask` (N,) bool is False.

    In a store that was loaded `vectors` is a read-only memory map: slices and rows are read when asked for.
    """

    vectors: np.ndarray
    mask: np.ndarray
    projection: Projection
    encoder: Mapping[str, Any]

    @property
    def dimension(self) -> int:
        """d_m, the width of the block."""
        return self.vectors.shape[1]


@dataclass(frozen=True)
class FeatureBlocks:
    """One modality on its way to disk: `blocks` are the rows of (N, dimension) vectors, in order, a few at a time."""

    blocks: Iterable[np.ndarray]
    dimension: int
    mask: np.ndarray
    projection: Projection
    encoder: Mapping[str, Any]
    dtype: str = field(default="F32", metadata={"help": "F32 or F16: what the vectors are stored as."})


@dataclass(frozen=True)
class FeatureStore:
    """Features of N items in catalogue order; modalities that no item has are absent.

    Files: `features.safetensors` (per modality `<name>.vectors`, `.mask`, `.mean`, `.components`, `.scale`), `item_ids.json` (list),
    `encoders.json` (per modality: kind, name, settings, dimension, fingerprint, files) and the files of encoders fitted to the catalogue.
    """

    item_ids: list[str]
    modalities: Mapping[str, ModalityFeatures]

    def save(self, folder: str | Path) -> None:
        """Write the three files into `folder` (a stage writes into its scratch folder, which then replaces the old one at once)."""
        write_features(
            folder,
            self.item_ids,
            {
                name: FeatureBlocks(
                    blocks=row_blocks(features.vectors),
                    dimension=features.dimension,
                    mask=features.mask,
                    projection=features.projection,
                    encoder=features.encoder,
                    dtype="F16" if features.vectors.dtype == np.float16 else "F32",
                )
                for name, features in self.modalities.items()
            },
        )

    @classmethod
    def load(cls, folder: str | Path) -> FeatureStore:
        """The store written by `save` or `write_features`; vectors stay on disk, the rest is read.

        Errors: CEMGError for missing or damaged files, or arrays that do not belong to the item ids or to each other.
        """
        folder = Path(folder)
        for name in (ARRAYS_NAME, ITEM_IDS_NAME, ENCODERS_NAME):
            if not (folder / name).is_file():
                raise CEMGError(f"{folder}: not a feature folder ({name} is missing); write one with `cemg encode`")
        path = folder / ARRAYS_NAME
        arrays = _map_arrays(path)
        item_ids = _read_json(folder / ITEM_IDS_NAME, list)
        modalities = {}
        for name, encoder in load_descriptions(folder).items():
            missing = next((f"{name}.{part}" for part in PARTS if f"{name}.{part}" not in arrays), None)
            if missing is not None:
                raise CEMGError(f"{path}: array {missing!r} is missing; run `cemg encode` again")
            vectors, *small = (arrays[f"{name}.{part}"] for part in PARTS)
            mask, mean, components, scale = (np.array(array) for array in small)
            if len(vectors) != len(item_ids) or mask.shape != (len(item_ids),):
                raise CEMGError(f"{folder}: {len(vectors)} {name} vectors for {len(item_ids)} item ids; run `cemg encode` again")
            if vectors.ndim != 2 or vectors.dtype == bool or mask.dtype != bool or components.shape != (vectors.shape[1], *mean.shape):
                raise CEMGError(f"{path}: the arrays of {name} do not fit together; run `cemg encode` again")
            modalities[name] = ModalityFeatures(vectors, mask, Projection(mean, components, scale), encoder)
        return cls(item_ids, modalities)


def write_features(folder: str | Path, item_ids: Sequence[str], modalities: Mapping[str, FeatureBlocks]) -> None:
    """Write a feature folder of N items without ever holding more than one block of vectors.

    Blocks are taken modality by modality in alphabetical order. Each file appears whole or not at all. Errors: CEMGError for blocks
    that are not as wide or, together, not as long as announced.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    contents: dict[str, tuple[str, tuple[int, ...], Iterable[np.ndarray]]] = {}
    for name, features in modalities.items():
        if features.dtype not in ("F32", "F16"):
            raise CEMGError(f"{name}: dtype {features.dtype!r} of the vectors is neither F32 nor F16")
        contents[f"{name}.vectors"] = (features.dtype, (len(item_ids), features.dimension), features.blocks)
        mask = np.asarray(features.mask, dtype=bool)
        if mask.shape != (len(item_ids),):
            raise CEMGError(f"{name}: a mask of shape {mask.shape} for {len(item_ids)} item ids; give one entry per item")
        contents[f"{name}.mask"] = ("BOOL", mask.shape, [mask])
        for part in ("mean", "components", "scale"):
            array = np.asarray(getattr(features.projection, part), dtype=np.float32)
            contents[f"{name}.{part}"] = ("F32", array.shape, [array])
    path = folder / ARRAYS_NAME
    scratch = path.with_name(f".{path.name}.partial")
    try:
        with scratch.open("wb") as file:
            _write_arrays(file, contents)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    write_json(folder / ITEM_IDS_NAME, list(item_ids))
    write_json(folder / ENCODERS_NAME, {name: dict(features.encoder) for name, features in modalities.items()})


def row_blocks(vectors: np.ndarray, rows: int = ROWS_AT_ONCE) -> Iterator[np.ndarray]:
    """The rows of `vectors`, `rows` at a time."""
    for start in range(0, len(vectors), rows):
        yield vectors[start : start + rows]


def taken_rows(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A copy of the rows (n,) of `vectors`, made block by block; large ones go to a temporary file (see `scratch_array`)."""
    taken = scratch_array((len(rows), *vectors.shape[1:]), vectors.dtype)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        taken[part] = vectors[rows[part]]
    return taken


def scratch_array(shape: tuple[int, ...], dtype: np.dtype | type = np.float32, folder: str | Path | None = None) -> np.ndarray:
    """A writable array of zeros that takes no memory of the process when it is large.

    Up to 64 MiB it is an ordinary array; above, a memory map of an unnamed file in `folder` (default: the system's temporary folder,
    `$TMPDIR`) that vanishes with the array. A folder on a RAM disk defeats the purpose. Errors: CEMGError when the disk has no room.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size <= BYTES_IN_MEMORY:
        return np.zeros(shape, dtype=dtype)
    place = Path(folder or tempfile.gettempdir())
    # The file is sparse: without this check a full disk would kill the process at the first write that finds no room.
    free = shutil.disk_usage(place).free
    if free < size:
        raise CEMGError(
            f"{place}: {size / 1e9:.1f} GB are needed for a temporary file, {free / 1e9:.1f} GB are free; make room or set TMPDIR"
        )
    with tempfile.TemporaryFile(dir=place) as file:
        return np.memmap(file, dtype=dtype, mode="w+", shape=shape)


def load_descriptions(folder: str | Path) -> dict[str, dict[str, Any]]:
    """`encoders.json` of a feature folder, or of any folder that ships it."""
    path = Path(folder) / ENCODERS_NAME
    if not path.is_file():
        raise CEMGError(f"{path}: no such file; give a folder written by `cemg encode`, or one that ships its encoder files")
    descriptions: dict[str, dict[str, Any]] = _read_json(path, dict)
    return descriptions


def _read_json(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CEMGError(f"{path}: not JSON ({error}); run `cemg encode` again") from error
    if not isinstance(content, kind):
        raise CEMGError(f"{path}: holds a {type(content).__name__}, expected a {kind.__name__}; run `cemg encode` again")
    return content


# ---- the safetensors format: 8 bytes with the header's length, a JSON header, the arrays one after the other -----------------------


def _write_arrays(file: BinaryIO, contents: Mapping[str, tuple[str, tuple[int, ...], Iterable[np.ndarray]]]) -> None:
    """Write arrays given as (dtype, shape, blocks of rows): wide types first, as safetensors does, so that every array is aligned."""
    names = sorted(contents, key=lambda name: (-DTYPES[contents[name][0]].itemsize, name))
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        dtype, shape, _ = contents[name]
        start, end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        dtype, shape, blocks = contents[name]
        rows = 0
        for block in blocks:
            if block.shape[1:] != shape[1:]:
                raise CEMGError(f"{name}: a block of shape {block.shape} in an array of shape {shape}; give blocks of whole rows")
            rows += len(block) if block.ndim else 1
            file.write(np.ascontiguousarray(block, dtype=DTYPES[dtype]).data)
        if rows != (shape[0] if shape else 1):
            raise CEMGError(f"{name}: {rows} rows were given for an array of shape {shape}; give one row per item")


def _map_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read-only memory maps of the arrays of a safetensors file."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, LONGEST_HEADER):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return {name: _map_array(path, name, entry, 8 + length, size) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CEMGError(f"{path}: not a safetensors file ({error}); run `cemg encode` again") from error


def _map_array(path: Path, name: str, entry: Mapping[str, Any], data: int, size: int) -> np.ndarray:
    """One array; `data` is where the header ends and `size` where the file does. Raises ValueError on an entry that does not fit."""
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{name} is stored as {entry['dtype']}, expected one of {', '.join(DTYPES)}")
    dtype, shape, (start, end) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, start, end)):
        raise ValueError(f"{name} has the shape {shape} at {start} … {end}")
    if end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} takes {end - start} bytes, its shape {shape} {math.prod(shape) * dtype.itemsize}")
    if data + end > size:
        raise ValueError(f"{name} ends {data + end - size} bytes beyond the file")
    if not math.prod(shape):  # nothing cannot be mapped
        return np.empty(shape, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=data + start, shape=shape)
