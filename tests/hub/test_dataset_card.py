from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest
import yaml
from command_samples import write_shop
from datasets import load_dataset

from cemg_hf.artefacts import MANIFEST_NAME
from cemg_hf.data.dataset import ITEMS_FILE
from cemg_hf.data.prepare import PrepareConfig, prepare
from cemg_hf.data.statistics import Statistics
from cemg_hf.errors import CEMGError
from cemg_hf.hub.dataset_card import CONFIGS, TASKS, benchmark_yaml, dataset_card
from cemg_hf.hub.metadata import front_matter


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    write_shop(folder)
    sources = {"interactions": str(folder / "interactions.csv"), "items": str(folder / "items.parquet"), "images": str(folder / "images")}
    return prepare(PrepareConfig(name="our shop", min_interactions=2, license="cc-by-4.0", **sources), folder / "dataset")


def test_the_card_has_the_schema_of_the_files_and_the_statistics(prepared: Path) -> None:
    card, statistics = dataset_card(prepared, repo="org/shop-data"), Statistics.load(prepared)
    for config, (file, *_) in CONFIGS.items():
        assert f"`{config}`\n" in card
        for column in pl.read_parquet_schema(prepared / file):
            assert f"| `{column}` |" in card
    assert f"| our shop | {statistics.users:,} | {statistics.items:,} | {statistics.interactions:,} |" in card
    items = pl.read_parquet(prepared / ITEMS_FILE, columns=["title"])
    assert f"| `title` | string | {items['title'].null_count() or '–'} |" in card
    assert "| `image` | Image |" in card
    assert f"| test | {statistics.evaluated_users:,} |" in card
    assert "`cc-by-4.0`" in card
    assert 'load_dataset("org/shop-data", "items"' in card
    assert "Every user and item has at least 2 interactions" in card
    assert "Leave-one-out" in card


def test_the_folder_loads_by_the_cards_configurations(prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    shutil.copytree(prepared, folder)
    (folder / "README.md").write_text(dataset_card(folder))
    names = [config["config_name"] for config in front_matter(dataset_card(folder))["configs"]]
    assert names == list(CONFIGS)
    rows = load_dataset(str(folder), "interactions", split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == Statistics.load(folder).interactions


def test_texts_left_out_are_said_and_no_language_is_claimed(prepared: Path, tmp_path: Path) -> None:
    known = tmp_path / "known"
    shutil.copytree(prepared, known)
    for name in ("statistics.json", MANIFEST_NAME):
        (known / name).write_text((known / name).read_text().replace("our shop", "beauty").replace("cc-by-4.0", "other"))
    metadata = front_matter(dataset_card(known))
    assert metadata["language"] == ["en"]
    assert (metadata["license"], metadata["license_name"]) == ("other", "beauty-terms")
    assert "Julian McAuley" in dataset_card(known)
    assert "are not published" not in dataset_card(known)
    assert "multimodal" in metadata["tags"]
    pl.read_parquet(known / ITEMS_FILE, columns=["item_id"]).write_parquet(tmp_path / "ids.parquet")
    card = dataset_card(known, items=tmp_path / "ids.parquet")
    assert "multimodal" not in front_matter(card)["tags"]
    assert "The texts and pictures are not published" in card
    assert "language" not in front_matter(card)
    assert "| `title` |" not in card


def test_the_benchmark_names_configurations_of_the_data_set(prepared: Path) -> None:
    content = yaml.safe_load(benchmark_yaml(prepared))
    assert [task["id"] for task in content["tasks"]] == list(TASKS)
    assert {task["config"] for task in content["tasks"]} <= set(CONFIGS)


def test_a_folder_of_something_else_is_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match="not a prepared dataset"):
        dataset_card(tmp_path)
    folder = tmp_path / "half"
    shutil.copytree(prepared, folder)
    (folder / MANIFEST_NAME).unlink()
    with pytest.raises(CEMGError, match=r"has no manifest\.json"):
        dataset_card(folder)
