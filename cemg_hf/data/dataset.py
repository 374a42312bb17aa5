"""The prepared dataset as the other stages see it: item indices, user histories, leave-one-out cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from ..errors import CEMGError
from .ragged import IntArray, Ragged
from .splits import EvaluationCases, EvaluationSplit, leave_one_out, training_part

INTERACTIONS_FILE = "interactions.parquet"
ITEMS_FILE = "items.parquet"


@dataclass(frozen=True, eq=False)
class PreparedDataset:
    """Output folder of `prepare`, loaded. An item's index is its row in `items.parquet`, a user's index the order in the interactions."""

    folder: Path = field(metadata={"help": "Where the dataset lies."})
    user_ids: list[str] = field(metadata={"help": "Identifier of each user index."})
    item_ids: list[str] = field(metadata={"help": "Identifier of each item index (catalogue order)."})
    sequences: Ragged = field(metadata={"help": "Item indices (int64) of all interactions of each user, chronological."})

    @classmethod
    def load(cls, folder: str | Path) -> PreparedDataset:
        """Read a dataset folder.

        Raises:
            CEMGError: `folder` is not what `prepare` writes, or its two tables do not belong together.
        """
        folder = Path(folder)
        missing = [name for name in (INTERACTIONS_FILE, ITEMS_FILE) if not (folder / name).is_file()]
        if missing:
            raise CEMGError(f"{folder}: not a prepared dataset ({', '.join(missing)} missing); make one with `cemg prepare`")
        try:
            interactions = pl.read_parquet(folder / INTERACTIONS_FILE, columns=["user_id", "item_id"])
            item_ids = pl.read_parquet(folder / ITEMS_FILE, columns=["item_id"])["item_id"]
        except pl.exceptions.PolarsError as error:
            reason = str(error).splitlines()[0]
            raise CEMGError(f"{folder}: not a prepared dataset ({reason}); run `cemg prepare` again") from error

        indices = interactions.select(
            pl.col("item_id").replace_strict(item_ids, pl.int_range(len(item_ids), eager=True), default=-1, return_dtype=pl.Int64)
        )["item_id"]
        unknown = indices.eq(-1).arg_max() if len(indices) else None
        if unknown is not None and indices[unknown] == -1:
            raise CEMGError(
                f"{folder / INTERACTIONS_FILE}: row {unknown + 1}, column item_id: {interactions['item_id'][unknown]!r} is not in "
                f"{ITEMS_FILE}; run `cemg prepare` again"
            )
        runs = interactions["user_id"].rle().struct.unnest()
        if runs["value"].n_unique() != len(runs):
            raise CEMGError(f"{folder / INTERACTIONS_FILE}: column user_id: a user's rows must stand together; run `cemg prepare` again")
        sequences = Ragged.from_lengths(indices.to_numpy().astype(np.int64), runs["len"].to_numpy())
        return cls(folder, runs["value"].to_list(), item_ids.to_list(), sequences)

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    def train_sequences(self) -> Ragged:
        """Training interactions of every user, one row per user: the first n − 2 where n ≥ 3, otherwise all."""
        return training_part(self.sequences)

    def evaluation_cases(self, split: EvaluationSplit) -> EvaluationCases:
        """Leave-one-out cases of "validation" or "test"; users with fewer than three interactions have none."""
        return leave_one_out(self.sequences, split)

    def train_pairs(self) -> tuple[IntArray, IntArray]:
        """(users, items) of every training interaction, in order, repeats included."""
        training = self.train_sequences()
        return training.rows, training.values

    def train_item_counts(self) -> IntArray:
        """Training interactions per item, shape (N,)."""
        return np.bincount(self.train_sequences().values, minlength=self.num_items).astype(np.int64)

    def items_table(self, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """The catalogue in index order: item_id, title, brand, categories, description, image (struct of bytes and path)."""
        return pl.read_parquet(self.folder / ITEMS_FILE, columns=list(columns) if columns is not None else None)
