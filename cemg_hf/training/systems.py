"""The systems that are compared, beside CEMG and its siblings: what trains each of them, and what ranks with it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artefacts import Manifest, fingerprint_path, is_current
from ..data import PreparedDataset
from ..evaluation.popularity import PopularityRecommender
from .evaluate import PopularityRanker, Ranker, evaluate_ranker
from .item_knn import ItemKNN
from .lightgcn import LightGCNRanker, train_lightgcn
from .mmgrec import MMGRecRanker, train_mmgrec
from .sequential import NetworkRanker, train_sequential

if TYPE_CHECKING:
    from ..recipes import Recipe

logger = logging.getLogger(__name__)

Folders = Mapping[str, Path]
"""Stage → the folder of the run that it writes."""


@dataclass(frozen=True)
class Family:
    """One kind of model."""

    earlier: tuple[str, ...] = field(metadata={"help": "Stages whose output the training reads."})
    train: Callable[[Recipe, Folders], object] | None = field(metadata={"help": "The training; None where there is nothing to save."})
    ranker: Callable[[Recipe, Folders, PreparedDataset], Ranker] = field(metadata={"help": "The trained system, ready to rank."})
    settings: tuple[str, ...] = field(default=(), metadata={"help": "What both read of the recipe beside its `evaluate` section."})


def _train_sequential(recipe: Recipe, folders: Folders) -> None:
    tokenizer = folders["tokenize"] if recipe.sequential.content else None
    train_sequential(recipe.sequential, folders["prepare"], folders["train"], recipe.seed, tokenizer)


FAMILIES: Mapping[str, Family] = {
    "popularity": Family(("prepare",), None, lambda r, f, data: PopularityRanker(PopularityRecommender(data.train_item_counts()))),
    "item_knn": Family(("prepare",), None, lambda r, f, data: ItemKNN.fit(data, r.item_knn), ("item_knn",)),
    "lightgcn": Family(
        ("prepare",),
        lambda r, f: train_lightgcn(r.encode.collaborative, f["prepare"], f["train"], r.seed),
        lambda r, f, data: LightGCNRanker.load(f["train"], data),
        ("encode.collaborative",),
    ),
    "sequential": Family(("prepare",), _train_sequential, lambda r, f, data: NetworkRanker.load(f["train"], data), ("sequential",)),
    "mmgrec": Family(
        ("prepare", "encode"),
        lambda r, f: train_mmgrec(r.mmgrec, f["prepare"], f["encode"], f["train"], r.seed),
        lambda r, f, data: MMGRecRanker.load(f["train"], data, r.evaluate.num_beams, r.evaluate.batch_size),
        ("mmgrec",),
    ),
}


def stages_of(recipe: Recipe) -> tuple[str, ...]:
    """Names of the stages that a recipe runs, in order."""
    if recipe.family == "cemg":
        return ("prepare", "encode", "tokenize", "finetune", "evaluate")
    family = FAMILIES[recipe.family]
    content = ("encode", "tokenize") if recipe.family == "sequential" and recipe.sequential.content else ()
    return (*family.earlier, *content, *(("train",) if family.train else ()), "evaluate")


_STAGE_SETTINGS: Mapping[str, tuple[str, ...]] = {"tokenize": ("tokenize", "streams"), "finetune": ("finetune", "streams"), "train": ()}
"""What stages read of a recipe, where that is not the section of their name; a training reads the settings of its family."""


def settings_read(recipe: Recipe) -> tuple[str, ...]:
    """Paths ("section" or "section.key") of all that the result of a recipe depends on; other settings can be what they like."""
    stages = [path for stage in stages_of(recipe) for path in _STAGE_SETTINGS.get(stage, (stage,))]
    own = FAMILIES[recipe.family].settings if recipe.family in FAMILIES else ()
    return tuple(dict.fromkeys(["name", "system", "family", "seed", *stages, *own]))


def ranking_settings(recipe: Recipe) -> dict[str, Any]:
    """What an untrained system ranks by, besides the data: it has no model folder, whose manifest would hold it."""
    return asdict(recipe.item_knn) if recipe.family == "item_knn" else {}


def evaluate_system(recipe: Recipe, folders: Folders, command: str) -> Path:
    """Measure a trained system by the one evaluator; skipped when current."""
    family, output = FAMILIES[recipe.family], folders["evaluate"]
    inputs = {"dataset": fingerprint_path(folders["prepare"])}
    if family.train is not None:
        inputs["model"] = fingerprint_path(folders["train"])
    settings = recipe.evaluate.as_settings() | {"name": recipe.system, "family": recipe.family} | ranking_settings(recipe)
    manifest = Manifest("evaluate", settings, inputs, recipe.seed)
    if is_current(output, manifest):
        logger.info("evaluate: %s is up to date", output)
        return output
    started = time.perf_counter()
    data = PreparedDataset.load(folders["prepare"])
    rank = family.ranker(recipe, folders, data)
    return evaluate_ranker(
        rank, data, recipe.evaluate, output, name=recipe.system, manifest=manifest, command=command, seed=recipe.seed, started=started
    )
