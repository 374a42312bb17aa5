"""Networks over whole items, SASRec and GRU4Rec: their training as a stage, and their rankings."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import PartialState
from accelerate.utils import set_seed

from ..artefacts import Manifest, fingerprint_path, is_current, one_writer, write_folder, write_json
from ..data import PreparedDataset
from ..data.collators import TrainingWindows
from ..data.item_windows import ItemWindowCollator
from ..data.splits import EvaluationCases
from ..errors import CEMGError
from ..evaluation.report import plot_training_curve
from ..models.mscgrec import MSCGRecTokenizer
from ..models.next_item import NextItemModel
from .dropout import use_byte_dropout
from .loading import NETWORKS, open_tokenizer
from .loop import LoopConfig, train
from .loop_config import run_identity
from .scoring import rank_with_network
from .validation import WIDTH, Validation

logger = logging.getLogger(__name__)

REPORT_NAME = "training_report.json"


@dataclass
class SequentialConfig:
    """Everything that trains a network over whole items."""

    network: str = field(default="sasrec", metadata={"help": f"One of {', '.join(NETWORKS)}."})
    settings: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Fields of SASRecConfig or GRU4RecConfig, such as hidden_size, num_layers, loss."}
    )
    loop: LoopConfig = field(default_factory=LoopConfig, metadata={"help": "Optimisation, checkpoints, early stopping, trackers."})
    content: bool = field(default=False, metadata={"help": "SASRec also knows the items' content vectors, those of a tokenizer."})
    window_stride: int | None = field(
        default=None, metadata={"help": "New targets per further window of a long history (default: max_history // 2)."}
    )
    validation_users: int = field(default=0, metadata={"help": "Users ranked at every validation, drawn once by the seed; 0 = all."})
    validation_excludes_history: bool = field(default=True, metadata={"help": "Rank validation targets among items outside the history."})

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise CEMGError(f"sequential.network: unknown {self.network!r}; choose one of {', '.join(NETWORKS)}")


@one_writer
def train_sequential(
    config: SequentialConfig, dataset: str | Path, output: str | Path, seed: int = 42, tokenizer: str | Path | None = None
) -> Path:
    """Train a network on the training interactions and write its model folder; skipped when current, resumed when killed.

    Args:
        config: settings.
        dataset: folder written by `prepare`.
        output: the model folder to write.
        seed: seed of initialisation, sample order, negatives and dropout.
        tokenizer: folder written by `tokenize`, whose content vectors are read with `config.content`.

    Raises:
        CEMGError: settings that do not fit, content without a tokenizer, or the time budget ended before the training.
    """
    output = Path(output)
    inputs = {"dataset": fingerprint_path(dataset)}
    if config.content:
        if tokenizer is None:
            raise CEMGError("sequential.content: needs the tokenizer that holds content vectors; run `cemg tokenize` and give its folder")
        inputs["tokenizer"] = fingerprint_path(tokenizer)
    manifest = Manifest("train", asdict(config), inputs, seed)
    if is_current(output, manifest):
        logger.info("train: %s is up to date", output)
        return output
    data = PreparedDataset.load(dataset)
    set_seed(seed)
    model = build_network(config, data, tokenizer)
    use_byte_dropout(model)
    logger.info("train: %s, %s parameters", config.network, f"{sum(p.numel() for p in model.parameters()):,}")
    windows = TrainingWindows(data.train_sequences(), model.config.max_history, True, config.window_stride)

    def rank(cases: EvaluationCases) -> npt.NDArray[np.int64]:
        return NetworkRanker(model)(cases, WIDTH, exclude_history=config.validation_excludes_history)[0]

    work = output.with_name(f".{output.name}.training")
    report = train(
        model,
        config=config.loop,
        dataset=windows,
        collate_fn=ItemWindowCollator(windows),
        lengths=windows.size,
        evaluate=Validation(rank, data, config.validation_users, seed),
        folder=work,
        seed=seed,
        identity=run_identity(manifest.inputs, manifest.settings),
    )
    if report.stopped_by == "time_budget":
        raise CEMGError(f"train: time budget of {config.loop.time_budget_s} s used up; run the same command again to continue from {work}")
    state = PartialState()
    if state.is_main_process:
        with write_folder(output, manifest) as scratch:
            model.save_pretrained(scratch)
            write_json(scratch / REPORT_NAME, asdict(report) | {"targets": windows.num_targets, "windows": len(windows)})
            plot_training_curve(report.history, scratch / "training_curve.png", config.network)
        shutil.rmtree(work, ignore_errors=True)
    state.wait_for_everyone()
    return output


def build_network(config: SequentialConfig, data: PreparedDataset, tokenizer: str | Path | None = None) -> NextItemModel:
    """A fresh network for a catalogue.

    Raises:
        CEMGError: settings that the network does not have or that cannot work, or a tokenizer without content vectors.
    """
    model_type = NETWORKS[config.network]
    settings_type: Any = model_type.config_class
    known = set(settings_type.__annotations__) - {"model_type", "num_items", "content_dim"}  # the last two follow from the data
    unknown = sorted(set(config.settings) - known)
    if unknown:
        raise CEMGError(f"sequential.settings: {config.network} has no {unknown[0]!r}; it has {', '.join(sorted(known))}")
    for name, value in config.settings.items():
        kind = type(getattr(settings_type, name))
        if not isinstance(value, (int, float) if kind is float else kind):
            raise CEMGError(f"sequential.settings: {name}: expected {kind.__name__}, got {value!r}")
    content = None
    settings = dict(config.settings)
    if config.content:
        assert tokenizer is not None
        if config.network != "sasrec":
            raise CEMGError(f"sequential.content: {config.network} knows items by their ids alone; leave it out")
        loaded = open_tokenizer(tokenizer)
        if isinstance(loaded, MSCGRecTokenizer):
            raise CEMGError(f"{tokenizer}: code streams come without content vectors; set finetune.dense.content to false")
        if loaded.item_vectors is None or loaded.item_ids != data.item_ids:
            raise CEMGError(f"{tokenizer}: has no content vectors of the items of {data.folder}; run `cemg tokenize` on this data set")
        content = loaded.item_vectors.float()
        settings["content_dim"] = content.shape[1]
    try:
        model = model_type(settings_type(num_items=data.num_items, **settings))
    except ValueError as error:
        raise CEMGError(f"sequential.settings: {error}") from error
    if content is not None:
        model.content_vectors = content
    model.item_ids = list(data.item_ids)
    return model


class NetworkRanker:
    """Rankings of a `NextItemModel`, in the mode the model is in."""

    def __init__(self, model: NextItemModel) -> None:
        self.model = model

    @classmethod
    def load(cls, folder: str | Path, data: PreparedDataset) -> NetworkRanker:
        """The network in a model folder, in evaluation mode.

        Raises:
            CEMGError: no such model there, or another catalogue.
        """
        path = Path(folder) / "config.json"
        kind = str(json.loads(path.read_text(encoding="utf-8")).get("model_type")) if path.is_file() else ""
        if kind not in NETWORKS:
            raise CEMGError(f"{folder}: holds no {' or '.join(NETWORKS)}; train one with `cemg run … --system sasrec`")
        model = NETWORKS[kind].from_pretrained(folder)
        if model.item_ids != data.item_ids:
            raise CEMGError(f"{folder}: its catalogue is not that of {data.folder}; evaluate on the data set it was trained on")
        return cls(model.to("cuda" if torch.cuda.is_available() else "cpu").eval())

    def __call__(
        self, cases: EvaluationCases, k: int, *, exclude_history: bool, progress: str | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Item indices (cases, k), best first, −1 where there is no further item, and their scores."""
        return rank_with_network(self.model, cases.histories, k, exclude_history=exclude_history, progress=progress)
