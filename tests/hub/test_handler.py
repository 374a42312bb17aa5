"""The published `handler.py`, loaded and called as the Inference Endpoint toolkit does, where the package cannot be imported."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from dense_samples import hybrid
from generator_samples import HISTORIES
from local_hub import Clients, LocalHub
from packaging.requirements import Requirement
from transformers import pipeline

from cemg_hf import NextItemRecommendationPipeline
from cemg_hf.hub import handler as source
from cemg_hf.hub.export import HANDLER, REQUIREMENTS
from cemg_hf.models.cemg.pipeline_cemg import SEARCH_SETTINGS


def test_it_answers_where_the_package_cannot_be_imported_and_asks_the_hub_for_nothing(
    tmp_path: Path, hub: LocalHub, puller: Clients
) -> None:
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
    hub.asked.clear()
    found = puller("toolkit", folder=folder, bodies=bodies)
    assert hub.asked == []
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
