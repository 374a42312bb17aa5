"""A data set without some of its items, for measuring cold start: neither the items nor any interaction with them exist in it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import polars as pl

from ..artefacts import Manifest, fingerprint_path, is_current, one_writer, read_manifest, write_folder, write_json
from ..data import PreparedDataset, Ragged, schema, writing
from ..data.card import dataset_card
from ..data.dataset import INTERACTIONS_FILE, ITEMS_FILE, SPLIT_FILE
from ..data.splits import MIN_INTERACTIONS, time_points
from ..data.statistics import STATISTICS_FILE, Statistics
from ..errors import CEMGError

logger = logging.getLogger(__name__)

HELD_OUT_FILE = "held_out.json"
CONTENT = ("image", "text")
_NOTE = """
## Held out

{count:,} items of the data set this one was made from, and all {interactions:,} interactions with them, are not in it; `{file}` lists
them. They are for measuring cold start. No k-core was applied again afterwards.
"""


@one_writer
def hold_out_items(
    dataset: str | Path, output: str | Path, share: float = 0.05, seed: int = 42, modalities: Sequence[str] = CONTENT
) -> Path:
    """Write the data set without a random share of its items and without any interaction with them; skipped when current.

    Items are drawn among those that have an image or a text, as far as `modalities` names these, and are the target of at least one
    validation or test case; where these are too few, the rest is drawn among the other items with content. Leave-one-out of what is
    left never trains on an interaction that the original data set evaluates: a user who falls under three interactions, and so would
    be trained on as a whole, loses the original's last two. A split by time keeps its instants.

    Args:
        dataset: folder written by `prepare`.
        output: folder to write, of the same format; `held_out.json` in it lists the ids of the items left out, in catalogue order.
        share: share of the catalogue to hold out, above 0 and below 1.
        seed: seed of the draw.
        modalities: which content counts: the modalities the new items will be coded from.

    Raises:
        CEMGError: a share out of range, a folder that `prepare` did not write (this function's neither), or too few items with content.
    """
    dataset, output = Path(dataset), Path(output)
    content = [name for name in CONTENT if name in modalities]
    if not 0 < share < 1:
        raise CEMGError(f"share = {share}: give the share of items to hold out, above 0 and below 1")
    if not content:
        raise CEMGError(f"modalities = {list(modalities)}: new items are coded from content; use image or text")
    source = read_manifest(dataset)
    data = PreparedDataset.load(dataset)
    if source is None or source["stage"] != "prepare":
        found = "has no manifest" if source is None else f"has the manifest of {source['stage']!r} in the place of that"
        raise CEMGError(f"{dataset}: {found} of `prepare`; make the data set with `cemg prepare`")
    manifest = Manifest("hold-out", {"share": share, "modalities": content}, {"dataset": fingerprint_path(dataset)}, seed)
    if is_current(output, manifest):
        logger.info("hold-out: %s is up to date", output)
        return output
    items = data.items_table()
    held = _draw(data, items, share, seed, content)
    kept = ~held[data.sequences.values] if data.cuts is not None else _kept_interactions(data.sequences, held)
    interactions = pl.read_parquet(dataset / INTERACTIONS_FILE).filter(pl.Series(kept))
    catalogue = items.filter(pl.Series(~held)).with_columns(image_file=pl.lit(None, dtype=pl.String))
    users = data.sequences.rows[kept]
    present, lengths = np.unique(users, return_counts=True)
    sequences = Ragged.from_lengths((np.cumsum(~held) - 1)[data.sequences.values[kept]], lengths)
    user_ids = pl.Series([data.user_ids[user] for user in present], dtype=pl.String)
    points = None if data.cuts is None else time_points(Ragged(interactions["timestamp"].to_numpy(), sequences.offsets), data.cuts)
    item_ids = catalogue["item_id"]
    has_image, has_text = catalogue["image"].is_not_null(), schema.has_text(catalogue)
    settings = source["settings"]
    with write_folder(output, manifest) as folder:
        writing.write_interactions(folder / INTERACTIONS_FILE, interactions)
        writing.write_items(folder / ITEMS_FILE, catalogue)
        evaluated = writing.write_splits(folder / "splits", sequences, user_ids, item_ids, points)
        if data.cuts is not None:
            write_json(folder / SPLIT_FILE, asdict(data.cuts))
        statistics = replace(
            Statistics.load(dataset),
            users=len(sequences),
            items=len(catalogue),
            interactions=len(interactions),
            evaluated_users=evaluated,
            items_with_text=int(has_text.sum()),
            items_with_image=int(has_image.sum()),
            items_without_content=int((~has_text & ~has_image).sum()),
        )
        write_json(folder / STATISTICS_FILE, statistics.as_dict())
        write_json(folder / HELD_OUT_FILE, items.filter(pl.Series(held))["item_id"].to_list())
        card = dataset_card(statistics, settings["license"], 0, settings["min_rating"], "rating" in interactions.columns, data.cuts)
        note = _NOTE.format(count=int(held.sum()), interactions=int(held[data.sequences.values].sum()), file=HELD_OUT_FILE)
        (folder / "README.md").write_text(card + note, encoding="utf-8")
    logger.info("hold-out: %d of %d items and %d of %d interactions left out", held.sum(), len(held), (~kept).sum(), len(kept))
    return output


def _draw(data: PreparedDataset, items: pl.DataFrame, share: float, seed: int, content: Sequence[str]) -> np.ndarray:
    """(N,) bool: the items to hold out."""
    has = {"image": items["image"].is_not_null(), "text": schema.has_text(items)}
    eligible = np.any([has[name].to_numpy() for name in content], axis=0)
    is_target = np.zeros(len(items), dtype=bool)
    is_target[np.concatenate([data.evaluation_cases(split).targets for split in ("validation", "test")])] = True
    count = max(1, round(share * len(items)))
    if eligible.sum() < count or len(items) - count < 2:
        raise CEMGError(
            f"{data.folder}: {eligible.sum()} of {len(items)} items have {' or '.join(content)}; "
            f"{count} cannot be held out, lower the share or add content"
        )
    order = np.random.default_rng(seed).permutation(np.flatnonzero(eligible))
    order = order[np.argsort(~is_target[order], kind="stable")]
    held = np.zeros(len(items), dtype=bool)
    held[order[:count]] = True
    return held


def _kept_interactions(sequences: Ragged, held: np.ndarray) -> np.ndarray:
    """(interactions,) bool: what stays when the items `held` (N,) go, and nothing that is evaluated can slip into training."""
    kept = ~held[sequences.values]
    rows, lengths = sequences.rows, sequences.lengths
    left = np.bincount(rows[kept], minlength=len(sequences))
    short = (lengths >= MIN_INTERACTIONS) & (left < MIN_INTERACTIONS)
    position = np.arange(len(rows)) - sequences.offsets[rows]
    return kept & ~(short[rows] & (position >= lengths[rows] - 2))
