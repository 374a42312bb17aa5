"""Small data sets in exactly the files in which the large ones are published."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

DAY = 86_400
FIRST_DAY = 1_388_534_400
"""2014-01-01, 00:00 UTC."""
IDS = [f"B00{number:07d}" for number in range(8)]
USERS = [f"A{number:013d}" for number in range(7)]


def write_lines(path: Path, lines: Iterable[str]) -> Path:
    """A text file, compressed where its name ends in .gz."""
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def visits() -> list[tuple[str, str, int]]:
    """User, item, day. A 5-core of six users and six items; a user, an item and a second item that hang on it and go.

    Users write several reviews on one day, in an order that is not that of the item ids.
    """
    dense = [(user, IDS[(5 * place + row) % 6], place // 3) for row, user in enumerate(USERS[:6]) for place in range(6)]
    return [*dense, (USERS[6], IDS[0], 5), (USERS[6], IDS[6], 5), (USERS[0], IDS[6], 9), (USERS[1], IDS[7], 9)]


def reviews_2014(extra: Iterable[tuple[str, str, int]] = ()) -> list[str]:
    """Lines of `reviews_Beauty_5.json`."""
    return [
        json.dumps(
            {
                "reviewerID": user,
                "asin": item,
                "reviewerName": 'A. "Quoted" Name',
                "helpful": [0, 1],
                "reviewText": "Line one.\nLine two: it's {fine}.",
                "overall": 4.0,
                "summary": "ü",
                "unixReviewTime": FIRST_DAY + day * DAY,
                "reviewTime": "01 1, 2014",
            }
        )
        for user, item, day in [*visits(), *extra]
    ]


def metadata_2014() -> list[str]:
    """Lines of `meta_Beauty.json`: printed Python dictionaries. The fourth item has no entry, the third little in it."""
    full: dict[str, Any] = {
        "asin": IDS[0],
        "title": "It's a \"Brush\", 5'",
        "price": 12.99,
        "imUrl": "http://ecx.images-amazon.com/images/I/41.jpg",
        "related": {"also_bought": IDS[1:4]},
        "salesRank": {"Beauty": 7},
        "brand": "Ünder",
        "categories": [["Beauty", "Tools"], ["Beauty", "Hair Care", "Tools"]],
        "description": "Soft.\n  Very\tsoft: true, false & null.",
    }
    placeholder = "http://g-ecx.images-amazon.com/images/G/01/x-site/icons/no-img-sm._CB192198896_.gif"
    return [
        repr(full),
        repr({"asin": IDS[1], "title": "Plain", "imUrl": placeholder, "categories": [["Beauty"]], "brand": ""}),
        repr({"asin": IDS[2], "categories": [[]]}),
        *(repr({**full, "asin": item, "title": f"No. {item}"}) for item in IDS[4:]),
        repr({"asin": "B99", "title": "Nobody wrote about it"}),
    ]


def reviews_2023(times: Iterable[tuple[str, str, int]]) -> list[str]:
    """Lines of `All_Beauty.jsonl` from user, item and milliseconds."""
    return [
        json.dumps(
            {
                "rating": 5.0,
                "title": "Such a lovely scent",
                "text": "…<br />",
                "images": [],
                "asin": f"{item}-variant",
                "parent_asin": item,
                "user_id": user,
                "timestamp": milliseconds,
                "helpful_vote": 0,
                "verified_purchase": True,
            }
        )
        for user, item, milliseconds in times
    ]


def metadata_2023(images: Any, **changes: Any) -> dict[str, Any]:
    """A record of `meta_All_Beauty.jsonl`."""
    return {
        "main_category": "All Beauty",
        "title": "Howard LC0008 Leather Conditioner",
        "average_rating": 4.8,
        "rating_number": 10,
        "features": ["Soft", "Red"],
        "description": [],
        "price": None,
        "images": images,
        "videos": [],
        "store": "Howard Products",
        "categories": [],
        "details": {"Package Dimensions": "7.1 x 5.5", "UPC": "617390882781"},
        "parent_asin": IDS[0],
        "bought_together": None,
        **changes,
    }
