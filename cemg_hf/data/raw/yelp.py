"""The Yelp academic dataset: `yelp_academic_dataset_review.json` and `yelp_academic_dataset_business.json`.

Yelp replaces the dataset from time to time, and reviews disappear: the counts of a published build come out only from the files it was
made of. S3-Rec and P5 take the reviews from 2019-01-01 to 2019-12-31 and their 5-core. Photos are a download of their own, without URLs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .tables import RawFormat, flat, text


def _fields(record: Mapping[str, Any]) -> dict[str, Any]:
    categories = record.get("categories")
    return {
        "title": text(record.get("name")),
        "brand": None,
        "categories": flat(categories.split(",") if isinstance(categories, str) else categories),  # older releases have lists
        "description": None,
        "image_url": None,
    }


YELP = RawFormat(
    name="yelp", user="user_id", item="business_id", rating="stars", time="date", unit="date", fields=_fields, has_images=False
)
