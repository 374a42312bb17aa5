"""Lists from scores of the whole catalogue, against a full sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tqdm.auto import tqdm

from cemg_hf.data import EvaluationCases, Ragged
from cemg_hf.evaluation.metrics import check_rankings
from cemg_hf.models.sasrec import SASRecConfig, SASRecForNextItem
from cemg_hf.training import scoring
from cemg_hf.training.scoring import rank_by_scores, rank_with_network

NUM_ITEMS, ROWS = 23, 17


@pytest.fixture
def cases() -> EvaluationCases:
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, NUM_ITEMS, size).tolist() for size in rng.integers(0, 9, ROWS)]
    return EvaluationCases(np.arange(ROWS) * 2, Ragged.from_lists(histories), rng.integers(0, NUM_ITEMS, ROWS))


@pytest.fixture
def table() -> torch.Tensor:
    """Scores of every row, some of them of items that must not come out, all of them in one row."""
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(ROWS, NUM_ITEMS, generator=draw)
    scores[torch.rand(ROWS, NUM_ITEMS, generator=draw) < 0.3] = -torch.inf
    scores[4] = -torch.inf
    return scores


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("at_once", [1, 5 * NUM_ITEMS, 10**6])
@pytest.mark.parametrize("k", [1, 6, NUM_ITEMS, 40])
def test_lists_are_those_of_a_full_sort(cases, table, exclude, at_once, k, monkeypatch):
    monkeypatch.setattr(scoring, "SCORES_AT_ONCE", at_once)
    asked: list[int] = []

    def scores_of(rows: np.ndarray) -> torch.Tensor:
        asked.extend(rows.tolist())
        return table[torch.from_numpy(rows)]

    before = table.clone()
    ranked, scores = rank_by_scores(scores_of, cases.histories, NUM_ITEMS, k, exclude_history=exclude)
    assert sorted(asked) == list(range(ROWS))
    assert torch.equal(table, before)
    assert ranked.shape == scores.shape == (ROWS, k)
    assert (ranked.dtype, scores.dtype) == (np.int64, np.float32)
    check_rankings(ranked, NUM_ITEMS)
    for row, history in enumerate(cases.histories.to_lists()):
        left = [(-float(score), item) for item, score in enumerate(table[row]) if score > -np.inf and not (exclude and item in history)]
        expected = [item for _, item in sorted(left)][:k]
        assert ranked[row].tolist() == expected + [-1] * (k - len(expected))
        assert scores[row].tolist() == [float(table[row, item]) for item in expected] + [-np.inf] * (k - len(expected))


@pytest.mark.parametrize("batch_size", [None, 1, 4, 1000])
def test_a_network_ranks_as_it_recommends_whatever_the_batch(cases, batch_size):
    torch.manual_seed(0)
    model = SASRecForNextItem(SASRecConfig(num_items=NUM_ITEMS, hidden_size=8, max_history=5)).eval()
    model.item_ids = [str(item) for item in range(NUM_ITEMS)]
    histories = cases.histories.to_lists()
    bar = tqdm(total=ROWS, disable=True)
    bar.update = lambda rows: seen.append(rows)
    seen: list[int] = []
    ranked, scores = rank_with_network(model, cases.histories, 6, exclude_history=True, batch_size=batch_size, progress=bar)
    assert sum(seen) == ROWS
    assert max(seen) == min(batch_size or ROWS, ROWS)
    expected = model.recommend([[str(item) for item in history] for history in histories], k=6, exclude_history=True)
    for row, values, found in zip(ranked.tolist(), scores.tolist(), expected, strict=True):
        assert [str(item) for item in row] == [item.item_id for item in found]
        assert values == pytest.approx([item.score for item in found], abs=1e-5)


def test_half_precision_scores_come_back_in_single_precision(cases):
    ranked, scores = rank_by_scores(
        lambda rows: torch.ones(len(rows), NUM_ITEMS, dtype=torch.bfloat16), cases.histories, NUM_ITEMS, 3, exclude_history=True
    )
    assert scores.dtype == np.float32
    assert (ranked >= 0).all()


def test_nobody_to_rank_for(cases):
    nobody = cases.histories.take([])
    ranked, scores = rank_by_scores(lambda rows: torch.empty(0, NUM_ITEMS), nobody, NUM_ITEMS, 3, exclude_history=True)
    assert ranked.shape == scores.shape == (0, 3)
