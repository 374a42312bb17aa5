"""The dense baseline of cold start: items whose content is near that of what the user had last. Nothing is trained, nothing is decoded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import CEMGError
from .metrics import Rows, flatten_rows

COSINES_AT_ONCE = 8_000_000
"""Users times items in memory at once (32 MB, and a few times that while they are sorted)."""


class ContentKNNRecommender:
    """Ranks items by the cosine between their content and the recency-weighted mean content of a history.

    An item's content is the concatenation of its modalities, each brought to unit length, so that each counts the same whatever its
    dimension; a missing modality is a block of zeros, and an item without any is never recommended.
    """

    def __init__(self, vectors: Sequence[np.ndarray], masks: Sequence[np.ndarray] | None = None, half_life: float = 5.0) -> None:
        """Args:
        vectors: per modality (items, d_m), centred (PCA output is).
        masks: per modality (items,) bool, False where an item lacks it; left out, every item has everything.
        half_life: in items; one that many places further back in the history counts half. `inf` weighs all alike.

        Raises:
            CEMGError: no modality, shapes that do not fit together, values that are not finite, or a half-life that is not positive.
        """
        if not len(vectors):
            raise CEMGError("vectors: no modality; pass the content vectors of at least one")
        if not half_life > 0:
            raise CEMGError(f"half_life: {half_life}; it must be greater than 0 (inf weighs all items alike)")
        items = len(vectors[0])
        given = [np.ones(items, dtype=bool)] * len(vectors) if masks is None else [np.asarray(mask, dtype=bool) for mask in masks]
        if len(given) != len(vectors):
            raise CEMGError(f"masks: {len(given)} of them for {len(vectors)} modalities; pass one each")
        blocks = []
        for number, (block, mask) in enumerate(zip(vectors, given, strict=True)):
            block = np.asarray(block, dtype=np.float32)
            if block.ndim != 2 or len(block) != items or mask.shape != (items,):
                raise CEMGError(f"vectors: modality {number} has shape {block.shape} and mask {mask.shape}; expected {items} rows in both")
            block = np.where(mask[:, None], block, np.float32(0))
            if not np.isfinite(block).all():
                row = int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
                raise CEMGError(f"vectors: modality {number}, row {row} holds NaN or infinite values; encode the item again or mask it")
            blocks.append(_unit(block))
        self.content = _unit(np.concatenate(blocks, axis=1))
        """(items, Σ d_m) float32 rows of length 1, or 0 for an item without content."""
        self.half_life = float(half_life)

    def profiles(self, histories: Rows) -> np.ndarray:
        """(rows, Σ d_m) float32: the direction of each history's weighted mean; zeros where nothing in it has content."""
        _, values = flatten_rows(histories, None, len(self.content), name="histories")
        lengths = np.diff(histories.offsets)
        age = np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(len(values))
        weights = np.float32(0.5) ** (age / self.half_life).astype(np.float32)
        total = np.zeros((len(lengths), self.content.shape[1]), dtype=np.float32)
        filled = np.flatnonzero(lengths)
        if len(filled):
            starts = (np.cumsum(lengths) - lengths)[filled]
            total[filled] = np.add.reduceat(self.content[values] * weights[:, None], starts, axis=0)
        return _unit(total)

    def rank(self, histories: Rows, k: int, *, candidates: np.ndarray | None = None, exclude_history: bool = False) -> np.ndarray:
        """The k nearest items of every history.

        Args:
            histories: item indices, one row per user, chronological.
            k: length of the lists.
            candidates: (items,) bool, the items that may come out; left out, the whole catalogue.
            exclude_history: leave out the items of the row.

        Returns:
            (rows, k) int64 item indices, −1 where there is no further item; equal cosines inside a list in catalogue order. A
            history without content has nothing to be near to: its list is empty.
        """
        if k < 1:
            raise CEMGError(f"k: {k}; ask for at least one item")
        items, users = len(self.content), len(histories.offsets) - 1
        possible = self.content.any(axis=1)
        if candidates is not None:
            if np.shape(candidates) != (items,):
                raise CEMGError(f"candidates: shape {np.shape(candidates)}; pass one boolean per item ({items},)")
            possible = possible & np.asarray(candidates, dtype=bool)
        rows, values = flatten_rows(histories, users, items, name="histories")
        profiles = self.profiles(histories)
        ranked = np.full((users, k), -1, dtype=np.int64)
        width, size = min(k, items), max(1, COSINES_AT_ONCE // max(1, items))
        for start in range(0, users, size):
            part = profiles[start : start + size]
            cosines = np.where(possible & part.any(axis=1, keepdims=True), part @ self.content.T, -np.inf)
            if exclude_history:
                inside = slice(*np.searchsorted(rows, [start, start + len(part)]))
                cosines[rows[inside] - start, values[inside]] = -np.inf
            # Only the k best are sorted: a full sort of every user's catalogue took ten times as long.
            best = np.sort(np.argpartition(-cosines, width - 1, axis=1)[:, :width], axis=1)
            best = np.take_along_axis(best, np.argsort(-np.take_along_axis(cosines, best, axis=1), axis=1, kind="stable"), axis=1)
            found = np.take_along_axis(cosines, best, axis=1) > -np.inf
            ranked[start : start + len(part), :width] = np.where(found, best, -1)
        return ranked


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; rows of zeros stay."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(norms > 0, norms, 1)).astype(np.float32, copy=False)
