"""`evaluate` module for MRR@K."""

from __future__ import annotations

from cemg_hf.evaluation import list_metric


class MRRAtK(list_metric.ListMetric):
    """`evaluate.load(metric_path("mrr_at_k")).compute(predictions=[["b", "a"]], references=["a"], k=2)`."""

    metric = "mrr"
    description_of = """Mean reciprocal rank at K of ranked items with one relevant item each (leave-one-out):
mean of 1 / (rank + 1) over cases (rank counts from 0), 0 where the target is not among the first K ranked items."""
