"""The dataset card: README.md whose front matter makes `load_dataset` open the folder and the Hub show it."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

import yaml

from .splits import TimeCuts
from .statistics import Statistics

# Identifiers the Hub accepts in `license` (hub-docs, repositories-licenses.md); anything else is "other" with a name.
HUB_LICENSES = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0 bigscience-openrail-m bsd bsd-2-clause
    bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
    cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0
    etalab-2.0 eupl-1.1 gemma gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl
    odc-by ofl-1.1 openrail openrail++ osl-3.0 pddl postgresql unknown unlicense wtfpl zlib other
    """.split()  # noqa: SIM905 -- a list of seventy quoted names would fill the page
)
SIZE_CATEGORIES = (
    "n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M",
    "100M<n<1B", "1B<n<10B", "10B<n<100B", "100B<n<1T", "n>1T",
)  # fmt: skip
"""What `size_categories` may be: each bound is ten times the one before, the first a thousand."""

_BODY = """# {name}

Interactions and item content for sequential recommendation, prepared by `cemg prepare` of the Python package cemg_hf.

{statistics}

Of {items:,} items {with_text:,} have text, {with_image:,} have an image, {without:,} have neither.
{preparation}

## Use

```python
from datasets import load_dataset

interactions = load_dataset("{path}", "interactions", split="train")
items = load_dataset("{path}", "items", split="train")
test = load_dataset("{path}", "splits", split="test")
```

## Configurations

- `interactions`: user_id, item_id (string), timestamp (int64){rating_column}. Users in order of first appearance, each user's rows by
  (timestamp, order in the source); rows of one timestamp are never re-sorted.
- `items`: item_id, title, brand, categories (list), description, image. All but item_id may be null. The row number is the item's index.
- `splits`: user_id, history (list of item_id, chronological), target (item_id). {split}

## Licence

{license}
"""


_LEAVE_ONE_OUT = """Leave-one-out: a user's last item is the `test` target,
  the one before it the `validation` target; the `test` history contains the validation item; `train` is what is left, with its last item
  as target. Users with fewer than three interactions are in `train` only."""
_BY_TIME = """Split by time: `train` is what
  happened before timestamp {validation_from}, with its last item as target; the `validation` target is a user's first interaction from then
  on and before {test_from}, the `test` target the first one from {test_from} on, each with all that the user did before as history
  (empty for a new user)."""


def dataset_card(
    statistics: Statistics,
    license_name: str,
    min_interactions: int,
    min_rating: float | None,
    has_rating: bool,
    cuts: TimeCuts | None = None,
) -> str:
    """README.md of a dataset folder: YAML front matter and a body with the statistics and the schema; `cuts` None: leave-one-out."""
    cells = statistics.row()
    table = [f"| {' | '.join(cells)} |", f"|{'|'.join(['---'] + ['---:'] * (len(cells) - 1))}|", f"| {' | '.join(cells.values())} |"]
    body = _BODY.format(
        name=statistics.name,
        path="path/to/this/folder",
        statistics="\n".join(table),
        items=statistics.items,
        with_text=statistics.items_with_text,
        with_image=statistics.items_with_image,
        without=statistics.items_without_content,
        preparation=preparation_text(statistics, min_interactions, min_rating),
        rating_column=", rating (float64)" if has_rating else "",
        split=split_text(cuts),
        license=_license_text(license_name),
    )
    return f"---\n{yaml.safe_dump(front_matter(statistics, license_name), sort_keys=False, allow_unicode=True)}---\n\n{body}"


def preparation_text(statistics: Statistics, min_interactions: int, min_rating: float | None) -> str:
    """What preparation asked of users and items, and what it removed."""
    k_core = f"Every user and item has at least {min_interactions} interactions." if min_interactions > 1 else "No k-core was applied."
    rating = f"{statistics.below_min_rating:,} rated below {min_rating:g} or not at all, " if min_rating is not None else ""
    return (
        f"{k_core} Removed on the way: {statistics.duplicates_removed:,} exact duplicates (same user, item and timestamp), "
        f"{statistics.unknown_item_interactions:,} interactions with an item that is\nnot in the catalogue, {rating}"
        f"{statistics.removed_by_k_core:,} interactions of the k-core. {statistics.unreadable_images:,} images could not be read and are "
        "null."
    )


def split_text(cuts: TimeCuts | None) -> str:
    """How the cases of `splits` were made; `cuts` None: leave-one-out."""
    return _LEAVE_ONE_OUT if cuts is None else _BY_TIME.format(**asdict(cuts))


def front_matter(statistics: Statistics, license_name: str) -> dict[str, Any]:
    """The card's metadata as the Hub documents it for data sets."""
    return {
        "pretty_name": statistics.name,
        **license_fields(license_name, statistics.name),
        "size_categories": [size_category(statistics.interactions)],
        "tags": ["recommendation", "sequential-recommendation", *(["multimodal"] if statistics.items_with_image else []), "cemg"],
        "configs": [
            {"config_name": "interactions", "data_files": "interactions.parquet", "default": True},
            {"config_name": "items", "data_files": "items.parquet"},
            {
                "config_name": "splits",
                "data_files": [{"split": split, "path": f"splits/{split}.parquet"} for split in ("train", "validation", "test")],
            },
        ],
    }


def size_category(rows: int) -> str:
    """The Hub's category of a number of rows."""
    return SIZE_CATEGORIES[sum(rows >= 10**power for power in range(3, 13))]


def license_fields(license_name: str, data: str) -> dict[str, str]:
    """`license` as the Hub knows it; any other is "other" with a name, of its own or of the data set `data`."""
    identifier = license_name.strip().lower()
    if identifier in HUB_LICENSES - {"other"}:
        return {"license": identifier}
    own = f"{data.lower()}-terms" if identifier == "other" else identifier
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", own).strip("-") or "custom"}


def _license_text(license_name: str) -> str:
    if license_name.strip().lower() == "unknown":
        return "Unknown. Do not redistribute the items' texts and images before it is known."
    return f"{license_name}."
