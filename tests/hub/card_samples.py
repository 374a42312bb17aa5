"""Results and a recipe that cards are made of."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

from cemg_hf.artefacts import result_envelope
from cemg_hf.hub.model_card import CardModel
from cemg_hf.recipes import load_recipe


def slices(hr: float, cases: int = 50) -> dict[str, dict[str, Any]]:
    values = {name: hr / part for part, name in enumerate(("hr@20", "hr@10", "ndcg@20", "ndcg@10"), start=1)}
    beyond = {"popularity_percentile@10": 0.9, "coverage@10": 0.25}
    return {
        "test": values | beyond | {"n": cases},
        "test_excluding_history": {name: value + 0.01 for name, value in values.items()} | beyond | {"n": cases},
        "test_cold_excluding_history": {"hr@10": 0.0125, "n": 8},
    }


def intervals(hr: float) -> dict[str, dict[str, list[float]]]:
    return {
        part: {name: [value - 0.001, value + 0.002] for name, value in values.items() if "r@" in name or "g@" in name}
        for part, values in slices(hr).items()
    }


def result(**extra: Any) -> dict[str, Any]:
    """A run of CEMG as `cemg run` records it."""
    about = {"intervals": {"cemg": intervals(0.4)}, "seconds_by_stage": {"prepare": 1.2, "finetune": 1234.5}} | extra
    metrics = {"cemg": slices(0.4), "popularity": slices(0.1)}
    return result_envelope(metrics, command="cemg run sample --output /home/me/trials/shop-7", seeds=[42], seconds=1235.7, **about)


def comparison(cases: int = 50) -> dict[str, Any]:
    """Other systems beside it, as `cemg compare` records them."""
    metrics = {"sasrec": slices(0.5, cases), "gru4rec": slices(0.3, cases), "cemg, codes only": slices(0.39, cases)}
    p = {"low": 0.0, "high": 0.0, "p_value": 0.0, "n": cases}
    excluding = [
        {"a": "sasrec", "b": "cemg", "difference": 0.05, "p_holm": 0.001, **p},
        {"a": "cemg", "b": "gru4rec", "difference": 0.05, "p_holm": 0.002, **p},
        {"a": "cemg", "b": "cemg, codes only", "difference": 0.01, "p_holm": 0.4, **p},
        {"a": "sasrec", "b": "gru4rec", "difference": 0.1, "p_holm": 0.001, **p},
    ]
    plain = [{"a": "cemg", "b": "sasrec", "difference": 0.05, "p_holm": 0.001, **p}]
    slices_of = {"test": plain, "test_excluding_history": excluding}
    pairs = [pair | {"slice": part} for part, some in slices_of.items() for pair in some]
    about = {"metric": "ndcg@10", "slices": list(slices_of), "pairs": pairs}
    return result_envelope(metrics, command="cemg compare", seeds=[42], seconds=1, intervals={"sasrec": intervals(0.5)}, **about)


def card_model(recipe: str = "sample", **changes: Any) -> CardModel:
    about = {"name": "org/cemg-shop", "recipe": asdict(load_recipe(recipe)), "examples": ("item-0001", "item-0002"), "items": 600}
    return CardModel(**(about | changes))


def example_blocks(card: str) -> list[str]:
    """The Python examples of a card."""
    return re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
