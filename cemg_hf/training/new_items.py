"""New items in a trained recommender: their texts and pictures through the encoders that made its features, then `add_items`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch

from ..artefacts import Manifest, fingerprint_path, one_writer, read_manifest, write_folder
from ..data import images as image_files
from ..data import schema
from ..data.readers import is_local, local_path, read_table
from ..errors import CEMGError
from ..features.items import encode_items
from ..models.cemg import AddedItems, CEMGTokenizer
from .loading import generator_class

logger = logging.getLogger(__name__)

Encoded = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Modality -> raw vectors (n, D) and mask (n,), as `encode_items` gives them."""


@one_writer
def add_items_to_model(
    model: str | Path,
    items: str | Path,
    features: str | Path,
    output: str | Path,
    *,
    images: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    collaborative: str = "predicted",
    text_source: str | None = None,
    image_source: str | None = None,
) -> AddedItems:
    """Write a model folder whose catalogue also holds new items; the weights and the codes of all other items stay as they are.

    Args:
        model: folder written by `finetune`; left untouched unless it is `output` too.
        items: table of the new items, in any format that `prepare` reads.
        features: folder written by `encode` for the model's data set, which holds the encoders.
        output: model folder to write.
        images: folder of pictures named after the items' ids.
        columns: our column name -> the table's.
        collaborative: "predicted" from the content, or "masked"; see `CEMGTokenizer.add_items`.
        text_source, image_source: as for `encode_items`, where encoders lie elsewhere than their descriptions say.

    Raises:
        CEMGError: unreadable input, ids that the catalogue has already, or items without any content.
    """
    if not (Path(model) / "config.json").is_file():
        raise CEMGError(f"{model}: not a model folder; train one with `cemg finetune`")
    try:
        generator = generator_class(model).from_pretrained(model)
    except ValueError as error:
        raise CEMGError(f"{model}: {error}") from error
    if generator.tokenizer is None:
        raise CEMGError(f"{model}: holds no item tokenizer; copy the files of the tokenizer it was trained with beside it")
    source = str(items)
    table = schema.normalise_items(read_table(source, "items"), dict(columns or {}), source)
    path = local_path(source) if is_local(source) else None
    # Absolute, because `encode_items` takes relative paths from `base` too.
    base = None if path is None else (path if path.is_dir() else path.parent).resolve()
    pictures = Path(images).resolve() if images is not None else None
    table = image_files.attach_files(table, pictures, base)
    own = pl.col("image").struct
    table = table.with_columns(image=pl.struct(bytes=own.field("bytes"), path=pl.coalesce("image_file", own.field("path"))))
    encoded = encode_items(table, features, base=base, text_source=text_source, image_source=image_source)
    added = add_encoded_items(generator.tokenizer, table["item_id"].to_list(), encoded, collaborative)
    inputs = {"model": fingerprint_path(model), "items": fingerprint_path(path) if path is not None else source}
    inputs |= {"features": fingerprint_path(features), "images": image_files.fingerprint_files(table["image_file"])}
    settings = {"collaborative": collaborative, "columns": dict(columns or {}), "text": text_source, "image": image_source}
    seed = int((read_manifest(model) or {}).get("seed", 0))
    with write_folder(output, Manifest("add-items", settings, inputs, seed)) as scratch:
        generator.save_pretrained(scratch)
    logger.info("add-items: %d items added, %d in all → %s", len(added.item_codes), len(generator.tokenizer.item_ids), output)
    return added


def add_encoded_items(tokenizer: CEMGTokenizer, item_ids: Sequence[str], encoded: Encoded, collaborative: str) -> AddedItems:
    """Add items by their raw vectors; those without content that gives them a code are logged and left out.

    Raises:
        CEMGError: none is left, or the tokenizer refuses them.
    """
    used = {name: value for name, value in encoded.items() if name in tokenizer.projections}
    usable = np.zeros(len(item_ids), dtype=bool)
    try:
        if encoded:  # also what the tokenizer does not read: one that takes no new items says so itself
            usable = tokenizer.codable({name: mask for name, (_, mask) in encoded.items()}, collaborative).numpy()
    except ValueError as error:
        raise CEMGError(f"the new items cannot be added: {error}") from error
    if not usable.all():
        missing = item_ids[int(np.flatnonzero(~usable)[0])]
        logger.warning("%d new items have no content that gives them a code and are not added (first: %s)", (~usable).sum(), missing)
    if not usable.any():
        raise CEMGError(
            f"no new item has {' or '.join(tokenizer.projections) or 'content'} that can be read; there is nothing to code it by"
        )
    rows = np.flatnonzero(usable)
    vectors = {name: torch.from_numpy(vectors[rows]) for name, (vectors, _) in used.items()}
    masks = {name: torch.from_numpy(mask[rows]) for name, (_, mask) in used.items()}
    try:
        return tokenizer.add_items([item_ids[int(row)] for row in rows], vectors, masks, collaborative=collaborative)
    except ValueError as error:
        raise CEMGError(f"the new items cannot be added: {error}") from error
