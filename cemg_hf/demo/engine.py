"""What a visitor does, and what the models answer: histories, rankings with their explanations, and items that only she can see."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl

from ..data.images import UNREADABLE
from ..errors import CEMGError
from ..models.cemg import Recommendation
from .explain import Branch, branches, explain
from .models import Alpha, DemoModel
from .pictures import data_uri, thumbnail
from .shop import Item, Shop, Shopper

logger = logging.getLogger(__name__)

CARDS = 12  # fills rows of two, three and four
NEIGHBOURS = 12
MOST_ADDED = 20
MOST_HISTORY = 200
DEFAULT_BEAMS = 20
DEFAULT_BOOST = 0.0
NEW_ITEM_DENSE, NEW_ITEM_LIKELIHOOD = 10.0, 0.3  # as in docs/own-data.md; `cemg cold-start` finds others


@dataclass(frozen=True)
class Controls:
    """The switches of the page."""

    exclude_history: bool = True
    categories: tuple[str, ...] = field(default=(), metadata={"help": "Recommend items of these categories only; empty: of all."})
    num_beams: int = DEFAULT_BEAMS
    dense_weight: float = field(default=0.0, metadata={"help": "Weight of the dense tower, of models that have one."})
    new_item_boost: float = field(default=DEFAULT_BOOST, metadata={"help": "Added to the scores of new items, where codes alone rank."})


@dataclass(eq=False)
class Session:
    """One visitor: her history, the items she added, and the models as she sees them."""

    models: list[DemoModel]
    history: list[str] = field(default_factory=list)
    shopper: Shopper | None = None
    added: dict[str, Item] = field(default_factory=dict)
    opened: tuple[int, str] | None = None
    """Model and item id of the card that is open."""
    turn: int = 0
    """How often the page was drawn."""


@dataclass(frozen=True)
class Glance:
    """An item of the history, and the share of the decoder's attention that it got."""

    item: Item
    share: float


@dataclass(frozen=True)
class Code:
    """One code of an item and log p of it after the codes before."""

    text: str
    log_prob: float


@dataclass(frozen=True)
class Card:
    """A recommended item and everything that is said about it.

    strength is exp(score − best score): how probable the item is next to the first one. alpha is None where it is not known.
    start_share is the attention that no item of the history got. also is its place in the other model's list.
    """

    item: Item
    place: int
    score: float
    strength: float
    codes: list[Code]
    alpha: Alpha | None
    glances: list[Glance]
    start_share: float
    is_new: bool
    bought_next: bool
    also: int | None = None


@dataclass(frozen=True)
class Waiting:
    """An item of the visitor's that is not among the cards: how much its score lacks, or None where a filter hides it."""

    item: Item
    lacking: float | None


@dataclass(frozen=True)
class Ranking:
    """What one model recommends. unknown are items of the history that it does not know, unread those before its window."""

    model: str
    cards: list[Card]
    waiting: list[Waiting]
    unknown: list[Item]
    unread: int
    hybrid: bool
    seconds: float


@dataclass(frozen=True)
class Neighbourhood:
    """Of an opened card: the branches of the code tree above it, with the items on them."""

    branches: list[tuple[Branch, list[Item]]]


