"""The model card: README.md of a model's repository, every figure of it from results files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml

from ..data.card import license_fields
from ..errors import CEMGError
from .card_results import (
    METRICS,
    SLICES,
    beside,
    cost_of,
    measured_by,
    own_metrics,
    popularity_bias,
    published_figures,
    results_table,
    seeds_of,
    spread_of,
    tested_against,
)
from .dataset_card import TASKS
from .metadata import check_eval_results, check_model_card
from .provenance import provenance
from .recipe_table import content_of, recipe_rows, streams_of

_BODY = """# {title}

{description}

A generative recommender made with the Python package cemg_hf: {method}
{notice}
## Use

```python
{package}from transformers import pipeline

recommend = pipeline("next-item-recommendation", model="{name}"{trust})
print(recommend({history}, top_k=10, exclude_history=True))
```

or

```python
{package}from transformers import AutoModel

model = AutoModel.from_pretrained("{name}"{trust})
print(model.recommend({history}, k=10, exclude_history=True))
```

Histories are item ids, oldest first. `model.tokenizer.item_ids` is the catalogue{items}; every recommendation is one of them.

## Results

{protocol}, whole catalogue ranked{cases}; {spread}.

{table}

{published}{tested}{measured}, seed{plural} {seeds}, commit {commit}.

## Training

{recipe}

{training}{cost}

## Limits and bias

- {bias}
- Targets with at most five training interactions are found rarely: {cold}.
- The interactions are those of {data}; other shops, years and languages will differ. Nothing is known about who the users were.
- For ranking items of this catalogue; nothing about a person should be concluded from a list.

## Licence

The code is Apache-2.0. The weights were trained on {data} (licence: {license}). {terms} The repository holds item ids and codes, no item
texts and no images.
"""


_FUSED = """every item of the catalogue is a code of {levels} tokens, made of its
content and of who bought it, and a T5 writes the code of the next item. Method: [CEMG, arXiv 2512.21543](https://arxiv.org/abs/2512.21543)."""

_STREAMS = """every item of the catalogue has a code of {levels} tokens for each of
{streams}, a history shows them all, and a T5 writes the {decoded} code of the next item. Method:
[MSCGRec, arXiv 2602.03713](https://arxiv.org/abs/2602.03713)."""


@dataclass(frozen=True)
class CardModel:
    """What a card says about a model beside its results."""

    name: str = field(metadata={"help": "Repository or folder that the examples load."})
    recipe: Mapping[str, Any] = field(metadata={"help": "The recipe, complete, as `recipe.yaml` of a run holds it."})
    examples: tuple[str, ...] = field(metadata={"help": "Item ids of the catalogue for the examples."})
    items: int | None = field(default=None, metadata={"help": "Size of the catalogue; None: not known here."})
    training: str = field(default="", metadata={"help": "Sentences on how this one was trained."})
    carries_code: bool = field(
        default=True, metadata={"help": "Whether the folder holds the code that loads it; the examples import the package otherwise."}
    )
    notice: str = field(default="", metadata={"help": "Paragraph below the description."})
    published: Mapping[str, Any] | None = field(
        default=None, metadata={"help": "Envelope of `cemg evaluate` on the published folder itself, whose weights are rounded."}
    )
    dataset_repo: str | None = field(default=None, metadata={"help": "Hub id of the data set it was trained on, where it is published."})

    @property
    def title(self) -> str:
        return f"cemg-{self.recipe['name']}"

    @property
    def data(self) -> str:
        return self.recipe["prepare"]["name"]


def model_card(model: CardModel, result: Mapping[str, Any], comparison: Mapping[str, Any] | None = None) -> str:
    """Markdown of the card with the front matter that the Hub reads (model-index included), checked against the Hub's schema.

    Args:
        model: what it is about.
        result: envelope of the run's `metrics.json`, or one of several systems, the recipe's among them.
        comparison: envelope of other systems on the same test cases (`cemg compare`), shown beside it with its paired tests.

    Raises:
        CEMGError: results without the recipe's system, a comparison or an evaluation of the published folder on other test cases, or
            metadata the Hub would refuse.
    """
    recipe, system, known = model.recipe, model.recipe["system"], provenance(model.data)
    own = own_metrics(result, system)
    metrics, std, intervals = beside(result, comparison, own["test"]["n"])
    commit, dirty, _ = result["commit"].partition("-dirty")
    cold, seeds = own["test_cold_excluding_history"], seeds_of(result, system)
    time_split = recipe["prepare"].get("split") == "time"
    body = _BODY.format(
        title=model.title,
        description=recipe["description"],
        name=model.name,
        package="" if model.carries_code else "import cemg_hf\n",
        trust=", trust_remote_code=True" if model.carries_code else "",
        notice=f"\n{model.notice}\n" if model.notice else "",
        method=_method(recipe),
        items=f": {model.items:,} items" if model.items is not None else "",
        history="[" + ", ".join(f'"{item}"' for item in model.examples) + "]",
        protocol="Split by time" if time_split else "Leave-one-out (a user's last item)",
        cases=f", {own['test']['n']:,} users",
        spread=spread_of(metrics, std, intervals),
        table=results_table(system, metrics, std, intervals),
        published=published_figures(model.published, system, own["test"]["n"]),
        tested=tested_against(system, comparison or result),
        measured=measured_by(result, system),
        plural="s" if len(seeds) > 1 else "",
        seeds=", ".join(map(str, seeds)),
        commit=commit[:10] + ("-dirty" if dirty else ""),
        recipe="\n".join(f"- {name}: {value}" for name, value in recipe_rows(recipe).items()),
        training=f"{model.training} " if model.training else "",
        cost=cost_of(result, system),
        bias=popularity_bias(own["test_excluding_history"]),
        cold=f"HR@10 {cold['hr@10']:.4f} on {cold['n']:,} such users, history left out" if cold["n"] else "no test user has one here",
        data=known.title,
        license=recipe["prepare"]["license"],
        terms=known.terms,
    )
    card = f"---\n{_front_matter(model, own).to_yaml()}\n---\n\n{body}"
    check_model_card(card)
    return card


def eval_results(model: CardModel, result: Mapping[str, Any]) -> str:
    """Content of `.eval_results/<name>.yaml`: one figure per task of the published data set (`TASKS`).

    Raises:
        CEMGError: the model has no `dataset_repo`; the Hub knows results only as those of a data set on it.
    """
    if model.dataset_repo is None:
        raise CEMGError("dataset_repo: is missing; evaluation results belong to a data set on the Hub, such as org/cemg-beauty-data")
    system = model.recipe["system"]
    own, intervals = result["metrics"][system], result.get("intervals", {}).get(system, {})
    entries = []
    for task, (part, metric) in TASKS.items():
        bounds = intervals.get(part, {}).get(metric)
        spread = f"95 % interval {bounds[0]:.4f} to {bounds[1]:.4f}, " if bounds else ""
        notes = f"{spread}{own[part]['n']:,} users, {SLICES[part]}, seed {', '.join(map(str, seeds_of(result, system)))}"
        entries.append(EvalResultEntry(dataset_id=model.dataset_repo, task_id=task, value=round(own[part][metric], 5), notes=notes))
    text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True, width=140)
    check_eval_results(text)
    return text


