"""The model card: README.md of a model's repository, every figure of it from a results file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

SLICES = {"test": "all items ranked", "test_excluding_history": "history items excluded"}
METRICS = {"hr@10": "HR@10", "ndcg@10": "NDCG@10", "hr@20": "HR@20", "ndcg@20": "NDCG@20"}

_BODY = """# {title}

{description}

A generative recommender made with the Python package cemg_hf: every item of the catalogue is a code of {levels} tokens, made of its
content and of who bought it, and a T5 writes the code of the next item. Method: [CEMG, arXiv 2512.21543](https://arxiv.org/abs/2512.21543).

## Use

```python
from transformers import AutoModel

model = AutoModel.from_pretrained("{name}", trust_remote_code=True)
print(model.recommend(["{first}", "{second}"], k=10, exclude_history=True))
```

`model.tokenizer.item_ids` is the catalogue: {items:,} items. Every recommendation is one of them.

## Results

Leave-one-out (a user's last item), whole catalogue ranked{cases}; 95 % intervals by bootstrap over users.

{table}

Measured by `{command}` on {machine}, seed {seeds}, commit {commit}; {seconds:.0f} s in all.

## Training

{training}

## Limits and bias

- Recommendations follow what was bought before: popular items come out far more often than others (mean popularity percentile of the
  recommended items {popularity}, .5 would be even; {coverage} of the catalogue stands in somebody's first ten).
- Targets with at most five training interactions are found rarely: {cold}.
- The interactions are those of {data}; other shops, years and languages will differ. Nothing is known about who the users were.

## Licence

The code is Apache-2.0. The weights were trained on {data}, whose terms apply to them ({license}); the repository holds item ids and codes,
no item texts and no images.
"""


def model_card(
    *,
    name: str,
    title: str,
    description: str,
    data: str,
    license_name: str,
    system: str,
    result: Mapping[str, Any],
    training: str,
    tokenizer: Any,
) -> str:
    """Markdown of the card with the front matter that the Hub reads (model-index included).

    Args:
        name: repository or folder that the example loads.
        title, description: heading and one paragraph.
        data: name of the data set.
        license_name: `license` of the front matter.
        system: key of the model in the metrics.
        result: envelope of the run's `metrics.json`.
        training: paragraph on how it was trained.
        tokenizer: the model's item tokenizer.
    """
    metrics, intervals = result["metrics"], result.get("intervals", {})
    own = metrics[system]
    cases = own["test"]["n"]
    evaluations = [
        EvalResult(
            task_type="other",
            task_name="next-item recommendation",
            dataset_type=data.lower().replace(" ", "-"),
            dataset_name=data,
            dataset_config=SLICES[part],
            dataset_split="test",
            metric_type=metric,
            metric_name=METRICS[metric],
            metric_value=round(own[part][metric], 5),
        )
        for part in SLICES
        for metric in METRICS
    ]
    front = ModelCardData(
        model_name=title,
        license=license_name,
        library_name="transformers",
        pipeline_tag="other",
        tags=["recommender-system", "generative-retrieval", "sequential-recommendation", "semantic-ids", "t5", "cemg"],
        eval_results=evaluations,
    )
    machine = result["machine"]
    excluding = own["test_excluding_history"]
    cold = own["test_cold_excluding_history"]
    body = _BODY.format(
        title=title,
        description=description,
        name=name,
        levels=tokenizer.num_levels,
        items=len(tokenizer.item_ids),
        first=tokenizer.item_ids[0],
        second=tokenizer.item_ids[1],
        cases=f", {cases:,} users",
        table=_table(metrics, intervals),
        command=result["command"],
        machine=f"{machine['cores']} CPU cores" if machine["accelerator"] == "none" else machine["accelerator"],
        seeds=", ".join(map(str, result["seeds"])),
        commit=result["commit"][:10] + ("-dirty" if result["commit"].endswith("-dirty") else ""),
        seconds=result["seconds"],
        training=training,
        popularity=f"{excluding['popularity_percentile@10']:.2f}",
        coverage=f"{excluding['coverage@10']:.0%}",
        cold=f"HR@10 {cold['hr@10']:.4f} on {cold['n']:,} such users" if cold["n"] else "no test user has one here",
        data=data,
        license=license_name,
    )
    return f"---\n{front.to_yaml()}\n---\n\n{body}"


def _table(metrics: Mapping[str, Any], intervals: Mapping[str, Any]) -> str:
    """Systems × (slices × metrics) with intervals."""
    columns = [(part, metric) for part in SLICES for metric in ("hr@10", "ndcg@10")]
    lines = [
        "| System | " + " | ".join(f"{METRICS[metric]}, {SLICES[part]}" for part, metric in columns) + " |",
        "|---" + "|---:" * len(columns) + "|",
    ]
    for system, slices in metrics.items():
        cells = []
        for part, metric in columns:
            bounds = intervals.get(system, {}).get(part, {}).get(metric)
            spread = f" ({bounds[0]:.4f} – {bounds[1]:.4f})" if bounds else ""
            cells.append(f"{slices[part][metric]:.4f}{spread}")
        lines.append(f"| {system} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
