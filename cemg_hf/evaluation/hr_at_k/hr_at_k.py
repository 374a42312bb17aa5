"""`evaluate` module for HR@K."""

from __future__ import annotations

from cemg_hf.evaluation import list_metric


class HitRateAtK(list_metric.ListMetric):
    """`evaluate.load(metric_path("hr_at_k")).compute(predictions=[["b", "a"]], references=["a"], k=2)`."""

    metric = "hr"
    description_of = """Hit rate at K of ranked items with one relevant item each (leave-one-out):
share of cases whose target is among the first K ranked items."""
