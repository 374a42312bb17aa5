"""Networks over whole items (SASRec, GRU4Rec), for the service."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..artefacts import fingerprint
from ..errors import CEMGError
from ..models.next_item import ITEM_IDS_FILE, NextItemModel
from ..training.scoring import SCORES_AT_ONCE
from .config import ServingConfig
from .ranker import Query

OF_CODES = ("num_beams", "max_per_first_code", "min_first_codes")
"""Fields of a query that steer a search for codes."""


class ItemCatalogue:
    """The items that a network was trained on, but for those taken out since.

    Args:
        item_ids: by item index, as the network has them.
        removed: those of them that are neither known nor recommended any more.
    """

    new_item_ids: Sequence[str] = ()

    def __init__(self, item_ids: list[str], removed: Sequence[str] = ()) -> None:
        self.item_ids = item_ids
        self.removed = removed
        self.known = frozenset(item_ids).difference(removed)
        self.fingerprint = fingerprint(json.dumps([item_id for item_id in item_ids if item_id in self.known]))

    def add(
        self, item_ids: Sequence[str], vectors: Mapping[str, Any], masks: Mapping[str, Any] | None, collaborative: str
    ) -> tuple[int, ItemCatalogue]:
        raise ValueError(
            "this model scores whole items, by vectors that it learned for each in training, and takes no new ones; train it again with "
            "them, or serve a model that writes item codes"
        )

    def remove(self, item_ids: Sequence[str]) -> ItemCatalogue:
        unknown = next((item_id for item_id in item_ids if item_id not in self.known), None)
        if unknown is not None:
            raise ValueError(f"item id {unknown!r} is not among the {len(self.known)} items of the catalogue")
        removed = list(dict.fromkeys([*self.removed, *item_ids]))
        if len(removed) == len(self.item_ids):
            raise ValueError(f"item_ids: all {len(self.known)} items of the catalogue would go; a service needs at least one")
        return ItemCatalogue(self.item_ids, removed)

    def reread(self, folder: Path) -> ItemCatalogue:
        """With everything that was removed; the folder may hold no other items, because the network has vectors of these. Its weights are
        not read: the network stays the one that was loaded."""
        path = folder / ITEM_IDS_FILE
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CEMGError(f"{path}: cannot be read ({' '.join(str(error).split())}); name the model's own folder") from error
        if found != self.item_ids:
            raise CEMGError(
                f"{path}: other items than this model was trained on, so they do not belong together; start a service on that folder"
            )
        return ItemCatalogue(self.item_ids)


class ItemRanker:
    """The `Ranker` of a network over whole items. It scores all of them for every query, so every query may share a pass with any other.

    Args:
        model: with its catalogue, on its device.
        config: must leave new items alone, because there are none.

    Raises:
        CEMGError: settings of new items.
    """

    def __init__(self, model: NextItemModel, config: ServingConfig) -> None:
        assert model.item_ids is not None
        if config.new_item_boost is not None:  # the other two need it
            raise CEMGError("new_item_boost: is for models that write codes; this one scores whole items, leave it out")
        self.model = model
        self.use(ItemCatalogue(model.item_ids))
        self._most = max(1, SCORES_AT_ONCE // len(model.item_ids))

    def use(self, catalogue: ItemCatalogue) -> None:
        if catalogue.item_ids != self.model.item_ids:
            raise ValueError("the catalogue and the model do not belong together: it is of other items")
        self.catalogue, self._removed = catalogue, self.model.item_indices(catalogue.removed)

    def refused(self, query: Query) -> Mapping[str, str]:
        why = "is for models that write item codes; this one scores every item and searches nothing, leave it out"
        return {name: why for name in OF_CODES if getattr(query, name) is not None}

    @staticmethod
    def group(query: Query) -> Hashable:
        return None

    def rank(
        self, queries: Sequence[Query], histories: list[list[str]], allowed: list[list[str] | None], denied: list[list[str]]
    ) -> list[list[tuple[str, float]]]:
        index = self.model.item_indices
        found: Any = self.model.rank_histories(
            [index(ids) for ids in histories],
            max(query.k for query in queries),
            [torch.cat([self._removed, index(ids)]) for ids in denied],
            [None if ids is None else index(ids) for ids in allowed],
            min(len(queries), self._most),
        )
        return found
