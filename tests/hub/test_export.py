from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from card_samples import example_blocks
from huggingface_hub import ModelCard
from local_hub import Clients
from safetensors.torch import load_file
from transformers import pipeline

from cemg_hf import CEMGForConditionalGeneration, NextItemRecommendationPipeline
from cemg_hf.errors import CEMGError
from cemg_hf.hub.export import HANDLER, REQUIREMENTS, export_model
from cemg_hf.models import cemg
from cemg_hf.training.loading import open_model


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
    measured = {one.metric_name: one.metric_value for one in card.data.eval_results}
    assert measured["NDCG@10, history items excluded"] == round(result["metrics"]["cemg"]["test_excluding_history"]["ndcg@10"], 5)
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


@pytest.mark.parametrize("system", ["cemg", "mscgrec"])
def test_the_examples_of_the_card_run_as_they_are_printed(
    request: pytest.FixtureRequest, puller: Clients, tmp_path: Path, system: str
) -> None:
    """Each in a fresh process: by transformers alone where the folder carries its code, with the package where it does not."""
    exported = export_model(request.getfixturevalue("finished" if system == "cemg" else "streams"), tmp_path / "published")
    model = open_model(exported)
    blocks = example_blocks((exported / "README.md").read_text())
    assert len(blocks) == 2
    expected = model.recommend(model.tokenizer.item_ids[:2], k=10, exclude_history=True)
    for block in blocks:
        printed = puller("example", block=block, folder=tmp_path, package=system == "mscgrec")
        assert re.findall(r"item_id'?[:=] ?'([^']+)'", printed) == [item.item_id for item in expected]
        assert ("trust_remote_code" in block, "import cemg_hf" in block) == ((True, False) if system == "cemg" else (False, True))


def test_a_folder_without_code_holds_what_its_card_says(streams: Path, tmp_path: Path) -> None:
    exported = export_model(streams, tmp_path / "published")
    assert not [path.name for path in exported.iterdir() if path.suffix == ".py" or path.name == "requirements.txt"]
    assert "auto_map" not in json.loads((exported / "config.json").read_text())
    card = ModelCard.load(exported / "README.md")
    assert "the folder holds no code, and loads where cemg_hf is installed and imported" in card.text
    assert "trust_remote_code" not in card.text
    assert "| **mscgrec** |" in card.text


def test_results_of_others_and_of_a_published_data_set(finished: Path, tmp_path: Path) -> None:
    result = json.loads((finished / "metrics.json").read_text())
    own = result["metrics"]["cemg"]
    (tmp_path / "compare.json").write_text(json.dumps(result | {"metrics": {"sasrec": own}, "intervals": {}}))
    exported = export_model(finished, tmp_path / "published", comparison=tmp_path / "compare.json", dataset_repo="org/shop-data")
    card = ModelCard.load(exported / "README.md")
    assert "| sasrec |" in card.text
    assert card.data.datasets == ["org/shop-data"]
    entries = yaml.safe_load((exported / ".eval_results" / "shop.yaml").read_text())
    assert {entry["dataset"]["task_id"]: entry["value"] for entry in entries}["hr_at_10"] == round(own["test"]["hr@10"], 5)
    assert not (export_model(finished, exported) / ".eval_results").exists()
    for broken in ("{", '{"metrics": {"cemg": {}}}'):
        (tmp_path / "compare.json").write_text(broken)
        with pytest.raises(CEMGError, match=r"compare\.json: not a file of ranking results"):
            export_model(finished, exported, comparison=tmp_path / "compare.json")
    with pytest.raises(CEMGError, match=r"none\.json: no such file"):
        export_model(finished, exported, comparison=tmp_path / "none.json")


def test_paths_of_this_machine_stay_on_it(finished: Path, tmp_path: Path) -> None:
    assert str(finished.parent) in (finished / "recipe.yaml").read_text()
    exported = export_model(finished, tmp_path / "published", name="org/cemg-shop")
    recipe = yaml.safe_load((exported / "recipe.yaml").read_text())
    assert recipe["prepare"]["interactions"] == "interactions.csv"
    assert "`cemg run dense.yaml --output run`" in (exported / "README.md").read_text()
    assert all(str(finished.parent).encode() not in path.read_bytes() for path in exported.iterdir())


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
