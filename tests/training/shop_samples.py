"""A made-up data set in which the next item follows from the last one, for the stages that train recommenders of whole items."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from cemg_hf.data import PreparedDataset

USERS, ITEMS, LENGTH = 90, 30, 8


def walks(seed: int = 0) -> list[list[int]]:
    """Users walk in a ring of items, now and then skipping one; the last two items of the catalogue are on no walk."""
    rng = np.random.default_rng(seed)
    steps = np.where(rng.random((USERS, LENGTH)) < 0.85, 1, 2)
    return [((rng.integers(ITEMS - 2) + row.cumsum()) % (ITEMS - 2)).tolist() for row in steps]


def write_dataset(folder: Path, rows: list[list[int]], num_items: int = ITEMS, prefix: str = "u") -> PreparedDataset:
    """A dataset folder as `prepare` writes it, without the card."""
    folder.mkdir(parents=True)
    users = [f"{prefix}{user}" for user, row in enumerate(rows) for _ in row]
    items = [f"i{item}" for row in rows for item in row]
    pl.DataFrame({"user_id": users, "item_id": items, "timestamp": range(len(items))}).write_parquet(folder / "interactions.parquet")
    pl.DataFrame({"item_id": [f"i{item}" for item in range(num_items)]}).write_parquet(folder / "items.parquet")
    return PreparedDataset.load(folder)
