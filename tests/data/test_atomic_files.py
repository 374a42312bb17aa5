"""RecBole's atomic files: types in the header, and what becomes of the columns."""

from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl
import pytest

from cemg_hf.data import PrepareConfig, PreparedDataset, prepare
from cemg_hf.data.readers import read_table
from cemg_hf.data.schema import normalise_interactions, normalise_items
from cemg_hf.errors import CEMGError

INTER = (
    "user_id:token\titem_id:token\trating:float\ttimestamp:float\n007\t1193\t5\t978300760\n007\t661\t3.5\t9.78302109e8\nu 2\t661\t\t1.5\n"
)
ITEM = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tgenre:token_seq\tvector:float_seq\n"
    '661\t"Toy" Story, 19" é\t1995\tAnimation Children\'s\t-115.08 13.60 1e-3\n'
    "1193\t\t1996\t\t\n"
)
COLUMNS = {"title": "movie_title", "categories": "genre"}


def test_interactions_and_items_of_the_documentation(tmp_path: Path) -> None:
    (tmp_path / "ml.inter").write_text(INTER)
    (tmp_path / "ml.item.gz").write_bytes(gzip.compress(ITEM.encode()))
    interactions = normalise_interactions(read_table(tmp_path / "ml.inter", "interactions"), {}, "x")
    assert interactions.select("user_id", "item_id", "timestamp", "rating").rows() == [
        ("007", "1193", 978300760, 5.0),
        ("007", "661", 978302109, 3.5),
        ("u 2", "661", 1, None),
    ]
    table = read_table(tmp_path / "ml.item.gz", "items")
    assert table.columns == ["item_id", "movie_title", "release_year", "genre", "vector"]
    assert table["vector"].to_list() == [[-115.08, 13.6, 0.001], None]
    items = normalise_items(table, COLUMNS, "x")
    assert items.select("item_id", "title", "categories").rows() == [
        ("661", '"Toy" Story, 19" é', ["Animation", "Children's"]),
        ("1193", None, None),
    ]


def test_a_data_set_of_atomic_files_is_prepared(tmp_path: Path) -> None:
    (tmp_path / "shop.inter").write_text(INTER)
    (tmp_path / "shop.item").write_text(ITEM)
    config = PrepareConfig("shop", str(tmp_path / "shop.inter"), str(tmp_path / "shop.item"), columns=COLUMNS, min_interactions=0)
    data = PreparedDataset.load(prepare(config, tmp_path / "dataset"))
    assert (data.user_ids, data.item_ids) == (["007", "u 2"], ["661", "1193"])


@pytest.mark.parametrize("column", ["title", "categories"])
def test_vectors_are_no_text(tmp_path: Path, column: str) -> None:
    (tmp_path / "ml.item").write_text(ITEM)
    with pytest.raises(CEMGError, match=r"ml\.item: column vector: holds List\(Float64\), expected (text|lists of strings)"):
        normalise_items(read_table(tmp_path / "ml.item"), {column: "vector"}, str(tmp_path / "ml.item"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user_id\titem_id\n1\t2\n", "column 'user_id' is not name:type"),
        ("user_id:token\titem_id:int\n1\t2\n", "column 'item_id:int' is not name:type .* token, token_seq, float, float_seq"),
        ("user_id:token item_id:token\n1 2\n", "column 'user_id:token item_id:token' .* tabs between"),
        (":token\n1\n", "column ':token' is not name:type"),
        ("a:token\ta:float\n1\t2\n", "column a stands twice"),
        ("a:token\tv:float_seq\n1\t0.5 1\n2\t\n3\t1 x\n", "column v, row 3: '1 x' is not numbers"),
    ],
)
def test_headers_and_cells_that_are_not_recboles(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.inter").write_text(content)
    with pytest.raises(CEMGError, match=message) as caught:
        read_table(tmp_path / "x.inter")
    assert str(tmp_path / "x.inter") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_of_numbers_in_parquet_is_no_text_either(tmp_path: Path) -> None:
    pl.DataFrame({"item_id": ["a"], "title": [[0.5, 1.5]]}).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(CEMGError, match="column title: holds"):
        normalise_items(read_table(tmp_path / "items.parquet"), {}, "items.parquet")
