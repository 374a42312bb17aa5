"""The prepared dataset as the other stages see it: item indices, user histories, evaluation cases."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from ..errors import CEMGError
from .ragged import IntArray, Ragged
from .splits import EvaluationCases, EvaluationSplit, SplitPoints, TimeCuts, evaluation_cases, time_points, training_part

if TYPE_CHECKING:
    from scipy import sparse

INTERACTIONS_FILE = "interactions.parquet"
ITEMS_FILE = "items.parquet"
SPLIT_FILE = "split.json"
"""The instants of a split by time; a folder without it is split by leave-one-out."""


@dataclass(frozen=True, eq=False)
class PreparedDataset:
    """Output folder of `prepare`, loaded. An item's index is its row in `items.parquet`, a user's index the order in the interactions."""

    folder: Path = field(metadata={"help": "Where the dataset lies."})
    user_ids: list[str] = field(metadata={"help": "Identifier of each user index."})
    item_ids: list[str] = field(metadata={"help": "Identifier of each item index (catalogue order)."})
    sequences: Ragged = field(metadata={"help": "Item indices (int64) of all interactions of each user, chronological."})
    cuts: TimeCuts | None = field(default=None, metadata={"help": "Instants of the split by time; None: leave-one-out."})
    points: SplitPoints | None = field(default=None, metadata={"help": "Where they cut each user's row; None: leave-one-out."})

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
            cuts = _read_cuts(folder / SPLIT_FILE)
            columns = ["user_id", "item_id"] if cuts is None else ["user_id", "item_id", "timestamp"]
            interactions = pl.read_parquet(folder / INTERACTIONS_FILE, columns=columns)
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
        points = None if cuts is None else time_points(Ragged(interactions["timestamp"].to_numpy(), sequences.offsets), cuts)
        return cls(folder, runs["value"].to_list(), item_ids.to_list(), sequences, cuts, points)

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    def train_sequences(self) -> Ragged:
        """Training interactions of every user, one row per user.

        Leave-one-out: the first n − 2 where n ≥ 3, otherwise all. Split by time: those before the first instant, possibly none.
        """
        return training_part(self.sequences, self.points)

    def evaluation_cases(self, split: EvaluationSplit) -> EvaluationCases:
        """Cases of "validation" or "test".

        Leave-one-out: users with fewer than three interactions have none. Split by time: users who do nothing in the time of the split have
        none, and the history of a user who is new there is empty.
        """
        return evaluation_cases(self.sequences, split, self.points)

    def protocol(self) -> dict[str, Any]:
        """How the data set is split, as plain JSON values: what two results must have in common to be compared."""
        return {"split": "leave_one_out"} if self.cuts is None else {"split": "time"} | asdict(self.cuts)

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

    def category_vectors(self) -> sparse.csr_array | None:
        """The items' categories as multi-hot vectors, (N, categories) float64; None where no item has any.

        A measure of how alike two items are that no model had a part in.
        """
        from scipy import sparse

        if "categories" not in pl.read_parquet_schema(self.folder / ITEMS_FILE):
            return None
        named = self.items_table(["categories"]).with_row_index("item").explode("categories").drop_nulls().unique(maintain_order=True)
        if named.is_empty():
            return None
        columns = named["categories"].rank("dense").to_numpy().astype(np.int64) - 1
        shape = (self.num_items, int(columns.max()) + 1)
        return sparse.csr_array((np.ones(len(named)), (named["item"].to_numpy(), columns)), shape=shape)


def _read_cuts(path: Path) -> TimeCuts | None:
    """The instants of a split by time; None for a folder without the file."""
    if not path.is_file():
        return None
    try:
        return TimeCuts(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CEMGError(f"{path}: not the instants of a split ({error}); run `cemg prepare` again") from error
