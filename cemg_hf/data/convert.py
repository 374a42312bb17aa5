"""`convert`: a data set in the files in which it is published in, the two tables that `prepare` reads out."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import polars as pl

from ..artefacts import Manifest, fingerprint_path, is_current, one_writer, read_manifest, write_folder, write_json
from ..errors import CEMGError
from ..settings import expand_path
from . import filtering, raw, schema
from .dataset import INTERACTIONS_FILE, ITEMS_FILE
from .download import REPORT_FILE, DownloadConfig, download_images, summary
from .splits import MIN_INTERACTIONS
from .statistics import STATISTICS_FILE, Statistics

logger = logging.getLogger(__name__)

MissingImages = Literal["mask", "drop-items", "error"]


class Counts(NamedTuple):
    """Size of a data set."""

    users: int
    items: int
    interactions: int


PUBLISHED: Mapping[str, Counts] = {
    "beauty": Counts(22_363, 12_101, 198_502),
    "sports": Counts(35_598, 18_357, 296_337),
    "toys": Counts(19_412, 11_924, 167_597),
    "yelp": Counts(30_431, 20_033, 316_354),
}
"""5-cores that papers report: Amazon 2014 Beauty, Sports and Outdoors, Toys and Games; Yelp, the reviews of 2019."""

SECONDS_PER_DAY = 86_400

SAME_TIME = (
    "{ties:,} of {interactions:,} interactions ({share:.0%}) share user and timestamp with another. They keep the order of the file; "
    "the order in which published builds list them cannot be recovered from raw files: metrics come near published ones, not equal."
)


@dataclass(frozen=True)
class ConvertConfig:
    """Which files to read, and what to keep of them."""

    format: str = field(metadata={"help": "amazon-2014, amazon-2018, amazon-2023 or yelp."})
    reviews: str = field(metadata={"help": "File of reviews, or of ratings only, as published (plain or .gz)."})
    metadata: str | None = field(default=None, metadata={"help": "File of the items' metadata; none: identifiers only."})
    min_interactions: int = field(default=5, metadata={"help": "k of the iterative k-core on users and items; 0: none."})
    from_date: str | None = field(default=None, metadata={"help": "Keep reviews from this day on, such as 2019-01-01 (UTC)."})
    to_date: str | None = field(default=None, metadata={"help": "Keep reviews to this day, which is included."})
    expect: str | None = field(default=None, metadata={"help": "Compare the counts with published ones: beauty, sports, toys or yelp."})
    images: str | None = field(default=None, metadata={"help": "Folder to download the items' pictures into; none: no download."})
    missing_images: MissingImages = field(
        default="mask", metadata={"help": "Items without a picture: mask keeps them, drop-items removes them, error stops."}
    )

    def __post_init__(self) -> None:
        if self.format not in raw.FORMATS:
            raise CEMGError(f"{self.format}: no such format; the formats are {', '.join(raw.FORMATS)}")
        if self.min_interactions < 0:
            raise CEMGError(f"min_interactions: {self.min_interactions} is negative; give 0 (no k-core) or more")
        if self.expect is not None and self.expect not in PUBLISHED:
            raise CEMGError(f"expect: no published counts of {self.expect!r} are known; give one of {', '.join(PUBLISHED)}")
        if self.missing_images not in get_args(MissingImages):
            raise CEMGError(f"missing_images: {self.missing_images!r} is unknown; give {', '.join(get_args(MissingImages))}")
        start, end = _day(self.from_date, "from_date"), _day(self.to_date, "to_date")
        if start is not None and end is not None and end < start:
            raise CEMGError(f"to_date: {self.to_date} is before from_date ({self.from_date}); exchange them")
        if self.images is not None and not raw.FORMATS[self.format].has_images:
            raise CEMGError(f"images: {self.format} names no URLs of pictures; give your folder of pictures to `cemg run --images` instead")
        if self.images is not None and self.metadata is None:
            raise CEMGError("images: the URLs of pictures are in the metadata; give that file too, or leave images out")


@one_writer
def convert(config: ConvertConfig, output: str | Path, download: DownloadConfig | None = None) -> str:
    """Read published files, reduce them to their k-core and write the folder `output`; skipped when the folder is current.

    The folder: `interactions.parquet` and `items.parquet`, as `prepare` reads them, `statistics.json` and the manifest. `prepare` with the
    same min_interactions keeps all of it. Steps, in this order: dates, order by (user's first appearance, time, position in the file),
    exact duplicates, k-core, pictures, and where items without one are dropped the k-core again. An item without metadata keeps a row with
    its identifier, so that the counts are those of the reviews. With `images` nothing is skipped: what failed is asked for again.

    A user's interactions of one timestamp (2014 and 2018: of one day) keep the order of the file. The order in which published builds list
    them cannot be recovered from raw files.

    Returns:
        What to tell the user: the counts before and after, what was left out, and how they compare with published ones.

    Raises:
        CEMGError: bad input (the message names file and line), nothing is left, or pictures are missing and missing_images is "error".
    """
    output, started = Path(output), time.perf_counter()
    paths = {
        name: _expanded(place, name)
        for name, place in (("reviews", config.reviews), ("metadata", config.metadata), ("images", config.images))
    }
    reviews, metadata, pictures = paths["reviews"], paths["metadata"], paths["images"]
    assert reviews is not None
    _check_output(output, pictures)
    for path in (reviews, metadata):
        if path is not None and not path.is_file():
            raise CEMGError(f"{path}: no such file; give the file as it is published (plain or .gz)")
    download = download or DownloadConfig()
    settings = {key: value for key, value in asdict(config).items() if key not in (*paths, "expect")}
    settings |= {"images": None if pictures is None else {"longest_side": download.longest_side}}
    inputs = {name: fingerprint_path(path) for name, path in (("reviews", reviews), ("metadata", metadata)) if path is not None}
    manifest = Manifest("convert", settings, inputs, seed=0)
    if pictures is None and is_current(output, manifest):
        logger.info("%s: current, nothing to convert", output)
        return _message(config, json.loads((output / STATISTICS_FILE).read_text()))

    source = raw.FORMATS[config.format]
    read, outside = raw.read_interactions(source, reviews, _start(config.from_date), _start(config.to_date, days=1))
    # Duplicates are judged in seconds, as `prepare` will judge them; milliseconds have done their work in the order.
    ordered = filtering.order_histories(read).with_columns(instant=pl.col("timestamp"))
    distinct = filtering.drop_duplicates(ordered)
    kept = _core(distinct, config)
    items, without_metadata, repeated = _items(source, metadata, kept)
    complete, pictured = kept, None
    if pictures is not None:
        report = download_images(items, pictures, download)
        pictured = summary(report)
        place = os.path.relpath(pictures.resolve(), output.resolve())
        items = items.with_columns(image=report.select(pl.concat_str(pl.lit(f"{place}/"), "file")).to_series())
        kept, items = _without_missing(kept, items, report, config)

    has_image = items["image"].is_not_null() if pictures is not None else pl.repeat(False, len(items), eager=True)
    statistics = Statistics(
        name=config.format,
        users=kept["user_id"].n_unique(),
        items=len(items),
        interactions=len(kept),
        evaluated_users=int((kept.group_by("user_id").len()["len"] >= MIN_INTERACTIONS).sum()),
        items_with_text=int(schema.has_text(items).sum()),
        items_with_image=int(has_image.sum()),
        items_without_content=int((~schema.has_text(items) & ~has_image).sum()),
        unreadable_images=pictured["invalid"] if pictured is not None else 0,
        duplicates_removed=len(ordered) - len(distinct),
        unknown_item_interactions=0,
        below_min_rating=0,
        removed_by_k_core=len(distinct) - len(complete),
    )
    more = {
        "before": Counts(read["user_id"].n_unique(), read["item_id"].n_unique(), len(read))._asdict(),
        "outside_dates": outside,
        "items_without_metadata": without_metadata,
        "repeated_metadata": repeated,
        "same_user_and_timestamp": int(kept.select(pl.len().over("user_id", "timestamp") > 1).to_series().sum()),
        "removed_without_image": len(complete) - len(kept),
        "pictures": pictured,
    }
    with write_folder(output, manifest, started) as folder:
        kept.select(schema.INTERACTION_COLUMNS).write_parquet(folder / INTERACTIONS_FILE)
        items.write_parquet(folder / ITEMS_FILE)
        write_json(folder / STATISTICS_FILE, statistics.as_dict() | more)
    return _message(config, statistics.as_dict() | more)


def _check_output(output: Path, pictures: Path | None) -> None:
    manifest = read_manifest(output)
    if output.exists() and not output.is_dir():
        raise CEMGError(f"{output}: is a file; name a new or empty folder")
    if output.is_dir() and any(output.iterdir()) and (manifest is None or manifest["stage"] != "convert"):
        raise CEMGError(f"{output}: holds files that are not a converted data set and would be lost; choose an empty or new folder")
    if pictures is not None and pictures.resolve().is_relative_to(output.resolve()):
        raise CEMGError(f"images: {pictures} is inside the output, which is replaced as a whole; name a folder beside it: {output}-images")


def _core(interactions: pl.DataFrame, config: ConvertConfig) -> pl.DataFrame:
    kept = filtering.apply_k_core(interactions, config.min_interactions)
    if kept.is_empty():
        raise CEMGError(
            f"{config.reviews}: no user and item is left with min_interactions: {config.min_interactions} "
            f"(k-core over {len(interactions):,} interactions); lower it, 0 keeps all"
        )
    return kept


def _items(source: raw.RawFormat, metadata: Path | None, interactions: pl.DataFrame) -> tuple[pl.DataFrame, int, int]:
    """One row per item of the interactions, in order of first appearance; how many have no metadata; how many repeats were left out."""
    ids = interactions.select(pl.col("item_id").unique(maintain_order=True))
    found, repeated = pl.DataFrame(schema=raw.ITEM_SCHEMA), 0
    if metadata is not None:
        found, repeated = raw.read_items(source, metadata, ids["item_id"].to_list())
        if found.is_empty():
            raise CEMGError(f"{metadata}: describes none of the {len(ids):,} items of the reviews; give the metadata of the same category")
    return ids.join(found, on="item_id", how="left", maintain_order="left"), len(ids) - len(found), repeated


def _without_missing(
    interactions: pl.DataFrame, items: pl.DataFrame, report: pl.DataFrame, config: ConvertConfig
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Both tables as the policy for missing pictures wants them."""
    missing = report.filter(pl.col("file").is_null())
    if config.missing_images == "mask" or missing.is_empty():
        return interactions, items
    if config.missing_images == "error":
        first = missing.row(0, named=True)
        raise CEMGError(
            f"{config.images}: {len(missing):,} of {len(report):,} items have no picture (first: {first['item_id']!r}, {first['reason']}; "
            f"all are in {REPORT_FILE} there); run again for those that failed, or choose missing_images: mask or drop-items"
        )
    pictured = interactions.join(missing, on="item_id", how="anti", maintain_order="left")
    kept = _core(pictured, config)
    return kept, items.join(kept.select("item_id").unique(), on="item_id", how="semi", maintain_order="left")


def _message(config: ConvertConfig, figures: Mapping[str, Any]) -> str:
    """The counts as a table, and a line for everything that is not as one might think."""
    kept = Counts(**{name: figures[name] for name in Counts._fields})
    core = f"{config.min_interactions}-core" if config.min_interactions > 1 else "kept"
    rows = {"as read": Counts(**figures["before"]), core: kept}
    if config.expect is not None:
        rows[f"published ({config.expect})"] = PUBLISHED[config.expect]
    width = max(map(len, rows))
    lines = [f"{'':{width}}  {'users':>12}  {'items':>12}  {'interactions':>12}"]
    lines += [f"{name:{width}}  " + "  ".join(f"{count:>12,}" for count in counts) for name, counts in rows.items()]
    if config.expect is not None:
        lines.append(_comparison(config.expect, kept))
    told = {
        "outside_dates": "interactions lie outside the dates",
        "duplicates_removed": "exact duplicates of (user, item, timestamp) removed",
        "items_without_metadata": "items have no metadata; they stay",
        "repeated_metadata": "repeated metadata records left out, the first of each stays",
        "removed_without_image": "interactions removed with the items without picture",
    }
    lines += [f"{figures[name]:,} {text}" for name, text in told.items() if figures[name]]
    if figures["pictures"] is not None:
        lines.append("pictures: " + ", ".join(f"{count:,} {status}" for status, count in figures["pictures"].items()))
    ties = figures["same_user_and_timestamp"]
    if ties:
        lines.append(SAME_TIME.format(ties=ties, interactions=kept.interactions, share=ties / kept.interactions))
    return "\n".join(lines)


def _comparison(name: str, kept: Counts) -> str:
    expected = PUBLISHED[name]
    if kept == expected:
        return f"the counts are the published ones of {name}"
    differences = ", ".join(
        f"{ours - published:+,} {what}" for what, ours, published in zip(Counts._fields, kept, expected, strict=True) if ours != published
    )
    return f"THE COUNTS DIFFER from the published ones of {name}: {differences}; check category, year, dates and min_interactions"


def _expanded(place: str | None, name: str) -> Path | None:
    return None if place is None else Path(expand_path(place, name))


def _day(text: str | None, name: str) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise CEMGError(f"{name}: {text!r} is not a day; write it as 2019-01-31") from error


def _start(text: str | None, days: int = 0) -> int | None:
    """Unix seconds at which a day begins, or the one `days` after it."""
    day = _day(text, "date")
    return None if day is None else int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) + days * SECONDS_PER_DAY
