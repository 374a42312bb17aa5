from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from demo_samples import BARE, UNPICTURED
from hypothesis import given
from hypothesis import strategies as st

from cemg_hf.data import PreparedDataset
from cemg_hf.demo.engine import Engine
from cemg_hf.demo.shop import Item, Shop, plain
from cemg_hf.errors import CEMGError


def found(shop: Shop, query: str, limit: int = 100) -> list[str]:
    return [item.item_id for item in shop.search(query, limit).items]


def test_every_hit_holds_every_word_and_nothing_else_is_left_out(engine: Engine) -> None:
    shop = engine.shop
    everything = [shop.item(item_id) for item_id in engine.models[0].tokenizer.item_ids]

    @given(
        st.lists(st.sampled_from(["mug", "RED", "café", "cafe", "home", "maker", "item-2", "gs", "script", "zzz"]), min_size=1, max_size=3)
    )
    def holds(words: list[str]) -> None:
        hits = shop.search(" ".join(words), 100)
        texts = {item.item_id: plain(" ".join([item.item_id, item.title or "", item.brand or "", *item.categories])) for item in everything}
        assert {item.item_id for item in hits.items} == {key for key, text in texts.items() if all(plain(word) in text for word in words)}
        assert hits.total == len(hits.items)

    holds()


def test_the_best_hit_comes_first(engine: Engine) -> None:
    shop = engine.shop
    assert found(shop, "ITEM-05")[0] == "item-05"
    assert [shop.item(item_id).name[:10] for item_id in found(shop, "blue sc")] == ["Blue Scarf"] * 2
    begins = [shop.item(item_id).name for item_id in found(shop, "mug")]
    own = ["Mug" in name for name in begins]
    assert own == sorted(own, reverse=True)  # a category of the name counts less than a title
    assert found(shop, "  ") == []
    assert len(shop.search("maker", 5).items) == 5
    assert shop.search("maker", 5).total == 47
    assert shop.search(".*", 5).total == 0  # nothing of a query is a pattern


def test_what_was_bought_most_decides_between_equals(run_folder: Path, engine: Engine) -> None:
    data = PreparedDataset.load(run_folder / "dataset")
    counts = dict(zip(data.item_ids, data.train_item_counts().tolist(), strict=True))
    bought = [counts[item_id] for item_id in found(engine.shop, "green mug")]
    assert len(bought) > 1
    assert bought == sorted(bought, reverse=True)


def test_items_lack_what_the_table_lacks(engine: Engine) -> None:
    bare = engine.shop.item(BARE)
    assert bare == Item(BARE)
    assert bare.name == BARE
    assert engine.shop.item(UNPICTURED).picture is None
    assert engine.shop.item("item-00").picture is not None
    assert engine.shop.item("no such item") == Item("no such item")
    without = Shop(["a", "b"])
    assert without.item("a") == Item("a")
    assert (found(without, "a"), without.categories, without.num_shoppers, without.shopper_ids()) == (["a"], [], 0, [])
    with pytest.raises(CEMGError, match="none of the model's items"):
        Shop(["a"], pl.DataFrame({"item_id": ["b"]}))


def test_categories_filter_by_any_of_several(engine: Engine) -> None:
    shop = engine.shop
    assert shop.categories[0] == "Home"
    wear = shop.in_categories(["Wear"])
    assert wear
    assert all("Wear" in shop.item(item_id).categories for item_id in wear)
    assert set(shop.in_categories(["Wear", "Mugs"])) == set(wear) | set(shop.in_categories(["Mugs"]))
    assert shop.in_categories(["no such category"]) == []


def test_shoppers_are_the_users_of_the_test_with_what_they_bought_next(run_folder: Path, engine: Engine) -> None:
    data, shop = PreparedDataset.load(run_folder / "dataset"), engine.shop
    rows = pl.read_parquet(run_folder / "dataset" / "interactions.parquet").group_by("user_id", maintain_order=True).agg("item_id")
    for user_id, bought in rows.iter_rows():
        shopper = shop.shopper(user_id)
        assert [*shopper.history, shopper.bought_next] == bought
    assert shop.num_shoppers == len(data.user_ids)
    assert set(shop.shopper_ids()) == set(data.user_ids)
    assert shop.shopper_at(shop.num_shoppers + 1) == shop.shopper_at(1)
    with pytest.raises(CEMGError, match="no shopper is called 'nobody'"):
        shop.shopper("nobody")
