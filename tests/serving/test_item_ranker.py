from __future__ import annotations

import json
from pathlib import Path

import pytest
from serving_samples import small_network

from cemg_hf.errors import CEMGError
from cemg_hf.models.next_item import ITEM_IDS_FILE
from cemg_hf.serving import item_ranker
from cemg_hf.serving.config import ServingConfig
from cemg_hf.serving.item_ranker import ItemCatalogue, ItemRanker
from cemg_hf.serving.ranker import Query

IDS = ["a", "b", "c", "d"]


def test_removed_items_are_known_no_longer_and_the_same_items_have_the_same_fingerprint() -> None:
    whole = ItemCatalogue(IDS)
    less = whole.remove(["c"]).remove(["a", "a"])
    assert less.known == {"b", "d"}
    assert whole.known == set(IDS), "a change makes another one"
    assert less.fingerprint == whole.remove(["a", "c"]).fingerprint
    assert len({whole.fingerprint, less.fingerprint, whole.remove(["a"]).fingerprint, ItemCatalogue(IDS[::-1]).fingerprint}) == 4
    assert list(less.new_item_ids) == []


def test_what_cannot_be_changed_is_said() -> None:
    less = ItemCatalogue(IDS).remove(["c"])
    with pytest.raises(ValueError, match="'c' is not among the 3 items of the catalogue"):
        less.remove(["a", "c"])
    with pytest.raises(ValueError, match="all 3 items of the catalogue would go"):
        less.remove(["a", "b", "d"])
    with pytest.raises(ValueError, match="takes no new ones; train it again"):
        less.add(["e"], {}, None, "predicted")


def test_a_folder_is_read_again_if_it_holds_the_items_of_the_model(tmp_path: Path) -> None:
    less = ItemCatalogue(IDS).remove(["c"])
    for content, message in ((None, "cannot be read"), ("{", "cannot be read"), (json.dumps(IDS[::-1]), "do not belong together")):
        if content is not None:
            (tmp_path / ITEM_IDS_FILE).write_text(content)
        with pytest.raises(CEMGError, match=message) as refused:
            less.reread(tmp_path)
        assert str(tmp_path / ITEM_IDS_FILE) in str(refused.value)
    (tmp_path / ITEM_IDS_FILE).write_text(json.dumps(IDS))
    assert less.reread(tmp_path).fingerprint == ItemCatalogue(IDS).fingerprint


def test_removed_items_come_out_no_more() -> None:
    network = small_network()
    ranker = ItemRanker(network, ServingConfig())
    ranker.use(ranker.catalogue.remove(["item7", "item9"]))
    queries = [Query(k=60), Query(k=60)]
    plain, allowed = ranker.rank(queries, [[], ["item1"]], [None, ["item7", "item8"]], [["item3"], []])
    assert {item for item, _ in plain} == ranker.catalogue.known - {"item3"}
    assert [item for item, _ in allowed] == ["item8"]


def test_a_request_looks_up_what_it_names_however_many_items_were_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    network = small_network()
    ranker = ItemRanker(network, ServingConfig())
    removed = [f"item{row}" for row in range(10, 50)]
    ranker.use(ranker.catalogue.remove(removed))
    looked_up: list[str] = []
    found = network.item_indices
    monkeypatch.setattr(network, "item_indices", lambda ids, *rest: looked_up.extend(ids) or found(ids, *rest))
    lists = ranker.rank([Query(k=60)] * 2, [["item1"], []], [None, None], [["item2"], []])
    assert looked_up == ["item1", "item2"]
    assert [len(ranking) for ranking in lists] == [60 - len(removed) - 1, 60 - len(removed)]


def test_a_catalogue_of_another_model_is_refused_and_the_old_one_stays() -> None:
    ranker = ItemRanker(small_network(), ServingConfig())
    before = ranker.catalogue
    with pytest.raises(ValueError, match="do not belong together"):
        ranker.use(ItemCatalogue(IDS))
    assert ranker.catalogue is before


def test_settings_of_codes_are_refused_and_the_others_share_a_pass() -> None:
    ranker = ItemRanker(small_network(), ServingConfig())
    plain = [Query(), Query(history=["item1"], k=21, exclude_history=True), Query(allowed_items=[], denied_items=["item1"])]
    assert len({ranker.group(query) for query in plain}) == 1
    assert [ranker.refused(query) for query in plain] == [{}, {}, {}]
    for name in ("num_beams", "max_per_first_code", "min_first_codes"):
        why = ranker.refused(Query(**{name: 10}))
        assert list(why) == [name]
        assert "leave it out" in why[name]
    with pytest.raises(CEMGError, match="new_item_boost: is for models that write codes"):
        ItemRanker(small_network(), ServingConfig(new_item_boost=0.0))


def test_scores_in_memory_are_limited_whatever_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    network = small_network()
    sizes: list[int] = []
    scores = network.scores
    monkeypatch.setattr(network, "scores", lambda items: sizes.append(len(items)) or scores(items))
    monkeypatch.setattr(item_ranker, "SCORES_AT_ONCE", 3 * 60)
    histories = [[f"item{row}"] for row in range(7)]
    found = ItemRanker(network, ServingConfig()).rank([Query(k=3)] * 7, histories, [None] * 7, [[]] * 7)
    assert sizes == [3, 3, 1]
    assert [[item for item, _ in row] for row in found] == [[item for item, _ in row] for row in network.recommend(histories, k=3)]
