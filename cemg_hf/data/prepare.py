"""`prepare`: raw interactions and items in, a dataset folder out."""

from __future__ import annotations

import io
import logging
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import polars as pl

from ..artefacts import MANIFEST_NAME, Manifest, fingerprint, fingerprint_path, is_current, one_writer, write_folder, write_json
from ..errors import CEMGError
from ..settings import expand_path
from . import filtering, images, schema, writing
from .card import dataset_card
from .dataset import INTERACTIONS_FILE, ITEMS_FILE, SPLIT_FILE
from .ragged import Ragged
from .readers import is_local, local_path, read_table
from .splits import MIN_INTERACTIONS, SplitKind, TimeCuts, time_cuts, time_points
from .statistics import STATISTICS_FILE, Statistics

logger = logging.getLogger(__name__)

SAMPLE = "sample"


@dataclass(frozen=True)
class PrepareConfig:
    """Where the raw data lies and how it is filtered.

    The catalogue of the output holds the items with at least one interaction left; `keep_unseen_items` keeps all of the items table.
    """

    name: str = field(default=SAMPLE, metadata={"help": "Name of the dataset, the title of its card."})
    interactions: str = field(
        default=SAMPLE,
        metadata={
            "help": 'Parquet, CSV, JSON lines or RecBole\'s atomic file, `datasets` folder or Hub id (org/name:config); "sample" is the '
            "built-in shop."
        },
    )
    items: str | None = field(default=None, metadata={"help": "The same for the items; null: identifiers only, no text, no images."})
    images: str | None = field(default=None, metadata={"help": "Folder of images named <item_id>.jpg/.png/…, or base of relative paths."})
    columns: Mapping[str, str] = field(
        default_factory=dict, metadata={"help": "Your column for ours, where they differ, e.g. {user_id: reviewerID, item_id: asin}."}
    )
    min_interactions: int = field(default=5, metadata={"help": "k of the iterative k-core on users and items; 0: none."})
    min_rating: float | None = field(default=None, metadata={"help": "Keep interactions rated at least this; null: keep all."})
    keep_unseen_items: bool = field(default=False, metadata={"help": "Keep items without any interaction left (cold items)."})
    split: SplitKind = field(
        default="leave_one_out",
        metadata={"help": "leave_one_out: each user's last two items are the targets; time: two instants for all users, no leakage."},
    )
    time_quantiles: list[float] = field(
        default_factory=lambda: [0.8, 0.9],
        metadata={"help": "split: time: shares of the interactions before validation begins and before test begins."},
    )
    license: str = field(default="unknown", metadata={"help": "SPDX-like licence of the data; decides what may be published."})

    def __post_init__(self) -> None:
        unknown = sorted(set(self.columns) - set(schema.COLUMNS))
        if unknown:
            raise CEMGError(f"columns: unknown name {unknown[0]!r}; the names are {', '.join(schema.COLUMNS)} (ours first, then yours)")
        if self.min_interactions < 0:
            raise CEMGError(f"min_interactions: {self.min_interactions} is negative; give 0 (no k-core) or more")
        if len(self.time_quantiles) != 2 or not 0 < self.time_quantiles[0] < self.time_quantiles[1] < 1:
            raise CEMGError(f"time_quantiles: {list(self.time_quantiles)}; give two rising shares between 0 and 1, such as [0.8, 0.9]")
        if not self.license.strip():
            raise CEMGError('license: is empty; give an identifier such as "cc-by-4.0", or "unknown"')
        if not self.name.strip():
            raise CEMGError("name: is empty; give the dataset a name")
        if self.interactions == SAMPLE and self.items not in (None, SAMPLE):
            raise CEMGError(f'items: {self.items!r} does not go with interactions: "sample"; leave it out')


@dataclass(frozen=True)
class _Source:
    """The typed tables, and the fingerprints of what they were read from."""

    interactions: pl.DataFrame
    items: pl.DataFrame
    inputs: dict[str, str]


