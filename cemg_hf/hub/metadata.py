"""The Hub's metadata schema, checked without the Hub: front matter of model and dataset cards, `.eval_results/*.yaml` and `eval.yaml`.

What is allowed is what is documented: github.com/huggingface/hub-docs, files `modelcard.md` and `datasetcard.md` (fields, model-index),
`docs/hub/repositories-licenses.md` (licences), `docs/hub/eval-results.md` (evaluation results); the tasks are `PIPELINE_TYPES` of
@huggingface/tasks 0.21.54; the size categories stand in the docstring of `huggingface_hub.DatasetCardData`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from datetime import date, datetime
from typing import Any

import yaml
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..data.card import HUB_LICENSES, SIZE_CATEGORIES
from ..errors import CEMGError

PIPELINE_TAGS = frozenset(
    """
    text-classification token-classification table-question-answering question-answering zero-shot-classification translation
    summarization feature-extraction text-generation fill-mask sentence-similarity text-to-speech text-to-audio
    automatic-speech-recognition audio-to-audio audio-classification audio-text-to-text voice-activity-detection depth-estimation
    image-classification object-detection image-segmentation text-to-image image-to-text image-to-image image-to-video
    unconditional-image-generation video-classification reinforcement-learning robotics tabular-classification tabular-regression
    tabular-to-text table-to-text multiple-choice text-ranking text-retrieval time-series-forecasting text-to-video image-text-to-text
    image-text-to-image image-text-to-video visual-question-answering document-question-answering zero-shot-image-classification graph-ml
    mask-generation zero-shot-object-detection text-to-3d image-to-3d image-feature-extraction video-text-to-text keypoint-detection
    visual-document-retrieval any-to-any video-to-video other
    """.split()  # noqa: SIM905 -- sixty quoted names would fill the page
)
_SHARED_FIELDS = frozenset({"language", "license", "license_name", "license_link", "tags", "extra_gated_prompt", "extra_gated_fields"})
MODEL_FIELDS = _SHARED_FIELDS | {
    "library_name", "pipeline_tag", "datasets", "metrics", "base_model", "base_model_relation", "new_version", "thumbnail", "inference",
    "co2_eq_emissions", "widget", "model-index",
}  # fmt: skip
DATASET_FIELDS = _SHARED_FIELDS | {
    "pretty_name", "size_categories", "source_datasets", "task_categories", "task_ids", "annotations_creators", "language_creators",
    "language_details", "license_details", "multilinguality", "paperswithcode_id", "configs", "dataset_info", "train-eval-index", "viewer",
}  # fmt: skip
_EVAL_RESULT_FIELDS = {"dataset", "value", "verifyToken", "date", "source", "evaluation_framework", "notes"}
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|code|multilingual")  # ISO 639 codes, and two special values
_CONFIG_NAME = re.compile(r"[^<>:/\\|?*]+")  # what `datasets` refuses in names of folders

Problems = list[str]


def front_matter(card: str) -> dict[str, Any]:
    """The metadata of a card.

    Raises:
        CEMGError: the card does not begin with a YAML mapping between two lines `---`.
    """
    found = re.match(r"---\n(.*?\n)---\n", card, re.DOTALL)
    try:
        content = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError as error:
        raise CEMGError(f"card: its front matter is no YAML ({' '.join(str(error).split())}); correct it") from error
    if not isinstance(content, dict):
        raise CEMGError("card: does not begin with metadata; put a YAML mapping between two lines `---` at its top")
    return content


def check_model_card(card: str) -> None:
    """Raise CEMGError unless the card's metadata is valid for a model repository; the message names every field that is not."""
    metadata = front_matter(card)
    problems = _fields(metadata, MODEL_FIELDS) + _shared(metadata)
    problems += _one_of(metadata, "pipeline_tag", PIPELINE_TAGS)
    problems += _each(metadata, "datasets", _repo_id)
    problems += _each(metadata, "base_model", _repo_id)
    problems += _each(metadata, "metrics", _text)
    if "library_name" in metadata:
        problems += _text("library_name", metadata["library_name"])
    problems += _model_index(metadata.get("model-index"))
    _report("model card", problems)


