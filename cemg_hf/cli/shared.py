"""What several commands take, and how they begin and end."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..recipes import Recipe

RecipeArgument = Annotated[str, typer.Argument(help="Name of a shipped recipe, or path of a YAML file.")]
Assignments = Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting; repeatable.")]
Seed = Annotated[int | None, typer.Option(help="Seed of every random choice (default: the recipe's).")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")]
Dataset = Annotated[Path, typer.Option(help="Folder written by `cemg prepare`.")]


def settings_of(recipe: str, assignments: list[str] | None, seed: int | None = None, system: str = "cemg", **overrides: Any) -> Recipe:
    """A recipe, with a system laid over it and then changes: as typed, and by `section__key`, of which None is none."""
    from ..recipes import load_recipe

    changes = {key.replace("__", "."): value for key, value in overrides.items() if value is not None}
    if seed is not None:
        changes["seed"] = seed
    return load_recipe(recipe, assignments or [], changes, system)


def command_line() -> str:
    """The command as it was typed, for the record of what it writes."""
    return shlex.join(["cemg", *sys.argv[1:]])


def show_result(result: dict[str, Any], folder: Path) -> None:
    """Print the tables of a run, and where everything is."""
    from ..evaluation.report import format_table

    shown = ("test", "test_excluding_history", "test_cold")
    metrics = {system: {name: slices[name] for name in shown if name in slices} for system, slices in result["metrics"].items()}
    typer.echo(format_table(metrics))
    typer.echo(f"\n{result['seconds']:.0f} s in all; everything is in {folder}")
