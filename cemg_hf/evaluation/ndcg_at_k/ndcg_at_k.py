"""`evaluate` module for NDCG@K."""

from __future__ import annotations

from cemg_hf.evaluation import list_metric


class NDCGAtK(list_metric.ListMetric):
    """`evaluate.load(metric_path("ndcg_at_k")).compute(predictions=[["b", "a"]], references=["a"], k=2)`."""

    metric = "ndcg"
    description_of = """Normalised discounted cumulative gain at K of ranked items with one relevant item each (leave-one-out):
mean of 1 / log2(rank + 2) over cases (rank counts from 0), 0 where the target is not among the first K ranked items."""
