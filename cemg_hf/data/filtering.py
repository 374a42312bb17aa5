"""Which interactions stay, and in which order: exact duplicates, iterative k-core, chronological histories."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from .ragged import IntArray


def k_core(users: IntArray, items: IntArray, k: int) -> npt.NDArray[np.bool_]:
    """Mask of the interactions in the largest set in which every user and every item has at least `k` of them.

    Users and items below k go together, round by round, until nobody goes; the result does not depend on the order of removal.

    Args:
        users, items: codes 0 … U − 1 and 0 … I − 1, shape (interactions,).
        k: 0 or 1 keeps everything.
    """
    keep = np.ones(len(users), dtype=np.bool_)
    while True:
        user_counts = np.bincount(users[keep], minlength=int(users.max(initial=-1)) + 1)
        item_counts = np.bincount(items[keep], minlength=int(items.max(initial=-1)) + 1)
        still = keep & (user_counts[users] >= k) & (item_counts[items] >= k)
        if still.sum() == keep.sum():
            return keep
        keep = still


def drop_duplicates(interactions: pl.DataFrame) -> pl.DataFrame:
    """Without exact repeats of (user, item, timestamp at full resolution); the first stays. Repeats at other times are legitimate."""
    return interactions.unique(["user_id", "item_id", "instant"], keep="first", maintain_order=True)


def apply_k_core(interactions: pl.DataFrame, k: int) -> pl.DataFrame:
    """The k-core of a table with user_id and item_id, in its order."""
    if k <= 1:
        return interactions
    return interactions.filter(pl.Series(k_core(_codes(interactions["user_id"]), _codes(interactions["item_id"]), k)))


def order_histories(interactions: pl.DataFrame) -> pl.DataFrame:
    """Users in order of first appearance in the file; each user's rows by (timestamp, position in the file).

    Rows of one timestamp keep the file's order: public data sets of day resolution carry meaning in it, or at least comparability.
    """
    first = pl.col("row").min().over("user_id")
    return interactions.sort(first, "instant", "row")


def _codes(column: pl.Series) -> IntArray:
    return column.rank("dense").to_numpy().astype(np.int64) - 1
