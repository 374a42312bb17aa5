"""Neighbourhoods of implicit (cosine, TF-IDF, BM25) on the same split and metrics: is our ItemKNN as good as a well-kept library's?

    pip install implicit
    python benchmarks/library_item_knn.py --run runs/beauty-item-knn --output benchmarks/results/library_item_knn.json

RUN is a finished run of ItemKNN here, whose data set is taken and beside whose figures the library's are written. Number of neighbours and
weighting are chosen by NDCG@10 on the validation items, history excluded, and test is ranked once. Ours stripped to what the library's
cosine is (no shrinkage, the whole history alike) is ranked beside it, which tells the method from its settings.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from implicit.nearest_neighbours import BM25Recommender, CosineRecommender, ItemItemRecommender, TFIDFRecommender

from cemg_hf.artefacts import result_envelope, write_json
from cemg_hf.data import PreparedDataset, Ragged
from cemg_hf.data.splits import EvaluationCases
from cemg_hf.evaluation.metrics import ranking_metrics
from cemg_hf.evaluation.runs import read_runs
from cemg_hf.training.item_knn import ItemKNN, ItemKNNConfig

WIDTH = 20
SLICES = {"test": False, "test_excluding_history": True}
WEIGHTINGS = {"cosine": CosineRecommender, "tf-idf": TFIDFRecommender, "bm25": BM25Recommender}


def matrix(sequences: Ragged, num_items: int) -> sp.csr_matrix:
    """(rows, N) with a one for every item of a row."""
    entries = (np.ones(len(sequences.values), dtype=np.float32), (sequences.rows, sequences.values))
    ones = sp.csr_matrix(entries, shape=(len(sequences), num_items))
    ones.data[:] = 1
    return ones


def rank(model: ItemItemRecommender, cases: EvaluationCases, num_items: int, exclude_history: bool) -> npt.NDArray[np.int64]:
    """(cases, WIDTH) item indices, best first, −1 where the library has none."""
    histories = matrix(cases.histories, num_items)
    found, scores = model.recommend(np.arange(len(cases)), histories, WIDTH, filter_already_liked_items=exclude_history)
    return np.where((found >= 0) & (scores > 0), found, -1).astype(np.int64)


def figures(ranked: npt.NDArray[np.int64], cases: EvaluationCases) -> dict[str, Any]:
    return ranking_metrics(ranked, cases.targets) | {"n": len(cases)}


def main() -> None:
    parser = argparse.ArgumentParser(description="implicit's item neighbourhoods on the split of a run of ItemKNN.")
    parser.add_argument("--run", type=Path, required=True, help="run of ItemKNN here")
    parser.add_argument("--output", type=Path, required=True, help="results file to write")
    parser.add_argument("--neighbours", type=int, nargs="+", default=[20, 100, 1000], help="numbers of neighbours to choose from")
    given = parser.parse_args()
    if min(given.neighbours) < 2:  # the library counts an item among its own
        parser.error("--neighbours: must be at least 2, an item and another one")
    started = time.perf_counter()
    data = PreparedDataset.load(given.run / "dataset")
    training = matrix(data.train_sequences(), data.num_items)
    validation, test = data.evaluation_cases("validation"), data.evaluation_cases("test")

    chosen: dict[str, tuple[float, int]] = {}
    runs = read_runs([given.run])
    metrics: dict[str, Any] = {run.system: {part: run.metrics[part] for part in SLICES} for run in runs}
    for name, kind in WEIGHTINGS.items():
        models = {neighbours: kind(K=neighbours) for neighbours in given.neighbours}
        tried = {}
        for neighbours, model in models.items():
            model.fit(training, show_progress=False)
            tried[neighbours] = float(figures(rank(model, validation, data.num_items, True), validation)["ndcg@10"] or 0)
            print(f"{name}, {neighbours} neighbours: validation NDCG@10 {tried[neighbours]:.4f}", flush=True)
        best = max(tried, key=tried.__getitem__)
        chosen[name] = tried[best], best
        of_test = {part: figures(rank(models[best], test, data.num_items, excluding), test) for part, excluding in SLICES.items()}
        metrics[f"implicit, {name}"] = of_test

    # The library counts an item among its own neighbours; ours does not.
    plain = ItemKNN.fit(data, ItemKNNConfig(neighbours=chosen["cosine"][1] - 1, shrink=0, half_life=None))
    metrics["item_knn, plain cosine"] = {
        part: figures(plain(test, WIDTH, exclude_history=excluding)[0], test) for part, excluding in SLICES.items()
    }
    write_json(
        given.output,
        result_envelope(
            metrics,
            command=shlex.join(["python", *sys.argv]),
            seeds=sorted({seed for run in runs for seed in run.seeds}),
            seconds=time.perf_counter() - started,
            settings={"library": f"implicit {version('implicit')}", "neighbours": given.neighbours},
            chosen={name: {"neighbours": neighbours, "validation ndcg@10": value} for name, (value, neighbours) in chosen.items()},
        ),
    )
    for name, slices in metrics.items():
        print(name, *(f"{part} {values['hr@10']:.4f} / {values['ndcg@10']:.4f}" for part, values in slices.items()), sep=" · ")


if __name__ == "__main__":
    main()
