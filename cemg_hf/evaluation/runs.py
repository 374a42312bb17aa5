"""Measured systems read back: run folders, evaluation folders and files of results, all as the same kind of entry."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..artefacts import read_manifest
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
    machine: Mapping[str, Any] | None = field(default=None, metadata={"help": "What the figures were measured on; None: not recorded."})
    machine_by_stage: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict, metadata={"help": "What each stage ran on, as far as it is known and one machine."}
    )
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
    of_run = _envelope(whole) if whole.is_file() else {}
    seconds = of_run.get("seconds_by_stage", {})
    machines = of_run.get("machine_by_stage") or (machines_by_stage(place, seconds) if place.is_dir() else {})
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
            # The machine of a comparison says nothing of its systems, which have their own.
            machine=(envelope["systems"].get(system, {}) if "systems" in envelope else envelope).get("machine"),
            machine_by_stage=machines if system == own else {},
            predictions=read_predictions(folder) if saved and folder is not None and system == own else None,
        )
        for system, slices in envelope["metrics"].items()
    ]


def machines_by_stage(run: str | Path, stages: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What each of `stages` ran on, from the manifests in a run folder: a run that goes on elsewhere has stages of several machines.

    A stage without a manifest, or with folders that different machines wrote, is left out.
    """
    found: dict[str, list[dict[str, Any]]] = {stage: [] for stage in stages}
    for folder in sorted(path for path in Path(run).iterdir() if path.is_dir()):
        manifest = read_manifest(folder)
        if manifest is not None and manifest["stage"] in found and "machine" in manifest:
            found[manifest["stage"]].append(manifest["machine"])
    return {stage: dict(shared) for stage, machines in found.items() if (shared := shared_machine(machines)) is not None}


def shared_machine(machines: Sequence[Mapping[str, Any] | None]) -> Mapping[str, Any] | None:
    """The first, if all are alike but for their operating system; None otherwise, or where one is not known."""
    known = [{key: value for key, value in one.items() if key != "platform"} for one in machines if one is not None]
    return machines[0] if known and len(known) == len(machines) and all(one == known[0] for one in known) else None


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
