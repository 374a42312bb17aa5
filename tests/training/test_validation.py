"""The validation of every recommender that is trained: the same users every time, HR and NDCG of its lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from cemg_hf.data import EvaluationCases, PreparedDataset, Ragged
from cemg_hf.errors import CEMGError
from cemg_hf.training.validation import WIDTH, Validation

NUM_ITEMS, NUM_USERS = 40, 50


def prepared(sequences: list[list[int]]) -> PreparedDataset:
    users = [f"u{row}" for row in range(len(sequences))]
    return PreparedDataset(Path("shop"), users, [f"i{item}" for item in range(NUM_ITEMS)], Ragged.from_lists(sequences))


@pytest.fixture
def data() -> PreparedDataset:
    rng = np.random.default_rng(0)
    return prepared([rng.choice(NUM_ITEMS, size, replace=False).tolist() for size in rng.integers(1, 9, NUM_USERS)])


def rank(cases: EvaluationCases) -> np.ndarray:
    """The target on the place that its own number gives, of 30."""
    lists = np.tile(np.arange(NUM_ITEMS, NUM_ITEMS + WIDTH), (len(cases), 1))
    for row, target in enumerate(cases.targets):
        if target % 30 < WIDTH:
            lists[row, target % 30] = target
    return lists


def test_metrics_are_those_of_the_lists(data: PreparedDataset) -> None:
    metrics = Validation(rank, data, 0, seed=1)(nn.Identity())
    places = data.evaluation_cases("validation").targets % 30
    for k in (10, 20):
        assert metrics[f"hr@{k}"] == pytest.approx(np.mean(places < k))
        assert metrics[f"ndcg@{k}"] == pytest.approx(np.mean(np.where(places < k, 1 / np.log2(places + 2), 0)))
        assert metrics[f"mrr@{k}"] == pytest.approx(np.mean(np.where(places < k, 1 / (places + 1), 0)))
    assert metrics.keys() == {"hr@10", "ndcg@10", "mrr@10", "hr@20", "ndcg@20", "mrr@20"}
    assert Validation(lambda cases: rank(cases)[:, :10], data, 0, seed=1)(nn.Identity()).keys() == {"hr@10", "ndcg@10", "mrr@10"}


def test_users_are_drawn_once_by_the_seed(data: PreparedDataset) -> None:
    everyone = data.evaluation_cases("validation")
    drawn = [Validation(rank, data, 7, seed).cases for seed in (1, 1, 2)]
    assert [len(cases) for cases in drawn] == [7, 7, 7]
    assert drawn[0].users.tolist() == drawn[1].users.tolist() != drawn[2].users.tolist()
    for cases in drawn:
        assert (np.diff(cases.users) > 0).all()
        rows = [everyone.users.tolist().index(user) for user in cases.users]
        assert cases.targets.tolist() == everyone.targets[rows].tolist()
        assert cases.histories.to_lists() == [everyone.histories.to_lists()[row] for row in rows]
    for users in (0, len(everyone), 10**6):
        assert Validation(rank, data, users, 1).cases.users.tolist() == everyone.users.tolist()


def test_nobody_to_validate_on_is_refused() -> None:
    with pytest.raises(CEMGError, match="shop: nobody has the three interactions that validation needs"):
        Validation(rank, prepared([[1, 2], [3]]), 0, seed=0)
