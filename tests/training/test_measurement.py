"""Measurements are taken once per model and machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from cemg_hf.artefacts import Manifest
from cemg_hf.recipes import load_recipe
from cemg_hf.training import measurement
from cemg_hf.training.deadline import OutOfTime
from cemg_hf.training.measurement import NothingToMeasure, check_trained, measured_once, measurement_manifest


def test_a_measurement_is_taken_once_and_needs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest("weight", {}, {}, 0)
    monkeypatch.setattr(measurement, "time_is_up", lambda: True)
    with pytest.raises(OutOfTime):
        measured_once(tmp_path / "weight", manifest, lambda: {"kg": 1})
    monkeypatch.undo()
    assert measured_once(tmp_path / "weight", manifest, lambda: {"kg": 1}) == {"kg": 1}
    monkeypatch.setattr(measurement, "time_is_up", lambda: True)
    assert measured_once(tmp_path / "weight", manifest, lambda: pytest.fail("measured twice")) == {"kg": 1}
    monkeypatch.undo()
    elsewhere = Manifest("weight", {"processor": "another"}, {}, 0)
    assert measured_once(tmp_path / "weight", elsewhere, lambda: {"kg": 2}) == {"kg": 2}


@pytest.mark.parametrize(("system", "needs_model"), [("cemg", True), ("sasrec", True), ("lightgcn", True), ("item_knn", False)])
def test_without_what_was_trained_there_is_nothing_to_measure(system: str, needs_model: bool, tmp_path: Path) -> None:
    recipe = load_recipe("sample", system=system)
    folders = {"prepare": tmp_path / "dataset", "finetune": tmp_path / "model"}
    with pytest.raises(NothingToMeasure, match="dataset: not there"):
        measurement_manifest("latency", recipe, folders, {})
    (tmp_path / "dataset").mkdir()
    if needs_model:
        with pytest.raises(NothingToMeasure, match="model: not there"):
            check_trained(recipe, folders)
        (tmp_path / "model").mkdir()
    check_trained(recipe, folders)


def test_what_a_system_without_a_model_folder_ranks_by_is_part_of_what_is_measured(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    folders = {"prepare": tmp_path / "dataset", "finetune": tmp_path / "model"}

    def manifest(system: str, *assignments: str) -> Manifest:
        return measurement_manifest("latency", load_recipe("beauty", assignments, system=system), folders, {"k": 10})

    fewer = "item_knn.neighbours=7"
    assert manifest("item_knn") == manifest("item_knn")
    assert manifest("item_knn", fewer) != manifest("item_knn")
    assert manifest("item_knn", fewer).settings["neighbours"] == 7
    assert manifest("popularity", fewer) == manifest("popularity")  # and finished measurements of all others stay current:
    (tmp_path / "model").mkdir()
    assert manifest("sasrec", fewer).settings.keys() == {"k", "threads", "processor", "cores", "accelerator", "system"}
