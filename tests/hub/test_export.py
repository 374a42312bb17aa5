from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_samples import small_recipe, write_shop
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import pipeline

from cemg_hf import CEMGForConditionalGeneration, NextItemRecommendationPipeline
from cemg_hf.errors import CEMGError
from cemg_hf.hub.export import HANDLER, REQUIREMENTS, export_model
from cemg_hf.hub.model_card import model_card
from cemg_hf.models import cemg
from cemg_hf.recipes import load_recipe
from cemg_hf.training.pipeline import run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    write_shop(folder)
    values: dict[str, Any] = small_recipe(folder)
    values["finetune"] |= {"dense": {"settings": {"hidden_size": 8}, "content": True, "loop": {"epochs": 1, "batch_size": 16}}}
    (folder / "dense.yaml").write_text(yaml.safe_dump(values))
    run(load_recipe(folder / "dense.yaml"), folder / "run", command="cemg run dense.yaml")
    return folder / "run"


def test_the_folder_recommends_as_the_run_does(finished: Path, tmp_path: Path) -> None:
    exported = export_model(finished, tmp_path / "published", dtype="float32")
    before, after = (CEMGForConditionalGeneration.from_pretrained(folder) for folder in (finished / "model", exported))
    history = before.tokenizer.item_ids[:3]
    assert after.recommend(history, k=5, exclude_history=True) == before.recommend(history, k=5, exclude_history=True)
    assert after.dense is not None


def test_weights_are_in_half_precision_and_the_card_is_made_of_results(finished: Path, tmp_path: Path) -> None:
    exported = export_model(finished, tmp_path / "published", name="org/cemg-shop")
    weights = load_file(exported / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.bfloat16}
    card = ModelCard.load(exported / "README.md")
    result = json.loads((finished / "metrics.json").read_text())
    measured = {(one.dataset_config, one.metric_type): one.metric_value for one in card.data.eval_results}
    own = result["metrics"]["cemg"]["test_excluding_history"]
    assert measured["history items excluded", "ndcg@10"] == pytest.approx(own["ndcg@10"], abs=1e-5)
    assert "cemg, codes only" in card.text
    assert 'from_pretrained("org/cemg-shop"' in card.text
    assert len(CEMGForConditionalGeneration.from_pretrained(exported).recommend([], k=3)) == 3


def test_pipeline_and_endpoint_find_what_they_need(finished: Path, tmp_path: Path) -> None:
    exported = export_model(finished, tmp_path / "published", dtype="float32")
    assert (exported / "handler.py").read_bytes() == HANDLER.read_bytes()
    assert (exported / "requirements.txt").read_text() == REQUIREMENTS
    assert {path.name for path in Path(cemg.__file__).parent.glob("*_*.py")} == {
        path.name for path in exported.glob("*.py") if path.name != "handler.py"
    } | {"__init__.py"}
    pipe = pipeline("next-item-recommendation", model=str(exported), pipeline_class=NextItemRecommendationPipeline, device="cpu")
    history = pipe.tokenizer.item_ids[:3]
    expected = CEMGForConditionalGeneration.from_pretrained(finished / "model").recommend(history, k=5)
    assert [(item["item_id"], item["score"]) for item in pipe(history, top_k=5)] == expected


def test_no_cold_targets_and_a_changed_checkout_are_said(finished: Path) -> None:
    result = json.loads((finished / "metrics.json").read_text()) | {"commit": "0123456789abcdef-dirty"}
    result["metrics"]["cemg"]["test_cold_excluding_history"] = {"hr@10": None, "n": 0}
    tokenizer = CEMGForConditionalGeneration.from_pretrained(finished / "model").tokenizer
    about = {"name": "n", "title": "t", "description": "d", "data": "shop", "license_name": "mit", "system": "cemg", "training": ""}
    card = model_card(**about, result=result, tokenizer=tokenizer)
    assert "found rarely: no test user has one here" in card
    assert "commit 0123456789-dirty" in card


def test_what_is_missing_is_named(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(CEMGError, match=r"recipe\.yaml is missing"):
        export_model(tmp_path, tmp_path / "published")
    with pytest.raises(CEMGError, match="dtype: 'int8'"):
        export_model(finished, tmp_path / "published", dtype="int8")
    assert not (tmp_path / "published").exists()


def test_a_folder_of_something_else_is_not_replaced(finished: Path, tmp_path: Path) -> None:
    precious = tmp_path / "photos" / "one.jpg"
    precious.parent.mkdir()
    precious.write_bytes(b"picture")
    with pytest.raises(CEMGError, match="is no exported model, and would be replaced"):
        export_model(finished, precious.parent)
    assert precious.read_bytes() == b"picture"
    exported = export_model(finished, tmp_path / "published")
    assert export_model(finished, exported, dtype="float16") == exported  # its own output may be made anew
