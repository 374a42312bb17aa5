"""Recommendations for one history, as a command asks for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import CEMGError
from ..models.cemg import Recommendation
from ..models.next_item import NextItemModel, ScoredItem
from .loading import load_recommender

OF_CODES: Mapping[str, Any] = {"num_beams": None, "new_item_boost": None, "new_item_dense": 0.0, "new_item_likelihood": 1.0}
"""Settings of a search for codes, and what they are where nobody gave them."""


def recommend_one(
    model: str, history: Sequence[str], device: str, dtype: str, options: Mapping[str, Any]
) -> list[Recommendation] | list[ScoredItem]:
    """The best next items after a history.

    Args:
        model: folder or Hub id of a generator, or of a network over whole items.
        history: item ids, oldest first.
        device, dtype: as for `load_model`.
        options: arguments of `recommend`. A network over whole items takes those of `OF_CODES` as they are there alone.

    Raises:
        CEMGError: see `open_recommender`, unknown items, or options that cannot work.
    """
    recommender = load_recommender(model, device, dtype)
    given = dict(options)
    if isinstance(recommender, NextItemModel):
        for name, default in OF_CODES.items():
            if given.pop(name, default) != default:
                option = f"--{name.replace('_', '-')}"
                raise CEMGError(f"{option}: is for models that write codes; {model} scores every item, leave {option} out")
    try:
        found: list[Any] = recommender.recommend(history, **given)
    except ValueError as error:  # models/ does not know CEMGError: it loads from a Hub folder without this package
        raise CEMGError(str(error).replace("pass on_unknown='skip'", "use --skip-unknown")) from error
    return found
