"""From settings or a saved description to an encoder, and new items through the encoders of a feature folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ..errors import CEMGError
from .encoder import ItemEncoder
from .image import COLOUR_GRADIENT, ImageConfig, VGGImageEncoder
from .light import ColourGradientImageEncoder, TfidfTextEncoder
from .rq_dino_encoder import RQDinoImageEncoder
from .store import CONTENT_MODALITIES, load_descriptions
from .text import TFIDF, TextConfig, TransformerTextEncoder

logger = logging.getLogger(__name__)


def text_encoder(config: TextConfig, cache_folder: Path | None = None) -> ItemEncoder:
    """The text encoder that `config` names."""
    return TfidfTextEncoder(config) if config.encoder == TFIDF else TransformerTextEncoder(config, cache_folder)


def image_encoder(config: ImageConfig, cache_folder: Path | None = None) -> ItemEncoder:
    """The image encoder that `config` names."""
    config.check()
    if config.encoder == COLOUR_GRADIENT:
        return ColourGradientImageEncoder(config)
    return RQDinoImageEncoder(config, cache_folder) if config.is_folder else VGGImageEncoder(config, cache_folder)


def load_encoder(
    description: Mapping[str, Any],
    folder: str | Path,
    *,
    source: str | None = None,
    device: str = "auto",
    cache_folder: Path | None = None,
    verify: bool = True,
) -> ItemEncoder:
    """The encoder that wrote `description` (one value of encoders.json in `folder`).

    `source` replaces where pretrained weights come from (a text encoder's name or folder, an image encoder's weights or folder) on a
    machine that keeps them elsewhere. Errors: CEMGError when the encoder found is not the one described, unless `verify` is False.
    """
    settings = dict(description["settings"])
    encoder: ItemEncoder
    if description["kind"] == TFIDF:
        encoder = TfidfTextEncoder.load(TextConfig(**settings), Path(folder))
    elif description["modality"] == "text":
        text = TextConfig(**settings, device=device)
        encoder = text_encoder(replace(text, encoder=source) if source else text, cache_folder)
    else:
        image = ImageConfig(**settings, device=device)
        if source:
            image = replace(image, encoder=source) if image.is_folder else replace(image, weights=source)
        encoder = image_encoder(image, cache_folder)
    if verify and encoder.fingerprint != description["fingerprint"]:
        raise CEMGError(
            f"{description['modality']} encoder {description['name']}: not the weights and settings that made the features in {folder}; "
            "give the same encoder by source=…, or verify=False if you know that the weights are the same"
        )
    return encoder


def content_encoders(
    folder: str | Path,
    *,
    text_source: str | None = None,
    image_source: str | None = None,
    device: str = "auto",
    cache_folder: Path | None = None,
    verify: bool = True,
) -> dict[str, ItemEncoder]:
    """Content modality -> the encoder that made its features in `folder`, ready for many calls of `encode_with`.

    `folder` is a feature folder, or any folder that ships its encoders.json and the files named there. Errors: CEMGError as in
    `load_encoder`.
    """
    sources = {"text": text_source, "image": image_source}
    return {
        name: load_encoder(description, folder, source=sources[name], device=device, cache_folder=cache_folder, verify=verify)
        for name, description in load_descriptions(folder).items()
        if name in CONTENT_MODALITIES
    }


def encode_with(
    encoders: Mapping[str, ItemEncoder], items: pl.DataFrame, base: str | Path | None = None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Raw vectors of items outside the dataset; arguments and result as for `encode_items`."""
    encoded = {}
    for name, encoder in encoders.items():
        raw = encoder.encode(items, Path(base) if base is not None else None)
        if raw.unreadable:
            row, reason = next(iter(raw.unreadable.items()))
            logger.warning("%d new items have an unreadable image (first: row %d, %s)", len(raw.unreadable), row, reason)
        encoded[name] = (raw.vectors, raw.mask)
    return encoded


def encode_items(
    items: pl.DataFrame,
    folder: str | Path,
    *,
    base: str | Path | None = None,
    text_source: str | None = None,
    image_source: str | None = None,
    device: str = "auto",
    cache_folder: Path | None = None,
    verify: bool = True,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Raw vectors of items outside the dataset, by the encoders that made the features in `folder`.

    `items` has the columns of an items table (any of title, brand, categories, description, image); relative image paths are taken from
    `base`. `folder` is a feature folder, or any folder that ships its encoders.json and the files named there. Result: per content modality
    of the folder, vectors (n, D) float32 with zero rows where masked, and the mask (n,), False where an item lacks the modality. New items
    have no collaborative vector. Pictures that cannot be read are logged and masked. Errors: CEMGError as in `load_encoder`.
    """
    encoders = content_encoders(
        folder, text_source=text_source, image_source=image_source, device=device, cache_folder=cache_folder, verify=verify
    )
    return encode_with(encoders, items, base)