@one_writer
def prepare(config: PrepareConfig, output: str | Path, seed: int = 42) -> Path:
    """Read, check, filter and split the raw data into the dataset folder `output`; skipped when the folder is current.

    The folder: `interactions.parquet`, `items.parquet`, `splits/{train,validation,test}.parquet`, `statistics.json`, the card `README.md`
    and the manifest. Steps, in this order: ratings below `min_rating` go, interactions with unknown items go, exact duplicates go,
    k-core, order by (user's first appearance, timestamp, position in the file), split. A split by time is recorded in `split.json`.

    Args:
        seed: decides the built-in sample; nothing else here is random.

    Raises:
        CEMGError: bad input (the message names file, column and row), nothing is left, or a split by time of data without times.
    """
    output = Path(output)
    if output.is_dir() and any(output.iterdir()) and not (output / MANIFEST_NAME).is_file():
        raise CEMGError(f"{output}: holds files that are not a prepared dataset and would be lost; choose an empty or new folder")
    started = time.perf_counter()
    config = _with_expanded_paths(config)
    source = _read(config, seed)
    settings = {key: value for key, value in asdict(config).items() if key not in ("interactions", "items", "images")}
    if config.split == "leave_one_out":  # a data set from before there was a choice is still current
        del settings["split"], settings["time_quantiles"]
    # Where the inputs lie does not matter, what they hold does: a moved file invalidates nothing.
    manifest = Manifest("prepare", settings, source.inputs, seed)
    if is_current(output, manifest):
        logger.info("%s: current, nothing to prepare", output)
        return output

    interactions, removed = _filter(source, config)
    items = source.items
    if not config.keep_unseen_items:
        items = items.join(interactions.select("item_id").unique(), on="item_id", how="semi", maintain_order="left")
    sequences, user_ids = _sequences(interactions, items)
    cuts = _time_cuts(source.interactions, interactions, config) if config.split == "time" else None
    points = None if cuts is None else time_points(Ragged(interactions["timestamp"].to_numpy(), sequences.offsets), cuts)

    with write_folder(output, manifest, started) as folder:
        writing.write_interactions(folder / INTERACTIONS_FILE, interactions)
        outcome = writing.write_items(folder / ITEMS_FILE, items)
        evaluated = writing.write_splits(folder / "splits", sequences, user_ids, items["item_id"], points)
        if cuts is not None:
            write_json(folder / SPLIT_FILE, asdict(cuts))
        statistics = Statistics(
            name=config.name,
            users=len(sequences),
            items=len(items),
            interactions=len(interactions),
            evaluated_users=evaluated,
            items_with_text=int(schema.has_text(items).sum()),
            items_with_image=int(outcome["has_image"].sum()),
            items_without_content=int((~schema.has_text(items) & ~outcome["has_image"]).sum()),
            unreadable_images=int(outcome["unreadable"].sum()),
            **removed,
        )
        write_json(folder / STATISTICS_FILE, statistics.as_dict())
        has_rating = "rating" in interactions.columns
        card = dataset_card(statistics, config.license, config.min_interactions, config.min_rating, has_rating, cuts)
        (folder / "README.md").write_text(card)
    _report(statistics, items, outcome)
    return output


def _with_expanded_paths(config: PrepareConfig) -> PrepareConfig:
    def expanded(name: str) -> str | None:
        place = getattr(config, name)
        return None if place is None else expand_path(place, f"prepare.{name}")

    return replace(
        config, interactions=expand_path(config.interactions, "prepare.interactions"), items=expanded("items"), images=expanded("images")
    )


def _read(config: PrepareConfig, seed: int) -> _Source:
    if config.interactions != SAMPLE:
        return _read_tables(config, config.interactions, config.items)
    # Imported here: drawing the shop needs libraries that reading a file does not.
    from .sample import make_sample

    with tempfile.TemporaryDirectory() as scratch:
        make_sample(Path(scratch), seed)
        return _read_tables(config, f"{scratch}/interactions.parquet", f"{scratch}/items.parquet")


def _read_tables(config: PrepareConfig, interactions_from: str, items_from: str | None) -> _Source:
    raw = read_table(interactions_from, "interactions")
    inputs = {"interactions": _fingerprint(interactions_from, raw)}
    if items_from is None:
        schema.check_mapping(config.columns, (interactions_from, raw))
        interactions = schema.normalise_interactions(raw, config.columns, interactions_from, config.min_rating is not None)
        items, base = schema.items_from_ids(interactions), None
    else:
        raw_items = read_table(items_from, "items")
        inputs["items"] = _fingerprint(items_from, raw_items)
        schema.check_mapping(config.columns, (interactions_from, raw), (items_from, raw_items))
        interactions = schema.normalise_interactions(raw, config.columns, interactions_from, config.min_rating is not None)
        items, base = schema.normalise_items(raw_items, config.columns, items_from), _folder_of(items_from)
    items = images.attach_files(items, Path(config.images) if config.images is not None else None, base)
    if items["image_file"].null_count() < len(items):
        inputs["images"] = images.fingerprint_files(items["image_file"])
    return _Source(interactions, items, inputs)


