"""Recipes: one YAML file is one experiment, complete. Those beside this file ship with the package and are known by name.

A system to compare with is a file in `systems/`: settings laid over any recipe, so that every system runs on every data set unchanged.
One that differs little from another `extends` it: a name, or a list in which later ones are laid over earlier ones. What several systems
share and is none by itself is a file in `systems/parts/`, `extends: [letter, parts/paper-network]`.
"""

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
from ..training.item_knn import ItemKNNConfig
from ..training.mmgrec import MMGRecConfig
from ..training.sequential import SequentialConfig
from ..training.streams import StreamsConfig
from ..training.systems import FAMILIES
from ..training.tokenizer_config import TokenizerTrainingConfig

FOLDER = Path(__file__).parent
SYSTEMS = FOLDER / "systems"
CEMG = "cemg"


@dataclass
class Recipe:
    """Settings of every stage from raw interactions to metrics."""

    name: str = field(metadata={"help": "Name of the experiment; run folders default to runs/<name>."})
    prepare: PrepareConfig = field(metadata={"help": "Where the data comes from and how it is filtered."})
    description: str = field(default="", metadata={"help": "One line on what the experiment is."})
    system: str = field(default=CEMG, metadata={"help": "Name of the system in tables of results."})
    family: str = field(default=CEMG, metadata={"help": f"Kind of model: {', '.join([CEMG, *FAMILIES])}."})
    seed: int = field(default=42, metadata={"help": "Seed of every random choice."})
    encode: EncodeConfig = field(default_factory=EncodeConfig, metadata={"help": "Encoders of the modalities."})
    tokenize: TokenizerTrainingConfig = field(default_factory=TokenizerTrainingConfig, metadata={"help": "Fusion and RQ-VAE."})
    streams: StreamsConfig | None = field(
        default=None, metadata={"help": "One code per modality in the place of one fused code per item (MSCGRec)."}
    )
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig, metadata={"help": "The generator and its training."})
    sequential: SequentialConfig = field(default_factory=SequentialConfig, metadata={"help": "SASRec and GRU4Rec."})
    item_knn: ItemKNNConfig = field(default_factory=ItemKNNConfig, metadata={"help": "ItemKNN."})
    mmgrec: MMGRecConfig = field(default_factory=MMGRecConfig, metadata={"help": "MMGRec."})
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig, metadata={"help": "How lists are made and measured."})

    def __post_init__(self) -> None:
        if self.family not in (CEMG, *FAMILIES):
            raise CEMGError(f"family: {self.family!r} is no kind of model; choose one of {', '.join([CEMG, *FAMILIES])}")
        if self.family == CEMG:
            self.evaluate.check_beams()


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def system_names() -> list[str]:
    """Names of the systems that ship with the package: CEMG, and what is laid over a recipe for the others."""
    return [CEMG, *sorted(path.stem for path in SYSTEMS.glob("*.yaml"))]


def compared_systems() -> list[str]:
    """The systems that are compared unless others are asked for: those that extend no other, whose trainings take hours at most."""
    return [name for name in system_names() if name == CEMG or "extends" not in read_yaml(SYSTEMS / f"{name}.yaml")]


def load_recipe(
    recipe: str | Path, assignments: Sequence[str] = (), overrides: Mapping[str, Any] | None = None, system: str = CEMG
) -> Recipe:
    """A recipe by name or from a file.

    Args:
        recipe: one of `recipe_names()` or the path of a YAML file.
        assignments: `section.key=value` changes, as given to `--set`.
        overrides: further `section.key` → value changes.
        system: one of `system_names()`; its settings are laid over the recipe's before anything else changes them.

    Raises:
        CEMGError: no such recipe or system, an unknown key (names the nearest known one) or a value of the wrong type.
    """
    path = FOLDER / f"{recipe}.yaml" if str(recipe) in recipe_names() else Path(recipe)
    if not path.is_file():
        raise CEMGError(f"{recipe}: no such recipe file, and no recipe of that name ships with the package ({', '.join(recipe_names())})")
    values = read_yaml(path)
    if system != CEMG:
        if system not in system_names():
            raise CEMGError(f"system: {system!r} is unknown; choose one of {', '.join(system_names())}")
        values = overlaid(values, read_system(system)) | {"system": system}
    values = override(values, list(assignments))
    for key, value in (overrides or {}).items():
        values = assign(values, key, value, path.name)
    return from_mapping(Recipe, values, path.name)


def read_system(name: str, extended_by: Sequence[str] = ()) -> dict[str, Any]:
    """What a system lays over recipes, with what it extends below it.

    Args:
        name: a file in `systems/` without its suffix.
        extended_by: the systems that led here, of which it can be none.

    Raises:
        CEMGError: it extends itself, or what does not exist.
    """
    path = SYSTEMS / f"{name}.yaml"
    if name in extended_by or (extended_by and not path.is_file()):
        problem = "which comes back to itself" if name in extended_by else f"and there is no {path}"
        raise CEMGError(f"{SYSTEMS / extended_by[-1]}.yaml: extends: {' → '.join([*extended_by, name])}, {problem}")
    values = read_yaml(path)
    extended = values.pop("extends", [])
    below: dict[str, Any] = {}
    for other in [extended] if isinstance(extended, str) else extended:
        below = overlaid(below, read_system(other, [*extended_by, name]))
    return overlaid(below, values)


def overlaid(values: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with those of `overlay` in their place, section by section; whatever is no section on both sides is replaced."""
    merged = dict(values)
    for key, value in overlay.items():
        below = merged.get(key)
        merged[key] = overlaid(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
