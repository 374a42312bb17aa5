"""What stands behind the routes: a model that is loaded, answers, and stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from ..errors import CEMGError
from ..models.cemg import CEMGForConditionalGeneration
from ..models.next_item import NextItemModel
from .batching import Batcher, ClosedError, QueueFullError, TooLateError
from .catalogue import CatalogueKeeper
from .config import ServingConfig
from .metrics import ServingMetrics
from .problems import Problem
from .ranker import Query
from .recommender import Found, Recommender, UnknownItems

State = Literal["loading", "ready", "stopping", "failed"]


class RecommendService:
    """A recommender that answers many at once.

    Args:
        load: gives the model; called once, in the model's thread, when the service starts.
        config: settings.
        folder: where `reload` reads the catalogue from by default.
        load_titles: gives item id → title, for the answers.

    Attributes:
        state: "loading", "ready", "stopping", or "failed" when there was no model to load.
        failure: why it failed, whatever it was; for whoever runs the service to raise.
        on_failure: called then.
        loaded: set when it is clear whether there is a model.
    """

    def __init__(
        self,
        load: Callable[[], CEMGForConditionalGeneration | NextItemModel],
        config: ServingConfig,
        *,
        folder: Path | None = None,
        load_titles: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self.config = config
        self.metrics = ServingMetrics()
        self.titles: Mapping[str, str] = {}
        self.state: State = "loading"
        self.failure: Exception | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self.loaded = asyncio.Event()
        self._load = load
        self._load_titles = load_titles
        self._folder = folder
        self.batcher: Batcher[Query, Found | UnknownItems] = Batcher(
            lambda queries: self.recommender.answer(queries),
            lambda query: self.recommender.ranker.group(query),
            max_batch_size=config.max_batch_size,
            max_wait=config.max_wait_ms / 1000,
            queue_size=config.queue_size,
            metrics=self.metrics,
        )

    async def start(self) -> None:
        """Load the model; ready afterwards, unless the service was told to stop meanwhile."""
        try:
            self.recommender = await self.batcher.between_batches(self._load_all)
        except Exception as error:
            self.state, self.failure = "failed", error
            self.loaded.set()
            self.on_failure()
            return
        self.keeper = CatalogueKeeper(self.recommender, self.batcher, self.metrics, self._folder)
        self.metrics.watch(lambda: self.batcher.length, lambda: len(self.recommender.catalogue.known))
        self.batcher.start()
        if self.state == "loading":
            self.state = "ready"
        self.loaded.set()

    def _load_all(self) -> Recommender:
        self.titles = self._load_titles()
        recommender = Recommender(self._load(), self.config)
        try:
            recommender.answer([Query()])  # the first pass takes longer than those after it
        except ValueError as error:
            raise CEMGError(f"the model refuses the service's settings: {error}") from error
        return recommender

    def stop(self) -> None:
        """Answer 503 from now on, but finish what is queued."""
        self.state = "stopping"
        self.batcher.close()

    async def finish(self) -> None:
        """Stop, and wait for the last answer."""
        self.stop()
        await self.batcher.finish()

    def check_ready(self) -> None:
        """Raises Problem: 503, unless the service is ready."""
        if self.state == "stopping":
            # The connection closes with the answer, so that a client that keeps it open does not send into a closing port.
            raise Problem(503, "the service is stopping; ask another one", headers={"Retry-After": "1", "Connection": "close"})
        if self.state != "ready":
            raise Problem(503, "the model is being loaded; try again", headers={"Retry-After": "1"})

    async def recommend(self, queries: Sequence[Query]) -> list[Found]:
        """Answers to queries that came in one request: all of them, or a problem.

        Raises:
            Problem: 422 unknown items or settings of another kind of model, 429 queue full, 503 not ready, 504 too late.
        """
        self.check_ready()
        self._check_settings(queries)
        try:
            answers = await self.batcher.submit(queries, self.config.deadline_seconds)
        except QueueFullError as error:
            raise Problem(429, str(error), headers={"Retry-After": str(error.retry_after)}) from error
        except TooLateError as error:
            raise Problem(504, f"no answer within {self.config.deadline_seconds:g} s; send less, or to more services") from error
        except ClosedError:
            self.check_ready()
            raise
        found = [answer for answer in answers if isinstance(answer, Found)]
        if len(found) < len(answers):
            raise _unknown_items(answers)
        return found

    def _check_settings(self, queries: Sequence[Query]) -> None:
        """Raises Problem: 422, where a query has settings that mean nothing to the model."""
        refused = [(row, name, why) for row, query in enumerate(queries) for name, why in self.recommender.ranker.refused(query).items()]
        if refused:
            errors = [{"loc": [*_place(row, len(queries)), name], "msg": why} for row, name, why in refused]
            more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
            raise Problem(422, f"{refused[0][1]}: {refused[0][2]}{more}", errors=errors)


def _place(row: int, queries: int) -> list[str | int]:
    """Where a query stands in the body."""
    return ["body", row] if queries > 1 else ["body"]


def _unknown_items(answers: Sequence[Found | UnknownItems]) -> Problem:
    wrong = {row: answer.unknown for row, answer in enumerate(answers) if isinstance(answer, UnknownItems)}
    unknown = list(dict.fromkeys(item_id for ids in wrong.values() for item_id in ids))
    more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
    errors = [{"loc": _place(row, len(answers)), "msg": "unknown items", "unknown": wrong[row]} for row in wrong]
    detail = f"item id {unknown[0]!r}{more} is not in the catalogue; correct it, or send on_unknown='skip' to leave unknown items out"
    return Problem(422, detail, unknown=unknown, errors=errors)
