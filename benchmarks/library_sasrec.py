"""SASRec and eSASRec of RecTools on the same split, by the same metrics: is ours as good as a well-kept library's?

    pip install "rectools[torch]"
    python benchmarks/library_sasrec.py --run runs/beauty-sasrec --output benchmarks/results/library_sasrec.json

RUN is a finished run of SASRec here, whose data set is taken and beside whose figures the library's are written. The library trains on the
training interactions with its own layers, loss, negatives (drawn anew for every position) and optimiser; the epoch is chosen by NDCG@10
on the validation items, among `--epochs`, and test is ranked once. Both rank by our evaluator, history excluded and not.
"""

from __future__ import annotations

import argparse
import copy
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from lightning_fabric import seed_everything
from pytorch_lightning import Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.transformers.ligr import LiGRLayers

from cemg_hf.artefacts import result_envelope, write_json
from cemg_hf.data import PreparedDataset, Ragged
from cemg_hf.data.splits import EvaluationCases
from cemg_hf.evaluation.metrics import ranking_metrics
from cemg_hf.evaluation.runs import read_runs

WIDTH = 20
LAYERS = {"sasrec": {}, "esasrec": {"transformer_layers_type": LiGRLayers}}


def trainer() -> Trainer:
    """Silent, on the CPU or the one GPU; epochs are counted by `fit_partial`."""
    return Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, devices=1)


def frame(sequences: Ragged, users: npt.NDArray[np.int64]) -> pd.DataFrame:
    """Interactions as the library reads them; the place in the sequence is the time."""
    lengths = sequences.lengths
    place = np.arange(len(sequences.values)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    columns = {Columns.User: np.repeat(users, lengths), Columns.Item: sequences.values, Columns.Weight: 1.0}
    return pd.DataFrame(columns | {Columns.Datetime: pd.Timestamp("2000-01-01") + pd.to_timedelta(place, unit="s")})


def rank(model: SASRecModel, cases: EvaluationCases, exclude_history: bool) -> npt.NDArray[np.int64]:
    """(cases, WIDTH) item indices, best first, −1 where the library has none: it knows no item without training interactions."""
    history = Dataset.construct(frame(cases.histories, cases.users))
    found = model.recommend(cases.users, history, WIDTH, filter_viewed=exclude_history, on_unsupported_targets="ignore")
    ranked = np.full((len(cases), WIDTH), -1, dtype=np.int64)
    row = {user: number for number, user in enumerate(cases.users)}
    ranked[found[Columns.User].map(row).to_numpy(), found[Columns.Rank].to_numpy() - 1] = found[Columns.Item].to_numpy()
    return ranked


def measure(data: PreparedDataset, layers: str, settings: dict[str, Any], epochs: int, every: int, seed: int) -> dict[str, Any]:
    """Figures on test at the best validation epoch, with the curve."""
    seed_everything(seed, verbose=False)
    training = Dataset.construct(frame(data.train_sequences(), np.arange(data.num_users)))
    model = SASRecModel(**settings, **LAYERS[layers], deterministic=True, get_trainer_func=trainer, recommend_n_threads=1)
    validation, test = data.evaluation_cases("validation"), data.evaluation_cases("test")
    curve: dict[int, float] = {}
    best: dict[str, Any] = {}
    started = time.perf_counter()
    for epoch in range(every, epochs + 1, every):
        model.fit_partial(training, min_epochs=every, max_epochs=every)
        curve[epoch] = float(ranking_metrics(rank(model, validation, True), validation.targets)["ndcg@10"] or 0)
        print(f"{layers}: epoch {epoch}, validation NDCG@10 {curve[epoch]:.4f}, {time.perf_counter() - started:.0f} s", flush=True)
        if curve[epoch] == max(curve.values()):
            best = copy.deepcopy(model.lightning_model.state_dict())
    model.lightning_model.load_state_dict(best)
    slices = {"test": False, "test_excluding_history": True}
    measured: dict[str, Any] = {
        name: ranking_metrics(rank(model, test, excluding), test.targets) | {"n": len(test)} for name, excluding in slices.items()
    }
    return {"metrics": measured, "curve": curve, "best_epoch": max(curve, key=curve.__getitem__), "seconds": time.perf_counter() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description="RecTools' SASRec and eSASRec on the split of a run of SASRec.")
    parser.add_argument("--run", type=Path, required=True, action="append", help="run of SASRec here; the first one's data set is used")
    parser.add_argument("--output", type=Path, required=True, help="results file to write")
    parser.add_argument("--layers", nargs="+", choices=list(LAYERS), default=list(LAYERS), help="the library's layers")
    parser.add_argument("--loss", default="sampled_softmax", help="softmax, sampled_softmax, BCE or gBCE")
    parser.add_argument("--negatives", type=int, default=256, help="uniform negatives for every position")
    parser.add_argument("--factors", type=int, default=64, help="width of the network")
    parser.add_argument("--blocks", type=int, default=1, help="layers")
    parser.add_argument("--heads", type=int, default=2, help="attention heads")
    parser.add_argument("--dropout", type=float, default=0.5, help="dropout rate")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of Adam, constant")
    parser.add_argument("--batch-size", type=int, default=128, help="users per step")
    parser.add_argument("--max-length", type=int, default=50, help="items of a history")
    parser.add_argument("--epochs", type=int, default=30, help="most passes over the users")
    parser.add_argument("--every", type=int, default=3, help="epochs between two validations")
    parser.add_argument("--seed", type=int, default=42)
    given = parser.parse_args()
    started = time.perf_counter()
    data = PreparedDataset.load(given.run[0] / "dataset")
    settings = {
        "n_factors": given.factors,
        "n_blocks": given.blocks,
        "n_heads": given.heads,
        "dropout_rate": given.dropout,
        "session_max_len": given.max_length,
        "loss": given.loss,
        "n_negatives": given.negatives,
        "lr": given.learning_rate,
        "batch_size": given.batch_size,
    }
    trained = {f"rectools {layers}": measure(data, layers, settings, given.epochs, given.every, given.seed) for layers in given.layers}
    metrics = {run.system: {part: run.metrics[part] for part in ("test", "test_excluding_history")} for run in read_runs(given.run)}
    metrics |= {name: result.pop("metrics") for name, result in trained.items()}
    write_json(
        given.output,
        result_envelope(
            metrics,
            command=shlex.join(["python", *sys.argv]),
            seeds=[given.seed],
            seconds=time.perf_counter() - started,
            settings=settings | {"library": f"rectools {version('rectools')}"},
            training=trained,
        ),
    )
    for name, slices in metrics.items():
        print(name, *(f"{part} {values['hr@10']:.4f} / {values['ndcg@10']:.4f}" for part, values in slices.items()), sep=" · ")


if __name__ == "__main__":
    main()
