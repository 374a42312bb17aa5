"""Recommendations for files of users: any number of rows, in bounded memory, on one process or many, resumed after a kill."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers.utils import cached_file

from ..artefacts import fingerprint, versions
from ..errors import CEMGError
from ..models.cemg import CEMGForConditionalGeneration, CEMGTokenizer
from ..models.cemg.recommendation_cemg import DEFAULT_NUM_BEAMS
from ..models.next_item import NextItemModel
from ..training.loading import open_recommender
from ..training.ranking import rank_histories
from ..training.scoring import rank_with_network
from .histories import HistoryFiles
from .loading import DTYPES
from .parts import PartFolder
from .processes import from_main_process, join_processes

LIST_COLUMNS = ("item_ids", "scores")


def _beams(k: int) -> int:
    """Beams where none are asked for, as in `recommend`."""
    return max(k, DEFAULT_NUM_BEAMS)


@dataclass
class BatchConfig:
    """What is recommended, and how."""

    k: int = field(default=10, metadata={"help": "Items per user."})
    exclude_history: bool = field(default=False, metadata={"help": "Leave out the items of the history."})
    num_beams: int | None = field(default=None, metadata={"help": "Beams of the search, at least k (default: max(k, 20))."})
    on_unknown: str = field(default="error", metadata={"help": "Item ids that the catalogue lacks: error, or skip and count them."})
    dtype: str = field(default="float32", metadata={"help": "Precision of the network: float32, bfloat16 or float16."})
    user_column: str = field(default="user_id", metadata={"help": "Column of the user ids."})
    history_column: str = field(default="history", metadata={"help": "Column of the lists of item ids, oldest first."})
    rows_per_part: int = field(default=16_384, metadata={"help": "Users per output file; also what a kill can cost."})
    batch_size: int = field(default=128, metadata={"help": "Users per forward pass."})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda or cuda:<number>."})

    def __post_init__(self) -> None:
        if self.num_beams is None:
            self.num_beams = _beams(self.k)
        if self.k < 1:
            raise CEMGError(f"k={self.k}: k must be at least 1")
        if self.num_beams < self.k:
            raise CEMGError(f"num_beams={self.num_beams} cannot fill lists of k={self.k}; use at least k beams")
        for name in ("rows_per_part", "batch_size"):
            if getattr(self, name) < 1:
                raise CEMGError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.on_unknown not in ("error", "skip"):
            raise CEMGError(f"on_unknown={self.on_unknown!r}: give error or skip")
        if self.dtype not in DTYPES:
            raise CEMGError(f"dtype={self.dtype!r}: give {', '.join(DTYPES)}")
        if self.user_column in LIST_COLUMNS:
            raise CEMGError(f"user_column={self.user_column!r}: the output has a column of that name; rename yours")

    def identity(self) -> dict[str, Any]:
        """The settings that decide what is written. Batches and device decide how fast: what ran out of memory may go on with less."""
        return {name: value for name, value in asdict(self).items() if name not in ("batch_size", "device")}


@dataclass(frozen=True)
class BatchReport:
    """How a run ended."""

    users: int = field(metadata={"help": "Users in the output."})
    users_now: int = field(metadata={"help": "Those of them recommended to by this run; the others were there before."})
    seconds: float = field(metadata={"help": "Wall time of recommending, without loading and checking."})
    unknown: int = field(metadata={"help": "Entries of the histories left out because the catalogue lacks them."})

    def __str__(self) -> str:
        skipped = f", {self.unknown:,} unknown item ids skipped" if self.unknown else ""
        if self.users_now == 0:
            return f"all {self.users:,} users are there already{skipped}"
        before = f" ({self.users - self.users_now:,} more were there before)" if self.users_now < self.users else ""
        return f"{self.users_now:,} users{before} in {self.seconds:.1f} s, {self.users_now / self.seconds:,.1f} users/s{skipped}"


@dataclass(frozen=True)
class Plan:
    """What the main process found out for all."""

    left: list[int] = field(metadata={"help": "Parts still to write, in order."})
    unknown: int = field(metadata={"help": "Entries of all histories that the catalogue lacks."})


def recommend_files(
    model: str | Path, histories: str | Path, output: str | Path, config: BatchConfig, *, overwrite: bool = False
) -> BatchReport:
    """Recommend to every user of a Parquet file, or of a folder of them.

    The output is a folder of Parquet files in the order of the input: the user ids as they came, `item_ids` (list of strings, best
    first; shorter than k only where fewer items are possible) and `scores` (list of float32, Σ log p; the product of state and item for
    SASRec and GRU4Rec). All of the input is checked before
    anything is written. A run that was killed continues where it stood when it is called again, on any number of processes, and writes
    what it would have written.

    Under `accelerate launch` or `torchrun` every process calls this; parts are dealt to them in turn. They share the output's file system.

    Args:
        model: model folder or Hub id.
        histories: user ids (strings or integers) and lists of item ids, oldest first; an empty list is a new user.
        output: folder to write.
        config: settings.
        overwrite: start over where the folder holds other recommendations, or these.

    Raises:
        CEMGError: input that cannot be used (names file, column and row), or an output folder that was begun with other settings, another
            model or other histories.
    """
    state, device = join_processes(config.device)
    source = HistoryFiles.open(histories, config.user_column, config.history_column)
    folder = PartFolder(Path(output), len(source), config.rows_per_part)
    recommender = open_recommender(model, config.dtype, device)
    if isinstance(recommender, NextItemModel) and config.num_beams != _beams(config.k):
        raise CEMGError(f"num_beams={config.num_beams}: {model} scores every item and searches nothing; leave the beams out")
    catalogue = pa.array(catalogue_of(recommender), pa.large_string())

    plan = from_main_process(state, lambda: _plan(source, folder, catalogue, model, config, overwrite))
    started = time.perf_counter()
    _write_parts(state, recommender, source, folder, catalogue, plan.left, config)
    return BatchReport(len(source), folder.count(plan.left), time.perf_counter() - started, plan.unknown)


def _plan(source: HistoryFiles, folder: PartFolder, catalogue: pa.Array, model: str | Path, config: BatchConfig, overwrite: bool) -> Plan:
    """Check the input, or find that an earlier run did, and see what is left to do."""
    identity = {
        "stage": "recommend",
        "settings": config.identity(),
        "inputs": {"model": model_fingerprint(model), "histories": source.fingerprint()},
    }
    manifest = folder.claim(identity, overwrite)
    if manifest is None:
        unknown = source.check(catalogue, config.on_unknown)
        manifest = identity | {"users": len(source), "parts": len(folder), "unknown_items": unknown, "versions": versions()}
        folder.begin(manifest)
    return Plan(folder.left(), manifest["unknown_items"])


def _write_parts(
    state: PartialState,
    recommender: CEMGForConditionalGeneration | NextItemModel,
    source: HistoryFiles,
    folder: PartFolder,
    catalogue: pa.Array,
    left: list[int],
    config: BatchConfig,
) -> None:
    """Write this process's share of the parts that are left, and wait for the others."""
    mine = left[state.process_index :: state.num_processes]
    before = len(source) - folder.count(left)
    # Parts begin with their longest histories: only the average since the start foretells the end.
    bar = tqdm(total=len(source), initial=before, desc="recommend", unit=" users", smoothing=0, disable=not state.is_main_process)
    with bar:
        for part, table in zip(mine, source.tables([folder.range(part) for part in mine]), strict=True):
            try:
                written = _recommend(recommender, source, table, catalogue, config, bar)
            except torch.OutOfMemoryError as error:
                raise CEMGError(
                    f"out of memory on {recommender.device} with {config.batch_size} users at once; run the same command with a smaller "
                    f"--batch-size, it goes on after the {folder.count(folder.written()):,} users in {folder.path}"
                ) from error
            folder.write(part, written)
            bar.update(folder.count(folder.written()) - bar.n)  # what the other processes finished meanwhile
        state.wait_for_everyone()
        bar.update(len(source) - bar.n)


