"""Measurements are taken once per model and machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from cemg_hf.artefacts import Manifest
from cemg_hf.training import measurement
from cemg_hf.training.deadline import OutOfTime
from cemg_hf.training.measurement import measured_once


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
