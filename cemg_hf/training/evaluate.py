"""The `evaluate` stage: full-ranking leave-one-out metrics of a trained generator, with popularity as the floor."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..artefacts import Manifest, fingerprint_path, is_current, result_envelope, write_folder, write_json
from ..data import PreparedDataset
from ..errors import CEMGError
from ..evaluation.popularity import PopularityRecommender
from ..evaluation.protocol import evaluate_rankings, predictions_table, write_predictions
from ..evaluation.report import plot_metrics
from ..models.cemg import CEMGForConditionalGeneration
from .ranking import rank_histories

logger = logging.getLogger(__name__)

METRICS_NAME = "metrics.json"
PREDICTIONS_NAME = "predictions.parquet"


@dataclass
class EvaluateConfig:
    """How lists are made and measured."""

    num_beams: int = field(default=50, metadata={"help": "Beams of the search; at least the largest cut-off, 20."})
    cold_threshold: int = field(default=5, metadata={"help": "Cold-start slice: targets with at most this many training interactions."})
    batch_size: int = field(default=128, metadata={"help": "Users per forward pass."})


def evaluate(
    config: EvaluateConfig,
    dataset: str | Path,
    model: str | Path,
    output: str | Path,
    *,
    name: str = "cemg",
    command: str = "",
    seed: int = 42,
) -> Path:
    """Rank the whole catalogue for every test user and write `metrics.json`, `predictions.parquet` and a plot.

    Args:
        config: settings.
        dataset: folder written by `prepare`.
        model: folder written by `finetune`.
        output: folder to write.
        name: the system's key in `metrics`.
        command: the command that reproduces the figures, recorded with them.

    Raises:
        CEMGError: model and data set hold different catalogues, or there is nobody to evaluate.
    """
    manifest = Manifest(
        stage="evaluate",
        settings=asdict(config) | {"name": name},
        inputs={"dataset": fingerprint_path(dataset), "model": fingerprint_path(model)},
        seed=seed,
    )
    if is_current(output, manifest):
        logger.info("evaluate: %s is up to date", output)
        return Path(output)
    started = time.perf_counter()
    data = PreparedDataset.load(dataset)
    generator = load_generator(model, data)
    cases = data.evaluation_cases("test")
    if len(cases) == 0:
        raise CEMGError(f"{dataset}: nobody has the three interactions that leave-one-out evaluation needs")
    counts = data.train_item_counts()
    options: dict[str, Any] = {"num_beams": config.num_beams, "batch_size": config.batch_size}
    plain, scores = rank_histories(generator, cases.histories, 20, progress="test", **options)
    excluding, _ = rank_histories(generator, cases.histories, 20, exclude_history=True, progress="test, history excluded", **options)
    popularity = PopularityRecommender(counts)
    floor, floor_excluding = (popularity.rank(cases.histories, 20, exclude_history=excluded) for excluded in (False, True))
    metrics = {
        name: evaluate_rankings(plain, excluding, cases.targets, counts, cold_threshold=config.cold_threshold),
        "popularity": evaluate_rankings(floor, floor_excluding, cases.targets, counts, cold_threshold=config.cold_threshold),
    }
    with write_folder(output, manifest, started) as scratch:
        envelope = result_envelope(metrics, command=command, seeds=[seed], seconds=time.perf_counter() - started)
        write_json(scratch / METRICS_NAME, envelope)
        users = [data.user_ids[user] for user in cases.users]
        write_predictions(scratch / PREDICTIONS_NAME, predictions_table(users, data.item_ids, plain, scores, cases.targets))
        plot_metrics(metrics, scratch / "metrics.png")
    return Path(output)


def load_generator(folder: str | Path, data: PreparedDataset) -> CEMGForConditionalGeneration:
    """The generator of a data set, ready to rank.

    Raises:
        CEMGError: no model folder, a tokenizer that does not belong to it, or another catalogue.
    """
    if not (Path(folder) / "config.json").is_file():
        raise CEMGError(f"{folder}: not a model folder; train one with `cemg finetune`")
    try:
        model = CEMGForConditionalGeneration.from_pretrained(folder)
    except ValueError as error:
        raise CEMGError(f"{folder}: {error}") from error
    if model.tokenizer is None:
        raise CEMGError(f"{folder}: holds no item tokenizer; copy the files of the tokenizer it was trained with beside it")
    if model.tokenizer.item_ids != data.item_ids:
        raise CEMGError(f"{folder}: its catalogue is not that of {data.folder}; evaluate on the data set it was trained on")
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
