"""The floor under every recommender: the items most interacted with in training, the same for everyone."""

from __future__ import annotations

import numpy as np

from ..errors import CEMGError
from .metrics import Rows, flatten_rows


class PopularityRecommender:
    """Ranks items by their number of training interactions; equal counts in catalogue order."""

    def __init__(self, train_item_counts: np.ndarray) -> None:
        """Args:
        train_item_counts: (items,) training interactions of every catalogue item.
        """
        self.counts = np.asarray(train_item_counts)
        if self.counts.ndim != 1 or len(self.counts) == 0:
            raise CEMGError(f"train_item_counts: shape {self.counts.shape}; pass one count per catalogue item, at least one")
        self.order = np.argsort(-self.counts.astype(np.int64), kind="stable")
        self.place = np.empty_like(self.order)
        self.place[self.order] = np.arange(len(self.order))

    def rank(self, histories: Rows, k: int, exclude_history: bool = False) -> np.ndarray:
        """The k most popular items for every history, without the history's own items if `exclude_history`.

        In O(users · k + interactions) time and memory, whatever the size of the catalogue. With the distinct history items at the
        sorted places p_0 < p_1 < … of the popularity order, p_i − i items ahead of p_i remain, so the j-th item that remains is at
        place j + #{i : p_i − i ≤ j}: one histogram and one cumulative sum.

        Returns:
            (users, k) int64 item indices, -1 where the catalogue has no further item.
        """
        if k < 1:
            raise CEMGError(f"k: {k}; ask for at least one item")
        users, items = len(histories.offsets) - 1, len(self.order)
        places = np.broadcast_to(np.arange(k), (users, k))
        if exclude_history:
            rows, values = flatten_rows(histories, None, items, name="histories")
            # Distinct (user, place) pairs, sorted by user and then by place.
            rows, excluded = np.divmod(np.unique(rows * items + self.place[values]), items)
            number = np.arange(len(rows)) - np.searchsorted(rows, rows)
            ahead = excluded - number
            within = ahead < k
            histogram = np.bincount(rows[within] * k + ahead[within], minlength=users * k).reshape(users, k)
            places = places + histogram.cumsum(axis=1)
        return np.where(places < items, self.order[np.minimum(places, items - 1)], -1)

    def scores(self, ranked: np.ndarray) -> np.ndarray:
        """Training counts of ranked items as float32, of the shape of `ranked`; -inf where there is no item."""
        return np.where(ranked >= 0, self.counts[ranked], -np.inf).astype(np.float32)
