"""Services around small models, in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fastapi.testclient import TestClient
from generator_samples import generator, item_tokenizer, rqvae_parts

from cemg_hf import (
    CEMGForConditionalGeneration,
    GRU4RecConfig,
    GRU4RecForNextItem,
    Recommendation,
    SASRecConfig,
    SASRecForNextItem,
)
from cemg_hf.models.next_item import NextItemModel
from cemg_hf.serving.app import create_app
from cemg_hf.serving.config import ServingConfig
from cemg_hf.serving.ranker import Query
from cemg_hf.serving.service import RecommendService

PATIENCE = 60.0
TOKEN = "secret"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}


def small_model(num_items: int = 60) -> CEMGForConditionalGeneration:
    """A generator whose tokenizer takes new items."""
    return generator(item_tokenizer(num_items, **rqvae_parts()))


def small_network(kind: str = "sasrec", num_items: int = 60) -> NextItemModel:
    """A network over the whole items of `small_model`."""
    torch.manual_seed(0)
    size = {"num_items": num_items, "hidden_size": 8, "max_history": 5}
    network: NextItemModel = SASRecForNextItem(SASRecConfig(**size)) if kind == "sasrec" else GRU4RecForNextItem(GRU4RecConfig(**size))
    network.item_ids = [f"item{row}" for row in range(num_items)]
    return network.eval()


class HeldModel:
    """A model that answers only while `go` is set; `busy` says that it was asked."""

    def __init__(self, model: CEMGForConditionalGeneration | NextItemModel) -> None:
        self.go, self.busy = threading.Event(), threading.Event()
        self.go.set()
        self.model = model
        entrance = "rank_histories" if isinstance(model, NextItemModel) else "recommend"  # what the service calls
        self._rank = getattr(model, entrance)
        setattr(model, entrance, self._held)

    def hold(self) -> None:
        self.busy.clear()
        self.go.clear()

    def _held(self, *arguments: Any, **options: Any) -> Any:
        self.busy.set()
        assert self.go.wait(PATIENCE)
        return self._rank(*arguments, **options)


def one_by_one(model: CEMGForConditionalGeneration | NextItemModel, query: Query) -> list[Recommendation]:
    """What the model itself recommends."""
    of_codes = {} if isinstance(model, NextItemModel) else {"num_beams": query.num_beams, **query.diversity}
    return model.recommend(  # type: ignore[return-value]
        list(query.history),
        k=query.k,
        exclude_history=query.exclude_history,
        on_unknown=query.on_unknown,
        allowed_items=query.allowed_items,
        denied_items=query.denied_items,
        **of_codes,
    )


def same_ranking(found: Sequence[tuple[str, float]], expected: Sequence[tuple[str, float]], tolerance: float = 1e-4) -> bool:
    """Equal scores place by place, and equal items except where two scores are as good as equal."""
    if len(found) != len(expected) or any(abs(a - b) > tolerance for (_, a), (_, b) in zip(found, expected, strict=True)):
        return False
    place = {item_id: rank for rank, (item_id, _) in enumerate(expected)}
    last = expected[-1][1] if expected else 0.0
    return all(abs(score - (expected[place[i]][1] if i in place else last)) <= tolerance for i, score in found)


@contextmanager
def served(
    load: Callable[[], CEMGForConditionalGeneration | NextItemModel],
    *,
    folder: Path | None = None,
    admin: bool = True,
    ready: bool = True,
    **settings: Any,
) -> Iterator[tuple[TestClient, RecommendService]]:
    """A running service and a client for it."""
    service = RecommendService(load, ServingConfig(**settings), folder=folder, load_titles=lambda: {"item1": "One"})
    with TestClient(create_app(service, TOKEN if admin else None), raise_server_exceptions=False) as client:
        if ready:
            wait_for(lambda: client.get("/health/ready").status_code == 200)
        yield client, service


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
