"""The `evaluate` stage: one evaluator for every system, and CEMG's generators as one of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ..artefacts import Manifest, fingerprint_path, is_current, one_writer, result_envelope, write_folder, write_json
from ..data import EvaluationCases, PreparedDataset
from ..data.ragged import IntArray
from ..errors import CEMGError
from ..evaluation.metrics import DEFAULT_KS
from ..evaluation.popularity import PopularityRecommender
from ..evaluation.predictions import Predictions, write_predictions
from ..evaluation.protocol import evaluate_rankings, ranking_intervals
from ..evaluation.report import plot_metrics
from ..evaluation.runs import FLOOR, METRICS_NAME
from ..models.cemg import CEMGForConditionalGeneration
from .loading import generator_class
from .ranking import rank_histories

logger = logging.getLogger(__name__)

LIST_LENGTH = max(DEFAULT_KS)

FloatArray = npt.NDArray[np.float32]


@dataclass
class EvaluateConfig:
    """How lists are made and measured."""

    num_beams: int = field(default=50, metadata={"help": "Beams of the search; at least the largest cut-off, 20."})
    cold_threshold: int = field(default=5, metadata={"help": "Cold-start slice: targets with at most this many training interactions."})
    batch_size: int = field(default=128, metadata={"help": "Users per forward pass."})
    resamples: int = field(default=1000, metadata={"help": "Bootstrap resamples of the users behind the 95 % intervals."})


class Ranker(Protocol):
    """What a system has to do to be evaluated."""

    def __call__(
        self, cases: EvaluationCases, k: int, *, exclude_history: bool, progress: str | None = None
    ) -> tuple[IntArray, FloatArray]:
        """Rank the whole catalogue for every case.

        Args:
            cases: users with their histories (which may be empty); a ranker must not look at their targets.
            k: length of the lists.
            exclude_history: leave out all items of the case's history.
            progress: label of a progress bar; none when omitted.

        Returns:
            (cases, k) item indices best first, -1 where there is no further item, and their scores (-inf there).
        """


@dataclass(frozen=True)
class GeneratorRanker:
    """A trained generator as a `Ranker`: the k most probable items of its beam search."""

    model: CEMGForConditionalGeneration = field(metadata={"help": "In evaluation mode, with its tokenizer attached."})
    num_beams: int = field(default=50, metadata={"help": "Beams of the search."})
    batch_size: int = field(default=128, metadata={"help": "Users per forward pass."})
    dense_weight: float | None = field(default=None, metadata={"help": "Weight of the dense score; None: the model's own."})
    without_streams: tuple[str, ...] = field(default=(), metadata={"help": "Code streams that histories do not show (MSCGRec)."})

    def __call__(
        self, cases: EvaluationCases, k: int, *, exclude_history: bool, progress: str | None = None
    ) -> tuple[IntArray, FloatArray]:
        """See `Ranker`."""
        names = ("num_beams", "batch_size", "dense_weight", "without_streams")
        options: dict[str, Any] = {name: getattr(self, name) for name in names}
        return rank_histories(self.model, cases.histories, k, exclude_history=exclude_history, progress=progress, **options)


@dataclass(frozen=True)
class PopularityRanker:
    """The most popular items as a `Ranker`."""

    recommender: PopularityRecommender

    def __call__(
        self, cases: EvaluationCases, k: int, *, exclude_history: bool, progress: str | None = None
    ) -> tuple[IntArray, FloatArray]:
        """See `Ranker`."""
        ranked = self.recommender.rank(cases.histories, k, exclude_history=exclude_history)
        return ranked, self.recommender.scores(ranked)


def evaluate(
    config: EvaluateConfig,
    dataset: str | Path,
    model: str | Path,
    output: str | Path,
    *,
    name: str = "cemg",
    command: str = "",
    seed: int = 42,
    dense_weight: float | None = None,
    without_streams: Sequence[str] = (),
) -> Path:
    """Measure a generator; skipped when `output` is current. See `evaluate_ranker` for what is written.

    Args:
        config: settings.
        dataset: folder written by `prepare`.
        model: folder written by `finetune`.
        output: folder to write.
        name: the system's key in `metrics`.
        command: the command that reproduces the figures, recorded with them.
        seed: recorded with them.
        dense_weight: weight of the dense tower's scores, 0 for the codes alone; None: the model's own.
        without_streams: code streams that histories do not show (MSCGRec).

    Raises:
        CEMGError: streams that the model does not have, model and data set hold different catalogues, or there is nobody to evaluate.
    """
    manifest = Manifest(
        stage="evaluate",
        settings=asdict(config)
        | {"name": name}
        | ({} if dense_weight is None else {"dense_weight": dense_weight})
        | ({} if not without_streams else {"without_streams": list(without_streams)}),
        inputs={"dataset": fingerprint_path(dataset), "model": fingerprint_path(model)},
        seed=seed,
    )
    if is_current(output, manifest):
        logger.info("evaluate: %s is up to date", output)
        return Path(output)
    started = time.perf_counter()
    data = PreparedDataset.load(dataset)
    rank = GeneratorRanker(load_generator(model, data), config.num_beams, config.batch_size, dense_weight, tuple(without_streams))
    return evaluate_ranker(rank, data, config, Path(output), name=name, manifest=manifest, command=command, seed=seed, started=started)


@one_writer
def evaluate_ranker(
    rank: Ranker,
    data: PreparedDataset,
    config: EvaluateConfig,
    output: Path,
    *,
    name: str,
    manifest: Manifest,
    command: str,
    seed: int,
    started: float,
    extra: Mapping[str, Any] = {},
) -> Path:
    """Rank the whole catalogue for every test case, with and without the items of the history, and write what came of it.

    The same cases, candidates, metrics, slices and floor for every system: what differs between two systems is `rank` alone.

    Args:
        rank: the system.
        data: the data set; its test cases are ranked.
        config: how lists are measured; `num_beams` and `batch_size` are the ranker's own business.
        output: folder to write: `metrics.json` (the envelope, and under `intervals` the 95 % bootstrap intervals over users, system ->
            slice -> metric -> [low, high]), `predictions.parquet` with both lists of every case, `catalogue.parquet`, `metrics.png`.
        name: the system's key in `metrics`.
        manifest: what the output is made from. A caller asks `is_current(output, manifest)` before it loads anything.
        command: the command that reproduces the figures.
        seed: seed of the run, recorded.
        started: reading of `time.perf_counter()` when the stage began.
        extra: further entries of the envelope, such as the size of the model.

    Raises:
        CEMGError: nobody to evaluate, or lists that are not rankings of the catalogue.
    """
    if is_current(output, manifest):  # another process measured it while this one loaded
        return output
    cases = data.evaluation_cases("test")
    if len(cases) == 0:
        raise CEMGError(f"{data.folder}: nobody has a test case; leave-one-out needs users with three interactions")
    counts, vectors = data.train_item_counts(), data.category_vectors()
    plain, scores = rank(cases, LIST_LENGTH, exclude_history=False, progress=f"{name}, test")
    excluding, scores_excluding = rank(cases, LIST_LENGTH, exclude_history=True, progress=f"{name}, test, history excluded")
    lists = {name: (plain, excluding)}
    if name != FLOOR:
        floor = PopularityRanker(PopularityRecommender(counts))
        lists[FLOOR] = (floor(cases, LIST_LENGTH, exclude_history=False)[0], floor(cases, LIST_LENGTH, exclude_history=True)[0])
    shared: dict[str, Any] = {"cold_threshold": config.cold_threshold, "item_vectors": vectors}
    metrics = {system: evaluate_rankings(*both, cases.targets, counts, **shared) for system, both in lists.items()}
    shared |= {"resamples": config.resamples}
    intervals = {system: ranking_intervals(*both, cases.targets, counts, **shared) for system, both in lists.items()}
    users = [data.user_ids[user] for user in cases.users]
    predictions = Predictions(users, data.item_ids, counts, cases.targets, plain, scores, excluding, scores_excluding)
    with write_folder(output, manifest, started) as scratch:
        write_predictions(scratch, predictions)
        plot_metrics(metrics, scratch / "metrics.png", intervals=intervals)
        envelope = result_envelope(
            metrics,
            command=command,
            seeds=[seed],
            seconds=time.perf_counter() - started,
            system=name,
            protocol=data.protocol() | {"cold_threshold": config.cold_threshold},
            intervals=intervals,
            **extra,
        )
        write_json(scratch / METRICS_NAME, envelope)
    return output


def load_generator(folder: str | Path, data: PreparedDataset) -> CEMGForConditionalGeneration:
    """The generator of a data set, ready to rank.

    Raises:
        CEMGError: no model folder, a tokenizer that does not belong to it, or another catalogue.
    """
    if not (Path(folder) / "config.json").is_file():
        raise CEMGError(f"{folder}: not a model folder; train one with `cemg finetune`")
    try:
        model = generator_class(folder).from_pretrained(folder)
    except ValueError as error:
        raise CEMGError(f"{folder}: {error}") from error
    if model.tokenizer is None:
        raise CEMGError(f"{folder}: holds no item tokenizer; copy the files of the tokenizer it was trained with beside it")
    if model.tokenizer.item_ids != data.item_ids:
        raise CEMGError(f"{folder}: its catalogue is not that of {data.folder}; evaluate on the data set it was trained on")
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
