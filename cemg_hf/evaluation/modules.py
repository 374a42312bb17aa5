"""Where the Hugging Face `evaluate` modules of this package lie."""

from __future__ import annotations

from pathlib import Path

from ..errors import CEMGError

METRIC_MODULES = ("hr_at_k", "ndcg_at_k", "mrr_at_k")


def metric_path(name: str) -> str:
    """Folder of the module "hr_at_k", "ndcg_at_k" or "mrr_at_k", for `evaluate.load(metric_path("ndcg_at_k"))`; needs no network."""
    if name not in METRIC_MODULES:
        raise CEMGError(f'metric: "{name}" is unknown; choose one of {", ".join(METRIC_MODULES)}')
    return str(Path(__file__).resolve().parent / name)
