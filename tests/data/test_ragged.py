from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cemg_hf.data.ragged import Ragged

LISTS = st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=8)


@given(LISTS)
def test_lists_round_trip(lists: list[list[int]]) -> None:
    ragged = Ragged.from_lists(lists)
    assert ragged.to_lists() == lists
    assert len(ragged) == len(lists)
    assert ragged.lengths.tolist() == [len(row) for row in lists]
    assert [ragged[row].tolist() for row in range(len(lists))] == lists
    assert ragged.rows.tolist() == [row for row, values in enumerate(lists) for _ in values]


@given(LISTS, st.data())
def test_take_last_and_drop_last_agree_with_lists(lists: list[list[int]], data: st.DataObject) -> None:
    ragged = Ragged.from_lists(lists)
    n = data.draw(st.integers(0, 7))
    assert ragged.last(n).to_lists() == [row[max(len(row) - n, 0) :] for row in lists]
    assert ragged.drop_last(n).to_lists() == [row[: max(len(row) - n, 0)] for row in lists]
    if lists:
        indices = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=10))
        assert ragged.take(indices).to_lists() == [lists[index] for index in indices]
        per_row = data.draw(st.lists(st.integers(0, 7), min_size=len(lists), max_size=len(lists)))
        dropped = [row[: max(len(row) - drop, 0)] for row, drop in zip(lists, per_row, strict=True)]
        assert ragged.drop_last(np.array(per_row)).to_lists() == dropped


def test_index_outside_the_rows_is_an_index_error() -> None:
    ragged = Ragged.from_lists([[1], [2, 3]])
    assert ragged[-1].tolist() == [2, 3]
    for row in (2, -3):
        with pytest.raises(IndexError):
            ragged[row]


@pytest.mark.parametrize("offsets", [[], [1, 3], [0, 2], [0, 4], [0, 2, 1, 3]])
def test_offsets_that_do_not_describe_the_values_are_refused(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="offsets must rise"):
        Ragged(np.arange(3), np.array(offsets, dtype=np.int64))
