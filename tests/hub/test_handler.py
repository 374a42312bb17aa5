"""The published `handler.py`, loaded and called as the Inference Endpoint toolkit does, where the package cannot be imported."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from dense_samples import hybrid
from generator_samples import HISTORIES
from packaging.requirements import Requirement
from transformers import pipeline

from cemg_hf import NextItemRecommendationPipeline
from cemg_hf.hub import handler as source
from cemg_hf.hub.export import HANDLER, REQUIREMENTS
from cemg_hf.models.cemg.pipeline_cemg import SEARCH_SETTINGS

# argv = model folder; bodies of requests come in, answers go out. The module's name and the search path are the toolkit's.
TOOLKIT = """
import importlib.util, json, sys
sys.modules["cemg_hf"] = None
folder = sys.argv[1]
spec = importlib.util.spec_from_file_location("handler.EndpointHandler", folder + "/handler.py")
sys.path.insert(0, folder)
module = importlib.util.module_from_spec(spec)
sys.modules["handler.EndpointHandler"] = module
spec.loader.exec_module(module)
handler = module.EndpointHandler(folder)
answers = []
for body in json.loads(sys.stdin.read()):
    try:
        answers.append(handler(body))
    except Exception as error:
        answers.append({"error": str(error), "kind": type(error).__name__})
print(json.dumps({"answers": answers, "model": type(handler.pipeline.model).__module__.split(".")[0]}))
"""


def test_it_answers_where_the_package_cannot_be_imported(tmp_path: Path) -> None:
    model = hybrid(dense_weight=0.4)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    (folder / "handler.py").write_bytes(HANDLER.read_bytes())
    bodies = [
        {"inputs": HISTORIES[0], "parameters": {"top_k": 5, "exclude_history": True}},
        {"inputs": HISTORIES, "parameters": None},
        {"inputs": [{"history": ["item1"], "denied_items": ["item2"]}], "parameters": {"dense_weight": 1}},
        {"inputs": ["item1", "gone"]},
        {"inputs": ["item1", "gone"], "parameters": {"on_unknown": "skip", "top_k": 1}},
    ]
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", TOOLKIT, folder],
        input=json.dumps(bodies),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["model"] == "transformers_modules"
    expected = [
        [model.recommend(HISTORIES[0], k=5, exclude_history=True)],
        model.recommend(HISTORIES),
        model.recommend([["item1"]], denied_items=["item2"], dense_weight=1),
    ]
    answers = found["answers"]
    for lists, wanted in zip(([answers[0]], answers[1], answers[2]), expected, strict=True):
        assert [[item["item_id"] for item in row] for row in lists] == [[item.item_id for item in row] for row in wanted]
        assert [item["score"] for row in lists for item in row] == pytest.approx([item.score for row in wanted for item in row], abs=1e-5)
    assert answers[3]["kind"] == "ValueError"
    assert "item id 'gone' is not among the 60 items of the catalogue" in answers[3]["error"]
    assert answers[4][0]["item_id"] == model.recommend(["item1"], k=1)[0].item_id
    assert set(answers[4][0]) == {"item_id", "score", "codes"}


@pytest.fixture(scope="module")
def handler(tmp_path_factory: pytest.TempPathFactory) -> object:
    """The handler on a model of the package, so that its errors need no process of their own."""
    folder = tmp_path_factory.mktemp("model")
    hybrid().save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            source, "pipeline", lambda task, model, **_: pipeline(task, model=model, pipeline_class=NextItemRecommendationPipeline)
        )
        return source.EndpointHandler(folder)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], 'an object {"inputs": …, "parameters": …} is expected, got list'),
        ({}, "inputs: a list of item ids, or a list of such lists, is expected, got NoneType"),
        ({"inputs": "item1"}, "inputs: a list of item ids, or a list of such lists, is expected, got str"),
        ({"inputs": [[]] * 257}, "inputs: 257 histories; a request may hold 256"),
        ({"inputs": [], "parameters": ["top_k"]}, "parameters: an object of settings is expected, got list"),
        ({"inputs": [], "parameters": {"num_workers": 8}}, "parameters: 'num_workers' is unknown; there are top_k, exclude_history"),
        ({"inputs": [], "parameters": {"top_k": "10"}}, "top_k: int is expected, got '10'"),
        ({"inputs": [], "parameters": {"top_k": True}}, "top_k: int is expected, got True"),
        ({"inputs": [], "parameters": {"exclude_history": 1}}, "exclude_history: bool is expected, got 1"),
        ({"inputs": [], "parameters": {"top_k": 201}}, "top_k: 201 is too many; a request may ask for 200"),
        ({"inputs": [], "parameters": {"num_beams": 10**9}}, "num_beams: 1000000000 is too many"),
        ({"inputs": [], "parameters": {"top_k": -1}}, "top_k must be a whole number from 1 on, got -1"),
        ({"inputs": [3]}, "item ids are strings, got 3"),
    ],
)
def test_requests_that_cannot_be_answered_are_told_why(handler: source.EndpointHandler, body: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        handler(body)


def test_every_parameter_is_one_of_the_pipeline_and_the_other_way_round(handler: source.EndpointHandler) -> None:
    assert set(source.PARAMETERS) == set(SEARCH_SETTINGS)
    values = {int: 5, bool: True, list: ["item1"], str: "skip", float: 0}
    for name, kind in source.PARAMETERS.items():
        needed = {"new_item_boost": 0.0} if name == "new_item_likelihood" else {}
        found = handler({"inputs": ["item2"], "parameters": {"top_k": 5, name: values[kind], **needed}})
        assert isinstance(found, list)


def test_it_needs_nothing_but_what_is_published_and_required() -> None:
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(HANDLER.read_text()))
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""])
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported - set(sys.stdlib_module_names) == {"transformers"}
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    lowest = {Requirement(line).name: Requirement(line) for line in project["dependencies"]}
    assert [Requirement(line) for line in REQUIREMENTS.split()] == [lowest["transformers"]]
