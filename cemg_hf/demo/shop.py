"""The shop that the demo shows: its items as people read and find them, and the people who bought there."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import polars as pl

from ..data.dataset import PreparedDataset
from ..errors import CEMGError
from ..features.pictures import image_sources
from .pictures import Thumbnails

SHOPPERS_LISTED = 200
SHOWN = ("title", "brand", "categories", "description")


@dataclass(frozen=True)
class Item:
    """An item as it is shown. Texts are whatever the shop wrote: nothing of them is markup. `picture` is an address for an <img>."""

    item_id: str
    title: str | None = None
    brand: str | None = None
    categories: tuple[str, ...] = ()
    description: str | None = None
    picture: str | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return self.title or self.item_id


@dataclass(frozen=True)
class Shopper:
    """A real user: item ids in the order of purchase, and what came next, which the model was not trained on."""

    user_id: str
    history: tuple[str, ...]
    bought_next: str | None


class Hits(NamedTuple):
    """The best items of a search, and how many there are."""

    items: list[Item]
    total: int


class Shop:
    """Items to search and look at, and real shoppers where there is a data set.

    Args:
        item_ids: the catalogue.
        table: normalised items (`normalise_items`), in any order; items that it lacks are shown by their id. None: all are.
        base: where relative paths of pictures start.
        dataset: whose users are the shoppers, and whose purchases decide between equally good hits.

    Raises:
        CEMGError: a table that knows none of the items.
    """

    def __init__(
        self,
        item_ids: Sequence[str],
        table: pl.DataFrame | None = None,
        base: Path | None = None,
        dataset: PreparedDataset | None = None,
    ) -> None:
        ids = pl.DataFrame({"item_id": list(item_ids)}, schema={"item_id": pl.String})
        if table is None:
            table = ids
        elif not ids["item_id"].is_in(table["item_id"].implode()).any():
            raise CEMGError(f"items: none of the model's items (such as {item_ids[0]!r}) is in the table; give the table of its own shop")
        self._table = ids.join(table, on="item_id", how="left", maintain_order="left")
        self.thumbnails = Thumbnails(image_sources(self._table, base))
        for name in SHOWN:
            if name not in self._table.columns:
                self._table = self._table.with_columns(pl.lit(None).alias(name))
        self._rows = {item_id: row for row, item_id in enumerate(item_ids)}
        self._dataset = dataset
        self._index = self._search_index()
        counts = Counter(name for row in self._table["categories"].drop_nulls() for name in set(row) if name)
        self.categories = [name for name, _ in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))]
        """Names of categories, the most frequent first."""
        self._users = {} if dataset is None else {user: number for number, user in enumerate(dataset.user_ids)}
        self._cases = None if dataset is None else dataset.evaluation_cases("test")
        self._case_of = {} if self._cases is None else {int(user): case for case, user in enumerate(self._cases.users)}

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._rows

    def item(self, item_id: str) -> Item:
        """An item of the shop; of an id that it lacks, the id alone."""
        row = self._rows.get(item_id)
        if row is None:
            return Item(item_id)
        title, brand, categories, description = (self._table[name][row] for name in SHOWN)
        names = () if categories is None else tuple(name for name in categories if name)
        return Item(item_id, title or None, brand or None, names, description or None, self.thumbnails.address(row))

    def in_categories(self, names: Sequence[str]) -> list[str]:
        """Ids of the items of any of these categories."""
        wanted = pl.col("categories").list.eval(pl.element().is_in(list(names))).list.any()
        return self._table.filter(wanted)["item_id"].to_list()

    def search(self, query: str, limit: int) -> Hits:
        """Items in whose id, title, brand or categories every word of the query occurs.

        The id itself comes first, then titles that begin with the query, then titles in which every word begins a word, then the rest;
        among equals what was bought most. Case and accents make no difference.
        """
        words = plain(query).split()
        if not words:
            return Hits([], 0)
        whole = " ".join(words)
        text, title = pl.col("text"), pl.col("title")
        found = self._index.filter(pl.all_horizontal(text.str.contains(word, literal=True) for word in words))
        begins = pl.all_horizontal(title.str.contains(f" {word}", literal=True) for word in words)
        quality = pl.when(pl.col("id") == whole).then(0).when(title.str.starts_with(f" {whole}")).then(1).when(begins).then(2).otherwise(3)
        best = found.sort(quality, -pl.col("bought"), "row").head(limit)
        return Hits([self.item(self._table["item_id"][row]) for row in best["row"].to_list()], len(found))

    def _search_index(self) -> pl.DataFrame:
        def folded(column: pl.Series) -> list[str]:
            return [plain(value) if value else "" for value in column.to_list()]

        categories = [" ".join(name for name in row or () if name) for row in self._table["categories"].to_list()]
        columns = [folded(self._table[name]) for name in ("item_id", "title", "brand")] + [folded(pl.Series(categories, dtype=pl.String))]
        bought = [0] * len(self._table)
        if self._dataset is not None:
            counts = dict(zip(self._dataset.item_ids, self._dataset.train_item_counts().tolist(), strict=True))
            bought = [counts.get(item_id, 0) for item_id in self._rows]
        return pl.DataFrame(
            {
                "row": range(len(self._table)),
                "id": columns[0],
                "title": [f" {title}" for title in columns[1]],  # so that a word begins where a space stands before it
                "text": ["\n".join(parts) for parts in zip(*columns, strict=True)],
                "bought": bought,
            },
            schema={"row": pl.Int64, "id": pl.String, "title": pl.String, "text": pl.String, "bought": pl.Int64},
        )

    # ---- shoppers -------------------------------------------------------------------------------------------------------------

    @property
    def num_shoppers(self) -> int:
        return len(self._users)

    def shopper_ids(self, limit: int = SHOPPERS_LISTED) -> list[str]:
        """The first users, those first of whom it is known what they bought next."""
        if self._dataset is None:
            return []
        known = [self._dataset.user_ids[user] for user in list(self._case_of)[:limit]]
        return known or self._dataset.user_ids[:limit]

    def shopper(self, user_id: str) -> Shopper:
        """A user with the history that the test asks about.

        Raises:
            CEMGError: no such user.
        """
        user = self._users.get(user_id)
        if user is None or self._dataset is None or self._cases is None:
            raise CEMGError(f"no shopper is called {user_id!r}; choose one from the list")
        case = self._case_of.get(user)
        items = self._dataset.sequences[user] if case is None else self._cases.histories[case]
        bought_next = None if case is None else self._dataset.item_ids[int(self._cases.targets[case])]
        return Shopper(user_id, tuple(self._dataset.item_ids[item] for item in items), bought_next)

    def shopper_at(self, number: int) -> Shopper:
        """The user of a number, which may be any."""
        assert self._dataset is not None
        numbers = list(self._case_of) or list(range(len(self._dataset.user_ids)))
        return self.shopper(self._dataset.user_ids[numbers[number % len(numbers)]])


def plain(text: str) -> str:
    """Lower case, without accents, for comparison."""
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(character for character in decomposed if not unicodedata.combining(character)).casefold()
