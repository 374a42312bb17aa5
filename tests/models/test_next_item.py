"""What models over whole items have in common, on both of them: scores, lists, the loss, and a catalogue that travels along."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModel

from cemg_hf.models.cemg.dense_cemg import next_item_loss
from cemg_hf.models.gru4rec import GRU4RecConfig, GRU4RecForNextItem
from cemg_hf.models.next_item import NextItemModel, ScoredItem
from cemg_hf.models.sasrec import SASRecConfig, SASRecForNextItem

NUM_ITEMS = 20
HISTORIES = [["i3", "i1", "i4"], [], ["i1"], [f"i{item}" for item in range(9)]]
SOME_IDS = st.lists(st.sampled_from([*(f"i{item}" for item in range(NUM_ITEMS)), "gone"]), max_size=12)


def sasrec(**settings) -> NextItemModel:
    small = {"hidden_size": 8, "num_layers": 2, "dropout": 0.5, "max_history": 5}
    return SASRecForNextItem(SASRecConfig(num_items=NUM_ITEMS, **small | settings))


def gru4rec(**settings) -> NextItemModel:
    small = {"hidden_size": 8, "recurrent_size": 6, "num_layers": 2, "dropout": 0.5, "max_history": 5}
    return GRU4RecForNextItem(GRU4RecConfig(num_items=NUM_ITEMS, **small | settings))


@pytest.fixture(params=[sasrec, gru4rec])
def model(request: pytest.FixtureRequest) -> NextItemModel:
    torch.manual_seed(0)
    drawn = request.param().eval()
    drawn.item_ids = [f"i{item}" for item in range(NUM_ITEMS)]
    return drawn


def padded(*rows: list[int]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [-1] * (longest - len(row)) for row in rows], dtype=torch.int64).view(len(rows), longest)


def test_scores_are_dot_products_of_state_and_item_whatever_the_company(model: NextItemModel) -> None:
    rows = [[3, 1, 4], [], [1], [4, 5, 6, 7, 8]]
    together = model.scores(padded(*rows))
    assert together.shape == (4, NUM_ITEMS)
    assert together.dtype == torch.float32
    vectors = model.item_vectors()
    for row, scores in zip(rows, together, strict=True):
        state = model(padded(row)).states[0, len(row)]
        assert scores.tolist() == pytest.approx([float((state @ vector).detach()) for vector in vectors], abs=1e-5)
        torch.testing.assert_close(model.scores(padded(row))[0], scores, atol=1e-5, rtol=0)


def test_scores_are_of_single_precision_under_autocast_too(model: NextItemModel) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        scores = model.scores(padded([3, 1, 4], []))
    assert scores.dtype == torch.float32
    assert (scores != scores.bfloat16()).any(), "the product was rounded"
    torch.testing.assert_close(scores, model.scores(padded([3, 1, 4], [])), atol=0.1, rtol=0.1)


def test_later_items_do_not_change_earlier_states(model: NextItemModel) -> None:
    one, other = (model(padded(row)).states for row in ([1, 2, 3, 4], [1, 2, 9, 0]))
    torch.testing.assert_close(one[:, :3], other[:, :3], atol=1e-6, rtol=0)
    assert (one[:, 3:] - other[:, 3:]).abs().max() > 1e-4


def test_recommend_is_the_best_of_the_scores(model: NextItemModel) -> None:
    found = model.recommend(HISTORIES, k=7)
    for history, row in zip(HISTORIES, found, strict=True):
        scores = model.scores(padded([int(item[1:]) for item in history[-5:]]))[0]
        best = scores.topk(7)
        assert [item.item_id for item in row] == [f"i{item}" for item in best.indices.tolist()]
        assert [item.score for item in row] == pytest.approx(best.values.tolist(), abs=1e-5)
        assert [item.item_id for item in model.recommend(history, k=7)] == [item.item_id for item in row]
    assert all(isinstance(item, ScoredItem) for item in found[0])
    assert len(model.recommend(["i1"], k=1000)) == NUM_ITEMS


def test_scores_and_lists_in_training_mode_are_those_without_dropout(model: NextItemModel) -> None:
    items = padded([3, 1, 4], [1])
    scores, lists = model.scores(items), model.recommend(HISTORIES, k=5)
    model.train()
    assert torch.equal(model.scores(items), scores)
    assert model.recommend(HISTORIES, k=5) == lists
    assert all(module.training for module in model.modules())


def test_excluded_histories_never_come_out_also_where_they_were_cut_off(model: NextItemModel) -> None:
    for history, row in zip(HISTORIES, model.recommend(HISTORIES, k=NUM_ITEMS, exclude_history=True), strict=True):
        everything = [item.item_id for item in model.recommend(history, k=NUM_ITEMS)]
        assert [item.item_id for item in row] == [item for item in everything if item not in history]
    assert model.recommend(model.item_ids, exclude_history=True) == []


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from([sasrec, gru4rec]),
    histories=st.lists(SOME_IDS, min_size=1, max_size=5),
    k=st.integers(1, NUM_ITEMS + 3),
    exclude_history=st.booleans(),
    batch_size=st.integers(1, 5),
    data=st.data(),
)
def test_filtered_lists_are_those_of_all_scores_filtered_and_sorted(kind, histories, k, exclude_history, batch_size, data) -> None:
    torch.manual_seed(0)
    model = kind()
    model.item_ids = [f"i{item}" for item in range(NUM_ITEMS)]
    # No list, one for all, or one or none for each.
    lists = st.none() | SOME_IDS | st.lists(st.none() | SOME_IDS, min_size=len(histories), max_size=len(histories))
    given_lists = {"allowed_items": data.draw(lists), "denied_items": data.draw(lists)}
    options = {"k": k, "exclude_history": exclude_history, "batch_size": batch_size, "on_unknown": "skip"}
    for row, (history, found) in enumerate(zip(histories, model.recommend(histories, **options, **given_lists), strict=True)):
        allowed, denied = (ids if ids is None or all(isinstance(entry, str) for entry in ids) else ids[row] for ids in given_lists.values())
        places = [int(item[1:]) for item in history if item != "gone"]
        scores = dict(zip(model.item_ids, model.scores(padded(places[-5:]))[0].tolist(), strict=True))
        left_out = {*(denied or ()), *(history if exclude_history else ())}
        possible = [item for item in scores if item not in left_out and (allowed is None or item in allowed)]
        best = sorted(possible, key=lambda item: -scores[item])[:k]
        assert [item.item_id for item in found] == best
        assert [item.score for item in found] == pytest.approx([scores[item] for item in best], abs=1e-5)


def test_batches_change_nothing_and_unknown_items_may_be_left_out(model: NextItemModel) -> None:
    expected = model.recommend(HISTORIES, k=6, exclude_history=True)
    for size in (1, 2, 3):
        for found, whole in zip(model.recommend(HISTORIES, k=6, exclude_history=True, batch_size=size), expected, strict=True):
            assert [item.item_id for item in found] == [item.item_id for item in whole]
            assert [item.score for item in found] == pytest.approx([item.score for item in whole], abs=1e-5)
    assert model.recommend(["gone", "i3", "lost", "i1"], on_unknown="skip") == model.recommend(["i3", "i1"])
    assert model.recommend([], on_unknown="skip") == model.recommend(["gone"], on_unknown="skip")


@pytest.mark.parametrize(
    ("histories", "options", "message"),
    [
        (["i1"], {"k": 0}, "k must be at least 1"),
        (["i1"], {"on_unknown": "ignore"}, "'error' or 'skip'"),
        ("i1", {}, "got the string 'i1'"),
        ([["i1"], "i2"], {}, "not a mixture"),
        (["i1"], {"allowed_items": "i1"}, r"allowed_items is a list of item ids, got the string 'i1'; write \['i1'\]"),
        (["i1"], {"denied_items": ["gone"]}, "denied_items: item id 'gone' is not among the 20 items"),
        ([["i1"], ["i2"]], {"denied_items": [["i1"]]}, "denied_items: 1 lists for 2 histories"),
    ],
)
def test_what_cannot_be_meant_is_refused(model: NextItemModel, histories, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        model.recommend(histories, **options)


def test_a_new_catalogue_is_known_at_once(model: NextItemModel) -> None:
    places = [int(item.item_id[1:]) for item in model.recommend(["i1"], k=4)]
    model.item_ids = [f"x{item}" for item in range(NUM_ITEMS)]
    assert [item.item_id for item in model.recommend(["x1"], k=4)] == [f"x{place}" for place in places]


def test_auto_classes_know_it_by_its_folder(model: NextItemModel, tmp_path) -> None:
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.recommend(HISTORIES[0], k=5) == model.recommend(HISTORIES[0], k=5)
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)


def test_unknown_items_and_a_missing_catalogue_are_errors(model: NextItemModel) -> None:
    with pytest.raises(ValueError, match="item id 'gone' and 1 more is not among the 20 items of the catalogue"):
        model.recommend(["i1", "gone", "lost"])
    model.item_ids = None
    with pytest.raises(ValueError, match=r"no catalogue; load it from a folder that holds item_ids\.json"):
        model.recommend(["i1"])


def test_saved_and_loaded_it_scores_the_same(model: NextItemModel, tmp_path) -> None:
    items = padded([3, 1, 4], [], [1])
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "item_ids.json").read_text()) == model.item_ids
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not loaded.training
    assert loaded.item_ids == model.item_ids
    torch.testing.assert_close(loaded.scores(items), model.scores(items), atol=1e-5, rtol=0)
    for found, expected in zip(loaded.recommend(HISTORIES, k=5), model.recommend(HISTORIES, k=5), strict=True):
        assert [item.item_id for item in found] == [item.item_id for item in expected]
    low = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16).scores(items)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, model.scores(items), atol=0.1, rtol=0.1)


def test_a_folder_without_a_catalogue_loads_without_one(model: NextItemModel, tmp_path) -> None:
    model.item_ids = None
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "item_ids.json").exists()
    assert type(model).from_pretrained(tmp_path).item_ids is None


def test_a_catalogue_of_another_model_is_refused(model: NextItemModel, tmp_path) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / "item_ids.json").write_text(json.dumps(model.item_ids[1:]))
    with pytest.raises(ValueError, match=r"item_ids\.json holds 19 items and the network knows 20"):
        type(model).from_pretrained(tmp_path)


def test_a_subfolder_brings_its_own_catalogue(model: NextItemModel, tmp_path) -> None:
    model.save_pretrained(tmp_path / "inner")
    assert type(model).from_pretrained(tmp_path, subfolder="inner").item_ids == model.item_ids


@pytest.mark.parametrize("build", [sasrec, gru4rec])
def test_loss_is_the_mean_over_labels_or_the_sum_over_a_given_number(build) -> None:
    torch.manual_seed(0)
    model = build(loss="full", label_smoothing=0.1).eval()
    items, labels = padded([3, 1, 4], [2]), torch.tensor([[-100, 1, 4, 7], [2, 9, -100, -100]])
    out, vectors = model(items, labels), model.item_vectors()
    chosen = [(0, 1, 1), (0, 2, 4), (0, 3, 7), (1, 0, 2), (1, 1, 9)]
    states = torch.stack([out.states[row, place] for row, place, _ in chosen])
    expected = next_item_loss(states, torch.tensor([target for *_, target in chosen]), vectors, model.settings)
    assert model.settings.label_smoothing == 0.1
    torch.testing.assert_close(out.loss, expected / 5)
    torch.testing.assert_close(model(items, labels, num_items_in_batch=2).loss, expected / 2)
    assert model(items).loss is None
    assert float(model(items, torch.full((2, 4), -100)).loss.detach()) == 0


@pytest.mark.parametrize("build", [sasrec, gru4rec])
def test_unknown_losses_are_refused(build) -> None:
    with pytest.raises(ValueError, match="loss: unknown value 'hinge'"):
        build(loss="hinge")
