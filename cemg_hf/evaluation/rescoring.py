"""A figure that a run was measured without, from the lists it saved: metrics are added and cut-offs change, runs are not made again."""

from __future__ import annotations

from dataclasses import replace

from .confidence import bootstrap_interval
from .metrics import hit_ranks, per_case_metrics
from .protocol import EXCLUDING, cold_start_slices
from .runs import MeasuredRun

DEFAULT_COLD_THRESHOLD = 5
"""Of runs that did not record theirs."""


def with_metric(run: MeasuredRun, metric: str) -> MeasuredRun:
    """The run with `metric` ("hr@K", "ndcg@K" or "mrr@K") and its 95 % interval in every slice that lacks it.

    The run itself where nothing is missing, no predictions were saved, or their lists are shorter than K.
    """
    if run.predictions is None or all(metric in values for values in run.metrics.values()):
        return run
    saved, k = run.predictions, int(metric.partition("@")[2])
    threshold = (run.protocol or {}).get("cold_threshold", DEFAULT_COLD_THRESHOLD)
    slices = cold_start_slices(saved.targets, saved.train_item_counts, threshold)
    metrics = {part: dict(values) for part, values in run.metrics.items()}
    intervals = {part: dict(values) for part, values in run.intervals.items()}
    for suffix, lists in (("", saved.ranked), (EXCLUDING, saved.ranked_excluding_history)):
        if lists.shape[1] < k:
            continue
        cases = per_case_metrics(hit_ranks(lists, saved.targets), [k])[metric]
        for part, rows in slices.items():
            if part + suffix not in metrics or metric in metrics[part + suffix]:
                continue
            values = cases[rows]
            metrics[part + suffix][metric] = float(values.mean()) if len(values) else None
            found = bootstrap_interval(values) if len(values) else None
            intervals.setdefault(part + suffix, {})[metric] = None if found is None else [found.low, found.high]
    return replace(run, metrics=metrics, intervals=intervals)
