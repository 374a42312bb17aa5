"""The tree of item codes as a page to browse: one HTML file with everything inside, pictures included; it asks the network for nothing."""

from __future__ import annotations

import base64
import html
import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from io import BytesIO
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl
from PIL import Image, features
from torch import Tensor

from ..artefacts import write_text
from ..errors import CEMGError
from ..features.pictures import decode_ahead, image_sources
from ..models.cemg.description_cemg import (
    CATEGORY_COLUMN,
    ID_COLUMN,
    LEAST_ITEMS,
    TEXT_COLUMNS,
    TITLE_COLUMN,
    CodeDescriber,
    DistinctiveTerm,
)

logger = logging.getLogger(__name__)

THUMBNAIL_SIDE = 96
"""Pixels: a thumbnail has the area of a square of this side, whatever its shape."""
WORDS_PER_BRANCH, CATEGORIES_PER_BRANCH = 8, 4
PICTURE_FORMAT = "WEBP" if features.check("webp") else "JPEG"
_QUALITY = 76
_PICTURES_PER_BATCH = 64
_PICTURE_WORKERS = 2
_ASPECTS = (0.6, 1.5)
"""Narrowest and widest frame (width / height) of the pictures on the page."""


@dataclass(frozen=True)
class CodeTreeReport:
    """What the page holds."""

    num_bytes: int = field(metadata={"help": "Size of the file."})
    num_items: int = field(metadata={"help": "Items of the catalogue; all are on the page."})
    num_branches: int = field(metadata={"help": "Described branches, those of two items or more."})
    num_pictures: int = field(metadata={"help": "Items shown with their picture."})
    num_unreadable: int = field(metadata={"help": "Pictures that could not be read; their items are shown by their title."})
    num_left_out: int = field(metadata={"help": "Pictures that did not fit into the size limit; likewise."})


def write_code_tree(
    path: str | Path,
    *,
    item_ids: Sequence[str],
    item_codes: Tensor,
    title: str,
    items: pl.DataFrame | None = None,
    image_base: Path | None = None,
    latent: Tensor | None = None,
    thumbnails_per_branch: int = 4,
    max_bytes: int = 24_000_000,
) -> CodeTreeReport:
    """Write the catalogue's code tree as one HTML file; what stood at `path` goes only when the new page is complete.

    Args:
        path: the file to write.
        item_ids: the catalogue, N ids.
        item_codes: (N, M) raw codes, unique rows.
        title: heading of the page.
        items: table with `item_id` and any of title, brand, categories, description and image, in any order; items that it lacks are
            shown by their id.
        image_base: folder that paths in the image column are relative to.
        latent: (N, D) reconstructed latents, Σ codebooks[codes]; they make the items that stand for a branch typical rather than first.
        thumbnails_per_branch: pictures in a branch's mosaic.
        max_bytes: limit of the file's size. Pictures fill what the texts leave, those of typical items first, upper levels first.

    Raises:
        CEMGError: sizes that do not agree, codes that repeat, an item table without usable ids, or texts alone beyond `max_bytes`.
    """
    if thumbnails_per_branch < 1:
        raise CEMGError(f"thumbnails_per_branch must be ≥ 1, got {thumbnails_per_branch}")
    table = _in_catalogue_order(items, item_ids)
    known = [name for name in (*TEXT_COLUMNS, CATEGORY_COLUMN) if name in table.columns]
    try:
        describer = CodeDescriber(item_ids, item_codes, latent, table.select(known).to_dict(as_series=False))
    except ValueError as error:
        raise CEMGError(str(error)) from error
    repeated = (describer.codes[1:] == describer.codes[:-1]).all(1)
    if bool(repeated.any()):
        first = int(describer.order[int(repeated.nonzero()[0, 0])])
        raise CEMGError(f"item_codes must be unique: the code of item {item_ids[first]!r} is another item's too; resolve collisions first")
    table = table[describer.order.numpy()]
    sources = image_sources(table, image_base)

    names = _Numbered()
    branches, shown = _branches(describer, names, np.array([source is not None for source in sources]), thumbnails_per_branch)
    content: dict[str, Any] = {
        "title": title,
        "levels": describer.num_levels,
        "thumbnails": thumbnails_per_branch,
        "ids": table[ID_COLUMN].to_list(),
        "titles": _column(table, TITLE_COLUMN),
        "brands": [names[brand] if brand else -1 for brand in _column(table, "brand")],
        "categories": [[names[entry] for entry in _as_list(entries) if entry] for entries in _column(table, CATEGORY_COLUMN)],
        "codes": describer.codes.flatten().tolist(),
        "branches": branches,
        "names": names.entries,
    }
    left = max_bytes - len(_page(title, content | {"mime": _mime(), "aspect": 0.123, "pictures": {}}).encode())
    if left < 0:
        raise CEMGError(f"max_bytes {max_bytes:,}: the texts of {len(item_ids):,} items alone need {max_bytes - left:,}; raise the limit")
    pictures, aspects, unreadable = _pictures(sources, shown, left)
    for row, reason in unreadable.items():
        logger.debug("item %s: picture left out, %s", content["ids"][row], reason)
    aspect = min(max(median(aspects), _ASPECTS[0]), _ASPECTS[1]) if aspects else 1.0
    page = _page(title, content | {"mime": _mime(), "aspect": round(aspect, 3), "pictures": pictures})
    write_text(path, page)
    with_source = sum(source is not None for source in sources)
    report = CodeTreeReport(
        num_bytes=len(page.encode()),
        num_items=len(item_ids),
        num_branches=len(branches),
        num_pictures=len(pictures),
        num_unreadable=len(unreadable),
        num_left_out=with_source - len(pictures) - len(unreadable),
    )
    logger.info("%s: %s", path, report)
    return report


