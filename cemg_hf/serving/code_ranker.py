"""Models that write item codes, for the service."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import CEMGError
from ..models.cemg import CEMGForConditionalGeneration, CEMGTokenizer
from ..models.cemg.recommendation_cemg import DEFAULT_NUM_BEAMS
from ..training.loading import open_tokenizer
from .config import ServingConfig
from .ranker import Query

READING_ATTEMPTS = 3


class CodeCatalogue:
    """A tokenizer that nobody changes any more, and its ids as a set."""

    def __init__(self, tokenizer: CEMGTokenizer) -> None:
        self.tokenizer = tokenizer
        self.known = frozenset(tokenizer.item_ids)
        self.fingerprint = tokenizer.catalogue_fingerprint
        self.new_item_ids = [tokenizer.item_ids[row] for row in tokenizer.new_items.nonzero().flatten().tolist()]

    def add(
        self, item_ids: Sequence[str], vectors: Mapping[str, Any], masks: Mapping[str, Any] | None, collaborative: str
    ) -> tuple[int, CodeCatalogue]:
        tokenizer = self._copy()
        added = tokenizer.add_items(item_ids, vectors, masks, collaborative=collaborative)
        return added.moved, CodeCatalogue(tokenizer)

    def remove(self, item_ids: Sequence[str]) -> CodeCatalogue:
        tokenizer = self._copy()
        tokenizer.remove_items(item_ids)
        return CodeCatalogue(tokenizer)

    def reread(self, folder: Path) -> CodeCatalogue:
        return CodeCatalogue(read_unchanged(folder))

    def _copy(self) -> CEMGTokenizer:
        # Shallow, because a tokenizer replaces its catalogue as a whole: what changes in the copy leaves the one in use alone.
        return copy.copy(self.tokenizer)


class CodeRanker:
    """The `Ranker` of a generator.

    Args:
        model: with its tokenizer, on its device.
        config: for the settings of new items.
    """

    def __init__(self, model: CEMGForConditionalGeneration, config: ServingConfig) -> None:
        assert model.tokenizer is not None
        self.model = model
        self.catalogue = CodeCatalogue(model.tokenizer)
        self._settings: Mapping[str, Any] = {
            "new_item_boost": config.new_item_boost,
            "new_item_dense": config.new_item_dense,
            "new_item_likelihood": config.new_item_likelihood,
        }

    def use(self, catalogue: CodeCatalogue) -> None:
        self.model.set_tokenizer(catalogue.tokenizer)
        self.catalogue = catalogue

    def refused(self, query: Query) -> Mapping[str, str]:
        if self._settings["new_item_boost"] is None:
            return {}
        why = "does not go with the new_item_boost of this service, whose lists are merged afterwards; leave it out"
        return {name: why for name, value in query.diversity.items() if value is not None}

    @staticmethod
    def group(query: Query) -> Hashable:
        """Of the same beams a shorter list is a part of the longer one, so k may differ; a history is excluded by denying its items, so
        that may differ too. Lists of allowed items are long, and every query of a batch pays for the longest. How a list is spread over
        branches depends on its length.
        """
        spread = tuple(query.diversity.values())
        return _beams(query), query.allowed_items is not None, *spread, None if spread == (None, None) else query.k

    def rank(
        self, queries: Sequence[Query], histories: list[list[str]], allowed: list[list[str] | None], denied: list[list[str]]
    ) -> list[list[tuple[str, float]]]:
        filters: dict[str, Any] = dict(queries[0].diversity)
        if any(ids is not None for ids in allowed):
            filters["allowed_items"] = allowed
        if any(denied):
            filters["denied_items"] = [ids or None for ids in denied]
        longest, beams = max(query.k for query in queries), _beams(queries[0])
        found: Any = self.model.recommend(histories, longest, num_beams=beams, batch_size=len(queries), **self._settings, **filters)
        return found


def _beams(query: Query) -> int:
    """Beams of the search; the default is that of `recommend`."""
    return max(query.k, DEFAULT_NUM_BEAMS) if query.num_beams is None else query.num_beams


def read_unchanged(folder: Path) -> CEMGTokenizer:
    """The tokenizer of a folder, whose files did not change while they were read: a catalogue of old ids and new codes would recommend
    wrong items without a word.

    Raises:
        CEMGError: no tokenizer there, or files that keep changing.
    """
    for _ in range(READING_ATTEMPTS):
        before = _state(folder)
        tokenizer = open_tokenizer(folder)
        if _state(folder) == before:
            return tokenizer
    raise CEMGError(f"{folder}: the tokenizer's files change while they are read; reload when whoever writes them has finished")


def _state(folder: Path) -> list[tuple[int, int, int]]:
    paths = [folder / name for name in CEMGTokenizer.vocab_files_names.values()]
    found = [path.stat() for path in paths if path.is_file()]
    return [(state.st_ino, state.st_size, state.st_mtime_ns) for state in found]
