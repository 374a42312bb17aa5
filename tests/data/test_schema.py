from __future__ import annotations

import polars as pl
import pytest

from cemg_hf.data.schema import check_mapping, has_text, items_from_ids, normalise_interactions, normalise_items
from cemg_hf.errors import CEMGError

GOOD = {"user_id": ["u", "v"], "item_id": ["a", "b"], "timestamp": [1, 2]}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"user_id": ["u", None]}, "log.csv: column user_id, row 2: the value is empty"),
        ({"item_id": ["", "b"]}, "log.csv: column item_id, row 1: the value is empty"),
        ({"item_id": [1.5, 2.0]}, "log.csv: column item_id, row 1: the value cannot be read: 1.5"),
        ({"timestamp": [1, None]}, "log.csv: column timestamp, row 2: the value is empty"),
        ({"timestamp": ["2014-07-23", "soon"]}, "log.csv: column timestamp, row 2: the value cannot be read: 'soon'"),
        ({"timestamp": [None, None]}, "row 1: the value is empty (2 such rows)"),
        ({"timestamp": [[1], [2]]}, "log.csv: column timestamp: holds List"),
        ({"user_id": [["u"], ["v"]]}, "log.csv: column user_id: holds List"),
        ({"rating": ["4", "good"]}, "log.csv: column rating, row 2: 'good' cannot be read"),
    ],
)
def test_bad_interactions_name_file_column_and_row(changed: dict[str, list[object]], message: str) -> None:
    with pytest.raises(CEMGError) as caught:
        normalise_interactions(pl.DataFrame({**GOOD, **changed}), {}, "log.csv")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_column_names_those_present_and_the_remedy() -> None:
    table = pl.DataFrame({"user_id": ["u"], "asin": ["a"], "timestamp": [1]})
    with pytest.raises(CEMGError, match=r"log.csv: column item_id is missing \(present: user_id, asin, timestamp\).*columns: \{item_id: "):
        normalise_interactions(table, {}, "log.csv")
    assert normalise_interactions(table, {"item_id": "asin"}, "log.csv")["item_id"].to_list() == ["a"]
    with pytest.raises(CEMGError, match="column rating is missing"):
        normalise_interactions(pl.DataFrame(GOOD), {}, "log.csv", require_rating=True)


def test_mapping_names_the_users_column_in_errors_and_wins_over_our_name() -> None:
    table = pl.DataFrame({**GOOD, "when": [5, None]})
    with pytest.raises(CEMGError, match="column when, row 2"):
        normalise_interactions(table, {"timestamp": "when"}, "log.csv")


def test_mapping_of_a_column_that_no_table_has_is_an_error() -> None:
    tables = (("i.csv", pl.DataFrame(GOOD)), ("c.csv", pl.DataFrame({"asin": ["a"]})))
    check_mapping({"item_id": "asin"}, *tables)
    with pytest.raises(CEMGError, match=r"there is no column 'titel'.*c.csv has asin"):
        check_mapping({"title": "titel"}, *tables)


def test_missing_ratings_are_null_however_they_are_written() -> None:
    for ratings in (["4", None], [4.0, float("nan")], [4, None]):
        table = normalise_interactions(pl.DataFrame({**GOOD, "rating": ratings}, strict=False), {}, "x")
        assert table["rating"].to_list() == [4.0, None]


def test_duplicate_item_names_both_rows() -> None:
    with pytest.raises(CEMGError, match=r"shop.csv: column asin, row 3: 'a' stands already in row 1"):
        normalise_items(pl.DataFrame({"asin": ["a", "b", "a", "b"]}), {"item_id": "asin"}, "shop.csv")


def test_bad_category_list_names_the_row() -> None:
    table = pl.DataFrame({"item_id": ["a", "b"], "categories": ["x|y", "['x']"]})
    with pytest.raises(CEMGError, match=r"shop.csv: column categories, row 2: .* is not a JSON list"):
        normalise_items(table, {}, "shop.csv")


def test_absent_item_columns_are_null_and_text_is_any_of_four() -> None:
    items = normalise_items(pl.DataFrame({"item_id": [1, 2, 3], "title": [None, "t", None], "categories": [None, None, "c"]}), {}, "x")
    assert items.columns == ["item_id", "title", "brand", "categories", "description", "image"]
    assert has_text(items).to_list() == [False, True, True]
    assert items["image"].null_count() == 3


def test_items_from_ids_keep_the_order_of_first_appearance() -> None:
    items = items_from_ids(pl.DataFrame({"item_id": ["b", "a", "b", "c"]}))
    assert items["item_id"].to_list() == ["b", "a", "c"]
    assert not has_text(items).any()
