"""ItemKNN against dense arrays and loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cemg_hf.data import EvaluationCases, Ragged
from cemg_hf.errors import CEMGError
from cemg_hf.training import item_knn
from cemg_hf.training.item_knn import ItemKNN, ItemKNNConfig

NUM_USERS, NUM_ITEMS = 40, 25


def sequences(seed: int = 0) -> list[list[int]]:
    """Histories with repeats and an empty one; the last item is bought by nobody."""
    rng = np.random.default_rng(seed)
    return [[], *(rng.integers(0, NUM_ITEMS - 1, size).tolist() for size in rng.integers(1, 12, NUM_USERS - 1))]


def similarities(rows: list[list[int]], config: ItemKNNConfig) -> np.ndarray:
    """(N, N) cosines, all of them, before neighbours are chosen."""
    bought = [{user for user, row in enumerate(rows) if item in row} for item in range(NUM_ITEMS)]
    found = np.zeros((NUM_ITEMS, NUM_ITEMS))
    for i in range(NUM_ITEMS):
        for j in range(NUM_ITEMS):
            if i != j and bought[i] & bought[j]:
                found[i, j] = len(bought[i] & bought[j]) / (math.sqrt(len(bought[i])) * math.sqrt(len(bought[j])) + config.shrink)
    return found


CONFIGS = [
    ItemKNNConfig(),
    ItemKNNConfig(shrink=0.0, half_life=None),
    ItemKNNConfig(neighbours=1, shrink=3.0),
    ItemKNNConfig(neighbours=4, shrink=0.5, half_life=0.5),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("block", [4096, 7])
def test_neighbours_are_the_most_similar_items(config, block, monkeypatch):
    monkeypatch.setattr(item_knn, "ROWS_AT_ONCE", block)
    rows = sequences()
    found = ItemKNN(Ragged.from_lists(rows), NUM_ITEMS, config).similarity.toarray()
    expected = similarities(rows, config)
    assert found.shape == (NUM_ITEMS, NUM_ITEMS)
    assert not found.diagonal().any()
    for item in range(NUM_ITEMS):
        kept = np.flatnonzero(found[item])
        np.testing.assert_allclose(found[item, kept], expected[item, kept], rtol=1e-5)
        best = np.sort(expected[item])[::-1]
        count = min(config.neighbours, int((best > 0).sum()))
        np.testing.assert_allclose(np.sort(found[item, kept])[::-1], best[:count], rtol=1e-5)  # ties may go either way


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("exclude", [False, True])
def test_scores_are_sums_over_the_history_that_fade_with_age(config, exclude):
    rows = sequences()
    model = ItemKNN(Ragged.from_lists(rows), NUM_ITEMS, config)
    asked = [*sequences(seed=1)[:12], [3, 3, 5, 3]]
    cases = EvaluationCases(np.arange(len(asked)), Ragged.from_lists(asked), np.zeros(len(asked), dtype=np.int64))
    ranked, scores = model(cases, 30, exclude_history=exclude)
    similar = model.similarity.toarray()
    for row, history in enumerate(asked):
        expected = np.zeros(NUM_ITEMS)
        for age, item in enumerate(reversed(history)):
            expected += similar[item] * (1 if config.half_life is None else 2 ** (-age / config.half_life))
        possible = {item for item in range(NUM_ITEMS) if expected[item] > 0 and not (exclude and item in history)}
        kept = ranked[row] >= 0
        assert set(ranked[row, kept].tolist()) == possible
        assert (ranked[row, len(possible) :] == -1).all()
        np.testing.assert_allclose(scores[row, kept], expected[ranked[row, kept]], rtol=1e-4)
        assert (np.diff(scores[row, kept]) <= 0).all()
        assert (scores[row, ~kept] == -np.inf).all()


def test_an_item_without_neighbours_or_an_empty_history_has_no_list():
    model = ItemKNN(Ragged.from_lists(sequences()), NUM_ITEMS, ItemKNNConfig())
    cases = EvaluationCases(np.arange(2), Ragged.from_lists([[], [NUM_ITEMS - 1]]), np.zeros(2, dtype=np.int64))
    assert (model(cases, 5, exclude_history=False)[0] == -1).all()


@pytest.mark.parametrize("wrong", [{"neighbours": 0}, {"shrink": -1.0}, {"half_life": 0.0}, {"half_life": -2.0}], ids=str)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(CEMGError, match="neighbours must be at least 1, shrink at least 0 and half_life above 0"):
        ItemKNNConfig(**wrong)
