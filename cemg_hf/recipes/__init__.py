"""Recipes: one YAML file is one experiment, complete. Those beside this file ship with the package and are known by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.prepare import PrepareConfig
from ..errors import CEMGError
from ..settings import assign, from_mapping, override, read_yaml
from ..training.encode import EncodeConfig
from ..training.evaluate import EvaluateConfig
from ..training.finetune import FinetuneConfig
from ..training.tokenizer_config import TokenizerTrainingConfig

FOLDER = Path(__file__).parent


@dataclass
class Recipe:
    """Settings of every stage from raw interactions to metrics."""

    name: str = field(metadata={"help": "Name of the experiment; run folders default to runs/<name>."})
    prepare: PrepareConfig = field(metadata={"help": "Where the data comes from and how it is filtered."})
    description: str = field(default="", metadata={"help": "One line on what the experiment is."})
    seed: int = field(default=42, metadata={"help": "Seed of every random choice."})
    encode: EncodeConfig = field(default_factory=EncodeConfig, metadata={"help": "Encoders of the modalities."})
    tokenize: TokenizerTrainingConfig = field(default_factory=TokenizerTrainingConfig, metadata={"help": "Fusion and RQ-VAE."})
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig, metadata={"help": "The generator and its training."})
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig, metadata={"help": "How lists are made and measured."})


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_recipe(recipe: str | Path, assignments: Sequence[str] = (), overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe by name or from a file.

    Args:
        recipe: one of `recipe_names()` or the path of a YAML file.
        assignments: `section.key=value` changes, as given to `--set`.
        overrides: further `section.key` → value changes.

    Raises:
        CEMGError: no such recipe, an unknown key (names the nearest known one) or a value of the wrong type.
    """
    path = FOLDER / f"{recipe}.yaml" if str(recipe) in recipe_names() else Path(recipe)
    if not path.is_file():
        raise CEMGError(f"{recipe}: no such recipe file, and no recipe of that name ships with the package ({', '.join(recipe_names())})")
    values = override(read_yaml(path), list(assignments))
    for key, value in (overrides or {}).items():
        values = assign(values, key, value, path.name)
    return from_mapping(Recipe, values, path.name)