def _in_catalogue_order(items: pl.DataFrame | None, item_ids: Sequence[str]) -> pl.DataFrame:
    """One row per item of the catalogue, in its order; nulls for items that the table lacks."""
    catalogue = pl.DataFrame({ID_COLUMN: list(item_ids)}, schema={ID_COLUMN: pl.String})
    if items is None:
        return catalogue
    if ID_COLUMN not in items.columns:
        raise CEMGError(f"items: no column item_id among {', '.join(items.columns) or 'none'}; rename the column of ids")
    rows = items.with_columns(pl.col(ID_COLUMN).cast(pl.String))
    repeated = rows.filter(pl.col(ID_COLUMN).is_duplicated())
    if len(repeated):
        raise CEMGError(f"items, column item_id: {repeated[ID_COLUMN][0]!r} occurs more than once; keep one row per item")
    missing = catalogue.join(rows, on=ID_COLUMN, how="anti").height
    if missing == len(catalogue):
        raise CEMGError(
            f"items: none of the catalogue's ids (e.g. {item_ids[0]!r}) is in the table; give the table the codes were made from"
        )
    if missing:
        logger.warning("%d of %d items are not in the item table and are shown by their id", missing, len(catalogue))
    return catalogue.join(rows, on=ID_COLUMN, how="left", maintain_order="left")


class _Numbered:
    """Numbers strings as they come, so that the page holds each once."""

    def __init__(self) -> None:
        self.entries: list[str] = []
        self._numbers: dict[str, int] = {}

    def __getitem__(self, entry: str) -> int:
        number = self._numbers.setdefault(entry, len(self.entries))
        if number == len(self.entries):
            self.entries.append(entry)
        return number


