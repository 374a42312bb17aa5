"""What the service needs of a model: a catalogue of which there is a next one, and rankings for a batch of queries."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

C = TypeVar("C", bound="Catalogue")


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

    def named_items(self) -> Iterable[str]:
        """Every item id the query names, the history first."""
        for ids in (self.history, self.allowed_items or (), self.denied_items or ()):
            yield from ids


class Catalogue(Protocol):
    """The items that can be recommended. Nobody changes one: `add`, `remove` and `reread` give another, which the ranker may `use`."""

    @property
    def known(self) -> frozenset[str]:
        """The item ids."""

    @property
    def fingerprint(self) -> str:
        """The same for the same catalogue only."""

    @property
    def new_item_ids(self) -> Sequence[str]:
        """Items that came after the model was trained, the latest last."""

    def add(
        self: C, item_ids: Sequence[str], vectors: Mapping[str, Any], masks: Mapping[str, Any] | None, collaborative: str
    ) -> tuple[int, C]:
        """With further items; arguments as for `CEMGTokenizer.add_items`. Also how many of them are beside their nearest code.

        Raises:
            ValueError: these items cannot be added, or none can.
        """

    def remove(self: C, item_ids: Sequence[str]) -> C:
        """Without some of the items.

        Raises:
            ValueError: an id outside of the catalogue, or no item would be left.
        """

    def reread(self: C, folder: Path) -> C:
        """The catalogue that a folder holds now.

        Raises:
            CEMGError: there is none, or its items cannot be those of the model.
        """


class Ranker(Protocol[C]):
    """A model and the catalogue it ranks. `rank` and `use` belong to the model's thread."""

    @property
    def catalogue(self) -> C:
        """The one in use."""

    def use(self, catalogue: C) -> None:
        """Rank this one from now on.

        Raises:
            ValueError: it does not belong to the model.
        """

    def refused(self, query: Query) -> Mapping[str, str]:
        """Fields of a query that mean nothing to this model, and why; nothing is ignored in silence."""

    def group(self, query: Query) -> Hashable:
        """What queries have in common that `rank` takes together."""

    def rank(
        self, queries: Sequence[Query], histories: list[list[str]], allowed: list[list[str] | None], denied: list[list[str]]
    ) -> list[list[tuple[str, float]]]:
        """Items and scores for queries of one group, best first; lists may be longer than a query's k.

        Args:
            queries: for all but the items they name.
            histories, allowed, denied: item ids of the catalogue, one list per query. Allowed: None where all are.
        """
