"""A batch of requests, answered by the model on one state of the catalogue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..models.cemg import CEMGForConditionalGeneration
from ..models.next_item import NextItemModel
from .code_ranker import CodeRanker
from .config import ServingConfig
from .item_ranker import ItemRanker
from .ranker import Catalogue, Query, Ranker


@dataclass(frozen=True)
class Found:
    """Answer to a query: items and scores, the ids that were left out because the catalogue lacks them, and which catalogue that was."""

    recommendations: list[tuple[str, float]]
    unknown: list[str]
    fingerprint: str


@dataclass(frozen=True)
class UnknownItems:
    """A query that cannot be answered, because it names items which the catalogue lacks."""

    unknown: list[str]
    fingerprint: str


class Recommender:
    """Answers queries by a model of either kind, through its ranker. `answer` belongs to the model's thread.

    Args:
        model: with its catalogue, on its device.
        config: for the settings of new items.

    Raises:
        CEMGError: settings that mean nothing to the model.
    """

    def __init__(self, model: CEMGForConditionalGeneration | NextItemModel, config: ServingConfig) -> None:
        self.ranker: Ranker[Any] = ItemRanker(model, config) if isinstance(model, NextItemModel) else CodeRanker(model, config)

    @property
    def catalogue(self) -> Catalogue:
        """The one in use."""
        catalogue: Catalogue = self.ranker.catalogue
        return catalogue

    def answer(self, queries: Sequence[Query]) -> list[Found | UnknownItems]:
        """Answers to queries of one group, in order. A query that names unknown items fails alone."""
        catalogue = self.catalogue
        missing = [list(dict.fromkeys(i for i in query.named_items() if i not in catalogue.known)) for query in queries]
        rows = [row for row, query in enumerate(queries) if not missing[row] or query.on_unknown == "skip"]
        answers: list[Found | UnknownItems] = [UnknownItems(unknown, catalogue.fingerprint) for unknown in missing]
        for row, found in zip(rows, self._recommend([queries[row] for row in rows]), strict=True):
            answers[row] = Found(found, missing[row], catalogue.fingerprint)
        return answers

    def _recommend(self, queries: Sequence[Query]) -> list[list[tuple[str, float]]]:
        """Rankings of queries of one group; ids that the catalogue lacks are left out."""
        if not queries:
            return []
        histories = [self._known(query.history) for query in queries]
        allowed = [None if query.allowed_items is None else self._known(query.allowed_items) for query in queries]
        denied = [
            self._known(query.denied_items or ()) + (history if query.exclude_history else [])
            for query, history in zip(queries, histories, strict=True)
        ]
        found = self.ranker.rank(queries, histories, allowed, denied)
        return [ranking[: query.k] for query, ranking in zip(queries, found, strict=True)]

    def _known(self, ids: Iterable[str]) -> list[str]:
        return [item_id for item_id in ids if item_id in self.catalogue.known]
