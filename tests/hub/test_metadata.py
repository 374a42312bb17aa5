from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import yaml
from card_samples import card_model, result

from cemg_hf.data.card import HUB_LICENSES, SIZE_CATEGORIES, size_category
from cemg_hf.errors import CEMGError
from cemg_hf.hub.metadata import PIPELINE_TAGS, check_dataset_card, check_eval_results, check_eval_yaml, check_model_card, front_matter
from cemg_hf.hub.model_card import model_card

MODEL: dict[str, Any] = front_matter(model_card(card_model(dataset_repo="org/data"), result()))
DATASET: dict[str, Any] = {
    "language": ["en"],
    "pretty_name": "Shop",
    "license": "mit",
    "size_categories": ["1K<n<10K"],
    "task_categories": ["other"],
    "configs": [
        {"config_name": "items", "data_files": "items.parquet", "default": True},
        {"config_name": "splits", "data_files": [{"split": "test", "path": "splits/test.parquet"}]},
    ],
}
FILES = ["items.parquet", "splits/test.parquet"]


def card(metadata: dict[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(metadata)}---\n\n# Title\n"


def changed(metadata: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with another value at "a.0.b"; None takes the entry out."""
    copy: Any = deepcopy(metadata)
    *parents, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    place = copy
    for part in parents:
        place = place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return copy


def test_what_is_documented_is_valid() -> None:
    check_model_card(card(MODEL))
    check_dataset_card(card(DATASET), FILES)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("pipeline_tag", "next-item-recommendation", "pipeline_tag: 'next-item-recommendation' is not among"),
        ("license", "apache", "license: 'apache' is not among"),
        ("license", "other", "needs license_name"),
        ("license", None, "license: is missing"),
        ("language", ["english"], "language: 'english' is no ISO 639 code"),
        ("language", [False], "YAML reads a bare no as false"),
        ("tags", [1], "tags: 1 is no text"),
        ("tags", [], "tags: is empty"),
        ("datasets", ["org/a/b"], "datasets: 'org/a/b' is no id"),
        ("base_model", "../t5", "base_model: '../t5' is no id"),
        ("libary_name", "transformers", "libary_name: is no documented field"),
        ("model-index.0.name", "", "model-index.name: '' is no text"),
        ("model-index.0.results", [], "model-index.results: is empty"),
        ("model-index.0.results.0.task.type", "recommendation", "model-index.task.type: 'recommendation'"),
        ("model-index.0.results.0.dataset.type", None, "model-index.dataset.type: None is no text"),
        ("model-index.0.results.0.dataset.slice", "cold", "slice: is no documented field"),
        ("model-index.0.results.0.metrics.0.value", None, "has no value"),
    ],
)
def test_what_is_not_is_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(CEMGError, match=r"^model card: ") as refused:
        check_model_card(card(changed(MODEL, path, value)))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("size_categories", ["n>100M"], "size_categories: 'n>100M' is not among"),
        ("task_categories", ["recommendation"], "task_categories: 'recommendation'"),
        ("configs.0.data_files", "item.parquet", "'item.parquet' is no file of the repository"),
        ("configs.1.config_name", "items", "a config_name stands twice"),
        ("configs.1.default", True, "more than one is the default"),
        ("configs.1.config_name", "a/b", "config_name 'a/b' is no name"),
        ("configs.1.data_files", [], "splits has no data_files"),
        ("pipeline_tag", "other", "pipeline_tag: is no documented field"),
    ],
)
def test_the_same_for_data_sets(path: str, value: Any, message: str) -> None:
    with pytest.raises(CEMGError, match=r"^dataset card: ") as refused:
        check_dataset_card(card(changed(DATASET, path, value)), FILES)
    assert message in str(refused.value)


@pytest.mark.parametrize("text", ["# Title\n", "---\nlicense: mit\n", "---\n- a\n---\n", "---\na: [\n---\n"])
def test_a_card_without_metadata_is_refused(text: str) -> None:
    with pytest.raises(CEMGError, match=r"^card: "):
        check_model_card(text)


RESULT = {"dataset": {"id": "org/data", "task_id": "hr_at_10"}, "value": 0.5}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (RESULT | {"dataset": {"id": "org/data"}}, "dataset.task_id: None is no text"),
        (RESULT | {"dataset": {"id": "a/b/c", "task_id": "t"}}, "dataset.id: 'a/b/c' is no id"),
        (RESULT | {"value": "0.5"}, "value '0.5' is no number"),
        (RESULT | {"date": "last week"}, "date: 'last week' is no ISO 8601 date"),
        (RESULT | {"source": {"name": "logs"}}, "source has no url"),
        (RESULT | {"metric": "hr"}, "metric: is no documented field"),
    ],
)
def test_evaluation_results(entry: dict[str, Any], message: str) -> None:
    check_eval_results(yaml.safe_dump([RESULT | {"date": "2026-01-15", "source": {"url": "https://a"}, "notes": "n"}]))
    with pytest.raises(CEMGError) as refused:
        check_eval_results(yaml.safe_dump([RESULT, entry]))
    assert message in str(refused.value)
    assert "entry 1: " in str(refused.value)


def test_tasks_of_a_benchmark() -> None:
    content: dict[str, Any] = {"name": "n", "description": "d", "evaluation_framework": "f"}
    task = {"id": "t", "config": "splits", "split": "test"}
    check_eval_yaml(yaml.safe_dump(content | {"tasks": [task]}), ["splits"])
    for tasks, message in (([], "at least one task"), ([task | {"config": "items"}], "tasks.config: 'items'")):
        with pytest.raises(CEMGError, match=message):
            check_eval_yaml(yaml.safe_dump(content | {"tasks": tasks}), ["splits"])


def test_the_lists_are_whole() -> None:
    assert {"other", "text-generation", "graph-ml", "any-to-any"} <= PIPELINE_TAGS
    assert {"apache-2.0", "cc-by-nc-4.0", "other", "unknown"} <= HUB_LICENSES
    labels = [size_category(10**power) for power in range(14)]
    assert labels == [SIZE_CATEGORIES[max(0, min(power - 2, 10))] for power in range(14)]
    assert size_category(999) == "n<1K"
