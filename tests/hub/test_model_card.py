from __future__ import annotations

import ast
import re
from dataclasses import asdict, replace

import pytest
import yaml
from card_samples import card_model, comparison, example_blocks, result
from huggingface_hub import ModelCard, parse_eval_result_entries

from cemg_hf.errors import CEMGError
from cemg_hf.hub.card_results import METRICS, SLICES
from cemg_hf.hub.dataset_card import TASKS
from cemg_hf.hub.model_card import eval_results, model_card
from cemg_hf.recipes import load_recipe


def test_every_figure_of_the_metadata_is_the_results() -> None:
    measured = result()
    card = ModelCard(model_card(card_model(), measured))
    found = {one.metric_name: one.metric_value for one in card.data.eval_results}
    own = measured["metrics"]["cemg"]
    assert found == {f"{METRICS[name]}, {SLICES[part]}": round(own[part][name], 5) for part in SLICES for name in METRICS}
    assert {(one.dataset_config, one.dataset_split) for one in card.data.eval_results} == {("splits", "test")}


def test_figures_at_other_cut_offs_are_taken_as_they_are() -> None:
    """`evaluate.ks=[10, 50]` has no HR@20, and `cemg compare` tests by any metric."""
    measured = result()
    for values in measured["metrics"]["cemg"].values():
        values.pop("hr@20", None)
        values.pop("ndcg@20", None)
    card = model_card(card_model(), measured, comparison() | {"metric": "mrr@50"})
    found = {one.metric_name for one in ModelCard(card).data.eval_results}
    assert found == {f"{name}, {words}" for words in SLICES.values() for name in ("HR@10", "NDCG@10")}
    assert "Paired bootstrap over users, MRR@50, " in card


def test_no_place_of_the_machine_is_in_it() -> None:
    model = card_model("movielens-100k")
    model.recipe["encode"]["text"]["encoder"] = "/home/me/encoders/minilm"
    card = model_card(model, result())
    assert "`cemg run sample --output shop-7`" in card
    assert "text by minilm" in card
    assert not re.search(r"(?<![\w.:/])/(home|opt|work|root|Users|mnt|tmp)/", card)


def test_the_examples_parse_and_load_the_name_given() -> None:
    card = model_card(card_model(), result())
    blocks = example_blocks(card)
    assert len(blocks) == 2
    for block in blocks:
        ast.parse(block)
        assert len([line for line in block.splitlines() if line]) == 3
        assert '"org/cemg-shop"' in block
        assert '["item-0001", "item-0002"]' in block


def test_the_method_is_that_of_the_recipe() -> None:
    """One code per item is CEMG's; a stream of codes per modality is MSCGRec's, which names those that the data has."""
    fused = model_card(card_model(), result())
    assert "[CEMG, arXiv 2512.21543]" in fused
    assert "MSCGRec" not in fused
    assert "code streams" not in fused
    for name, streams in (("sample", "collaborative, text, image"), ("beauty", "collaborative, text")):
        recipe = asdict(load_recipe(name, ["streams.decoded=text"], system="mscgrec"))
        found = result()
        found["metrics"] = {"mscgrec": found["metrics"]["cemg"]}
        card = model_card(replace(card_model(name), recipe=recipe), found | {"intervals": {}})
        assert "[MSCGRec, arXiv 2602.03713](https://arxiv.org/abs/2602.03713)" in card
        assert "2512.21543" not in card
        assert f"4 tokens for each of\n{streams}, a history shows them all, and a T5 writes the text code of the next item" in card
        assert f"- code streams: {streams}; written: text; 0.2 of them hidden in training" in card
    assert "RQ-DINO" not in card
    taken = asdict(load_recipe("sample", ["streams.image_codes=/pictures", "encode.modalities=[text, collaborative]"], system="mscgrec"))
    card = model_card(replace(card_model("sample"), recipe=taken), found | {"intervals": {}})
    assert "- code streams: collaborative, text, image; written: collaborative; " in card
    assert "hidden in training; image codes by RQ-DINO" in card


def test_a_licence_of_its_own_has_a_name_and_a_place() -> None:
    data = ModelCard(model_card(card_model("movielens-100k"), result())).data
    assert (data.license, data.license_name) == ("other", "movielens-100k-terms")
    assert data.license_link.startswith("https://")
    assert data.language == ["en"]
    assert "multimodal" in data.tags
    sample = ModelCard(model_card(card_model(), result())).data
    assert (sample.license, sample.license_name) == ("apache-2.0", None)


def test_what_a_data_set_lacks_is_not_claimed() -> None:
    text = model_card(card_model("beauty"), result())
    assert "multimodal" not in ModelCard(text).data.tags
    assert "image by" not in text


def test_no_cold_targets_and_a_changed_checkout_are_said() -> None:
    measured = result() | {"commit": "0123456789abcdef-dirty"}
    measured["metrics"]["cemg"]["test_cold_excluding_history"] = {"hr@10": None, "n": 0}
    card = model_card(card_model(), measured)
    assert "found rarely: no test user has one here" in card
    assert "commit 0123456789-dirty" in card


def test_other_test_cases_and_missing_systems_are_errors() -> None:
    with pytest.raises(CEMGError, match="sasrec was measured on 49 test cases, the model on 50"):
        model_card(card_model(), result(), comparison(cases=49))
    with pytest.raises(CEMGError, match="'cemg' is not among their systems"):
        model_card(card_model(), comparison())


def test_evaluation_results_are_those_of_the_data_sets_tasks() -> None:
    measured = result()
    entries = parse_eval_result_entries(yaml.safe_load(eval_results(card_model(dataset_repo="org/shop-data"), measured)))
    own = measured["metrics"]["cemg"]
    assert {entry.task_id: entry.value for entry in entries} == {task: round(own[part][name], 5) for task, (part, name) in TASKS.items()}
    assert {entry.dataset_id for entry in entries} == {"org/shop-data"}
    assert "95 % interval 0.1990 to 0.2020, 50 users" in str(entries[0].notes)
    card = ModelCard(model_card(card_model(dataset_repo="org/shop-data"), measured))
    assert card.data.datasets == ["org/shop-data"]
    with pytest.raises(CEMGError, match="dataset_repo: is missing"):
        eval_results(card_model(), measured)
