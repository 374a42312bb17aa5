from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cemg_hf.data.dataset import PreparedDataset
from cemg_hf.errors import CEMGError


def write(folder: Path, users: str, items: str, catalogue: str) -> Path:
    pl.DataFrame({"user_id": list(users), "item_id": list(items), "timestamp": range(len(users))}).write_parquet(
        folder / "interactions.parquet"
    )
    pl.DataFrame({"item_id": list(catalogue), "title": list(catalogue)}).write_parquet(folder / "items.parquet")
    return folder


def test_indices_are_rows_of_the_catalogue_and_order_is_kept(tmp_path: Path) -> None:
    dataset = PreparedDataset.load(write(tmp_path, "vvvvuu", "cabaca", "abcd"))
    assert dataset.user_ids == ["v", "u"]
    assert dataset.item_ids == list("abcd")
    assert (dataset.num_users, dataset.num_items) == (2, 4)
    assert dataset.sequences.to_lists() == [[2, 0, 1, 0], [2, 0]]
    assert dataset.sequences.values.dtype == np.int64
    assert dataset.train_sequences().to_lists() == [[2, 0], [2, 0]]
    users, items = dataset.train_pairs()
    assert list(zip(users.tolist(), items.tolist(), strict=True)) == [(0, 2), (0, 0), (1, 2), (1, 0)]
    assert dataset.train_item_counts().tolist() == [2, 0, 2, 0]
    test = dataset.evaluation_cases("test")
    assert (test.users.tolist(), test.histories.to_lists(), test.targets.tolist()) == ([0], [[2, 0, 1]], [0])
    assert dataset.items_table()["title"].to_list() == list("abcd")
    assert dataset.items_table(["title"]).columns == ["title"]


def test_folders_that_are_no_prepared_dataset(tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match=r"not a prepared dataset \(interactions.parquet, items.parquet missing"):
        PreparedDataset.load(tmp_path)
    write(tmp_path, "uu", "ab", "ab")
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(CEMGError, match="not a prepared dataset") as caught:
        PreparedDataset.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_tables_that_do_not_belong_together(tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match=r"row 2, column item_id: 'z' is not in items.parquet"):
        PreparedDataset.load(write(tmp_path, "uuv", "azz", "ab"))
    with pytest.raises(CEMGError, match="a user's rows must stand together"):
        PreparedDataset.load(write(tmp_path, "uvu", "aba", "ab"))


def test_categories_are_multi_hot_vectors(tmp_path: Path) -> None:
    folder = write(tmp_path, "uu", "ab", "abcd")
    assert PreparedDataset.load(folder).category_vectors() is None
    items = pl.read_parquet(folder / "items.parquet")
    categories = pl.Series("categories", [["x", "y"], None, [], ["y", "y", None]], dtype=pl.List(pl.String))
    items.with_columns(categories).write_parquet(folder / "items.parquet")
    vectors = PreparedDataset.load(folder).category_vectors()
    assert vectors is not None
    assert vectors.toarray().tolist() == [[1, 1], [0, 0], [0, 0], [0, 1]]


def test_a_split_by_time_is_honoured_everywhere(tmp_path: Path) -> None:
    folder = write(tmp_path, "vvvvuuw", "cabacad", "abcd")
    interactions = pl.read_parquet(folder / "interactions.parquet")
    interactions.with_columns(timestamp=pl.Series([1, 2, 5, 9, 4, 8, 9])).write_parquet(folder / "interactions.parquet")
    assert PreparedDataset.load(folder).protocol() == {"split": "leave_one_out"}
    (folder / "split.json").write_text('{"validation_from": 4, "test_from": 8}')
    dataset = PreparedDataset.load(folder)
    assert dataset.protocol() == {"split": "time", "validation_from": 4, "test_from": 8}
    assert dataset.train_sequences().to_lists() == [[2, 0], [], []]
    assert dataset.train_item_counts().tolist() == [1, 0, 1, 0]
    assert [part.tolist() for part in dataset.train_pairs()] == [[0, 0], [2, 0]]
    validation, test = dataset.evaluation_cases("validation"), dataset.evaluation_cases("test")
    assert (validation.users.tolist(), validation.histories.to_lists(), validation.targets.tolist()) == ([0, 1], [[2, 0], []], [1, 2])
    assert (test.users.tolist(), test.histories.to_lists(), test.targets.tolist()) == ([0, 1, 2], [[2, 0, 1], [2], []], [0, 0, 3])
    (folder / "split.json").write_text('{"validation": 4}')
    with pytest.raises(CEMGError, match=r"split.json: not the instants of a split"):
        PreparedDataset.load(folder)
