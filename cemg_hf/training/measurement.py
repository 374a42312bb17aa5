"""Measurements of a trained system that depend on the machine too: taken once, and read where they were taken on this machine already."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..artefacts import Manifest, claim, fingerprint_path, is_current, machine, write_folder, write_json
from .deadline import OutOfTime, time_is_up

if TYPE_CHECKING:
    from ..recipes import Recipe


def measurement_manifest(stage: str, recipe: Recipe, folders: Mapping[str, Path], settings: Mapping[str, Any]) -> Manifest:
    """What a measurement depends on, the machine included.

    Args:
        stage: what is measured.
        recipe: the experiment.
        folders: stage → folder of its finished run.
        settings: how it is measured.
    """
    where = {"threads": torch.get_num_threads(), **{name: machine()[name] for name in ("processor", "cores", "accelerator")}}
    trained = folders["finetune"].is_dir()
    inputs = {"dataset": fingerprint_path(folders["prepare"])} | ({"model": fingerprint_path(folders["finetune"])} if trained else {})
    return Manifest(stage, {**settings, **where, "system": recipe.system}, inputs, recipe.seed)


def measured_once(output: Path, manifest: Manifest, measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """What `measure` found, from `output/<stage>.json` where that is current.

    Raises:
        OutOfTime: it was not measured yet, and the time of this call is used up.
        InUse: another process is measuring it.
    """
    name = f"{manifest.stage}.json"
    if not is_current(output, manifest):
        if time_is_up():
            raise OutOfTime(f"{output}: the time of this call is used up; run the same command again to measure it")
        with claim(output), write_folder(output, manifest) as scratch:
            write_json(scratch / name, measure())
    return json.loads((output / name).read_text(encoding="utf-8"))
