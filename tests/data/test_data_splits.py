from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cemg_hf.data.ragged import Ragged
from cemg_hf.data.splits import leave_one_out, training_cases, training_part

SEQUENCES = st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=9), min_size=1, max_size=12)


@given(SEQUENCES)
def test_leave_one_out_gives_every_interaction_of_an_evaluated_user_one_role(lists: list[list[int]]) -> None:
    sequences = Ragged.from_lists(lists)
    training, validation, test = training_part(sequences), leave_one_out(sequences, "validation"), leave_one_out(sequences, "test")
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
    cases = leave_one_out(Ragged.from_lists([[1, 2, 3]]), "test")
    assert cases.users.dtype == cases.targets.dtype == cases.histories.values.dtype == np.int64
    with pytest.raises(ValueError, match="split must be"):
        leave_one_out(Ragged.from_lists([[1, 2, 3]]), "train")  # type: ignore[arg-type]