def _branches(
    describer: CodeDescriber, names: _Numbered, pictured: np.ndarray, thumbnails: int
) -> tuple[dict[str, list[list[int]]], list[int]]:
    """The branches of two items or more by their codes ("12/7"), and every position of `describer.order`, those shown first first.

    A branch is [typical positions, words, categories]; words are numbers of names, categories triples of number, percentage in the
    branch and percentage in the catalogue. Of the typical items those with a picture come first.
    """
    branches: dict[str, list[list[int]]] = {}
    shown: list[int] = []
    for level in range(1, describer.num_levels):
        starts, ends = describer.branches(level)
        described = ends - starts >= LEAST_ITEMS
        starts, ends = starts[described], ends[described]
        prefixes = describer.codes[starts, :level].tolist()
        near = describer.typical(starts, ends, 3 * thumbnails)
        typical = [sorted(positions, key=lambda position: not pictured[position])[:thumbnails] for positions in near]
        found = zip(
            prefixes,
            typical,
            describer.words(starts, ends, WORDS_PER_BRANCH),
            describer.categories(starts, ends, CATEGORIES_PER_BRANCH),
            describer.main_category(starts, ends),
            strict=True,
        )
        for prefix, positions, words, distinctive, main in found:
            shares = [number for term in distinctive or main for number in (names[term.name], *_percentages(term))]
            branches["/".join(map(str, prefix))] = [positions, [names[word.name] for word in words], shares]
        largest = (starts - ends).argsort(stable=True).tolist()
        # The most typical item of every branch, then the second of every branch, and so on.
        shown += [position for rank in zip_longest(*(typical[branch] for branch in largest)) for position in rank if position is not None]
    return branches, list(dict.fromkeys([*shown, *range(len(pictured))]))


def _percentages(term: DistinctiveTerm) -> tuple[int, int]:
    return round(100 * term.share), round(100 * term.catalogue_share)


def _column(table: pl.DataFrame, name: str) -> list[Any]:
    return table[name].to_list() if name in table.columns else [None] * table.height


def _as_list(entries: str | Iterable[str] | None) -> Iterable[str]:
    return [entries] if isinstance(entries, str) else entries or []


def _pictures(
    sources: Sequence[bytes | Path | None], order: Sequence[int], room: int
) -> tuple[dict[int, str], list[float], dict[int, str]]:
    """Thumbnails (base64) in the given order until the next one does not fit into `room` bytes, their width / height, and what failed."""
    rows = np.array([position for position in order if sources[position] is not None], dtype=np.int64)
    pictures: dict[int, str] = {}
    aspects: list[float] = []
    unreadable: dict[int, str] = {}
    for position, (encoded, aspect) in _thumbnails(sources, rows, unreadable):
        room -= len(encoded) + len(f'"{position}":"",')
        if room < 0:
            break
        pictures[position] = encoded
        aspects.append(aspect)
    return pictures, aspects, unreadable


def _thumbnails(
    sources: Sequence[bytes | Path | None], rows: np.ndarray, unreadable: dict[int, str]
) -> Iterator[tuple[int, tuple[str, float]]]:
    batches = np.split(rows, range(_PICTURES_PER_BATCH, len(rows), _PICTURES_PER_BATCH)) if len(rows) else []
    for decoded, made in decode_ahead(sources, batches, _thumbnail, _PICTURE_WORKERS, unreadable):
        yield from zip(decoded.tolist(), made, strict=True)


def _thumbnail(image: Image.Image) -> tuple[str, float]:
    """A small picture as base64, and its width / height."""
    scale = min(THUMBNAIL_SIDE / (image.width * image.height) ** 0.5, 2 * THUMBNAIL_SIDE / max(image.size), 1.0)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    small = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    buffer = BytesIO()
    small.save(buffer, PICTURE_FORMAT, quality=_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode(), small.width / small.height


def _mime() -> str:
    return f"image/{PICTURE_FORMAT.lower()}"


def _page(title: str, content: dict[str, Any]) -> str:
    """The template with title and data in place. Nothing in the data can end the script element that holds it."""
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        data = data.replace(character, f"\\u{ord(character):04x}")
    values = {"TITLE": html.escape(title), "DATA": data}
    template = files(__package__).joinpath("code_tree.html").read_text(encoding="utf-8")
    # In one pass: a product may well be called {{TITLE}}.
    return re.sub(r"\{\{(TITLE|DATA)\}\}", lambda match: values[match.group(1)], template)
