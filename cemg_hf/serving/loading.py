"""A trained recommender from a folder or the Hub, with errors that a user can act on."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..data.readers import read_table
from ..data.schema import normalise_items
from ..errors import CEMGError
from ..features.encoder import resolve_device
from ..models.cemg import CEMGForConditionalGeneration
from ..models.next_item import NextItemModel
from ..training.loading import open_model, open_recommender

DTYPES = ("float32", "bfloat16", "float16")


def load_model(model: str, device: str = "cpu", dtype: str = "float32") -> CEMGForConditionalGeneration:
    """A model with its catalogue, ready to recommend.

    Args:
        model: folder written by `finetune`, or a Hub id.
        device: "auto" is the GPU where there is one.
        dtype: float32, bfloat16 or float16; scores are summed in float32 whatever it is.

    Raises:
        CEMGError: no such device or dtype; see `open_model`.
    """
    return open_model(model, dtype, _place(device, dtype))


def load_recommender(model: str, device: str = "cpu", dtype: str = "float32") -> CEMGForConditionalGeneration | NextItemModel:
    """As `load_model`, for networks over whole items too (SASRec, GRU4Rec)."""
    return open_recommender(model, dtype, _place(device, dtype))


def _place(device: str, dtype: str) -> torch.device:
    if dtype not in DTYPES:
        raise CEMGError(f"dtype: {dtype!r} is none of {', '.join(DTYPES)}")
    place = resolve_device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise CEMGError(f"device: {device}, and torch finds no GPU here; use cpu or auto")
    return place


def load_titles(items: str | None) -> Mapping[str, str]:
    """Item id → title, of the items that have one, from a table in any format that `cemg run` reads; None is no table."""
    if items is None:
        return {}
    table = normalise_items(read_table(items, "items"), {}, items).select("item_id", "title").drop_nulls()
    return dict(table.iter_rows())