def check_dataset_card(card: str, files: Collection[str] | None = None) -> None:
    """Raise CEMGError unless the card's metadata is valid for a dataset repository.

    Args:
        files: paths in the repository; given, every data file of `configs` must be among them.
    """
    metadata = front_matter(card)
    problems = _fields(metadata, DATASET_FIELDS) + _shared(metadata)
    problems += _each(metadata, "size_categories", lambda name, value: _allowed(name, value, SIZE_CATEGORIES))
    problems += _each(metadata, "task_categories", lambda name, value: _allowed(name, value, PIPELINE_TAGS))
    if "pretty_name" in metadata:
        problems += _text("pretty_name", metadata["pretty_name"])
    problems += _configs(metadata.get("configs", []), files)
    _report("dataset card", problems)


def check_eval_results(text: str) -> None:
    """Raise CEMGError unless `text` is a valid `.eval_results/*.yaml`: a list of results, each of a task of a benchmark data set."""
    entries = yaml.safe_load(text)
    if not isinstance(entries, list) or not entries:
        raise CEMGError(".eval_results: must be a list with at least one result")
    problems: Problems = []
    for number, entry in enumerate(entries):
        where = f"entry {number}"
        if not isinstance(entry, Mapping):
            problems.append(f"{where}: is no mapping")
            continue
        problems += [f"{where}: {problem}" for problem in _fields(entry, _EVAL_RESULT_FIELDS)]
        dataset = entry.get("dataset")
        if not isinstance(dataset, Mapping):
            problems.append(f"{where}: dataset is missing")
        else:
            problems += [f"{where}: dataset: {problem}" for problem in _fields(dataset, {"id", "task_id", "revision"})]
            problems += _repo_id(f"{where}: dataset.id", dataset.get("id")) + _text(f"{where}: dataset.task_id", dataset.get("task_id"))
        if isinstance(entry.get("value"), bool) or not isinstance(entry.get("value"), int | float):
            problems.append(f"{where}: value {entry.get('value')!r} is no number")
        source = entry.get("source")
        if source is not None and not (isinstance(source, Mapping) and isinstance(source.get("url"), str)):
            problems.append(f"{where}: source has no url")
        if "date" in entry:
            problems += _date(f"{where}: date", entry["date"])
    _report(".eval_results", problems)


def check_eval_yaml(text: str, configs: Collection[str]) -> None:
    """Raise CEMGError unless `text` is a valid `eval.yaml` of a benchmark data set with these configurations."""
    content = yaml.safe_load(text)
    if not isinstance(content, Mapping):
        raise CEMGError("eval.yaml: must be a mapping")
    problems = _fields(content, {"name", "description", "evaluation_framework", "tasks"})
    for name in ("name", "description", "evaluation_framework"):
        problems += _text(name, content.get(name))
    tasks = content.get("tasks")
    if not isinstance(tasks, list) or not tasks:
        problems.append("tasks: must be a list with at least one task")
    else:
        for task in tasks:
            problems += _text("tasks.id", task.get("id")) + _allowed("tasks.config", task.get("config"), configs)
            problems += _text("tasks.split", task.get("split"))
    _report("eval.yaml", problems)


def _report(what: str, problems: Problems) -> None:
    if problems:
        raise CEMGError(f"{what}: {'; '.join(problems)}; the Hub documents what is allowed at huggingface.co/docs/hub")


def _fields(metadata: Mapping[str, Any], known: Collection[str]) -> Problems:
    return [f"{name}: is no documented field" for name in metadata if name not in known]


def _shared(metadata: Mapping[str, Any]) -> Problems:
    """What models and data sets have in common: language, licence, tags."""
    problems = _each(metadata, "license", lambda name, value: _allowed(name, value, HUB_LICENSES))
    if metadata.get("license") == "other" and not metadata.get("license_name"):
        problems.append("license: other needs license_name")
    if not metadata.get("license"):
        problems.append("license: is missing")
    problems += _each(metadata, "language", _language)
    return problems + _each(metadata, "tags", _text)


