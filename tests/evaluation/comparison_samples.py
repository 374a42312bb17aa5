"""Runs on disk for the tests of comparisons: lists of chosen quality, measured as the evaluator measures them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from cemg_hf.artefacts import result_envelope, write_json
from cemg_hf.evaluation import Predictions, evaluate_rankings, ranking_intervals, write_predictions

USERS, ITEMS, PLACES = 200, 40, 20


def predictions(seed: int = 0, quality: float = 0.3, data_seed: int = 0, users: int = USERS) -> Predictions:
    """Random lists in which a share of the targets, `quality`, stands first; targets and counts follow `data_seed` alone."""
    data, generator = np.random.default_rng(data_seed), np.random.default_rng([seed, 1])
    targets, counts = data.integers(0, ITEMS, users), data.integers(0, 12, ITEMS)
    lists = []
    for _ in range(2):
        keys = generator.random((users, ITEMS))
        known = np.flatnonzero(generator.random(users) < quality)
        keys[known, targets[known]] = -1
        lists.append(keys.argsort(axis=1)[:, :PLACES])
    scores = -np.tile(np.arange(PLACES, dtype=np.float32), (users, 1))
    names = [f"i{item}" for item in range(ITEMS)]
    return Predictions([f"u{user}" for user in range(users)], names, counts, targets, lists[0], scores, lists[1], scores)


def reordered(given: Predictions, users: np.ndarray, items: np.ndarray) -> Predictions:
    """The same predictions with cases in the order `users` and another numbering of the catalogue."""
    new = np.append(np.argsort(items), -1)
    return Predictions(
        [given.user_ids[user] for user in users],
        [given.item_ids[item] for item in items],
        given.train_item_counts[items],
        new[given.targets[users]],
        new[given.ranked[users]],
        given.scores[users],
        new[given.ranked_excluding_history[users]],
        given.scores_excluding_history[users],
    )


def save_run(folder: Path, system: str, seed: int = 0, given: Predictions | None = None, **changed: object) -> Path:
    """A run folder with `evaluation/`, as `evaluate_ranker` leaves it."""
    given = predictions(seed) if given is None else given
    lists = (given.ranked, given.ranked_excluding_history, given.targets, given.train_item_counts)
    popular = np.tile(np.argsort(-given.train_item_counts, kind="stable")[:PLACES], (len(given.user_ids), 1))
    floor = (popular, popular, given.targets, given.train_item_counts)
    systems = {"popularity": floor} | {system: lists} if system != "popularity" else {system: lists}
    metrics = {name: evaluate_rankings(*both) for name, both in systems.items()}
    intervals = {name: ranking_intervals(*both, resamples=100) for name, both in systems.items()}
    parts = {"system": system, "protocol": {"split": "leave_one_out", "cold_threshold": 5}, "intervals": intervals} | changed
    write_predictions(folder / "evaluation", given)
    write_json(folder / "evaluation" / "metrics.json", result_envelope(metrics, command="", seeds=[seed], seconds=0) | parts)
    return folder


def forget(run: Path, metric: str) -> None:
    """Make a run one that was evaluated before there was a metric ("mrr")."""
    file = run / "evaluation" / "metrics.json"
    envelope = json.loads(file.read_text())
    for kind in ("metrics", "intervals"):
        for slices in envelope[kind].values():
            for part, values in slices.items():
                slices[part] = {name: value for name, value in values.items() if name.partition("@")[0] != metric}
    write_json(file, envelope)


def save_result(file: Path, systems: list[str], n: int = USERS) -> Path:
    """A file of results as the benchmarks keep it: means and standard deviations over seeds, no predictions."""
    row = {"hr@10": 0.2, "ndcg@10": 0.1, "hr@20": 0.3, "ndcg@20": 0.12, "n": n}
    slices = {"test": row, "test_excluding_history": row, "test_cold": row | {"n": 10}}
    spread = {part: {"hr@10": 0.01, "ndcg@10": 0.01} for part in slices}
    write_json(
        file,
        result_envelope(dict.fromkeys(systems, slices), command="", seeds=[1, 2], seconds=0, std=dict.fromkeys(systems, spread)),
    )
    return file
