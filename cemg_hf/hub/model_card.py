"""The model card: README.md of a model's repository, every figure of it from results files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml

from ..artefacts import portable
from ..data.card import license_fields
from ..errors import CEMGError
from ..evaluation.drawing import metric_label, slice_title
from .dataset_card import TASKS
from .metadata import check_eval_results, check_model_card
from .provenance import provenance
from .recipe_table import content_of, recipe_rows, streams_of

SLICES = {"test": "all items ranked", "test_excluding_history": "history items excluded"}
METRICS = {"hr@10": "HR@10", "ndcg@10": "NDCG@10", "hr@20": "HR@20", "ndcg@20": "NDCG@20"}
SIGNIFICANT = 0.05

_BODY = """# {title}

{description}

A generative recommender made with the Python package cemg_hf: {method}
{notice}
## Use

```python
from transformers import pipeline

recommend = pipeline("next-item-recommendation", model="{name}", trust_remote_code=True)
print(recommend({history}, top_k=10, exclude_history=True))
```

or

```python
from transformers import AutoModel

model = AutoModel.from_pretrained("{name}", trust_remote_code=True)
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
    own = _own(result, system)
    metrics, std, intervals = _beside(result, comparison, own["test"]["n"])
    commit, dirty, _ = result["commit"].partition("-dirty")
    cold = own["test_cold_excluding_history"]
    time_split = recipe["prepare"].get("split") == "time"
    body = _BODY.format(
        title=model.title,
        description=recipe["description"],
        name=model.name,
        notice=f"\n{model.notice}\n" if model.notice else "",
        method=_method(recipe),
        items=f": {model.items:,} items" if model.items is not None else "",
        history="[" + ", ".join(f'"{item}"' for item in model.examples) + "]",
        protocol="Split by time" if time_split else "Leave-one-out (a user's last item)",
        cases=f", {own['test']['n']:,} users",
        spread=_spread(metrics, std, intervals),
        table=_table(system, metrics, std, intervals),
        published=_published(model.published, system, own["test"]["n"]),
        tested=_tested(system, comparison or result),
        measured=_measured(result, system),
        plural="s" if len(result["seeds"]) > 1 else "",
        seeds=", ".join(map(str, result["seeds"])),
        commit=commit[:10] + ("-dirty" if dirty else ""),
        recipe="\n".join(f"- {name}: {value}" for name, value in recipe_rows(recipe).items()),
        training=f"{model.training} " if model.training else "",
        cost=_cost(result, system),
        bias=_popularity(own["test_excluding_history"]),
        cold=f"HR@10 {cold['hr@10']:.4f} on {cold['n']:,} such users" if cold["n"] else "no test user has one here",
        data=known.title,
        license=recipe["prepare"]["license"],
        terms=known.terms,
    )
    card = f"---\n{_front_matter(model, own).to_yaml()}\n---\n\n{body}"
    check_model_card(card)
    return card


def _own(result: Mapping[str, Any], system: str) -> Mapping[str, Any]:
    """slice → metric → value of the model's own system."""
    if system not in result["metrics"]:
        raise CEMGError(f"results: {system!r} is not among their systems ({', '.join(result['metrics'])}); give those of this recipe")
    return result["metrics"][system]


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
        notes = f"{spread}{own[part]['n']:,} users, {SLICES[part]}, seed {', '.join(map(str, result['seeds']))}"
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


def _beside(result: Mapping[str, Any], comparison: Mapping[str, Any] | None, cases: int) -> tuple[dict[str, Any], ...]:
    """metrics, std and intervals of both files; a system that is in both is taken from `result`."""
    if comparison is None:
        return result["metrics"], result.get("std", {}), result.get("intervals", {})
    for system, slices in comparison["metrics"].items():
        if slices["test"]["n"] != cases:
            raise CEMGError(
                f"comparison: {system} was measured on {slices['test']['n']:,} test cases, the model on {cases:,}; compare alike"
            )
    own = set(result["metrics"])
    metrics, std, intervals = (
        {system: values for system, values in comparison.get(part, {}).items() if system not in own} | result.get(part, {})
        for part in ("metrics", "std", "intervals")
    )
    return metrics, std, intervals


def _table(system: str, metrics: Mapping[str, Any], std: Mapping[str, Any], intervals: Mapping[str, Any]) -> str:
    """Systems × (slices × metrics), best NDCG@10 without the history first, the model's own row bold."""
    columns = [(part, metric) for part in SLICES for metric in ("hr@10", "ndcg@10")]
    lines = [
        "| System | " + " | ".join(f"{METRICS[metric]}, {SLICES[part]}" for part, metric in columns) + " |",
        "|---" + "|---:" * len(columns) + "|",
    ]
    for name in sorted(metrics, key=lambda name: -metrics[name]["test_excluding_history"]["ndcg@10"]):
        cells = []
        for part, metric in columns:
            bounds, deviation = intervals.get(name, {}).get(part, {}).get(metric), std.get(name, {}).get(part, {}).get(metric)
            spread = f" ± {deviation:.4f}" if deviation is not None else ""
            cells.append(f"{metrics[name][part][metric]:.4f}{spread}" + (f" ({bounds[0]:.4f} – {bounds[1]:.4f})" if bounds else ""))
        lines.append(f"| {f'**{name}**' if name == system else name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(metrics: Mapping[str, Any], std: Mapping[str, Any], intervals: Mapping[str, Any]) -> str:
    """What stands beside the figures; rows may differ in it, as those of one seed and of several do."""
    several = {system for system in metrics if std.get(system)}
    said = []
    if any(intervals.get(system) for system in metrics):
        said.append("in parentheses 95 % intervals by bootstrap over users")
    if several:
        said.append("means ± standard deviations over seeds" + ("" if several == set(metrics) else " where there are several"))
    return ", ".join(said) or "one run, without intervals"


def _published(measured: Mapping[str, Any] | None, system: str, cases: int) -> str:
    """What the folder itself reaches, where that was measured: its weights are rounded, those of the run are not."""
    if measured is None:
        return ""
    own = _own(measured, system)
    if own["test"]["n"] != cases:
        raise CEMGError(f"published: measured on {own['test']['n']:,} test cases, the model on {cases:,}; evaluate on the same data set")
    figures = "; ".join(f"{words}, HR@10 {own[part]['hr@10']:.4f} and NDCG@10 {own[part]['ndcg@10']:.4f}" for part, words in SLICES.items())
    return (
        f"The row `{system}` is the run, before its weights were rounded for this folder. The folder itself, measured by `cemg evaluate` "
        f"on the same users: {figures}.\n\n"
    )


def _tested(system: str, comparison: Mapping[str, Any]) -> str:
    """What the paired tests say of the system against every other one; empty without tests."""
    found: dict[str, dict[str, list[str]]] = {}
    for pair in comparison.get("pairs", []):
        if system not in (pair["a"], pair["b"]):
            continue
        other, difference = (pair["b"], pair["difference"]) if pair["a"] == system else (pair["a"], -pair["difference"])
        answer = "not told apart from" if pair["p_holm"] >= SIGNIFICANT else "ahead of" if difference > 0 else "behind"
        # Comparisons of one slice used to name it once.
        part = pair["slice"] if "slice" in pair else comparison["slice"]
        found.setdefault(part, {"ahead of": [], "behind": [], "not told apart from": []})[answer].append(f"`{other}`")
    if not found:
        return ""
    said = [
        f"- {SLICES.get(part, slice_title(part).lower())}: `{system}` is "
        + "; ".join(f"{answer} {', '.join(others)}" for answer, others in answers.items() if others)
        for part, answers in found.items()
    ]
    metric = metric_label(comparison["metric"])
    each = ", on each of the rankings" if len(said) > 1 else ""
    return f"Paired bootstrap over users, {metric}, p < {SIGNIFICANT} after Holm's correction{each}:\n\n" + "\n".join(said) + "\n\n"


def _measured(result: Mapping[str, Any], system: str) -> str:
    """By which command, and where; of a comparison where the lists were made, not where they were laid side by side."""
    command = portable(result["command"])
    if "systems" in result:
        machine = result["systems"].get(system, {}).get("machine")
        return f"Compared by `{command}`" + (f", the lists of `{system}` made on {_machine(machine)}" if machine is not None else "")
    return f"Measured by `{command}` on {_machine(result.get('machine_by_stage', {}).get('evaluate', result['machine']))}"


def _machine(machine: Mapping[str, Any]) -> str:
    return f"{machine['cores']} CPU cores ({machine['processor']})" if machine["accelerator"] == "none" else machine["accelerator"]


def _cost(result: Mapping[str, Any], system: str) -> str:
    """Seconds by stage, each on its machine; of a file of several systems those of this one, where they are recorded."""
    own = result if result.get("seconds_by_stage") else result.get("systems", {}).get(system, {})
    stages = own.get("seconds_by_stage")
    if stages:
        known = own.get("machine_by_stage") or ({} if own is not result else dict.fromkeys(stages, result["machine"]))
        spent: dict[str, list[str]] = {}
        for stage, seconds in stages.items():
            where = f" on {_machine(known[stage])}" if stage in known else " on a machine that is not recorded"
            spent.setdefault(where, []).append(f"{stage} {seconds:,.0f} s")
        total = f"{sum(stages.values()):,.0f} s in all"
        if len(spent) == 1:
            ((where, parts),) = spent.items()
            return f"Cost: {', '.join(parts)}; {total}{where}."
        return f"Cost: {'; '.join(', '.join(parts) + where for where, parts in spent.items())}; {total}."
    return f"Cost: {result['seconds']:,.0f} s for all that the command above does, on {_machine(result['machine'])}."


def _popularity(own: Mapping[str, Any]) -> str:
    return (
        "Recommendations follow what was bought before: popular items come out far more often than others (mean popularity percentile of "
        f"the recommended items {own['popularity_percentile@10']:.2f}, .5 would be even; {own['coverage@10']:.0%} of the catalogue stands "
        "in somebody's first ten)."
    )
