"""The pipeline: the lists of `recommend`, in whatever form histories come, and folders that load again."""

from __future__ import annotations

import inspect
import json

import datasets
import numpy as np
import pytest
import torch
from dense_samples import hybrid
from generator_samples import HISTORIES, TOKENIZER, generator, item_tokenizer, rqvae_parts
from torch.utils.data import Dataset
from transformers import AutoModelForSeq2SeqLM, pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset

from cemg_hf import CEMGForConditionalGeneration, NextItemRecommendationPipeline, Recommendation
from cemg_hf.models.cemg.pipeline_cemg import SEARCH_SETTINGS, TASK

MODEL = hybrid(dense_weight=0.4)
PIPE = NextItemRecommendationPipeline(MODEL, device="cpu")


class Histories(Dataset):
    def __len__(self) -> int:
        return len(HISTORIES)

    def __getitem__(self, index: int) -> list[str]:
        return HISTORIES[index]


def assert_same(found: list[list[dict]], expected: list[list[Recommendation]]) -> None:
    assert [[item["item_id"] for item in row] for row in found] == [[item.item_id for item in row] for row in expected]
    for row, wanted in zip(found, expected, strict=True):
        assert [item["score"] for item in row] == pytest.approx([item.score for item in wanted], abs=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"exclude_history": True, "num_beams": 25},
        {"dense_weight": 0.0},
        {"allowed_items": TOKENIZER.item_ids[:9], "denied_items": ["item3"]},
        {"max_per_first_code": 2, "min_first_codes": 3},
        {"new_item_boost": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_lists_are_those_of_recommend_whatever_the_batches(settings, batch_size):
    expected = MODEL.recommend(HISTORIES, k=7, **settings)
    assert_same(PIPE(HISTORIES, top_k=7, batch_size=batch_size, **settings), expected)
    assert_same([PIPE(history, top_k=7, batch_size=batch_size, **settings) for history in HISTORIES], expected)


def test_a_batch_is_one_pass_of_the_model(monkeypatch):
    passes = []
    search = MODEL._search
    monkeypatch.setattr(MODEL, "_search", lambda *args, **kwargs: passes.append(len(args[2])) or search(*args, **kwargs))
    PIPE(HISTORIES)
    PIPE(HISTORIES, batch_size=3)
    assert passes == [4, 3, 1]


def test_any_form_of_many_histories_streams_the_same_lists():
    expected = MODEL.recommend(HISTORIES, k=10)
    table = datasets.Dataset.from_dict({"history": HISTORIES, "user": ["a", "b", "c", "d"]})
    assert_same(PIPE(tuple(HISTORIES)), expected)
    streams = {
        "generator": (history for history in HISTORIES),
        "torch": Histories(),
        "table": table.select_columns("history"),
        "streamed": table.select_columns("history").to_iterable_dataset(),
        "column": table["history"],
        "key": KeyDataset(table, "history"),
        "array": np.array([np.array(history, dtype=object) for history in HISTORIES], dtype=object),
    }
    for name, histories in streams.items():
        for batch_size in (1, 3):
            if name == "generator" and batch_size == 3:
                histories = (history for history in HISTORIES)
            found = PIPE(histories, batch_size=batch_size)
            assert not isinstance(found, list), name
            assert_same(list(found), expected)
    assert len(PIPE(KeyDataset(table, "history"), batch_size=1)) == len(HISTORIES)


def test_a_stream_is_read_as_its_lists_are_asked_for():
    read = []
    found = iter(PIPE((read.append(number) or ["item1"] for number in range(100)), batch_size=2))
    next(found)
    assert len(read) == 2


def test_one_history_is_a_list_of_ids_and_an_empty_one_is_a_new_user():
    assert_same([PIPE([])], [MODEL.recommend([])])
    assert_same(PIPE([[]]), [MODEL.recommend([])])
    assert_same([PIPE(("item1", "item2"))], [MODEL.recommend(["item1", "item2"])])
    assert_same([PIPE({"history": ["item1"]})], [MODEL.recommend(["item1"])])


def test_lists_of_a_request_hold_together_with_those_of_the_call():
    some, others = TOKENIZER.item_ids[:20], TOKENIZER.item_ids[10:30]
    requests = [
        {"history": ["item1"], "allowed_items": some, "denied_items": ["item12"]},
        {"history": [], "allowed_items": None},
        {"history": ["item5"], "denied_items": TOKENIZER.item_ids[10:15]},
        {"history": ["item7"], "allowed_items": []},
    ]
    histories = [request["history"] for request in requests]

    def expected(allowed: list, denied: list) -> list:
        return MODEL.recommend(histories, k=60, allowed_items=allowed, denied_items=denied)

    own = expected([some, None, None, []], [["item12"], None, TOKENIZER.item_ids[10:15], None])
    assert_same(PIPE(requests, top_k=60, batch_size=3), own)
    both = expected([some[10:], others, others, []], [["item12", "item13"], ["item13"], TOKENIZER.item_ids[10:15], ["item13"]])
    for batch_size in (1, 3):
        found = PIPE(requests, top_k=60, allowed_items=others, denied_items=["item13"], batch_size=batch_size)
        assert_same(found, both)
    assert_same([PIPE(requests[0], top_k=60, allowed_items=others, denied_items=["item13"])], both[:1])


def test_codes_are_the_place_in_the_tree():
    for item in PIPE(["item1", "item2"], top_k=60):
        branch = TOKENIZER.describe(item["codes"])
        assert branch.num_items == 1
        assert TOKENIZER.decode_items(TOKENIZER.convert_tokens_to_ids(TOKENIZER.tokenize(item["codes"]))) == [item["item_id"]]


def test_titles_stand_where_they_are_known():
    titles = {f"item{index}": f"Soap {index}" for index in range(0, 60, 2)}
    found = PIPE(["item1"], top_k=60, titles=titles)
    assert {item["item_id"]: item["title"] for item in found if "title" in item} == titles
    assert len(found) == 60
    assert "title" not in PIPE(["item1"], top_k=1)[0]
    pipe = NextItemRecommendationPipeline(MODEL, device="cpu", titles=titles)
    assert pipe(["item1"], top_k=60) == found
    assert all("title" not in item for item in pipe(["item1"], top_k=60, titles=None))
    json.dumps(found)


def test_unknown_items_are_named_or_skipped():
    with pytest.raises(ValueError, match="history: item id 'gone' and 1 more is not among the 60 items"):
        PIPE([["item1"], ["item1", "gone", "lost"]])
    with pytest.raises(ValueError, match="allowed_items: item id 'gone'"):
        PIPE({"history": ["item1"], "allowed_items": ["gone"]}, allowed_items=["item2"])
    with pytest.raises(ValueError, match="denied_items: item id 'gone'"):
        PIPE(["item1"], denied_items=["gone"])
    expected = MODEL.recommend(["item1"], denied_items=["item2"])
    assert_same([PIPE(["gone", "item1"], denied_items=["item2", "gone"], on_unknown="skip")], [expected])
    request = {"history": ["gone", "item1"], "denied_items": ["lost", "item2"]}
    assert_same(PIPE([request], on_unknown="skip"), [expected])


@pytest.mark.parametrize(
    ("histories", "settings", "message"),
    [
        ("item1", {}, r"a history is a list of item ids, got 'item1'; write \['item1'\]"),
        (7, {}, "a history is a list of item ids, got 7"),
        ([7], {}, "item ids are strings, got 7"),
        ([["item1"], "item2"], {}, "not a mixture of both"),
        ([["item1"], [7]], {}, r"history: item ids are strings, got 7 \(int\)"),
        ([["item1"], None], {}, "history: None is no list"),
        ([{"history": None}], {}, "history: None is no list"),
        ({"items": ["item1"]}, {}, "a request has the keys history and, if wanted, allowed_items and denied_items; got also 'items'"),
        ([{"allowed_items": []}], {}, "a request has the keys history .*; got allowed_items"),
        ({"history": ["item1"], "allowed_items": "item2"}, {}, "allowed_items: a list of item ids is expected, got 'item2'"),
        (["item1"], {"allowed_items": [["item2"]]}, r"allowed_items: item ids are strings, got \['item2'\] .* as {\"history\""),
        (["item1"], {"k": 5}, "k is no setting of next-item-recommendation; settings are top_k"),
        (["item1"], {"titles": ["Soap"]}, "titles: a mapping from item id to title is expected, got list"),
        (["item1"], {"top_k": 0}, "top_k must be a whole number from 1 on, got 0"),
        (["item1"], {"top_k": "5"}, "top_k must be a whole number from 1 on, got '5'"),
        (["item1"], {"on_unknown": "guess"}, "on_unknown must be 'error' or 'skip'"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(histories, settings, message):
    with pytest.raises(ValueError, match=message):
        PIPE(histories, **settings)


def test_settings_of_the_pipeline_are_defaults_of_its_calls():
    pipe = NextItemRecommendationPipeline(MODEL, device="cpu", top_k=3, allowed_items=TOKENIZER.item_ids[:10], exclude_history=True)
    history = ["item1", "item2"]
    some = {"exclude_history": True, "allowed_items": TOKENIZER.item_ids[:10]}
    assert_same([pipe(history)], [MODEL.recommend(history, k=3, **some)])
    assert_same([pipe(history, top_k=5)], [MODEL.recommend(history, k=5, **some)])
    assert_same([pipe(history, allowed_items=None)], [MODEL.recommend(history, k=3, exclude_history=True)])
    assert_same([pipe(history)], [MODEL.recommend(history, k=3, **some)])


def test_the_catalogue_is_the_models_own_and_follows_it():
    tokenizer = item_tokenizer(**rqvae_parts())
    model = generator(tokenizer)
    pipe = NextItemRecommendationPipeline(model, device="cpu")
    assert pipe.tokenizer is tokenizer
    tokenizer.add_items(["fresh"], {"text": torch.randn(1, 9)})
    assert {item["item_id"] for item in pipe(["fresh"], top_k=61)} == set(tokenizer.item_ids)
    original = item_tokenizer(**rqvae_parts())
    assert len(NextItemRecommendationPipeline(model, original, device="cpu")(["item1"], top_k=61)) == 60
    assert pipe.tokenizer is model.tokenizer is original
    with pytest.raises(ValueError, match="tokenizer and model do not belong together"):
        NextItemRecommendationPipeline(model, item_tokenizer(seed=1), device="cpu")
    model.tokenizer = None
    with pytest.raises(ValueError, match="the model has no catalogue; load it from a folder"):
        NextItemRecommendationPipeline(model, device="cpu")


def test_it_knows_every_setting_of_recommend():
    of_recommend = set(inspect.signature(MODEL.recommend).parameters) - {"histories", "k", "batch_size"}
    assert set(SEARCH_SETTINGS) == of_recommend | {"top_k"}


def test_the_package_registers_the_task():
    assert PIPELINE_REGISTRY.check_task(TASK)[1] == {"impl": NextItemRecommendationPipeline, "pt": (AutoModelForSeq2SeqLM,)}
    pipe = pipeline(TASK, model=MODEL, device="cpu")
    assert isinstance(pipe, NextItemRecommendationPipeline)
    assert_same(pipe(HISTORIES), MODEL.recommend(HISTORIES))


@pytest.mark.parametrize("saver", [MODEL, PIPE], ids=["model", "pipeline"])
def test_saved_by_model_or_pipeline_it_loads_as_a_pipeline(saver, tmp_path):
    saver.save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    described = json.loads((tmp_path / "model" / "config.json").read_text())["custom_pipelines"]
    assert described == {TASK: {"impl": "pipeline_cemg.NextItemRecommendationPipeline", "pt": ["AutoModelForSeq2SeqLM"]}}
    assert (tmp_path / "model" / "pipeline_cemg.py").is_file()
    options = {"model": str(tmp_path / "model"), "pipeline_class": NextItemRecommendationPipeline, "device": "cpu"}
    pipe = pipeline(TASK, **options, local_files_only=True, exclude_history=True)
    assert isinstance(pipe.model, CEMGForConditionalGeneration)
    assert_same(pipe(HISTORIES), MODEL.recommend(HISTORIES, exclude_history=True))
    pipe = pipeline(TASK, **options, tokenizer=str(tmp_path / "tokenizer"))
    assert_same(pipe(HISTORIES), MODEL.recommend(HISTORIES))