def _each(metadata: Mapping[str, Any], name: str, check: Callable[[str, Any], Problems]) -> Problems:
    """`check` on a field's value, or on every entry where it is a list; nothing where the field is missing."""
    if name not in metadata:
        return []
    value = metadata[name]
    if value == [] or value is None:
        return [f"{name}: is empty; leave it out"]
    return [problem for one in (value if isinstance(value, list) else [value]) for problem in check(name, one)]


def _one_of(metadata: Mapping[str, Any], name: str, allowed: Collection[str]) -> Problems:
    return _allowed(name, metadata[name], allowed) if name in metadata else []


def _allowed(name: str, value: Any, allowed: Collection[str]) -> Problems:
    return [] if value in allowed else [f"{name}: {value!r} is not among the values allowed"]


def _text(name: str, value: Any) -> Problems:
    return [] if isinstance(value, str) and value.strip() else [f"{name}: {value!r} is no text"]


def _language(name: str, value: Any) -> Problems:
    valid = isinstance(value, str) and _LANGUAGE.fullmatch(value)
    return [] if valid else [f"{name}: {value!r} is no ISO 639 code (YAML reads a bare no as false; quote it)"]


def _repo_id(name: str, value: Any) -> Problems:
    try:
        validate_repo_id(value)
    except HFValidationError:
        return [f"{name}: {value!r} is no id of a repository, such as org/name"]
    return []


def _date(name: str, value: Any) -> Problems:
    """Documented as a quoted ISO 8601 date or date-time; YAML turns an unquoted one into a date."""
    try:
        valid = isinstance(value, date) or bool(datetime.fromisoformat(value))
    except (TypeError, ValueError):
        valid = False
    return [] if valid else [f"{name}: {value!r} is no ISO 8601 date"]


def _model_index(index: Any) -> Problems:
    """`model-index`: models with results; each result has a task, a data set and metrics."""
    if index is None:
        return []
    if not isinstance(index, list) or not index:
        return ["model-index: must be a list of models"]
    problems: Problems = []
    for model in index:
        problems += _text("model-index.name", model.get("name"))
        results = model.get("results")
        if not isinstance(results, list) or not results:
            problems.append("model-index.results: is empty")
            continue
        for result in results:
            problems += _fields(result, {"task", "dataset", "metrics", "source"})
            task, dataset, metrics = (result.get(part) or {} for part in ("task", "dataset", "metrics"))
            problems += _allowed("model-index.task.type", task.get("type"), PIPELINE_TAGS)
            problems += _text("model-index.dataset.type", dataset.get("type")) + _text("model-index.dataset.name", dataset.get("name"))
            problems += _fields(dataset, {"type", "name", "config", "split", "revision", "args"})
            if not metrics:
                problems.append("model-index.metrics: is empty")
            for metric in metrics:
                problems += _fields(metric, {"type", "value", "name", "config", "args", "verified", "verifyToken"})
                problems += _text("model-index.metrics.type", metric.get("type"))
                if metric.get("value") is None:
                    problems.append(f"model-index.metrics: {metric.get('type')} has no value")
    return problems


def _configs(configs: Any, files: Collection[str] | None) -> Problems:
    """`configs`: names, data files (a path, or one per split), at most one default."""
    if not isinstance(configs, list):
        return ["configs: must be a list"]
    problems: Problems = []
    names = [config.get("config_name") for config in configs]
    if len(set(names)) < len(names):
        problems.append(f"configs: a config_name stands twice ({', '.join(map(str, names))})")
    if sum(config.get("default", False) for config in configs) > 1:
        problems.append("configs: more than one is the default")
    for config in configs:
        name, data_files = config.get("config_name"), config.get("data_files")
        if not isinstance(name, str) or not _CONFIG_NAME.fullmatch(name):
            problems.append(f"configs: config_name {name!r} is no name of a configuration")
        entries = [{"split": "train", "path": data_files}] if isinstance(data_files, str) else data_files
        if not entries:
            problems.append(f"configs: {name} has no data_files")
            continue
        for entry in entries:
            problems += _text(f"configs: {name}: split", entry.get("split"))
            path = entry.get("path")
            problems += [
                f"configs: {name}: {one!r} is no file of the repository"
                for one in (path if isinstance(path, list) else [path])
                if files is not None and one not in files
            ]
    return problems
