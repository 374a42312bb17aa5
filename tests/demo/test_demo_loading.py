from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest

from cemg_hf.demo.loading import open_demo
from cemg_hf.demo.pictures import thumbnail
from cemg_hf.errors import CEMGError


def test_what_lies_beside_a_model_is_found(run_folder: Path) -> None:
    engine = open_demo([str(run_folder / "model")])
    assert (len(engine.shop), engine.shop.num_shoppers, engine.takes_items) == (48, 40, True)
    assert engine.shop.item("item-00").name == "Red Mug of the Café, no. 1"


def test_a_model_alone_is_shown_by_ids(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder / "model", tmp_path / "alone" / "model")
    engine = open_demo([str(tmp_path / "alone" / "model")])
    assert (engine.shop.num_shoppers, engine.takes_items, engine.shop.categories) == (0, False, [])
    session = engine.start()
    assert (session.history, session.shopper) == ([], None)
    table = tmp_path / "items.csv"
    pl.DataFrame({"item_id": ["item-01", "other"], "title": ["Named", "Unknown"]}).write_csv(table)
    named = open_demo([str(tmp_path / "alone" / "model")], items=str(table)).shop
    assert (named.item("item-01").name, named.item("item-02").name, "other" in named) == ("Named", "item-02", False)
    users = open_demo([str(tmp_path / "alone" / "model")], dataset=str(run_folder / "dataset"), features=[str(run_folder / "features")])
    assert (users.shop.num_shoppers, users.takes_items) == (40, True)


def test_pictures_may_be_files_beside_the_table(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    content = pl.read_parquet(run_folder / "raw" / "items.parquet")["image"][0]["bytes"]
    (tmp_path / "pictures" / "a.png").write_bytes(content)
    pl.DataFrame({"item_id": ["item-01"], "image": ["pictures/a.png"]}).write_csv(tmp_path / "items.csv")
    shop = open_demo([str(run_folder / "model")], items=str(tmp_path / "items.csv")).shop
    address = shop.item("item-01").picture
    assert address is not None
    assert shop.thumbnails.get(int(Path(address).stem)) == thumbnail(content)
    assert shop.item("item-02").picture is None


def test_models_of_one_name_are_told_apart(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder / "model", tmp_path / "tiny" / "model")
    first, second = str(run_folder / "model"), str(tmp_path / "tiny" / "model")
    assert [model.name for model in open_demo([first, second]).models] == [first, second]
    with pytest.raises(CEMGError, match="given twice"):
        open_demo([first, first])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": []}, "one model or two"),
        ({"models": ["a", "b", "c"]}, "one model or two"),
        ({"dataset": "no/such-data"}, "--dataset no/such-data: no such folder, and the Hub did not give it"),
        ({"dataset": "{run}/features"}, "not a prepared dataset"),
        ({"features": ["{run}/dataset"]}, "not a feature folder"),
        ({"features": ["{run}/features"] * 2}, "--features: 2 folders for 1 models"),
        ({"models": ["{run}/dataset"]}, "not a model folder"),
    ],
)
def test_places_that_hold_something_else_are_errors(run_folder: Path, change: dict, message: str) -> None:
    arguments = {"models": ["{run}/model"], **change}
    filled = {
        name: [entry.format(run=run_folder) for entry in value] if isinstance(value, list) else value.format(run=run_folder)
        for name, value in arguments.items()
    }
    with pytest.raises(CEMGError, match=message):
        open_demo(filled.pop("models"), **filled)
