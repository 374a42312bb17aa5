from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch
from serving_samples import small_model, small_network

from cemg_hf.errors import CEMGError
from cemg_hf.serving.loading import load_model, load_recommender, load_titles


def test_a_model_comes_in_the_precision_asked_for_and_ready_to_recommend(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path)
    model = load_model(str(tmp_path), "cpu", "bfloat16")
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert len(model.recommend(["item1"], k=3)) == 3
    with pytest.raises(CEMGError, match="int8"):
        load_model(str(tmp_path), "cpu", "int8")


def test_a_network_over_whole_items_comes_with_its_catalogue(tmp_path: Path) -> None:
    small_network().save_pretrained(tmp_path)
    network = load_recommender(str(tmp_path), "cpu", "bfloat16")
    assert network.dtype == torch.bfloat16
    assert not network.training
    assert len(network.recommend(["item1"], k=3)) == 3
    with pytest.raises(CEMGError, match="a sasrec model ranks whole items and has no item codes"):
        load_model(str(tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_named(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path)
    with pytest.raises(CEMGError, match="finds no GPU"):
        load_model(str(tmp_path), "cuda:0")


def test_titles_are_those_of_the_table_and_missing_ones_are_left_out(tmp_path: Path) -> None:
    pl.DataFrame({"item_id": ["a", "b"], "title": ["A shoe", None]}).write_csv(tmp_path / "items.csv")
    assert load_titles(str(tmp_path / "items.csv")) == {"a": "A shoe"}
    assert load_titles(None) == {}
    with pytest.raises(CEMGError, match=r"none\.csv"):
        load_titles(str(tmp_path / "none.csv"))