def _recommend(
    recommender: CEMGForConditionalGeneration | NextItemModel,
    source: HistoryFiles,
    table: pa.Table,
    catalogue: pa.Array,
    config: BatchConfig,
    bar: tqdm[Any],
) -> pa.Table:
    """The output's rows for one part of the input."""
    items = source.items(table, catalogue)
    options: dict[str, Any] = {"exclude_history": config.exclude_history, "batch_size": config.batch_size, "progress": bar}
    if isinstance(recommender, NextItemModel):
        ranked, scores = rank_with_network(recommender, items, config.k, **options)
    else:
        ranked, scores = rank_histories(recommender, items, config.k, num_beams=config.num_beams, **options)
    found = ranked >= 0
    offsets = pa.array(np.concatenate([[0], np.cumsum(found.sum(axis=1))]), pa.int32())
    item_ids = catalogue.take(pa.array(ranked[found])).cast(pa.string())
    lists = [pa.ListArray.from_arrays(offsets, values) for values in (item_ids, pa.array(scores[found]))]
    return pa.table([source.users(table), *lists], names=[source.user_column, *LIST_COLUMNS])


def catalogue_of(recommender: CEMGForConditionalGeneration | NextItemModel) -> list[str]:
    """Item ids, by index."""
    holder = recommender if isinstance(recommender, NextItemModel) else recommender.tokenizer
    assert holder is not None and holder.item_ids is not None  # noqa: PT018 -- a model without its catalogue does not open
    return holder.item_ids


def model_fingerprint(model: str | Path) -> str:
    """Fingerprint of the files that decide what a model recommends, wherever it lies; a changed model card is no other model."""
    config = cached_file(str(model), "config.json")
    assert config is not None  # the model was loaded from it
    folder = Path(config).parent
    names = ["config.json", CEMGTokenizer.vocab_files_names["item_ids_file"], *sorted(file.name for file in folder.glob("*.safetensors"))]
    return fingerprint(*(part for name in names for part in (name, folder / name)))