class Engine:
    """Answers sessions. It holds nothing of any session, so that threads may share it.

    Args:
        models: one, or two to compare.
        shop: the items of all of them.
    """

    def __init__(self, models: Sequence[DemoModel], shop: Shop) -> None:
        self.models = list(models)
        self.shop = shop

    @property
    def dense_weight(self) -> float | None:
        """Where the switch of the dense tower stands at first; None: no model has one."""
        return next((model.dense_weight for model in self.models if model.dense_weight is not None), None)

    @property
    def takes_items(self) -> bool:
        """Whether new items can be coded."""
        return all(model.features is not None for model in self.models)

    # ---- what a visitor does --------------------------------------------------------------------------------------------------

    def start(self) -> Session:
        """A new visitor; she sees the first shopper, if there are any."""
        session = Session(list(self.models))
        if self.shop.num_shoppers:
            self.become(session, self.shop.shopper_at(0).user_id)
        return session

    def become(self, session: Session, user_id: str) -> None:
        """Take the history of a real user.

        Raises:
            CEMGError: no such user.
        """
        session.shopper = self.shop.shopper(user_id)
        session.history = list(session.shopper.history)
        session.opened = None

    def append(self, session: Session, item_id: str) -> None:
        """Make an item the latest of the history, to which it may belong already. Ids of no item are passed over: pages grow old."""
        if item_id not in self.shop and item_id not in session.added:
            return
        session.history = [*(known for known in session.history if known != item_id), item_id][-MOST_HISTORY:]
        session.opened = None

    def remove(self, session: Session, place: int) -> None:
        """Take the item at a place out of the history."""
        if 0 <= place < len(session.history):
            del session.history[place]
        session.opened = None

    def clear(self, session: Session) -> None:
        """Begin with an empty history."""
        session.history, session.shopper, session.opened = [], None, None

    def toggle(self, session: Session, model: int, item_id: str) -> None:
        """Open a card, or close it if it is the open one."""
        session.opened = None if session.opened == (model, item_id) else (model, item_id)

    def add_item(self, session: Session, title: str, description: str = "", picture: bytes | None = None) -> Item:
        """Give every model of the session one more item, made from a text, a picture or both. No other session sees it.

        Raises:
            CEMGError: nothing to make it from, a picture that cannot be read, too many items, or see `DemoModel.with_item`.
        """
        title, description = title.strip(), description.strip()
        if not title and not description and picture is None:
            raise CEMGError("give the new item a title, a picture, or both")
        if len(session.added) >= MOST_ADDED:
            raise CEMGError(f"you have added {MOST_ADDED} items, more than which the demo does not keep; reload the page to begin anew")
        small = None
        if picture is not None:
            try:
                small = data_uri(thumbnail(picture))
            except UNREADABLE as error:
                raise CEMGError("the picture cannot be read; drop a JPEG, PNG or WebP file") from error
        free = (f"new-{number}" for number in itertools.count(1))
        item_id = next(name for name in free if not any(name in model.known for model in session.models))
        content = pl.DataFrame(
            {
                "item_id": [item_id],
                "title": [title or None],
                "description": [description or None],
                "image": [{"bytes": picture, "path": None}],
            },
            schema={
                "item_id": pl.String,
                "title": pl.String,
                "description": pl.String,
                "image": pl.Struct({"bytes": pl.Binary, "path": pl.String}),
            },
        )
        session.models = [model.with_item(item_id, content) for model in session.models]  # all of them or, with an error, none
        item = Item(item_id, title or None, None, (), description or None, small)
        session.added[item_id] = item
        session.opened = None
        return item

    def item(self, session: Session, item_id: str) -> Item:
        """An item of the shop, or one that the visitor added."""
        return session.added.get(item_id) or self.shop.item(item_id)

    # ---- what the models answer -----------------------------------------------------------------------------------------------

    def rank(self, session: Session, controls: Controls) -> list[Ranking]:
        """One ranking per model."""
        rankings = [self._rank(session, model, controls) for model in session.models]
        if len(rankings) != 2:
            return rankings
        places = [{card.item.item_id: card.place for card in ranking.cards} for ranking in rankings]
        return [
            replace(ranking, cards=[replace(card, also=other.get(card.item.item_id)) for card in ranking.cards])
            for ranking, other in zip(rankings, reversed(places), strict=True)
        ]

    def _rank(self, session: Session, model: DemoModel, controls: Controls) -> Ranking:
        started = time.perf_counter()
        tokenizer, longest = model.tokenizer, model.model.config.max_history
        history = [item_id for item_id in session.history if item_id in model.known]
        weight = controls.dense_weight if model.dense_weight is not None else 0.0
        options: dict[str, Any] = {"exclude_history": controls.exclude_history, "dense_weight": weight}
        if session.added and not weight:  # a dense tower finds new items by their content; codes alone hardly ever do
            options["new_item_boost"] = controls.new_item_boost
            if tokenizer.item_vectors is not None:
                options |= {"new_item_dense": NEW_ITEM_DENSE, "new_item_likelihood": NEW_ITEM_LIKELIHOOD}
        allowed = None
        if controls.categories:
            allowed = [item_id for item_id in self.shop.in_categories(controls.categories) if item_id in model.known]
        found = self._ask(model, history, CARDS, max(controls.num_beams, CARDS), allowed, options)
        explanation = explain(model.model, history, [item_id for item_id, _ in found])
        read = [self.item(session, item_id) for item_id in history[-longest:]]
        cards = []
        for place, (item_id, score) in enumerate(found):
            attention, log_probs = explanation.attention[place].tolist(), explanation.log_probs[place].tolist()
            row = int(tokenizer.item_indices([item_id])[0])
            texts = tokenizer.convert_ids_to_tokens(tokenizer.item_tokens[row].tolist())
            cards.append(
                Card(
                    item=self.item(session, item_id),
                    place=place + 1,
                    score=score,
                    strength=math.exp(score - found[0].score),
                    codes=[Code(text, log_prob) for text, log_prob in zip(texts, log_probs, strict=True)],
                    alpha=model.alpha.get(item_id),
                    glances=sorted((Glance(*pair) for pair in zip(read, attention[1:], strict=True)), key=lambda seen: -seen.share),
                    start_share=attention[0],
                    is_new=item_id in session.added,
                    bought_next=session.shopper is not None and session.shopper.bought_next == item_id,
                )
            )
        return Ranking(
            model=model.name,
            cards=cards,
            waiting=self._waiting(session, model, history, cards, controls, options),
            unknown=[self.item(session, item_id) for item_id in session.history if item_id not in model.known],
            unread=max(len(history) - longest, 0),
            hybrid=bool(weight),
            seconds=time.perf_counter() - started,
        )

    @staticmethod
    def _ask(
        model: DemoModel, history: list[str], k: int, beams: int, allowed: list[str] | None, options: dict[str, Any]
    ) -> list[Recommendation]:
        if allowed is not None and not allowed:
            return []
        return model.model.recommend(history, k=k, num_beams=beams, allowed_items=allowed, **options)  # type: ignore[return-value]

    def _waiting(
        self, session: Session, model: DemoModel, history: list[str], cards: list[Card], controls: Controls, options: dict[str, Any]
    ) -> list[Waiting]:
        """The visitor's items that are not among the cards, and what they lack."""
        shown = {card.item.item_id for card in cards}
        absent = [item_id for item_id in session.added if item_id not in shown]
        if controls.exclude_history:
            absent = [item_id for item_id in absent if item_id not in history]
        if not absent:
            return []
        if controls.categories or not cards:
            return [Waiting(session.added[item_id], None) for item_id in absent]
        scores = dict(self._ask(model, history, len(absent), max(DEFAULT_BEAMS, len(absent)), absent, options))
        last = cards[-1].score
        return [Waiting(session.added[item_id], last - scores[item_id]) for item_id in absent if item_id in scores]

    def neighbourhood(self, session: Session) -> Neighbourhood | None:
        """Of the opened card; None where no card is open or its item is gone."""
        if session.opened is None:
            return None
        number, item_id = session.opened
        if not 0 <= number < len(session.models):
            return None
        model = session.models[number]
        if item_id not in model.known:
            return None
        found = branches(model.tokenizer, item_id, NEIGHBOURS)
        return Neighbourhood([(branch, [self.item(session, other) for other in branch.items]) for branch in found])
