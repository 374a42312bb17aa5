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


def streams_study() -> dict[str, Any]:
    """The result file of the question of code streams, of one recipe."""
    codes = {"items": 200, "collision_rate_before_last_level": 0.125, "collision_rate_before": 0.02, "moved_share": 0.01}
    cost = {"train_seconds": 60.0, "codes_seconds": 5.0, "vectors_seconds": 9.0}
    memory = {"parameters": 300_000, "weights_bytes": 1_500_000, "index_bytes": 40_000, "batch_1_bytes": 2_000_000, "batch_64_bytes": 9e7}
    latency = {"batch_1_ms": 20.0, "batch_64_ms": 4.0}
    step = {"ms": 120.0, "all_codes_ms": 115.0, "permissible_ms": 120.0, "permissible_extra": 0.04}
    costs = {"cost": cost, "memory": memory, "latency": latency, "step": step}
    streams = {"codes_collaborative": codes, "codes_text": codes | {"items": 190}}
    whole = {"written": "", "softmax": "", "left_out": "", "content": "sasrec", "cost": ""}
    mscgrec = Variant("mscgrec", "mscgrec", tables=whole)
    cemg = Variant("cemg", tables={"softmax": "", "cost": ""})
    rows = {
        "mscgrec": (mscgrec, "", accuracy(0.3) | streams | costs),
        "mscgrec, without text": (mscgrec, "without text", accuracy(0.25)),
        "cemg": (cemg, "", accuracy(0.3) | {"codes_all": codes} | costs),
        "cemg, codes only": (cemg, "codes only", accuracy(0.2)),
        "sasrec": (Variant("sasrec", "sasrec", tables={"content": "", "cost": ""}), "", accuracy(0.31) | {"cost": cost}),
    }
    for label, table in (("mscgrec, text written", "written"), ("mscgrec, softmax over all codes", "softmax")):
        variant = Variant(label, "mscgrec", ("finetune.x=1",), tables={table: "mscgrec"})
        rows[label] = (variant, "", accuracy(0.2) | streams | {"step": step})
    pair = {"difference": -0.1, "low": -0.2, "high": -0.05, "p_value": 0.004, "p_holm": 0.012, "n": 200}
    where = {"recipe": "shop", "metric": "ndcg@10", "slice": "test_excluding_history"}
    pairs = [where | pair | {"table": "written", "a": "mscgrec, text written", "b": "mscgrec"}]
    envelope = study("streams", rows, latency={"k": 10, "batches": 20, "threads": 2}, pairs=pairs)
    spread = {row: {part: values for part, values in slices.items() if part in PARTS} for row, slices in envelope["std"].items()}
    return envelope | {"std": spread}
