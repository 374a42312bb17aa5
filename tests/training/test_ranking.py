"""`rank_histories` gives `recommend`'s lists as arrays, whatever the batches."""

from __future__ import annotations

from io import StringIO

import numpy as np
import pytest
import torch
from tqdm.auto import tqdm

from cemg_hf import CEMGConfig, CEMGForConditionalGeneration, CEMGTokenizer
from cemg_hf.data import Ragged
from cemg_hf.training.ranking import pad, rank_histories

NUM_ITEMS = 30
HISTORIES = Ragged.from_lists([[1, 2, 3], [], [*range(12), 2], [7], [5, 5, 6, 9, 9]])


@pytest.fixture(scope="module")
def model() -> CEMGForConditionalGeneration:
    torch.manual_seed(0)
    drawn = torch.randperm(64)[:NUM_ITEMS]
    tokenizer = CEMGTokenizer(
        item_ids=[f"item{index}" for index in range(NUM_ITEMS)],
        item_codes=torch.stack([drawn // 8, drawn % 8], dim=1),
        num_levels=2,
        codebook_size=8,
        max_history=4,
    )
    config = CEMGConfig(**tokenizer.geometry(), d_model=16, d_kv=8, d_ff=32, num_heads=2, num_layers=1, dropout_rate=0.0)
    generator = CEMGForConditionalGeneration(config).eval()
    generator.set_tokenizer(tokenizer)
    return generator


@pytest.mark.parametrize("exclude_history", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_ranks_as_recommend_does(model, exclude_history, batch_size):
    ranked, scores = rank_histories(model, HISTORIES, 6, num_beams=20, exclude_history=exclude_history, batch_size=batch_size)
    assert ranked.shape == scores.shape == (5, 6)
    assert (ranked.dtype, scores.dtype) == (np.int64, np.float32)
    histories = [[f"item{item}" for item in row] for row in HISTORIES.to_lists()]
    for row, expected in enumerate(model.recommend(histories, k=6, num_beams=20, exclude_history=exclude_history)):
        assert [f"item{item}" for item in ranked[row]] == [item.item_id for item in expected]
        assert scores[row].tolist() == pytest.approx([item.score for item in expected], abs=1e-5)


def test_lists_end_with_nothing_where_items_run_out(model):
    ranked, scores = rank_histories(model, HISTORIES, 40, exclude_history=True)
    for row, history in enumerate(HISTORIES.to_lists()):
        kept = NUM_ITEMS - len(set(history))
        assert sorted(ranked[row, :kept].tolist()) == sorted(set(range(NUM_ITEMS)) - set(history))
        assert (ranked[row, kept:] == -1).all()
        assert (scores[row, kept:] == -np.inf).all()
        assert (np.diff(scores[row, :kept]) <= 0).all()


def test_no_histories_give_no_rows(model):
    ranked, scores = rank_histories(model, Ragged.from_lists([]), 5)
    assert ranked.shape == scores.shape == (0, 5)


def test_a_bar_of_the_callers_is_advanced_and_left_open(model):
    with tqdm(total=20, initial=3, file=StringIO()) as bar:
        rank_histories(model, HISTORIES, 2, batch_size=2, progress=bar)
        rank_histories(model, HISTORIES, 2, progress=bar)
        assert bar.n == 3 + 2 * len(HISTORIES)


def test_impossible_requests_are_refused(model):
    with pytest.raises(ValueError, match="cannot fill lists of k=5"):
        rank_histories(model, HISTORIES, 5, num_beams=4)
    with pytest.raises(ValueError, match="k must be at least 1"):
        rank_histories(model, HISTORIES, 0)
    with pytest.raises(ValueError, match="set_tokenizer"):
        rank_histories(CEMGForConditionalGeneration(model.config), HISTORIES, 5)


def test_pad_fills_up_at_the_end():
    assert pad(Ragged.from_lists([[1, 2], [], [3]])).tolist() == [[1, 2], [-1, -1], [3, -1]]
    assert pad(Ragged.from_lists([[], []])).shape == (2, 0)
