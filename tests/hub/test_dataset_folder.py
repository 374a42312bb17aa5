from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Image, load_dataset
from hub_samples import licensed
from huggingface_hub import DatasetCard

from cemg_hf.data import PreparedDataset
from cemg_hf.errors import CEMGError
from cemg_hf.hub.contents import Contents
from cemg_hf.hub.dataset_folder import dataset_contents, licence_problems

TEXTS = ["title", "brand", "categories", "description", "image"]


@pytest.fixture
def dataset(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished / "dataset", tmp_path / "dataset"))


def contents_of(dataset: Path, tmp_path: Path, item_texts: bool = True) -> Contents:
    (tmp_path / "scratch").mkdir()
    return dataset_contents(dataset, tmp_path / "scratch", repo="org/shop-data", item_texts=item_texts)


def assembled(dataset: Path, tmp_path: Path, item_texts: bool) -> Path:
    """The repository as a folder."""
    contents = contents_of(dataset, tmp_path, item_texts)
    for path, file in contents.files.items():
        (tmp_path / "repo" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, tmp_path / "repo" / path)
    return tmp_path / "repo"


@pytest.mark.parametrize("item_texts", [True, False])
def test_the_configurations_load_and_only_items_depend_on_the_licence(dataset: Path, tmp_path: Path, item_texts: bool) -> None:
    repo = assembled(dataset, tmp_path, item_texts)
    data = PreparedDataset.load(dataset)

    def loaded(config: str, split: str = "train"):
        return load_dataset(str(repo), config, split=split, cache_dir=str(tmp_path / "cache"))

    assert loaded("interactions")["item_id"][:] == pl.read_parquet(dataset / "interactions.parquet")["item_id"].to_list()
    assert len(loaded("splits", "test")) == data.evaluation_cases("test").targets.size
    items = loaded("items")
    assert items["item_id"][:] == data.item_ids
    assert items.column_names == (["item_id", *TEXTS] if item_texts else ["item_id"])
    if item_texts:
        assert isinstance(items.features["image"], Image)
        assert items[0]["image"].size == (48, 48)


def test_without_texts_no_byte_of_them_is_left(dataset: Path, tmp_path: Path) -> None:
    titles = pl.read_parquet(dataset / "items.parquet")["title"].drop_nulls().to_list()
    repo = assembled(dataset, tmp_path, item_texts=False)
    held = b"".join(path.read_bytes() for path in repo.rglob("*") if path.is_file())
    assert not any(title.encode() in held for title in titles)
    assert b"JFIF" not in held
    card = DatasetCard.load(repo / "README.md")
    assert "multimodal" not in card.data.tags
    assert card.data.license == "cc-by-4.0"
    assert 'load_dataset("org/shop-data", "items"' in card.text


def test_the_licence_decides_on_texts_and_images(dataset: Path, tmp_path: Path) -> None:
    assert licence_problems(contents_of(dataset, tmp_path)) == []
    shutil.rmtree(tmp_path / "scratch")
    (problem,) = licence_problems(contents_of(licensed(dataset, "other"), tmp_path))
    assert problem.startswith("items.parquet: the licence of the data (other) does not allow to pass on title, image;")
    assert "--no-item-texts" in problem
    shutil.rmtree(tmp_path / "scratch")
    assert licence_problems(contents_of(dataset, tmp_path, item_texts=False)) == []


def test_items_that_are_ids_alone_may_go_under_any_licence(dataset: Path, tmp_path: Path) -> None:
    table = pq.read_table(dataset / "items.parquet")
    empty = pa.table({"item_id": table["item_id"]} | {name: pa.nulls(len(table), table.schema.field(name).type) for name in TEXTS})
    pq.write_table(empty.cast(table.schema), dataset / "items.parquet")
    assert licence_problems(contents_of(licensed(dataset, "other"), tmp_path)) == []


def test_a_folder_that_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match="holds no prepared data set"):
        dataset_contents(tmp_path, tmp_path, repo="org/x")
