"""The MMGRec baseline: Rec-IDs from a Graph RQ-VAE (rec_ids.py), then the recommender that writes them.

The modules under `models/mmgrec/` and rec_ids.py say where this differs from the paper and what the paper leaves open.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from safetensors import SafetensorError
from torch import Tensor
from tqdm.auto import tqdm

from ..artefacts import Manifest, fingerprint, fingerprint_path, is_current, one_writer, write_folder, write_json
from ..data import PreparedDataset
from ..data.collators import TrainingWindows
from ..data.item_windows import ItemWindowCollator
from ..data.ragged import IntArray, Ragged
from ..data.splits import EvaluationCases
from ..errors import CEMGError
from ..evaluation.report import plot_training_curve
from ..features.store import FeatureStore
from ..models.mmgrec import MMGRecForRecommendation, MMGRecModelConfig
from .loop import LOG_NAME, LoopConfig, train
from .loop_config import run_identity
from .ranking import pad
from .rec_ids import REPORT_NAME, RecIdConfig, RecIds, make_rec_ids
from .validation import WIDTH, Validation

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float32]


@dataclass
class MMGRecConfig:
    """Everything the MMGRec baseline needs besides its inputs; D, M and K are those of the Rec-IDs."""

    rec_ids: RecIdConfig = field(default_factory=RecIdConfig, metadata={"help": "Graph RQ-VAE and Rec-ID assignment."})
    num_heads: int = field(default=4, metadata={"help": "Attention heads; in the encoder each is D wide."})
    d_ff: int = field(default=256, metadata={"help": "Width of the feed-forward sublayers."})
    num_layers: int = field(default=2, metadata={"help": "Encoder layers."})
    num_decoder_layers: int = field(default=2, metadata={"help": "Decoder layers."})
    dropout_rate: float = field(default=0.1, metadata={"help": "Dropout in all sublayers."})
    item_causal: bool = field(
        default=True, metadata={"help": "Train all prefixes of a sequence in one pass; false: one sample per target (the paper's)."}
    )
    max_history: int = field(default=20, metadata={"help": "Items of a history the model reads, the most recent ones."})
    window_stride: int | None = field(
        default=None, metadata={"help": "New targets per further window of a long history (default: max_history // 2)."}
    )
    loop: LoopConfig = field(default_factory=LoopConfig, metadata={"help": "Optimisation of the recommender."})
    validation_users: int = field(default=5000, metadata={"help": "Users ranked at every validation, drawn once by the seed; 0 = all."})
    validation_beams: int = field(default=20, metadata={"help": "Beams of the validation search; lists of 20 take 20 at least."})
    validation_excludes_history: bool = field(default=True, metadata={"help": "Rank validation targets among items outside the history."})


@one_writer
def train_mmgrec(config: MMGRecConfig, dataset: str | Path, features: str | Path, output: str | Path, seed: int = 42) -> Path:
    """Assign Rec-IDs, train the recommender and write it, with its catalogue, as a model folder; skipped when that is current.

    Under `accelerate launch` every process calls this; the main process writes. A killed run continues where it was (Rec-IDs and
    checkpoints are kept beside `output` until the run ends) when it is called again with the same settings.

    Args:
        config: settings.
        dataset: folder written by `prepare`.
        features: folder written by `encode`; its content features are used, its collaborative ones are not (the graph learns its own).
        output: the model folder to write.
        seed: seed of initialisation, sample order, negatives, k-means and dropout.

    Raises:
        CEMGError: inputs that do not belong together, features without content, or the time budget ended before the training.
    """
    output = Path(output)
    inputs = {"dataset": fingerprint_path(dataset), "features": fingerprint_path(features)}
    manifest = Manifest("train", {"mmgrec": asdict(config)}, inputs, seed)
    if is_current(output, manifest):
        logger.info("mmgrec: %s is up to date", output)
        return output
    data, store = PreparedDataset.load(dataset), FeatureStore.load(features)
    if list(data.item_ids) != list(store.item_ids):
        raise CEMGError(f"{features}: not the features of {dataset} (other items); run `cemg encode` on this data set")
    work = output.with_name(f".{output.name}.training")
    rec_ids = make_rec_ids(config.rec_ids, data, store, work / "rec-ids", seed, inputs, config.validation_users)
    set_seed(seed)
    model = build_recommender(config, data, rec_ids)
    sequences = data.train_sequences()
    windows = TrainingWindows(sequences, config.max_history, config.item_causal, config.window_stride)
    ranker = MMGRecRanker(model, config.validation_beams)

    def rank(cases: EvaluationCases) -> IntArray:
        return ranker(cases, WIDTH, exclude_history=config.validation_excludes_history, progress="validation")[0]

    # Of the settings of Rec-IDs it matters here what came of them; their own loop has a time budget, which may change.
    own = {name: value for name, value in asdict(config).items() if name != "rec_ids"}
    report = train(
        model,
        config=config.loop,
        dataset=windows,
        collate_fn=HistoryCollator(windows, sequences, config.item_causal),
        lengths=windows.size,
        evaluate=Validation(rank, data, config.validation_users, seed),
        folder=work / "recommender",
        seed=seed,
        identity=run_identity(inputs, own, *(tensor.numpy().tobytes() for tensor in rec_ids)),
    )
    if report.stopped_by == "time_budget":
        raise CEMGError(f"mmgrec: time budget of {config.loop.time_budget_s} s used up; run the same command again to continue from {work}")
    state = PartialState()
    if state.is_main_process:
        with write_folder(output, manifest) as scratch:
            model.save_pretrained(scratch)
            made = json.loads((work / "rec-ids" / REPORT_NAME).read_text(encoding="utf-8"))
            seconds = {"graph": made["graph"]["seconds"], "rqvae": made["rqvae"]["seconds"], "recommender": report.seconds}
            totals = {"targets": windows.num_targets, "windows": len(windows), "seconds_by_part": seconds}
            write_json(
                scratch / "training_report.json", asdict(report) | totals | {"seconds": round(sum(seconds.values()), 3), "rec_ids": made}
            )
            plot_training_curve(report.history, scratch / "training_curve.png")
            if (work / "recommender" / LOG_NAME).is_file():
                shutil.copyfile(work / "recommender" / LOG_NAME, scratch / LOG_NAME)
        shutil.rmtree(work, ignore_errors=True)
    state.wait_for_everyone()
    return output


def build_recommender(config: MMGRecConfig, data: PreparedDataset, rec_ids: RecIds) -> MMGRecForRecommendation:
    """A fresh recommender that starts from the representations of Rec-ID assignment.

    Raises:
        CEMGError: settings that do not fit together.
    """
    own = ("num_heads", "d_ff", "num_layers", "num_decoder_layers", "dropout_rate", "item_causal", "max_history")
    try:
        network = MMGRecModelConfig(
            num_items=data.num_items,
            num_users=data.num_users,
            num_levels=config.rec_ids.num_levels,
            codebook_size=config.rec_ids.codebook_size,
            d_model=config.rec_ids.dimension,
            user_fingerprint=fingerprint(*data.user_ids),
            **{name: getattr(config, name) for name in own},
        )
    except ValueError as error:
        raise CEMGError(f"mmgrec: {error}") from error
    model = MMGRecForRecommendation(network)
    model.set_catalogue(data.item_ids, *rec_ids)
    return model


class HistoryCollator:
    """Window numbers → `history`, `users`, `labels` as `MMGRecForRecommendation.forward` takes them.

    Args:
        windows: the windows of `sequences`.
        sequences: training items of each user.
        item_causal: every item of a window may be a target; otherwise only the last one is.
    """

    def __init__(self, windows: TrainingWindows, sequences: Ragged, item_causal: bool) -> None:
        self.collate, self.item_causal = ItemWindowCollator(windows), item_causal
        self.users: IntArray = np.searchsorted(sequences.offsets, windows.begin, side="right") - 1

    def __call__(self, batch: Sequence[int]) -> dict[str, Tensor]:
        items, labels = self.collate(batch).values()
        if not self.item_causal:
            labels = labels.gather(1, (items >= 0).sum(dim=1, keepdim=True))
        return {"history": items, "users": torch.from_numpy(self.users[np.asarray(batch)]), "labels": labels}


class MMGRecRanker:
    """Ranked lists of a trained recommender.

    Args:
        model: in evaluation mode, its catalogue in place.
        num_beams: beams of the search; a longer list takes as many as it has places.
        batch_size: users per forward pass.
    """

    def __init__(self, model: MMGRecForRecommendation, num_beams: int = 50, batch_size: int = 128) -> None:
        if num_beams < 1 or batch_size < 1:
            raise CEMGError(f"num_beams = {num_beams}, batch_size = {batch_size}: both must be at least 1")
        self.model, self.num_beams, self.batch_size = model, num_beams, batch_size

    @classmethod
    def load(cls, folder: str | Path, data: PreparedDataset, num_beams: int = 50, batch_size: int = 128) -> MMGRecRanker:
        """The ranker of a folder written by `train_mmgrec`, on the GPU where there is one.

        Raises:
            CEMGError: no such model, or one trained on another catalogue or other users.
        """
        config = Path(folder) / "config.json"
        if not config.is_file() or json.loads(config.read_text(encoding="utf-8")).get("model_type") != MMGRecModelConfig.model_type:
            raise CEMGError(f"{folder}: not a folder of an MMGRec model; train one with `cemg run … --system mmgrec`")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            model: MMGRecForRecommendation = MMGRecForRecommendation.from_pretrained(folder).to(device).eval()
        except (ValueError, OSError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise CEMGError(f"{folder}: not an MMGRec model that this version reads ({reason}); train it again") from error
        if model.item_ids != data.item_ids:
            raise CEMGError(f"{folder}: its catalogue is not that of {data.folder}; evaluate on the data set it was trained on")
        if model.config.user_fingerprint != fingerprint(*data.user_ids):
            raise CEMGError(f"{folder}: its users are not those of {data.folder}; evaluate on the data set it was trained on")
        return cls(model, num_beams, batch_size)

    def __call__(
        self, cases: EvaluationCases, k: int, *, exclude_history: bool, progress: str | None = None
    ) -> tuple[IntArray, FloatArray]:
        """The k most probable next items of every case.

        Args:
            cases: users and their histories; targets are not looked at.
            k: length of the lists.
            exclude_history: leave out all items of the history, also those before the model's `max_history`.
            progress: label of a progress bar; none when omitted.

        Returns:
            item indices (cases, k), best first, −1 where fewer items are possible, and their scores, Σ log p (−inf there).
        """
        model, device = self.model, self.model.device
        ranked = np.full((len(cases), k), -1, dtype=np.int64)
        scores = np.full((len(cases), k), -np.inf, dtype=np.float32)
        recent = cases.histories.last(model.config.max_history)
        order = np.argsort(-recent.lengths, kind="stable")
        with tqdm(total=len(order), desc=progress, unit="user", disable=progress is None, leave=False) as bar:
            for first in range(0, len(order), self.batch_size):
                rows = order[first : first + self.batch_size]
                history, users = torch.from_numpy(pad(recent.take(rows))), torch.from_numpy(cases.users[rows])
                excluded = torch.from_numpy(pad(cases.histories.take(rows))).to(device) if exclude_history else None
                best, values = model.rank(history.to(device), users.to(device), max(k, self.num_beams), excluded)
                width = min(k, best.shape[1])
                ranked[rows, :width] = best[:, :width].cpu().numpy()
                scores[rows, :width] = values[:, :width].float().cpu().numpy()
                bar.update(len(rows))
        return ranked, scores
