"""The dataset card as it is published: schema, statistics, provenance and terms, every figure from the folder's own files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from datasets import Features

from ..artefacts import read_manifest
from ..data.card import front_matter, preparation_text, split_text
from ..data.dataset import INTERACTIONS_FILE, ITEMS_FILE, PreparedDataset
from ..data.schema import TEXT_COLUMNS
from ..data.statistics import Statistics
from ..errors import CEMGError
from .metadata import check_dataset_card, check_eval_yaml
from .provenance import provenance

SPLITS = ("train", "validation", "test")
CONFIGS = {"interactions": (INTERACTIONS_FILE,), "items": (ITEMS_FILE,), "splits": tuple(f"splits/{split}.parquet" for split in SPLITS)}
EVAL_YAML = "eval.yaml"
TASKS = {
    "hr_at_10": ("test", "hr@10"),
    "ndcg_at_10": ("test", "ndcg@10"),
    "hr_at_10_excluding_history": ("test_excluding_history", "hr@10"),
    "ndcg_at_10_excluding_history": ("test_excluding_history", "ndcg@10"),
}
"""The tasks of the benchmark that a published data set defines, each one figure: id -> (slice, metric) of a results file."""

_MEANINGS = {
    "user_id": "user",
    "item_id": "item; its row in `items` is its index in the models",
    "timestamp": "when: Unix seconds, or the position in the user's history",
    "rating": "the user's rating",
    "title": "name of the item",
    "brand": "maker",
    "categories": "categories, general to special",
    "description": "text about the item",
    "image": "picture of the item",
    "history": "items before the target, oldest first",
    "target": "the item to be predicted",
}
_BODY = """# {title}

Interactions and item content for sequential recommendation: predict the next item of a user. Prepared by `cemg prepare` of the Python
package cemg_hf.

{statistics}

## Use

```python
from datasets import load_dataset

interactions = load_dataset("{repo}", "interactions", split="train")
items = load_dataset("{repo}", "items", split="train")
test = load_dataset("{repo}", "splits", split="test")
```

## Schema

{schema}

## Splits

{split}

{cases}

## Provenance

{origin}{url}

## Preprocessing

{preparation}
Of {items:,} items {with_text:,} have text, {with_image:,} have a picture, {without:,} have neither.{withheld}
Users stand in order of first appearance, a user's rows by (timestamp, order in the source); rows of one timestamp are never re-sorted.

## Limits and bias

{core}What people bought is not what they would have liked: nobody chooses what was never shown. Nothing is recorded about who the users
are.

## Licence

`{license}`. {terms}
"""


def dataset_card(folder: str | Path, *, repo: str | None = None, items: str | Path | None = None) -> str:
    """README.md of a dataset folder as it is published, checked against the Hub's schema.

    Args:
        folder: what `cemg prepare` wrote, or a copy of it with columns left out; the schema is that of the files found there.
        repo: what the example loads (default: the folder's name).
        items: the items table that is published in the place of the folder's own, such as one without texts.

    Raises:
        CEMGError: `folder` is no prepared data set, or the metadata would not be valid.
    """
    folder = Path(folder)
    statistics = Statistics.load(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise CEMGError(f"{folder}: has no manifest.json that says how it was prepared; make it again with `cemg prepare`")
    settings = manifest["settings"]
    known = provenance(statistics.name)
    columns = {config: _columns([folder / file for file in files]) for config, files in CONFIGS.items()}
    if items is not None:
        columns["items"] = _columns([Path(items)])
    filled = {name for name, _, nulls in columns["items"] if nulls < statistics.items}
    metadata = front_matter(statistics, settings["license"])
    if "image" not in filled:
        metadata["tags"] = [tag for tag in metadata["tags"] if tag != "multimodal"]
    if known.terms_url is not None and metadata["license"] == "other":
        metadata["license_link"] = known.terms_url
    if known.language is not None and filled & set(TEXT_COLUMNS):
        metadata = {"language": [known.language], **metadata}
    cells = statistics.row()
    body = _BODY.format(
        title=known.title,
        repo=repo or folder.resolve().name,
        statistics="\n".join(_table(list(cells), [list(cells.values())])),
        schema="\n\n".join(_schema(config, columns[config]) for config in CONFIGS),
        split=" ".join(split_text(PreparedDataset.load(folder).cuts).split()),
        cases="\n".join(_table(["Split", "Cases"], [[split, f"{_rows(folder / f'splits/{split}.parquet'):,}"] for split in SPLITS])),
        origin=known.origin,
        url=f" Published at {known.url}." if known.url else "",
        preparation=preparation_text(statistics, settings["min_interactions"], settings["min_rating"]),
        items=statistics.items,
        with_text=statistics.items_with_text,
        with_image=statistics.items_with_image,
        without=statistics.items_without_content,
        withheld=_withheld(statistics, filled),
        core="Users and items with fewer interactions are not in it. " if settings["min_interactions"] > 1 else "",
        license=settings["license"],
        terms=known.terms,
    )
    card = f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n\n{body}"
    check_dataset_card(card, [str(path.relative_to(folder).as_posix()) for path in folder.rglob("*") if path.is_file()])
    return card


def benchmark_yaml(folder: str | Path) -> str:
    """`eval.yaml` of a dataset repository, by which the Hub's leaderboard knows its tasks (`TASKS`)."""
    statistics = Statistics.load(folder)
    content = {
        "name": provenance(statistics.name).title,
        "description": f"Next-item recommendation: rank all {statistics.items:,} items for {statistics.evaluated_users:,} users after "
        "their history; hit rate and NDCG at 10, with and without the items of the history.",
        "evaluation_framework": "cemg-hf",
        "tasks": [{"id": task, "config": "splits", "split": "test"} for task in TASKS],
    }
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    check_eval_yaml(text, CONFIGS)
    return text


def _columns(files: list[Path]) -> list[tuple[str, str, int]]:
    """(name, type, nulls) of the columns of a configuration, read slice by slice: pictures may be gigabytes."""
    nulls: Counter[str] = Counter()
    for path in files:
        file = pq.ParquetFile(path)
        for batch in file.iter_batches(batch_size=512):
            nulls.update({column: batch.column(column).null_count for column in batch.schema.names})
    return [(name, _type(feature), nulls[name]) for name, feature in Features.from_arrow_schema(file.schema_arrow).items()]


def _withheld(statistics: Statistics, filled: set[str]) -> str:
    """What the source has and this copy has not."""
    kinds = [
        kind
        for kind, count, columns in (
            ("texts", statistics.items_with_text, set(TEXT_COLUMNS)),
            ("pictures", statistics.items_with_image, {"image"}),
        )
        if count and not filled & columns
    ]
    return f" The {' and '.join(kinds)} are not published: their terms do not allow it." if kinds else ""


def _type(feature: Any) -> str:
    """ "string", "list of string" or "Image"."""
    kind = type(feature).__name__
    if kind == "Value":
        return str(feature.dtype)
    return f"list of {_type(feature.feature)}" if kind == "List" else kind


def _schema(config: str, columns: list[tuple[str, str, int]]) -> str:
    rows = [[f"`{name}`", kind, "–" if not nulls else f"{nulls:,}", _MEANINGS.get(name, "")] for name, kind, nulls in columns]
    return f"`{config}`\n\n" + "\n".join(_table(["Column", "Type", "Null in rows", "Meaning"], rows))


def _rows(path: Path) -> int:
    return pq.read_metadata(path).num_rows


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(header)} |", "|" + "---|" * len(header), *(f"| {' | '.join(row)} |" for row in rows)]