def _method(recipe: Mapping[str, Any]) -> str:
    """What the model does, and the paper it is from: one code per item, or a stream of codes per modality."""
    levels, streams = recipe["tokenize"]["num_levels"], recipe.get("streams")
    if streams is None:
        return _FUSED.format(levels=levels)
    return _STREAMS.format(levels=levels, streams=", ".join(streams_of(recipe)), decoded=streams["decoded"])


def _front_matter(model: CardModel, own: Mapping[str, Any]) -> ModelCardData:
    recipe, known = model.recipe, provenance(model.data)
    license_of: dict[str, Any] = license_fields(recipe["prepare"]["license"], model.data)
    if known.terms_url is not None and license_of["license"] == "other":
        license_of["license_link"] = known.terms_url
    kinds = content_of(recipe)
    start = recipe["finetune"]["generator"].get("init_from")
    evaluations = [
        EvalResult(
            task_type="other",
            task_name="next-item recommendation",
            dataset_type=model.dataset_repo or model.data,
            dataset_name=known.title,
            dataset_config="splits",
            dataset_split="test",
            metric_type=metric,
            metric_name=f"{METRICS[metric]}, {SLICES[part]}",
            metric_value=round(own[part][metric], 5),
        )
        for part in SLICES
        for metric in METRICS
        if metric in own[part]  # cut-offs are a setting
    ]
    return ModelCardData(
        model_name=model.title,
        language=[known.language] if known.language is not None and "text" in kinds else None,
        library_name="transformers",
        pipeline_tag="other",  # the Hub's list of tasks has no recommendation
        tags=[
            "next-item-recommendation", "recommender-system", "sequential-recommendation", "generative-retrieval", "semantic-ids",
            *(["multimodal"] if "image" in kinds else []), "t5", "cemg",
        ],
        datasets=[model.dataset_repo] if model.dataset_repo is not None else None,
        base_model=start if start is not None and not PurePath(start).is_absolute() else None,
        eval_results=evaluations,
        **license_of,
    )  # fmt: skip
