from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cemg_hf.data.ragged import Ragged
from cemg_hf.data.splits import TimeCuts, evaluation_cases, time_cuts, time_points, training_cases, training_part
from cemg_hf.errors import CEMGError

SEQUENCES = st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=9), min_size=1, max_size=12)


@given(SEQUENCES)
def test_leave_one_out_gives_every_interaction_of_an_evaluated_user_one_role(lists: list[list[int]]) -> None:
    sequences = Ragged.from_lists(lists)
    training, validation, test = training_part(sequences), evaluation_cases(sequences, "validation"), evaluation_cases(sequences, "test")
    assert validation.users.tolist() == test.users.tolist() == [user for user, row in enumerate(lists) if len(row) >= 3]
    for case, user in enumerate(test.users.tolist()):
        train = training[user].tolist()
        assert [*train, validation.targets[case], test.targets[case]] == lists[user]
        assert validation.histories[case].tolist() == train
        assert test.histories[case].tolist() == [*train, validation.targets[case]]
    for user, row in enumerate(lists):
        if len(row) < 3:
            assert training[user].tolist() == row


@given(SEQUENCES)
def test_training_cases_hold_out_nothing_of_the_training_part(lists: list[list[int]]) -> None:
    training, cases = training_part(Ragged.from_lists(lists)), training_cases(Ragged.from_lists(lists))
    assert cases.users.tolist() == list(range(len(lists)))
    assert [
        [*history, target] for history, target in zip(cases.histories.to_lists(), cases.targets.tolist(), strict=True)
    ] == training.to_lists()


def test_dtypes_and_unknown_split() -> None:
    cases = evaluation_cases(Ragged.from_lists([[1, 2, 3]]), "test")
    assert cases.users.dtype == cases.targets.dtype == cases.histories.values.dtype == np.int64
    with pytest.raises(ValueError, match="split must be"):
        evaluation_cases(Ragged.from_lists([[1, 2, 3]]), "train")  # type: ignore[arg-type]


TIMES = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=9).map(sorted), min_size=1, max_size=12)


@given(TIMES, st.integers(1, 20), st.integers(1, 10))
def test_a_split_by_time_leaks_nothing(times: list[list[int]], first: int, further: int) -> None:
    """Items are named after their interaction, so that every row of a split tells which interactions it is made of."""
    moments = Ragged.from_lists(times)
    sequences = Ragged(np.arange(len(moments.values)), moments.offsets)
    cuts = TimeCuts(first, first + further)
    points = time_points(moments, cuts)
    training = training_part(sequences, points)
    at = moments.values
    assert len(training) == len(times)
    assert training.values.tolist() == np.flatnonzero(at < cuts.validation_from).tolist()
    for split, begin, end in (("validation", cuts.validation_from, cuts.test_from), ("test", cuts.test_from, np.inf)):
        cases = evaluation_cases(sequences, split, points)  # type: ignore[arg-type]
        inside = (at >= begin) & (at < end)
        assert cases.users.tolist() == np.unique(sequences.rows[inside]).tolist()
        assert at[training.values].max(initial=-1) < begin <= at[cases.targets].min(initial=1000)
        for user, history, target in zip(cases.users.tolist(), cases.histories.to_lists(), cases.targets.tolist(), strict=True):
            own = sequences[user]
            assert target == own[inside[own]][0], "the first interaction in the time of the split"
            assert history == own[own < target].tolist(), "everything of this user before it, and nothing else"
            assert not inside[history].any()
        if split == "test":
            validated = evaluation_cases(sequences, "validation", points)
            both = dict(zip(validated.users.tolist(), validated.targets.tolist(), strict=True))
            assert all(both.get(user, -1) in [-1, *history] for user, history in zip(cases.users.tolist(), cases.histories, strict=True))
    assert training_cases(sequences, points).users.tolist() == np.flatnonzero(points.training).tolist()


@given(st.lists(st.integers(-(2**60), 2**60), min_size=20, max_size=60, unique=True))
def test_cuts_lie_at_the_shares_asked_for(times: list[int]) -> None:
    cuts = time_cuts(np.array(times), [0.5, 0.8])
    assert sum(time < cuts.validation_from for time in times) == int(0.5 * len(times))
    assert sum(time < cuts.test_from for time in times) == int(0.8 * len(times))


@pytest.mark.parametrize("times", [[5] * 10, [1] * 9 + [2], [1] + [2] * 9])
def test_times_that_cannot_be_cut_are_refused(times: list[int]) -> None:
    with pytest.raises(CEMGError, match=r"time_quantiles: \[0.8, 0.9\] cut at"):
        time_cuts(np.array(times), [0.8, 0.9])
