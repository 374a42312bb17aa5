"""The built-in sample: a small shop made by the package itself, so that everything can be tried without downloading anything.

Hundreds of items with drawn pictures and written descriptions, and users whose next choice depends separately on what only the
picture shows (palette, pattern), on what only the text tells (theme, making) and on circles of taste that show in neither.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value

from ...artefacts import MANIFEST_NAME, Manifest, is_current, write_folder
from ...errors import CEMGError
from .behaviour import Behaviour, simulate
from .catalogue import draw_attributes, draw_pictures, write_texts

logger = logging.getLogger(__name__)

SAMPLE_LICENSE = "apache-2.0"
SAMPLE_VERSION = 1  # raise with any change that alters the files

ITEM_FEATURES = Features(
    {
        "item_id": Value("string"),
        "title": Value("string"),
        "brand": Value("string"),
        "categories": List(Value("string")),
        "description": Value("string"),
        "image": Image(),
    }
)
INTERACTION_FEATURES = Features({"user_id": Value("string"), "item_id": Value("string"), "timestamp": Value("int64")})


def make_sample(folder: str | Path, seed: int = 0) -> None:
    """Write the sample shop's `interactions.parquet` and `items.parquet` to `folder`; the same seed gives the same bytes.

    `items.parquet`: item_id, title, brand, categories, description, image (PNG). `interactions.parquet`: user_id, item_id,
    timestamp (unix seconds), ordered by time. A folder that already holds this sample is left alone.

    Raises:
        CEMGError: `folder` holds something other than a sample shop, or `seed` is negative.
    """
    folder, settings = Path(folder), Behaviour()
    if seed < 0:
        raise CEMGError(f"seed: {seed} is negative; use 0 or more")
    manifest = Manifest(stage="sample", settings={**asdict(settings), "version": SAMPLE_VERSION}, inputs={}, seed=seed)
    if is_current(folder, manifest):
        logger.info("%s already holds the sample shop of seed %d", folder, seed)
        return
    _refuse_foreign(folder)
    # One stream per concern: a change to the pictures must not change what people buy.
    attribute_rng, picture_rng, text_rng, behaviour_rng = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(4))
    attributes = draw_attributes(settings.items, settings.communities, attribute_rng)
    texts = write_texts(attributes, text_rng)
    pictures = draw_pictures(attributes, picture_rng)
    log = simulate(attributes, settings, behaviour_rng)

    item_ids = np.array([f"item-{n:04d}" for n in range(settings.items)])
    user_ids = np.array([f"user-{n:04d}" for n in range(settings.users)])
    items = {
        "item_id": item_ids.tolist(),
        "title": [text.title for text in texts],
        "brand": [text.brand for text in texts],
        "categories": [text.categories for text in texts],
        "description": [text.description for text in texts],
        "image": [{"bytes": picture, "path": f"{item_id}.png"} for item_id, picture in zip(item_ids.tolist(), pictures, strict=True)],
    }
    order = np.lexsort((log.user, log.timestamp))
    interactions = {
        "user_id": user_ids[log.user[order]].tolist(),
        "item_id": item_ids[log.item[order]].tolist(),
        "timestamp": log.timestamp[order],
    }
    with write_folder(folder, manifest) as scratch:
        pq.write_table(pa.table(items, schema=ITEM_FEATURES.arrow_schema), scratch / "items.parquet")
        pq.write_table(pa.table(interactions, schema=INTERACTION_FEATURES.arrow_schema), scratch / "interactions.parquet")
    logger.info("sample shop: %d items, %d users, %d interactions in %s", settings.items, settings.users, len(order), folder)


def _refuse_foreign(folder: Path) -> None:
    """Writing replaces the whole folder, so it must be absent, empty or a sample shop."""
    if folder.is_file():
        raise CEMGError(f"{folder}: is a file; name a folder for the sample shop")
    if folder.is_dir() and any(folder.iterdir()):
        known = folder / MANIFEST_NAME
        if not known.is_file() or '"stage": "sample"' not in known.read_text():
            raise CEMGError(f"{folder}: holds other files, which the sample shop would replace; name a new or empty folder")
