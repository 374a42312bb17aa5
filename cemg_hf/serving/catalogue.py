"""Items that come and go while the service answers: the next catalogue is made beside the one in use and takes its place between batches.

Changes live in this process. What shall outlast it belongs into a model folder (`cemg add-items`), from which `reload` reads.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import CEMGError
from ..models.cemg import AddedItems, CEMGTokenizer
from ..training.loading import open_tokenizer
from .batching import Batcher
from .metrics import ServingMetrics
from .recommender import Catalogue, Recommender

READING_ATTEMPTS = 3


class CatalogueKeeper:
    """Changes the catalogue of a recommender, one change after the other, without stopping its answers.

    Args:
        recommender: whose catalogue it is.
        batcher: the model's thread, in which the new catalogue takes the place of the old one.
        metrics: where changes are counted.
        folder: what `reload` reads by default; None for a model that came from the Hub.
    """

    def __init__(self, recommender: Recommender, batcher: Batcher[Any, Any], metrics: ServingMetrics, folder: Path | None) -> None:
        self.recommender = recommender
        self.batcher = batcher
        self.metrics = metrics
        self.folder = folder
        self._one_at_a_time = asyncio.Lock()

    async def add(
        self, item_ids: Sequence[str], vectors: Mapping[str, Any], masks: Mapping[str, Any] | None, collaborative: str
    ) -> tuple[AddedItems, Catalogue]:
        """As `CEMGTokenizer.add_items`; also the catalogue with them.

        Raises:
            ValueError: see there. The catalogue stays as it was, here and below.
        """
        added: list[AddedItems] = []

        def change() -> CEMGTokenizer:
            tokenizer = self._copy()
            added.append(tokenizer.add_items(item_ids, vectors, masks, collaborative=collaborative))
            return tokenizer

        catalogue = await self._replace("add", change)
        return added[0], catalogue

    async def remove(self, item_ids: Sequence[str]) -> Catalogue:
        """As `CEMGTokenizer.remove_items`.

        Raises:
            ValueError: see there.
        """

        def change() -> CEMGTokenizer:
            tokenizer = self._copy()
            tokenizer.remove_items(item_ids)
            return tokenizer

        return await self._replace("remove", change)

    async def reload(self, folder: Path | None = None) -> Catalogue:
        """Read the catalogue again, from the model's folder or another one; changes made here since are gone.

        Raises:
            ValueError: no folder to read, no tokenizer in it, or one of another model.
        """
        source = folder or self.folder
        if source is None:
            raise CEMGError("folder: the model came from the Hub; name the folder to read the catalogue from")
        return await self._replace("reload", lambda: read_unchanged(source))

    def _copy(self) -> CEMGTokenizer:
        # Shallow, because a tokenizer replaces its catalogue as a whole: what changes in the copy leaves the one in use alone.
        return copy.copy(self.recommender.catalogue.tokenizer)

    async def _replace(self, kind: str, make: Callable[[], CEMGTokenizer]) -> Catalogue:
        async with self._one_at_a_time:
            with self.metrics.change(kind):
                catalogue = await asyncio.to_thread(lambda: Catalogue(make()))
                await self.batcher.between_batches(lambda: self.recommender.use(catalogue))
            return catalogue


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
