"""What differs between epochs in the same training windows: history items or code streams of them left out, and which
identifiers the items go by.

Every draw is a function of (seed, epoch, window, slot) alone. No random state is kept: neither a resumed run nor another number of
processes, micro-batches or loading processes draws anything else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

STEP = np.uint64(0x9E3779B97F4A7C15)  # of SplitMix64, and the two multipliers of its finaliser
FIRST_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
SECOND_FACTOR = np.uint64(0x94D049BB133111EB)
ITEMS, IDENTIFIERS, STREAMS = 0, 1, 2  # what is drawn, so that one draw says nothing about another


def uniform(*keys: int | npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1) that depend on nothing but the integer keys, which are broadcast against each other.

    The keys go one after the other through the finaliser of SplitMix64 (Steele, Lea and Flood 2014).
    """
    state = np.zeros(1, dtype=np.uint64)
    for key in keys:
        state = _mixed(state ^ _mixed(np.atleast_1d(np.asarray(key, dtype=np.int64)).astype(np.uint64)))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = values + STEP
    values = (values ^ (values >> np.uint64(30))) * FIRST_FACTOR
    values = (values ^ (values >> np.uint64(27))) * SECOND_FACTOR
    return values ^ (values >> np.uint64(31))


class Augmentation:
    """Draws for a batch of training windows.

    Args:
        seed: of all draws.
        item_dropout: share of the history items that is left out.
        num_identifiers: E, identifier sets to draw from.
        stream_dropout: share of the code streams of history items that is not shown (MSCGRec).

    Raises:
        ValueError: a share outside [0, 1), or no identifier set.
    """

    def __init__(self, seed: int, item_dropout: float = 0.0, num_identifiers: int = 1, stream_dropout: float = 0.0) -> None:
        for name, share in (("item_dropout", item_dropout), ("stream_dropout", stream_dropout)):
            if not 0 <= share < 1:
                raise ValueError(f"{name}: must lie in [0, 1), got {share}")
        if num_identifiers < 1:
            raise ValueError(f"num_identifiers: must be at least 1, got {num_identifiers}")
        self.seed = seed
        self.item_dropout = item_dropout
        self.num_identifiers = num_identifiers
        self.stream_dropout = stream_dropout
        # In shared memory: the processes that load batches live longer than an epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Draw for this epoch from now on, in every process that loads batches."""
        self._epoch.fill_(epoch)

    def left_out(self, windows: Sequence[int], slots: int) -> Tensor:
        """(B, slots) bool: which items of the windows are no history in this epoch."""
        number = np.asarray(windows)[:, None]
        return torch.from_numpy(uniform(self.seed, ITEMS, int(self._epoch), number, np.arange(slots)[None]) < self.item_dropout)

    def hidden_streams(self, windows: Sequence[int], given: Tensor) -> Tensor:
        """(B, slots, streams) bool: which code streams of the windows' items are not shown in this epoch.

        Never all that an item has: where the draw hides these, they are shown.

        Args:
            windows: the windows.
            given: (B, slots, streams) bool: the streams that the items have.
        """
        number = np.asarray(windows)[:, None, None]
        _, slots, streams = given.shape
        place = np.arange(slots)[None, :, None], np.arange(streams)[None, None]
        hidden = torch.from_numpy(uniform(self.seed, STREAMS, int(self._epoch), number, *place) < self.stream_dropout)
        return hidden & (given & ~hidden).any(dim=2, keepdim=True)

    def identifiers(self, windows: Sequence[int]) -> Tensor:
        """(B,) int64 in 0 … E−1: the identifier set by which the items of each window go in this epoch."""
        drawn = uniform(self.seed, IDENTIFIERS, int(self._epoch), np.asarray(windows))
        return torch.from_numpy((drawn * self.num_identifiers).astype(np.int64))
