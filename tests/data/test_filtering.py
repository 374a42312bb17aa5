from __future__ import annotations

from collections import Counter

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from cemg_hf.data.filtering import apply_k_core, drop_duplicates, k_core, order_histories

PAIRS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=60)


def one_at_a_time(pairs: list[tuple[int, int]], k: int) -> list[tuple[int, int]]:
    """Independent reference: remove one offending user or item at a time, users and items in the order they come."""
    while True:
        users, items = Counter(user for user, _ in pairs), Counter(item for _, item in pairs)
        bad_user = next((user for user, _ in pairs if users[user] < k), None)
        bad_item = next((item for _, item in pairs if items[item] < k), None)
        if bad_user is not None:
            pairs = [pair for pair in pairs if pair[0] != bad_user]
        elif bad_item is not None:
            pairs = [pair for pair in pairs if pair[1] != bad_item]
        else:
            return pairs


@settings(max_examples=200)
@given(PAIRS, st.integers(0, 5))
def test_k_core_is_a_core_and_the_largest(pairs: list[tuple[int, int]], k: int) -> None:
    users, items = (np.array(column, dtype=np.int64) for column in (zip(*pairs, strict=True) if pairs else ([], [])))
    keep = k_core(users, items, k)
    for codes in (users[keep], items[keep]):
        assert (np.unique(codes, return_counts=True)[1] >= k).all()
    assert [pair for pair, kept in zip(pairs, keep, strict=True) if kept] == one_at_a_time(pairs, k)


def test_k_core_takes_several_rounds() -> None:
    # The block a, b × x, y is a 2-core; c hangs on it through z, which only c has.
    table = pl.DataFrame({"user_id": list("aabbcc"), "item_id": list("xyxyxz")})
    assert apply_k_core(table, 2)["user_id"].to_list() == list("aabb")
    assert apply_k_core(table, 0).equals(table)
    assert apply_k_core(table, 3).is_empty()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), st.integers(0, 3)), max_size=40))
def test_histories_are_ordered_by_time_then_file_and_users_by_appearance(rows: list[tuple[str, str, int]]) -> None:
    schema = {"user_id": pl.String, "item_id": pl.String, "instant": pl.Int64}
    table = pl.DataFrame(rows, schema=schema, orient="row").with_columns(row=pl.int_range(1, pl.len() + 1))
    ordered = order_histories(table)
    appearance = list(dict.fromkeys(user for user, _, _ in rows))
    expected = sorted(enumerate(rows), key=lambda entry: (appearance.index(entry[1][0]), entry[1][2]))  # sorted() is stable
    assert ordered["row"].to_list() == [position + 1 for position, _ in expected]


def test_only_exact_duplicates_go_and_the_first_stays() -> None:
    table = pl.DataFrame({"user_id": list("aaab"), "item_id": list("xxxx"), "instant": [1, 2, 1, 1], "row": [1, 2, 3, 4]})
    assert drop_duplicates(table)["row"].to_list() == [1, 2, 4]
