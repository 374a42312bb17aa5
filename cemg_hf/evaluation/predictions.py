"""What a system recommended, on disk: enough to compute every accuracy metric again and to pair two systems user by user.

Two Parquet files side by side, in the ids of the data: `predictions.parquet` has one row per case, `catalogue.parquet` one per item,
with the training interactions that cold start and popularity are told by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import CEMGError
from .metrics import check_rankings

PREDICTIONS_NAME = "predictions.parquet"
CATALOGUE_NAME = "catalogue.parquet"
COLUMNS = ("user_id", "target", "items", "scores", "items_excluding_history", "scores_excluding_history")
_PLACES = b"places"
"""Schema metadata: how many places were asked for, which shorter lists do not tell."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """The lists of one system for one set of cases."""

    user_ids: Sequence[str] = field(metadata={"help": "The user of every case (cases, not all users of the data set)."})
    item_ids: Sequence[str] = field(metadata={"help": "The catalogue, by item index."})
    train_item_counts: np.ndarray = field(metadata={"help": "(items,) int64 training interactions."})
    targets: np.ndarray = field(metadata={"help": "(cases,) int64 item that came next."})
    ranked: np.ndarray = field(metadata={"help": "(cases, places) int64 item indices, best first, -1 behind a shorter list."})
    scores: np.ndarray = field(metadata={"help": "(cases, places) float32, finite wherever there is an item."})
    ranked_excluding_history: np.ndarray = field(metadata={"help": "The same with the items of each history left out."})
    scores_excluding_history: np.ndarray = field(metadata={"help": "Their scores."})


def predictions_table(predictions: Predictions) -> pa.Table:
    """Lists in the ids of the data.

    Returns:
        user_id, target (string), items (list of string), scores (list of float32), items_excluding_history, scores_excluding_history.

    Raises:
        CEMGError: arrays that do not fit together, lists with a repeated item or with what is no item, scores that are not finite.
    """
    users, targets = predictions.user_ids, np.asarray(predictions.targets)
    catalogue = pa.array(predictions.item_ids, type=pa.string())
    if len(targets) and not 0 <= targets.min() <= targets.max() < len(catalogue):
        raise CEMGError(f"targets: item indices must lie between 0 and {len(catalogue) - 1}; found {targets.min()} to {targets.max()}")
    columns = {"user_id": pa.array(users, type=pa.string()), "target": catalogue.take(pa.array(targets, type=pa.int64()))}
    for suffix, ranked, scores in (
        ("", predictions.ranked, predictions.scores),
        ("_excluding_history", predictions.ranked_excluding_history, predictions.scores_excluding_history),
    ):
        ranked, scores = np.asarray(ranked), np.asarray(scores)
        if not len(users) == len(ranked) == len(targets) or scores.shape != ranked.shape:
            shapes = f"{len(users)} users, ranked{suffix} {ranked.shape}, scores{suffix} {scores.shape}, targets {targets.shape}"
            raise CEMGError(f"predictions: {shapes} do not fit together; pass one row per case")
        check_rankings(ranked, len(catalogue), f"ranked{suffix}")
        present = ranked >= 0
        if not np.isfinite(scores[present]).all():
            raise CEMGError(f"scores{suffix}: an item in the list has a score that is not finite; look for a diverged model")
        offsets = pa.array(np.concatenate([[0], present.sum(axis=1).cumsum()]), type=pa.int32())
        columns[f"items{suffix}"] = pa.ListArray.from_arrays(offsets, catalogue.take(pa.array(ranked[present], type=pa.int64())))
        columns[f"scores{suffix}"] = pa.ListArray.from_arrays(offsets, pa.array(scores[present], type=pa.float32()))
    places = max(np.shape(predictions.ranked)[1], np.shape(predictions.ranked_excluding_history)[1])
    return pa.table(columns).replace_schema_metadata({_PLACES: str(places).encode()})


def write_predictions(folder: str | Path, predictions: Predictions) -> None:
    """Write `predictions.parquet` and `catalogue.parquet` into `folder`, each atomically (a reader sees the old file or the new one).

    Raises:
        CEMGError: as in `predictions_table`.
    """
    folder = Path(folder)
    table = predictions_table(predictions)
    counts = np.asarray(predictions.train_item_counts)
    if counts.shape != (len(predictions.item_ids),):
        raise CEMGError(f"train_item_counts: shape {counts.shape} for {len(predictions.item_ids)} items; pass one count per item")
    catalogue = {"item_id": pa.array(predictions.item_ids, type=pa.string()), "train_interactions": pa.array(counts, type=pa.int64())}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((CATALOGUE_NAME, pa.table(catalogue)), (PREDICTIONS_NAME, table)):
        scratch = folder / f".{name}.partial"
        pq.write_table(content, scratch, compression="zstd")
        scratch.replace(folder / name)


def read_predictions(path: str | Path) -> Predictions:
    """Read what `write_predictions` wrote.

    Args:
        path: the file `predictions.parquet`, or the folder that holds it; `catalogue.parquet` stands beside it.

    Raises:
        CEMGError: a file is missing or is not one of these two.
    """
    path = Path(path)
    path = path / PREDICTIONS_NAME if path.is_dir() else path
    beside = path.with_name(CATALOGUE_NAME)
    for file in (path, beside):
        if not file.is_file():
            raise CEMGError(f"{file}: no such file; predictions are {PREDICTIONS_NAME} and {CATALOGUE_NAME}, evaluate the system again")
    try:
        catalogue, table = pq.read_table(beside, columns=["item_id", "train_interactions"]), pq.read_table(path)
        missing = [name for name in COLUMNS if name not in table.column_names]
    except (pa.ArrowInvalid, KeyError) as error:
        raise CEMGError(f"{path}: not predictions ({' '.join(str(error).split())}); evaluate the system again") from error
    if missing:
        raise CEMGError(f"{path}: column {missing[0]} is missing; the file is of an older version, evaluate the system again")
    ids = catalogue["item_id"].combine_chunks()
    places = int((table.schema.metadata or {}).get(_PLACES, b"1"))
    lists = [_rectangle(table, suffix, ids, places, path) for suffix in ("", "_excluding_history")]
    (ranked, scores), (excluding, excluding_scores) = lists
    targets = _indices(table["target"].combine_chunks(), ids, path)
    counts = catalogue["train_interactions"].to_numpy()
    return Predictions(table["user_id"].to_pylist(), ids.to_pylist(), counts, targets, ranked, scores, excluding, excluding_scores)


def _rectangle(table: pa.Table, suffix: str, ids: pa.Array, places: int, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(cases, places or more) item indices and scores of the list columns."""
    items, scores = (table[f"{name}{suffix}"].combine_chunks() for name in ("items", "scores"))
    lengths = items.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    if not np.array_equal(lengths, scores.value_lengths().to_numpy(zero_copy_only=False)):
        raise CEMGError(f"{path}: items{suffix} and scores{suffix} differ in length; evaluate the system again")
    width = max(places, int(lengths.max(initial=0)))
    filled = np.arange(width) < lengths[:, None]
    ranked, values = np.full((len(lengths), width), -1, dtype=np.int64), np.full((len(lengths), width), -np.inf, dtype=np.float32)
    ranked[filled] = _indices(items.flatten(), ids, path)
    values[filled] = scores.flatten().to_numpy()
    return ranked, values


def _indices(values: pa.Array, ids: pa.Array, path: Path) -> np.ndarray:
    found = pc.index_in(values, value_set=ids)
    if found.null_count:
        unknown = values.filter(pc.is_null(found))[0].as_py()
        raise CEMGError(f"{path}: item {unknown!r} is not in {CATALOGUE_NAME} beside it; the two files are of different runs")
    return found.to_numpy(zero_copy_only=False).astype(np.int64)
