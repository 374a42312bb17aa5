from __future__ import annotations

from dataclasses import asdict

import pytest

from cemg_hf.hub.provenance import PROVENANCE, provenance
from cemg_hf.hub.recipe_table import content_of, recipe_rows
from cemg_hf.recipes import load_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_told(name: str) -> None:
    recipe = asdict(load_recipe(name))
    rows = recipe_rows(recipe)
    assert str(recipe["tokenize"]["codebook_size"]) in rows["codes"]
    network = recipe["encode"]["sequential"]
    assert ("LightGCN" if network is None else "item vectors of SASRec") in rows["content"]
    assert ("taught by the dense tower" in rows["training"]) == bool(recipe["finetune"]["objective"]["teacher_weight"])
    assert ("dense tower" in rows) == (recipe["finetune"]["dense"] is not None)
    assert "$" not in str(rows)


def test_content_is_what_recipe_and_data_have() -> None:
    def content(name: str, *assignments: str) -> list[str]:
        return content_of(asdict(load_recipe(name, assignments)))

    assert content("beauty") == ["text", "collaborative"]
    assert content("movielens-100k") == content("sample") == ["image", "text", "collaborative"]
    assert content("own-data") == ["collaborative"]  # without an items table
    assert content("own-data", "prepare.items=shop.parquet") == ["image", "text", "collaborative"]


def test_a_pretrained_start_is_named() -> None:
    recipe = asdict(load_recipe("sample", ["finetune.generator.init_from=google-t5/t5-small"]))
    assert "from google-t5/t5-small" in recipe_rows(recipe)["generator"]


def test_recipes_with_data_of_others_say_where_it_comes_from() -> None:
    for name in set(recipe_names()) - {"own-data"}:
        known = PROVENANCE[load_recipe(name).prepare.name]
        assert known.origin.endswith(".")
        assert known.terms.endswith(".")
    assert "not recorded" in provenance("somebody's shop").origin
