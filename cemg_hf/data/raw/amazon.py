"""Amazon reviews as published in 2014 (snap.stanford.edu), 2018 (nijianmo.github.io) and 2023 (amazon-reviews-2023.github.io).

2014: `reviews_Beauty_5.json.gz` or `ratings_Beauty.csv`, with `meta_Beauty.json.gz`, whose lines are printed Python dictionaries.
2018: `All_Beauty_5.json.gz` or `All_Beauty.csv`, with `meta_All_Beauty.json.gz`.
2023: `All_Beauty.jsonl.gz` or `All_Beauty.csv`, with `meta_All_Beauty.jsonl.gz`; also as Parquet. An item is a parent_asin, that is all
variants of a product; times are in milliseconds.

Review times of 2014 and 2018 are days: a user's reviews of one day are ordered by the file, which is not the order of published builds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from .tables import RawFormat, flat, text

_PLACEHOLDER = "/no-img"
"""Part of the URL of the "no image available" icon that thousands of items of 2014 share."""
_SCRIPT = "getTime"
"""What the titles of 2018 hold that are a piece of the page's script."""
_BY = re.compile(r"^by\s*\n\s*")
"""How brands of 2018 begin that were cut out of the page."""


def _fields_2014(record: Mapping[str, Any]) -> dict[str, Any]:
    url = text(record.get("imUrl"))
    return {
        "title": text(record.get("title")),
        "brand": text(record.get("brand")),
        "categories": flat(record.get("categories")),
        "description": text(record.get("description")),
        "image_url": url if url is not None and _PLACEHOLDER not in url else None,
    }


def _fields_2018(record: Mapping[str, Any]) -> dict[str, Any]:
    title, brand = text(record.get("title")), record.get("brand")
    urls = [flat(record.get(name)) for name in ("imageURLHighRes", "imageURL", "image")]  # the latter two are thumbnails
    return {
        "title": title if title is not None and _SCRIPT not in title else None,
        "brand": text(_BY.sub("", brand.lstrip())) if isinstance(brand, str) else None,
        "categories": flat(record.get("category")),
        "description": text(record.get("description")),
        "image_url": next((found[0] for found in urls if found), None),
    }


def _fields_2023(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "title": text(record.get("title")),
        "brand": text(record.get("store")),
        "categories": flat(record.get("categories")) or flat(record.get("main_category")),  # All_Beauty has the latter only
        "description": text(record.get("description")) or text(record.get("features")),
        "image_url": _url_2023(record.get("images")),
    }


def _url_2023(images: Any) -> str | None:
    """The main picture, at about 500 pixels where there is that size; from a list of pictures, or from a list per size (`datasets`)."""
    if isinstance(images, dict):
        columns = [values if isinstance(values, list) else [] for values in images.values()]
        images = [dict(zip(images, values, strict=True)) for values in zip_longest(*columns)]
    if not isinstance(images, list):
        return None
    pictures = sorted((one for one in images if isinstance(one, dict)), key=lambda one: one.get("variant") != "MAIN")
    urls = (text(one.get(size)) for one in pictures for size in ("large", "hi_res", "thumb"))
    return next((url for url in urls if url is not None), None)


AMAZON_2014 = RawFormat(
    name="amazon-2014",
    user="reviewerID",
    item="asin",
    rating="overall",
    time="unixReviewTime",
    unit="seconds",
    fields=_fields_2014,
    csv=("reviewerID", "asin", "overall", "unixReviewTime"),
    python_literals=True,
)
AMAZON_2018 = RawFormat(
    name="amazon-2018",
    user="reviewerID",
    item="asin",
    rating="overall",
    time="unixReviewTime",
    unit="seconds",
    fields=_fields_2018,
    csv=("asin", "reviewerID", "overall", "unixReviewTime"),  # the item comes first here
)
AMAZON_2023 = RawFormat(
    name="amazon-2023",
    user="user_id",
    item="parent_asin",
    rating="rating",
    time="timestamp",
    unit="milliseconds",
    fields=_fields_2023,
    csv=("user_id", "parent_asin", "rating", "timestamp"),
    csv_header=True,
)
