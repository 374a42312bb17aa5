"""A batch of requests, answered by the model on one state of the catalogue."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..models.cemg import CEMGForConditionalGeneration, CEMGTokenizer, Recommendation
from ..models.cemg.recommendation_cemg import DEFAULT_NUM_BEAMS
from .config import ServingConfig


@dataclass(frozen=True)
class Query:
    """What one history is answered by; the fields are arguments of `CEMGForConditionalGeneration.recommend`."""

    history: Sequence[str] = ()
    k: int = 10
    exclude_history: bool = False
    num_beams: int | None = None
    on_unknown: str = "error"
    allowed_items: Sequence[str] | None = None
    denied_items: Sequence[str] | None = None
    max_per_first_code: int | None = None
    min_first_codes: int | None = None

    @property
    def diversity(self) -> dict[str, int | None]:
        return {"max_per_first_code": self.max_per_first_code, "min_first_codes": self.min_first_codes}

    @property
    def beams(self) -> int:
        """Beams of the search; the default is that of `recommend`."""
        return max(self.k, DEFAULT_NUM_BEAMS) if self.num_beams is None else self.num_beams

    def named_items(self) -> Iterable[str]:
        """Every item id the query names, the history first."""
        for ids in (self.history, self.allowed_items or (), self.denied_items or ()):
            yield from ids


@dataclass(frozen=True)
class Found:
    """Answer to a query: the ranking, the ids that were left out because the catalogue lacks them, and which catalogue that was."""

    recommendations: list[Recommendation]
    unknown: list[str]
    fingerprint: str


@dataclass(frozen=True)
class UnknownItems:
    """A query that cannot be answered, because it names items which the catalogue lacks."""

    unknown: list[str]
    fingerprint: str


class Catalogue:
    """A tokenizer that nobody changes any more, and its ids as a set."""

    def __init__(self, tokenizer: CEMGTokenizer) -> None:
        self.tokenizer = tokenizer
        self.known = frozenset(tokenizer.item_ids)
        self.fingerprint = tokenizer.catalogue_fingerprint


class Recommender:
    """The model and the catalogue it writes from. `answer` and `use` belong to the model's thread.

    Args:
        model: with its tokenizer, on its device.
        config: for the settings of new items.
    """

    def __init__(self, model: CEMGForConditionalGeneration, config: ServingConfig) -> None:
        assert model.tokenizer is not None
        self.model = model
        self.catalogue = Catalogue(model.tokenizer)
        self._settings: Mapping[str, Any] = {
            "new_item_boost": config.new_item_boost,
            "new_item_dense": config.new_item_dense,
            "new_item_likelihood": config.new_item_likelihood,
        }

    def use(self, catalogue: Catalogue) -> None:
        """Answer from another catalogue from now on.

        Raises:
            ValueError: it does not belong to the model.
        """
        self.model.set_tokenizer(catalogue.tokenizer)
        self.catalogue = catalogue

    @staticmethod
    def group(query: Query) -> Hashable:
        """What the queries of one batch have in common. Of the same beams a shorter list is a part of the longer one, so k may differ; a
        history is excluded by denying its items, so that may differ too. Lists of allowed items are long, and every query of a batch pays
        for the longest. How a list is spread over branches depends on its length.
        """
        spread = tuple(query.diversity.values())
        return query.beams, query.allowed_items is not None, *spread, None if spread == (None, None) else query.k

    def answer(self, queries: Sequence[Query]) -> list[Found | UnknownItems]:
        """Answers to queries of one group, in order. A query that names unknown items fails alone."""
        catalogue = self.catalogue
        missing = [list(dict.fromkeys(i for i in query.named_items() if i not in catalogue.known)) for query in queries]
        rows = [row for row, query in enumerate(queries) if not missing[row] or query.on_unknown == "skip"]
        answers: list[Found | UnknownItems] = [UnknownItems(unknown, catalogue.fingerprint) for unknown in missing]
        for row, found in zip(rows, self._recommend([queries[row] for row in rows]), strict=True):
            answers[row] = Found(found, missing[row], catalogue.fingerprint)
        return answers

    def _recommend(self, queries: Sequence[Query]) -> list[list[Recommendation]]:
        """Rankings of queries of one group; ids that the catalogue lacks are left out."""
        if not queries:
            return []
        histories = [self._known(query.history) for query in queries]
        filters: dict[str, Any] = dict(queries[0].diversity)
        if queries[0].allowed_items is not None:
            filters["allowed_items"] = [self._known(query.allowed_items or ()) for query in queries]
        denied = [
            self._known(query.denied_items or ()) + (history if query.exclude_history else [])
            for query, history in zip(queries, histories, strict=True)
        ]
        if any(denied):
            filters["denied_items"] = [ids or None for ids in denied]
        found = self.model.recommend(
            histories, k=max(query.k for query in queries), num_beams=queries[0].beams, batch_size=len(queries), **self._settings, **filters
        )
        return [ranking[: query.k] for query, ranking in zip(queries, found, strict=True)]  # type: ignore[misc]

    def _known(self, ids: Sequence[str]) -> list[str]:
        return [item_id for item_id in ids if item_id in self.catalogue.known]
