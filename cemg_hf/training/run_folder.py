"""Whose `metrics.json` a run folder holds: that of the recipe beside it, as far as the recipe's system reads it.

`recipe.yaml` says what `metrics.json` was measured by. Before a run of other settings begins, both are moved to `superseded/`, where they
stay until the new run has its own result: what was measured by other settings never passes for this one's, and is never lost to a run
that does not end.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..artefacts import write_json, write_text
from ..errors import CEMGError
from ..evaluation.runs import METRICS_NAME
from ..settings import assign, from_mapping, read_yaml
from .systems import settings_read

if TYPE_CHECKING:
    from ..recipes import Recipe

logger = logging.getLogger(__name__)

RECIPE_NAME = "recipe.yaml"
SUPERSEDED = "superseded"
"""Folder of a run with the `metrics.json` and `recipe.yaml` of its last result, while a run of other settings has none yet."""
_ABSENT = object()


def result_of(recipe: Recipe, folder: Path) -> dict[str, Any] | None:
    """The content of `metrics.json`, if this recipe measured it; None where it did not, or nothing was measured."""
    path = folder / METRICS_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() and is_of(recipe, folder) else None


def is_of(recipe: Recipe, folder: Path) -> bool:
    """Whether the run in a folder is one of this recipe, or of one that differs from it only in what its system never reads.

    A setting that the recorded recipe lacks, because it is newer, counts as its default, and one that is no more counts as unset.
    """
    try:
        written = read_yaml(folder / RECIPE_NAME)
        paths = settings_read(recipe)
        now = _plain(recipe)
        # Of the recorded recipe only what is read has to be one that is still understood.
        then: dict[str, Any] = {}
        for path in paths:
            value = _at(written, path)
            if value is not _ABSENT:
                then = assign(then, path, _without_unset(value, _at(now, path)), RECIPE_NAME)
        recorded = _plain(from_mapping(type(recipe), then, str(folder / RECIPE_NAME)))
    except CEMGError:  # no recipe, or one of another version: nobody can say that it is this one
        return False
    return all(_same(_at(recorded, path), _at(now, path)) for path in paths)


def begin(recipe: Recipe, folder: Path) -> None:
    """Make a folder that of a run of this recipe; the result of another one is set aside until `finish`."""
    if (folder / METRICS_NAME).is_file() and not is_of(recipe, folder):
        aside = folder / SUPERSEDED
        aside.mkdir(exist_ok=True)
        if (folder / RECIPE_NAME).is_file():
            shutil.copyfile(folder / RECIPE_NAME, aside / RECIPE_NAME)
        (folder / METRICS_NAME).replace(aside / METRICS_NAME)  # before the new recipe is written: it must not stand beside this
        logger.warning("%s: was measured by other settings; kept in %s until this run has a result of its own", folder, aside)
    _write_recipe(recipe, folder)


def finish(recipe: Recipe, folder: Path, envelope: Mapping[str, Any]) -> None:
    """Write the result of this recipe; what it supersedes goes."""
    _write_recipe(recipe, folder)  # again: a process with other settings may have begun meanwhile
    write_json(folder / METRICS_NAME, envelope)
    shutil.rmtree(folder / SUPERSEDED, ignore_errors=True)


def _write_recipe(recipe: Recipe, folder: Path) -> None:
    write_text(folder / RECIPE_NAME, yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True))


def _plain(recipe: Recipe) -> dict[str, Any]:
    """A recipe as a file gives it back: lists for tuples."""
    return json.loads(json.dumps(asdict(recipe)))


def _at(values: Any, path: str) -> Any:
    """The value at "a.b"; `_ABSENT` where there is no such key."""
    for key in path.split("."):
        values = values.get(key, _ABSENT) if isinstance(values, Mapping) else _ABSENT
    return values


def _without_unset(written: Any, known: Any) -> Any:
    """`written` without settings that are not known any more and were not set."""
    if not isinstance(written, Mapping) or not isinstance(known, Mapping):
        return written
    kept = {key: value for key, value in written.items() if key in known or value is not None}
    return {key: _without_unset(value, known.get(key)) for key, value in kept.items()}


def _same(one: Any, other: Any) -> bool:
    """Equal, where a key that one side lacks is None there."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return all(_same(one.get(key), other.get(key)) for key in one.keys() | other.keys())
    return one == other
