"""How the shoppers of the sample choose: a multinomial logit over the items they do not own yet.

Utility of item i for user u at step t (all taste terms independent of one another):

    U = palette_u[i] + pattern_u[i]      what the picture shows
      + theme_u[i] + making_u[i]         what the text tells
      + community_u[i]                   what only other people's purchases tell
      + complement(kind of the last item, kind of i) + bias_i

`bias_i` is calibrated so that expected sales follow a long-tailed popularity curve whatever the tastes are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.stats import norm

from .catalogue import Attributes
from .drawing import PALETTES, PATTERNS
from .phrases import KINDS, MAKINGS, THEMES

DAY = 86_400
OPENING = 1_672_531_200  # 2023-01-01 00:00 UTC


@dataclass(frozen=True)
class Behaviour:
    """Size of the shop and strength of each influence (in logits)."""

    items: int = field(default=600, metadata={"help": "Number of items."})
    users: int = field(default=1500, metadata={"help": "Number of users."})
    shortest: int = field(default=8, metadata={"help": "Fewest interactions of a user."})
    longest: int = field(default=12, metadata={"help": "Most interactions of a user."})
    communities: int = field(default=8, metadata={"help": "Number of hidden circles of taste."})
    palette: float = field(default=4.1, metadata={"help": "Pull of the favourite palette."})
    pattern: float = field(default=2.5, metadata={"help": "Pull of the favourite pattern."})
    theme: float = field(default=4.1, metadata={"help": "Pull of the favourite theme."})
    making: float = field(default=2.4, metadata={"help": "Pull of the favourite way of making."})
    community: float = field(default=5.2, metadata={"help": "Pull of the user's circle of taste."})
    complement: float = field(default=1.0, metadata={"help": "Pull of product types that complement the last purchase."})
    popularity: float = field(default=0.68, metadata={"help": "Standard deviation of log popularity."})
    least_sales: float = field(default=7.0, metadata={"help": "Expected interactions of the least popular items."})
    kept: int = field(default=5, metadata={"help": "Interactions every item has at least, so that a 5-core keeps the whole shop."})


@dataclass(frozen=True)
class Interactions:
    """The log, ordered by user and time: three int64 arrays of equal length."""

    user: np.ndarray = field(metadata={"help": "User index."})
    item: np.ndarray = field(metadata={"help": "Item index."})
    timestamp: np.ndarray = field(metadata={"help": "Unix seconds."})


def simulate(attributes: Attributes, settings: Behaviour, rng: np.random.Generator) -> Interactions:
    """Let all users shop."""
    taste = _tastes(attributes, settings, rng)
    lengths = rng.integers(settings.shortest, settings.longest + 1, size=settings.users)
    bias = _popularity_bias(taste, int(lengths.sum()), settings, rng)
    chosen = _shop(taste + bias, attributes.kind, settings, rng)
    _keep_every_item(chosen, lengths, taste, settings, rng)
    bought = np.arange(settings.longest) < lengths[:, None]
    return Interactions(np.nonzero(bought)[0], chosen[bought], _timestamps(settings, rng)[bought])


def _tastes(attributes: Attributes, settings: Behaviour, rng: np.random.Generator) -> np.ndarray:
    """Utility of every item for every user before popularity and history, (users, items)."""

    def liking(values: np.ndarray, size: int, pull: float) -> np.ndarray:
        favourite = rng.integers(size, size=(settings.users, 1))
        return pull * (favourite == values)

    return (
        liking(attributes.palette, len(PALETTES), settings.palette)
        + liking(attributes.pattern, len(PATTERNS), settings.pattern)
        + liking(attributes.theme, len(THEMES), settings.theme)
        + liking(attributes.making, len(MAKINGS), settings.making)
        + liking(attributes.community, settings.communities, settings.community)
    )


def _popularity_bias(taste: np.ndarray, sales: int, settings: Behaviour, rng: np.random.Generator, rounds: int = 12) -> np.ndarray:
    """Item intercepts under which the expected shares follow the popularity curve (contraction of Berry, 1994), (items,)."""
    quantiles = np.minimum((np.arange(settings.items) + 0.5) / settings.items, 0.985)
    curve = np.exp(settings.popularity * norm.ppf(quantiles))
    expected = np.maximum(rng.permutation(sales * curve / curve.sum()), settings.least_sales)
    share = expected / expected.sum()
    bias = np.log(share)
    attraction = np.exp(taste - taste.max(axis=1, keepdims=True))
    for _ in range(rounds):
        weighted = attraction * np.exp(bias)
        bias = bias + np.log(share / (weighted / weighted.sum(axis=1, keepdims=True)).mean(axis=0))
    return bias


def _shop(utility: np.ndarray, kind: np.ndarray, settings: Behaviour, rng: np.random.Generator) -> np.ndarray:
    """One purchase per user and step by the Gumbel-max rule, never the same item twice, (users, longest)."""
    names = list(KINDS)
    complements = np.array([[other in KINDS[name].complements for other in names] for name in names], dtype=float)
    lift = settings.complement * complements[:, kind]
    available, users = utility.copy(), np.arange(settings.users)
    chosen = np.empty((settings.users, settings.longest), dtype=np.int64)
    for step in range(settings.longest):
        score = available + rng.gumbel(size=available.shape)
        if step:
            score += lift[kind[chosen[:, step - 1]]]
        chosen[:, step] = score.argmax(axis=1)
        available[users, chosen[:, step]] = -np.inf
    return chosen


def _keep_every_item(chosen: np.ndarray, lengths: np.ndarray, taste: np.ndarray, settings: Behaviour, rng: np.random.Generator) -> None:
    """Give the few items below `kept` purchases to users who like them best, in place of a bestseller among their training items."""
    steps = np.arange(settings.longest)
    counts = np.bincount(chosen[steps < lengths[:, None]], minlength=settings.items)
    for item in np.flatnonzero(counts < settings.kept):
        swappable = (steps < lengths[:, None] - 2) & (counts[chosen] > 4 * settings.kept) & ~(chosen == item).any(axis=1, keepdims=True)
        step = np.where(swappable, rng.random(chosen.shape), -1).argmax(axis=1)
        liking = np.where(swappable.any(axis=1), taste[:, item] + rng.gumbel(size=settings.users), -np.inf)
        users = np.argsort(-liking)[: settings.kept - counts[item]]
        np.subtract.at(counts, chosen[users, step[users]], 1)
        chosen[users, step[users]] = item
        counts[item] = settings.kept


def _timestamps(settings: Behaviour, rng: np.random.Generator) -> np.ndarray:
    """Strictly increasing times of purchase over about a year and a half, (users, longest)."""
    start = OPENING + rng.integers(0, 365 * DAY, size=(settings.users, 1))
    gaps = 60 + rng.exponential(12 * DAY, size=(settings.users, settings.longest)).astype(np.int64)
    return start + np.cumsum(gaps, axis=1)
