"""Measured systems read back: run folders, evaluation folders and files of results, all as the same kind of entry."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CEMGError
from .predictions import PREDICTIONS_NAME, Predictions, read_predictions
from .report import SliceIntervals, SliceValues

METRICS_NAME = "metrics.json"
EVALUATION_FOLDER = "evaluation"
FLOOR = "popularity"
"""The system that every run is measured beside; several runs share one."""


@dataclass(frozen=True, eq=False)
class MeasuredRun:
    """One system as one run, or one file of results, measured it."""

    system: str = field(metadata={"help": "Name of the system; runs of one name and different seeds belong together."})
    seeds: tuple[int, ...] = field(metadata={"help": "Seeds the figures are means over."})
    source: str = field(metadata={"help": "Where the figures stand."})
    metrics: SliceValues = field(metadata={"help": "slice -> metric -> value."})
    std: SliceValues = field(default_factory=dict, metadata={"help": "Standard deviations over the seeds, where there are several."})
    intervals: SliceIntervals = field(default_factory=dict, metadata={"help": "slice -> metric -> [low, high]."})
    protocol: Mapping[str, Any] | None = field(default=None, metadata={"help": "How the data was split and sliced; None: not recorded."})
    seconds_by_stage: Mapping[str, float] = field(default_factory=dict, metadata={"help": "Wall time of each stage, where a run says."})
    predictions: Predictions | None = field(default=None, metadata={"help": "The lists behind the figures, where they were saved."})


def read_runs(arguments: Sequence[str | Path]) -> list[MeasuredRun]:
    """Everything that was measured in the places given.

    Args:
        arguments: run folders (with `evaluation/`), evaluation folders, or JSON files of the one envelope; `name=place` gives the system of
            a place a name of its own. A file called `metrics.json` stands for its folder.

    Returns:
        One entry per system and place, in order; of the floor beside every run only the first, and none where popularity is a run itself.

    Raises:
        CEMGError: a place that holds no results, or a name for a file of several systems.
    """
    runs = [run for argument in arguments for run in _read(str(argument))]
    own_floor = [run for run in runs if run.system == FLOOR and run.predictions is not None]
    floor = own_floor or [run for run in runs if run.system == FLOOR][:1]
    return [*(run for run in runs if run.system != FLOOR), *floor]


def _read(argument: str) -> list[MeasuredRun]:
    name, place = None, Path(argument)
    if "=" in argument and not place.exists():
        name, _, rest = argument.partition("=")
        place = Path(rest)
    if place.name == METRICS_NAME and place.is_file():
        place = place.parent
    if place.is_dir():
        beside = place / EVALUATION_FOLDER
        folder = beside if (beside / METRICS_NAME).is_file() else place
        file = folder / METRICS_NAME
        if not file.is_file():
            raise CEMGError(f"{place}: no {METRICS_NAME} there or in {EVALUATION_FOLDER}/; give the folder of a finished run")
    elif place.is_file():
        folder, file = None, place
    else:
        raise CEMGError(f"{place}: no such file or folder; give run folders or files of results")
    envelope = _envelope(file)
    own = envelope.get("system") or next((system for system in envelope["metrics"] if system != FLOOR), FLOOR)
    others = set(envelope["metrics"]) - {own, FLOOR}
    if name is not None and others:
        raise CEMGError(f"{argument}: {file} holds several systems ({own}, {', '.join(sorted(others))}); leave the name out")
    whole = place / METRICS_NAME if place.is_dir() else file  # a run's own results know what all its stages took
    seconds = _envelope(whole).get("seconds_by_stage", {}) if whole.is_file() else {}
    saved = folder is not None and (folder / PREDICTIONS_NAME).is_file()
    return [
        MeasuredRun(
            system=name if name is not None and system == own else system,
            seeds=tuple(envelope["seeds"]),
            source=str(place),
            metrics=slices,
            std=envelope.get("std", {}).get(system, {}),
            intervals=envelope.get("intervals", {}).get(system, {}),
            protocol=envelope.get("protocol"),
            seconds_by_stage=seconds if system == own else {},
            predictions=read_predictions(folder) if saved and folder is not None and system == own else None,
        )
        for system, slices in envelope["metrics"].items()
    ]


def _envelope(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        ranked = all("test" in slices for slices in content["metrics"].values())
        _ = list(content["seeds"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CEMGError(f"{file}: not a file of results ({type(error).__name__}: {error}); evaluate the system again") from error
    if not content["metrics"] or not ranked:
        raise CEMGError(f"{file}: holds no ranking metrics (system -> slice -> metric); leave it out")
    return content
