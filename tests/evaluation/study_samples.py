"""Results as studies write them, without a run."""

from __future__ import annotations

from typing import Any

from cemg_hf.artefacts import result_envelope
from cemg_hf.training.study_variants import Variant

PARTS = ("test", "test_excluding_history", *(f"test_cold_{kind}{end}" for kind in ("0", "1_5") for end in ("", "_excluding_history")))


def accuracy(value: float, n: int = 200) -> dict[str, dict[str, float | int | None]]:
    """The same figures in every slice."""
    return {part: {f"{name}@{k}": value for name in ("hr", "ndcg") for k in (10, 20)} | {"n": n} for part in PARTS}


def study(question: str, rows: dict[str, tuple[Variant, str, Any]], missing: tuple[Variant, ...] = (), **extra: Any) -> dict[str, Any]:
    """The result file of a study of one recipe: row → variant, part, metrics (of two seeds)."""
    about = {name: {"recipe": "shop", "part": part, "seeds": [1, 2], **vars(variant)} for name, (variant, part, _) in rows.items()}
    about |= {variant.label: {"recipe": "shop", "part": "", "seeds": [], **vars(variant)} for variant in missing}
    metrics = {name: values for name, (_, _, values) in rows.items()}
    spread = {name: {part: dict.fromkeys(values, 0.005) for part, values in slices.items()} for name, slices in metrics.items()}
    recipe = {"description": "A shop.", "budget": "T5 of width 16, at most 2 epochs", "headline": "_excluding_history", "cold_threshold": 5}
    return result_envelope(
        metrics,
        std=spread,
        command=f"cemg study {question} shop",
        seeds=[1, 2],
        seconds=1.0,
        study=question,
        recipes={"shop": recipe},
        set=["finetune.loop.epochs=2"],
        time_budget_s=None,
        rows=about,
        not_run={variant.label: {"seeds": [1, 2], "reason": "out of time"} for variant in missing},
        **extra,
    )