def _folder_of(source: str) -> Path | None:
    """What relative image paths of a table are relative to; None for a table from the Hub."""
    if not is_local(source):
        return None
    path = local_path(source)
    return path if path.is_dir() else path.parent


def _fingerprint(source: str, table: pl.DataFrame) -> str:
    if is_local(source):
        return fingerprint_path(local_path(source))
    buffer = io.BytesIO()
    table.write_ipc(buffer)
    return fingerprint(buffer.getvalue())


def _filter(source: _Source, config: PrepareConfig) -> tuple[pl.DataFrame, dict[str, int]]:
    """Interactions that stay, in order, and how many went at each step."""
    rated = source.interactions
    if config.min_rating is not None:
        rated = rated.filter(pl.col("rating") >= config.min_rating)
        if rated.is_empty():
            raise CEMGError(f"{config.interactions}: no interaction is rated {config.min_rating:g} or higher; lower min_rating")

    is_known = rated["item_id"].is_in(source.items["item_id"].implode())
    known = rated.filter(is_known)
    if len(known) < len(rated):
        first = rated.filter(~is_known).row(0, named=True)
        logger.warning(
            "%s: skipped %d of %d interactions whose item is not in the items table (first: row %d, column item_id: %r)",
            *(config.interactions, len(rated) - len(known), len(rated), first["row"], first["item_id"]),
        )
    if known.is_empty():
        raise CEMGError(f"{config.interactions}: no item_id is in {config.items}; check that both tables use the same identifiers")

    distinct = filtering.drop_duplicates(known)
    kept = filtering.apply_k_core(distinct, config.min_interactions)
    if kept.is_empty():
        raise CEMGError(
            f"{config.interactions}: no user and item is left with min_interactions: {config.min_interactions} "
            f"(k-core over {len(distinct):,} interactions); lower it, 0 keeps all"
        )
    removed = {
        "below_min_rating": len(source.interactions) - len(rated),
        "unknown_item_interactions": len(rated) - len(known),
        "duplicates_removed": len(known) - len(distinct),
        "removed_by_k_core": len(distinct) - len(kept),
    }
    return filtering.order_histories(kept), removed


def _sequences(interactions: pl.DataFrame, items: pl.DataFrame) -> tuple[Ragged, pl.Series]:
    """Item indices of each user, and the users' ids, from interactions in their final order."""
    index = items.select("item_id", index=pl.int_range(pl.len(), dtype=pl.Int64))
    indices = interactions.select("item_id").join(index, on="item_id", how="left", maintain_order="left")["index"]
    runs = interactions["user_id"].rle().struct.unnest()
    return Ragged.from_lengths(indices.to_numpy(), runs["len"].to_numpy()), runs["value"]


def _time_cuts(raw: pl.DataFrame, interactions: pl.DataFrame, config: PrepareConfig) -> TimeCuts:
    """The instants of a split by time of the interactions that stayed; refuses timestamps that are positions in a history."""
    time = pl.col("timestamp")
    counts_on = time.min().is_in([0, 1]) & (time.max() - time.min() + 1 == time.n_unique())
    if raw.group_by("user_id").agg(counts_on=counts_on)["counts_on"].all():
        raise CEMGError(
            f"{config.interactions}: column timestamp: every user's are 0, 1, 2, …, positions in a history and not times, so users have no "
            f"timeline in common; use split: leave_one_out, or give a column with real times"
        )
    return time_cuts(interactions["timestamp"].to_numpy(), config.time_quantiles)


def _report(statistics: Statistics, items: pl.DataFrame, outcome: pl.DataFrame) -> None:
    logger.info("prepared\n%s", statistics.table())
    if statistics.unreadable_images:
        first = items.filter(outcome["unreadable"]).row(0, named=True)
        logger.warning(
            "%d images could not be read and are null (first: item %r, %s)",
            *(statistics.unreadable_images, first["item_id"], first["image_file"]),
        )
    if statistics.items_without_content:
        first_id = items.filter(~schema.has_text(items) & ~outcome["has_image"])["item_id"][0]
        logger.warning("%d items have neither text nor image and are kept (first: %r)", statistics.items_without_content, first_id)
    if not statistics.evaluated_users:
        logger.warning("no user has %d interactions: there are no validation and test cases", MIN_INTERACTIONS)
