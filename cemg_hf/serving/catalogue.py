"""Items that come and go while the service answers: the next catalogue is made beside the one in use and takes its place between batches.

Changes live in this process. What shall outlast it belongs into a model folder (`cemg add-items`), from which `reload` reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import CEMGError
from .batching import Batcher
from .metrics import ServingMetrics
from .ranker import Catalogue
from .recommender import Recommender


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
    ) -> tuple[int, Catalogue]:
        """As `Catalogue.add`.

        Raises:
            ValueError: see there. The catalogue stays as it was, here and below.
        """
        moved: list[int] = []

        def change(now: Catalogue) -> Catalogue:
            beside, after = now.add(item_ids, vectors, masks, collaborative)
            moved.append(beside)
            return after

        catalogue = await self._replace("add", change)
        return moved[0], catalogue

    async def remove(self, item_ids: Sequence[str]) -> Catalogue:
        """The catalogue without some items.

        Raises:
            ValueError: see there.
        """
        return await self._replace("remove", lambda now: now.remove(item_ids))

    async def reload(self, folder: Path | None = None) -> Catalogue:
        """Read the catalogue again, from the model's folder or another one; changes made here since are gone.

        Raises:
            ValueError: no folder to read, no catalogue in it, or one of another model.
        """
        source = folder or self.folder
        if source is None:
            raise CEMGError("folder: the model came from the Hub; name the folder to read the catalogue from")
        return await self._replace("reload", lambda now: now.reread(source))

    async def _replace(self, kind: str, change: Callable[[Catalogue], Catalogue]) -> Catalogue:
        async with self._one_at_a_time:
            with self.metrics.change(kind):
                catalogue = await asyncio.to_thread(change, self.recommender.catalogue)
                await self.batcher.between_batches(lambda: self.recommender.ranker.use(catalogue))
            return catalogue
