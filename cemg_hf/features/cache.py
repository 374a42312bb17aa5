"""Raw vectors of pretrained encoders, kept by content.

Layout: `<cache>/<encoder fingerprint>/<shard>.safetensors` with `keys` (n, 32) uint8, the SHA-256 of each content, and `vectors`
(n, D) float32. Shards appear whole (written beside, then renamed) every few seconds, so a killed encode goes on where it was.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..artefacts import fingerprint
from .projection import ROWS_AT_ONCE
from .store import scratch_array

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "CEMG_CACHE"
KEY_BYTES = 32

Batches = Sequence[np.ndarray]
ComputeBatches = Callable[[Batches], Iterator[tuple[np.ndarray, np.ndarray]]]
"""Takes batches of row numbers; yields for each batch the rows that could be encoded and their vectors."""


def default_cache_folder() -> Path:
    """`$CEMG_CACHE`, or `~/.cache/cemg_hf/features`."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/cemg_hf/features").expanduser()


def content_key(content: bytes | str) -> bytes:
    """SHA-256 of one item's content."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).digest()


class VectorCache:
    """Content keys and raw vectors of one encoder, in a folder of its own."""

    def __init__(self, folder: Path, shard_seconds: float = 15.0) -> None:
        self.folder = folder
        self.shard_seconds = shard_seconds

    def lookup(self, keys: np.ndarray, rows: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """Write the vectors known of the distinct `keys` (n,) "S32" into `rows` (n,) of `vectors` (N, D); which are known (n,)."""
        known = np.zeros(len(keys), dtype=bool)
        if not len(keys):
            return known
        order = np.argsort(keys)
        ordered = keys[order]
        for shard in sorted(self.folder.glob("[!.]*.safetensors")):
            try:
                with safe_open(shard, framework="numpy") as file:
                    stored, values = _as_keys(file.get_tensor("keys")), file.get_tensor("vectors")
            except (SafetensorError, OSError) as error:
                logger.warning("feature cache: %s cannot be read and is ignored (%s)", shard, error)
                continue
            place = np.minimum(np.searchsorted(ordered, stored), len(ordered) - 1)
            hit = ordered[place] == stored
            found = order[place[hit]]
            vectors[rows[found]] = values[hit]
            known[found] = True
        return known

    def add(self, keys: np.ndarray, vectors: np.ndarray) -> None:
        """Store one shard."""
        self.folder.mkdir(parents=True, exist_ok=True)
        raw = np.ascontiguousarray(keys).view(np.uint8).reshape(-1, KEY_BYTES)
        name = f"{fingerprint(raw.tobytes())[:32]}.safetensors"
        scratch = self.folder / f".{name}.{os.getpid()}"
        save_file({"keys": raw, "vectors": np.ascontiguousarray(vectors, dtype=np.float32)}, scratch)
        scratch.replace(self.folder / name)

    def fill(
        self, keys: np.ndarray, cost: np.ndarray, batch_size: int, dimension: int, compute: ComputeBatches
    ) -> tuple[np.ndarray, np.ndarray]:
        """Vectors (n, D) of contents with the given `keys` (n,) "S32", and which of them have one (n,).

        What is known is read; the rest goes to `compute`, longest first by `cost` (n,). Batches are cut from all distinct contents,
        known or not, so that a resumed run computes the very batches of an uninterrupted one and ends with the same bits.
        Vectors that are large together are a memory map of a temporary file beside the shards (see `scratch_array`).
        """
        distinct, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        vectors = scratch_array((len(keys), dimension), folder=self.folder)
        known = self.lookup(distinct, first, vectors)
        # Ties are broken by key, so that the order of the catalogue does not matter.
        order = np.argsort(-cost[first], kind="stable")
        cuts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        missing = [rows[~known[rows]] for rows in cuts if not known[rows].all()]
        pending: list[np.ndarray] = []
        written = time.monotonic()
        for rows, values in compute([first[batch] for batch in missing]):
            vectors[rows] = values
            known[inverse[rows]] = True
            pending.append(rows)
            if time.monotonic() - written >= self.shard_seconds:
                self._flush(keys, vectors, pending)
                written = time.monotonic()
        self._flush(keys, vectors, pending)
        repeats = np.flatnonzero(first[inverse] != np.arange(len(keys)))
        for start in range(0, len(repeats), ROWS_AT_ONCE):
            rows = repeats[start : start + ROWS_AT_ONCE]
            vectors[rows] = vectors[first[inverse[rows]]]
        return vectors, known[inverse]

    def _flush(self, keys: np.ndarray, vectors: np.ndarray, pending: list[np.ndarray]) -> None:
        rows = np.concatenate(pending) if pending else np.empty(0, dtype=np.int64)
        if len(rows):
            self.add(keys[rows], vectors[rows])
        pending.clear()


def _as_keys(raw: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(raw).view(f"S{KEY_BYTES}").reshape(-1)
