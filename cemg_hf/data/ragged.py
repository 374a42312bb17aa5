"""Rows of unequal length in two flat arrays, the layout of every user history in the package."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Ragged:
    """Row r is `values[offsets[r]:offsets[r + 1]]`.

    `values` has any dtype and shape (total,); `offsets` is int64 of shape (rows + 1,), starts at 0, never falls and ends at total.

    Raises:
        ValueError: when `offsets` does not describe `values`.
    """

    values: npt.NDArray[Any]
    offsets: IntArray

    def __post_init__(self) -> None:
        offsets = self.offsets
        if (
            offsets.ndim != 1
            or len(offsets) == 0
            or offsets[0] != 0
            or offsets[-1] != len(self.values)
            or bool(np.any(np.diff(offsets) < 0))
        ):
            raise ValueError(f"offsets must rise from 0 to the {len(self.values)} values, got shape {offsets.shape}")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> npt.NDArray[Any]:
        """Values of one row, a view; negative rows count from the end."""
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        row %= len(self)
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> IntArray:
        """Number of values per row, shape (rows,)."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> IntArray:
        """The row each value belongs to, shape (total,)."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.lengths)

    @classmethod
    def from_lists(cls, lists: Iterable[Sequence[Any] | npt.NDArray[Any]], dtype: npt.DTypeLike = np.int64) -> Ragged:
        """One row per list."""
        arrays = [np.asarray(row, dtype=dtype) for row in lists]
        values = np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype)
        return cls.from_lengths(values, np.fromiter(map(len, arrays), dtype=np.int64, count=len(arrays)))

    @classmethod
    def from_lengths(cls, values: npt.NDArray[Any], lengths: npt.NDArray[np.integer[Any]]) -> Ragged:
        """Cut `values` (total,) into rows of the given lengths (rows,)."""
        return cls(values, _offsets(lengths))

    def to_lists(self) -> list[list[Any]]:
        """Plain Python lists, for JSON and for reading."""
        return [row.tolist() for row in np.split(self.values, self.offsets[1:-1])] if len(self) else []

    def take(self, indices: npt.ArrayLike) -> Ragged:
        """The rows at `indices` (integers in any order, repeats allowed), copied."""
        chosen = np.asarray(indices, dtype=np.int64)
        return self._gather(self.offsets[:-1][chosen], self.lengths[chosen])

    def last(self, n: int) -> Ragged:
        """The last `n` values of every row (all of a shorter row)."""
        lengths = np.minimum(self.lengths, n)
        return self._gather(self.offsets[1:] - lengths, lengths)

    def drop_last(self, n: int | npt.NDArray[np.integer[Any]]) -> Ragged:
        """Every row without its last `n` values; `n` is one number or one per row. A shorter row becomes empty."""
        return self._gather(self.offsets[:-1], np.maximum(self.lengths - n, 0))

    def _gather(self, starts: IntArray, lengths: IntArray) -> Ragged:
        """Rows `values[start:start + length]` laid end to end."""
        offsets = _offsets(lengths)
        shift = starts - offsets[:-1]
        return Ragged(self.values[np.arange(offsets[-1]) + np.repeat(shift, lengths)], offsets)


def _offsets(lengths: npt.NDArray[np.integer[Any]]) -> IntArray:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])
