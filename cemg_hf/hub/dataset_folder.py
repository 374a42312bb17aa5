"""The dataset repository of a run: its prepared data set as it stands, or with the item texts and images taken out."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..artefacts import read_manifest, write_text
from ..data.dataset import INTERACTIONS_FILE, ITEMS_FILE
from ..errors import CEMGError
from .contents import Contents, folder_contents
from .dataset_card import EVAL_YAML, benchmark_yaml, dataset_card
from .licences import allows_redistribution, card_licences

ITEM_ID = "item_id"
CARD = "README.md"
_SLICE = 1 << 10  # rows at once of the question whether anything is there; a row may hold a picture


def dataset_contents(dataset: Path, scratch: Path, *, repo: str, item_texts: bool = True) -> Contents:
    """The files of the dataset repository: configurations `interactions`, `items` and `splits` as Parquet, the card and the tasks.

    Nothing is copied: what is made for the Hub (the card, `eval.yaml`, and an items table without texts) is written to `scratch`.

    Args:
        dataset: folder written by `cemg prepare`.
        scratch: an empty folder.
        repo: the dataset's repository.
        item_texts: False leaves only the ids of the items: no title, brand, category, description and no image.

    Raises:
        CEMGError: no prepared data set there.
    """
    if (read_manifest(dataset) or {}).get("stage") != "prepare" or not (dataset / INTERACTIONS_FILE).is_file():
        raise CEMGError(f"{dataset}: holds no prepared data set; finish the run with `cemg run` first")
    changed = {CARD: scratch / CARD, EVAL_YAML: scratch / EVAL_YAML}
    if not item_texts:
        changed[ITEMS_FILE] = scratch / ITEMS_FILE
        pq.write_table(_ids_only(dataset / ITEMS_FILE), changed[ITEMS_FILE])
    write_text(changed[CARD], dataset_card(dataset, repo=repo, items=changed.get(ITEMS_FILE)))
    write_text(changed[EVAL_YAML], benchmark_yaml(dataset))
    return Contents({**folder_contents(dataset).files, **changed})


def licence_problems(contents: Contents) -> list[str]:
    """What of the items' content the licence in the card of a dataset repository does not allow to publish; empty: all may go."""
    licences = card_licences(contents.files[CARD])
    if allows_redistribution(licences) or not (held := _content_columns(contents.files[ITEMS_FILE])):
        return []
    return [
        f"{ITEMS_FILE}: the licence of the data ({', '.join(licences)}) does not allow to pass on {', '.join(held)}; publish without them "
        f"(--no-item-texts), or prepare the data with the licence it has (prepare.license)"
    ]


def _content_columns(items: Path) -> list[str]:
    """Columns besides the id that hold anything."""
    table = pq.ParquetFile(items)
    names = [name for name in table.schema_arrow.names if name != ITEM_ID]
    held = set()
    for batch in table.iter_batches(_SLICE, columns=names):
        held |= {name for name in names if batch[name].null_count < len(batch)}
        if len(held) == len(names):
            break
    return [name for name in names if name in held]


def _ids_only(items: Path) -> pa.Table:
    """The items table with its ids alone; no column of the schema (nor its `datasets` features) names what is gone."""
    from datasets import Features, Value

    return pq.read_table(items, columns=[ITEM_ID]).cast(Features({ITEM_ID: Value("string")}).arrow_schema)
