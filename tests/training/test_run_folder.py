"""A run folder's result is that of the recipe whose system measured it, through every change of what the system does not read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cemg_hf.recipes import Recipe, load_recipe
from cemg_hf.training.run_folder import RECIPE_NAME, SUPERSEDED, begin, finish, is_of, result_of
from cemg_hf.training.streams import StreamsConfig
from cemg_hf.training.systems import FAMILIES, settings_read

RESULT: dict[str, Any] = {"metrics": {"mine": {}}}
SECTIONS: dict[str, dict[str, Any]] = {
    "prepare": {"min_interactions": 7},
    "encode.collaborative": {"epochs": 7},
    "encode": {"dimension": 24},
    "tokenize": {"epochs": 7},
    "streams": {"image_codes": "codes"},
    "finetune": {"item_dropout": 0.7},
    "sequential": {"validation_users": 7},
    "item_knn": {"neighbours": 7},
    "mmgrec": {"d_ff": 7},
    "evaluate": {"cold_threshold": 7},
}
"""Path of settings → a change of them."""
SYSTEMS = ("cemg", "mscgrec", "popularity", "item_knn", "lightgcn", "sasrec", "sasrec-content", "mmgrec")


def with_settings(settings: Any, path: str, change: dict[str, Any]) -> Any:
    """A copy of a recipe, or of a section, with some settings at a path changed."""
    first, _, rest = path.partition(".")
    inner = getattr(settings, first)
    if inner is None:
        inner = StreamsConfig()
    return replace(settings, **{first: with_settings(inner, rest, change) if rest else replace(inner, **change)})


def changed(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = yaml.safe_load((folder / RECIPE_NAME).read_text())
    change(values)
    (folder / RECIPE_NAME).write_text(yaml.safe_dump(values))


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("beauty", system="sasrec")


@pytest.fixture
def finished(recipe: Recipe, tmp_path: Path) -> Path:
    begin(recipe, tmp_path)
    finish(recipe, tmp_path, RESULT)
    return tmp_path


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_result_is_of_all_recipes_that_differ_in_nothing_that_the_system_reads(system: str, tmp_path: Path) -> None:
    base = load_recipe("beauty", system=system)
    begin(base, tmp_path)
    finish(base, tmp_path, RESULT)
    read = settings_read(base)
    assert {"prepare", "evaluate", "seed", "system"} <= set(read)
    assert result_of(base, tmp_path) == RESULT
    assert result_of(replace(base, description="said otherwise"), tmp_path) == RESULT
    assert result_of(replace(base, seed=base.seed + 1), tmp_path) is None
    for path, change in SECTIONS.items():
        other = with_settings(base, path, change)
        reads_it = any(path == one or path.startswith(f"{one}.") for one in read)
        assert is_of(other, tmp_path) == (not reads_it), (path, read)


def test_what_systems_read() -> None:
    assert set(settings_read(load_recipe("beauty", system="sasrec"))) & set(SECTIONS) == {"prepare", "sequential", "evaluate"}
    content = settings_read(load_recipe("beauty", system="sasrec-content"))
    assert {"encode", "tokenize", "streams", "sequential"} <= set(content)
    assert "finetune" not in content
    assert {"tokenize", "streams", "finetune"} <= set(settings_read(load_recipe("beauty", system="mscgrec")))
    assert {load_recipe("beauty", system=system).family for system in SYSTEMS} == {"cemg", *FAMILIES}, "one of every kind is tested"


def test_settings_that_one_side_lacks(recipe: Recipe, finished: Path) -> None:
    changed(finished, lambda values: values.pop("streams"))
    changed(finished, lambda values: values["sequential"].pop("window_stride"))
    changed(finished, lambda values: values["sequential"]["loop"].pop("checkpoint_every_s"))
    changed(finished, lambda values: values["sequential"]["loop"].update(no_more=None))
    changed(finished, lambda values: values["tokenize"].update(no_more=3))
    assert result_of(recipe, finished) == RESULT
    longer = with_settings(recipe, "sequential.loop", {"checkpoint_every_s": 7.0})
    assert result_of(longer, finished) is None, "it was measured by the default"
    changed(finished, lambda values: values["sequential"]["loop"].update(no_more=3))
    assert result_of(recipe, finished) is None


@pytest.mark.parametrize("content", [None, "", "{", "- a list", "sequential: {loop: {epochs: many}}"])
def test_a_result_beside_no_readable_recipe_is_nobodys(content: str | None, recipe: Recipe, finished: Path) -> None:
    (finished / RECIPE_NAME).unlink()
    if content is not None:
        (finished / RECIPE_NAME).write_text(content)
    assert result_of(recipe, finished) is None
    begin(recipe, finished)
    assert json.loads((finished / SUPERSEDED / "metrics.json").read_text()) == RESULT


def test_another_recipes_result_is_kept_until_there_is_one(recipe: Recipe, finished: Path) -> None:
    other = with_settings(recipe, "sequential.loop", {"epochs": 7})
    third = with_settings(recipe, "sequential.loop", {"epochs": 8})
    for one in (other, third, other):  # runs that do not end
        begin(one, finished)
        assert result_of(one, finished) is None
        assert result_of(recipe, finished) is None
        assert is_of(recipe, finished / SUPERSEDED)
        assert result_of(recipe, finished / SUPERSEDED) == RESULT
    finish(other, finished, {"metrics": {"other": {}}})
    assert result_of(other, finished) == {"metrics": {"other": {}}}
    assert result_of(recipe, finished) is None
    assert not (finished / SUPERSEDED).exists()


@pytest.mark.parametrize("killed_at", ["shutil.copyfile", "Path.replace", "_write_recipe"])
def test_a_run_killed_while_it_begins_passes_for_no_other(
    killed_at: str, recipe: Recipe, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    other = with_settings(recipe, "sequential.loop", {"epochs": 7})
    with monkeypatch.context() as patched:
        patched.setattr(f"cemg_hf.training.run_folder.{killed_at}", kill)
        with pytest.raises(KeyboardInterrupt):
            begin(other, finished)
    assert result_of(other, finished) is None
    assert RESULT in (result_of(recipe, finished), json.loads(next(finished.rglob("metrics.json")).read_text()))


def test_a_result_goes_with_the_recipe_that_measured_it(recipe: Recipe, finished: Path) -> None:
    other = with_settings(recipe, "sequential.loop", {"epochs": 7})
    begin(recipe, finished)
    begin(other, finished)  # a second process, while the first one trains
    finish(recipe, finished, RESULT)
    assert result_of(other, finished) is None
    assert result_of(recipe, finished) == RESULT
