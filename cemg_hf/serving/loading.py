"""A trained recommender from a folder or the Hub, with errors that a user can act on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from ..data.readers import read_table
from ..data.schema import normalise_items
from ..errors import CEMGError
from ..features.encoder import resolve_device
from ..models.cemg import CEMGForConditionalGeneration

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(model: str, device: str = "cpu", dtype: str = "float32") -> CEMGForConditionalGeneration:
    """A model with its catalogue, ready to recommend.

    Args:
        model: folder written by `finetune`, or a Hub id.
        device: "auto" is the GPU where there is one.
        dtype: float32, bfloat16 or float16; scores are summed in float32 whatever it is.

    Raises:
        CEMGError: nothing of that name, no CEMG model, a tokenizer that is missing or belongs to another model, or no such device or dtype.
    """
    if dtype not in DTYPES:
        raise CEMGError(f"dtype: {dtype!r} is none of {', '.join(DTYPES)}")
    place = resolve_device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise CEMGError(f"device: {device}, and torch finds no GPU here; use cpu or auto")
    if Path(model).is_dir() and not (Path(model) / "config.json").is_file():
        raise CEMGError(f"{model}: not a model folder; train one with `cemg finetune`, or name the folder `model` of a run")
    try:
        generator = CEMGForConditionalGeneration.from_pretrained(model, dtype=DTYPES[dtype])
    except OSError as error:
        raise CEMGError(f"{model}: no such model folder, and the Hub did not give it ({str(error).splitlines()[0]})") from error
    except ValueError as error:
        raise CEMGError(f"{model}: {error}") from error
    if generator.tokenizer is None:
        raise CEMGError(f"{model}: holds no item tokenizer; copy the files of the tokenizer it was trained with beside it")
    generator.to(place).eval()
    return generator


def load_titles(items: str | None) -> Mapping[str, str]:
    """Item id → title, of the items that have one, from a table in any format that `cemg run` reads; None is no table."""
    if items is None:
        return {}
    table = normalise_items(read_table(items, "items"), {}, items).select("item_id", "title").drop_nulls()
    return dict(table.iter_rows())
