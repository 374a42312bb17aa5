"""`evaluate` module for MRR@K; computes through `cemg_hf.evaluation.metrics` and adds nothing of its own."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate

from cemg_hf.evaluation.metrics import list_metrics

DESCRIPTION = """Mean reciprocal rank at K of ranked items with one relevant item each (leave-one-out):
mean of 1 / (rank + 1) over cases (rank counts from 0), 0 where the target is not among the first K ranked items."""

INPUTS = """
Args:
    predictions: one list of item ids per case, best first; strings, or integers where -1 means no item. Lists may differ in length.
    references: the relevant item's id of each case.
    k: one cut-off or several (default 10).
Returns:
    {"mrr@10": float}, one entry per cut-off.
"""


class MRRAtK(evaluate.Metric):
    """`evaluate.load(metric_path("mrr_at_k")).compute(predictions=[["b", "a"]], references=["a"], k=2)`."""

    def _info(self) -> evaluate.MetricInfo:
        # Strings first: the item ids "7" and "007" are different items, and would be one as integers.
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=[
                datasets.Features({"predictions": datasets.Sequence(datasets.Value(kind)), "references": datasets.Value(kind)})
                for kind in ("string", "int64")
            ],
        )

    def _compute(
        self, predictions: Sequence[Sequence[int | str]], references: Sequence[int | str], k: int | Sequence[int] = 10
    ) -> dict[str, float | None]:
        return list_metrics("mrr", predictions, references, k)
