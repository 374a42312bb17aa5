"""What the question of code streams asks of a run beside its accuracy: histories without a stream, collisions, time and memory."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artefacts import InUse
from ..evaluation.report import SliceValues
from ..evaluation.runs import METRICS_NAME
from ..evaluation.stream_tables import LEFT_OUT, ONE_CODE, WITHOUT
from ..evaluation.study_pairs import evaluation_of
from ..features.store import CONTENT_MODALITIES
from .deadline import OutOfTime, time_is_up
from .evaluate import evaluate
from .footprint import measure_footprint
from .latency import measure_latency
from .measurement import NothingToMeasure, check_trained
from .pipeline import FOLDERS
from .step_cost import measure_steps
from .study_variants import CEMG, Variant

if TYPE_CHECKING:
    from ..recipes import Recipe

logger = logging.getLogger(__name__)

COLLISIONS = ("collision_rate_before_last_level", "collision_rate_before", "moved_share")


def left_out(streams: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Part of a row → the streams that histories do not show: each in turn, and all content where that is several; never all streams."""
    content = tuple(name for name in streams if name in CONTENT_MODALITIES)
    chosen = [(name,) for name in streams] + ([content] if len(content) > 1 else [])
    return {WITHOUT + " and ".join(hidden): hidden for hidden in chosen if len(hidden) < len(streams)}


def measure(recipe: Recipe, variant: Variant, run: Path, command: str) -> dict[str, Any]:
    """What the tables of a row need beside its `metrics.json`; each is taken from the run folder where it is there.

    Args:
        recipe: that of the run.
        variant: its row; its tables say what is measured.
        run: folder of the finished run.
        command: recorded in evaluations.

    Returns: `left_out`: part → slice → metric → value; `memory`, `latency` and `step`: name → value. What was not asked for is left out,
    what was not measured before the time of this call was used up or is measured by another process, and what takes the model of a run
    that left only its results here.
    """
    folders = {stage: run / name for stage, name in FOLDERS.items()}
    asked: dict[str, Callable[[], Any]] = {}
    if LEFT_OUT in variant.tables and recipe.streams is not None:
        streams = json.loads((run / METRICS_NAME).read_text(encoding="utf-8"))["tokenizer"]["streams"]
        asked |= {part: partial(_without, recipe, folders, part, hidden, command) for part, hidden in left_out(list(streams)).items()}
    if "cost" in variant.tables:
        asked["latency"] = partial(measure_latency, recipe, folders, run / "latency")
        asked["memory"] = partial(measure_footprint, recipe, folders, run / "footprint")
    if recipe.family == CEMG and {"cost", "softmax"} & set(variant.tables):
        asked["step"] = partial(measure_steps, recipe, folders, run / "steps")
    found: dict[str, Any] = {LEFT_OUT: {}}
    for name, take in asked.items():
        try:
            (found[LEFT_OUT] if name.startswith(WITHOUT) else found)[name] = take()
        except (OutOfTime, InUse, NothingToMeasure) as error:
            logger.info("%s: %s", name, error)
    return found


def _without(recipe: Recipe, folders: Mapping[str, Path], part: str, hidden: Sequence[str], command: str) -> SliceValues:
    name, output = f"{recipe.system}, {part}", evaluation_of(folders["evaluate"].parent, part)
    measured = (output / METRICS_NAME).is_file()
    if folders["finetune"].is_dir() or not measured:  # else it came with the results of a run that was made elsewhere
        check_trained(recipe, folders)
        if not measured and time_is_up():
            raise OutOfTime(f"{output}: the time of this call is used up; run the same command again to measure it")
        settings = {"name": name, "command": command, "seed": recipe.seed, "without_streams": hidden}
        evaluate(recipe.evaluate, folders["prepare"], folders["finetune"], output, **settings)  # type: ignore[arg-type]
    return json.loads((output / METRICS_NAME).read_text(encoding="utf-8"))["metrics"][name]


def slices_of(envelope: Mapping[str, Any], found: Mapping[str, Any], parts: Mapping[str, SliceValues]) -> dict[str, SliceValues]:
    """The parts of a row with everything that tables show of them.

    Args:
        envelope: the run's `metrics.json`.
        found: what `measure` found.
        parts: accuracy of the parts that the run measured itself; "" is the whole.
    """
    seconds = envelope["seconds_by_stage"]
    spent = {"train_seconds": seconds.get("finetune", seconds.get("train")), "codes_seconds": seconds.get("tokenize", 0.0)}
    spent["vectors_seconds"] = seconds.get("encode", 0.0)
    whole = {**parts[""], **collisions(envelope.get("tokenizer", {})), "cost": spent}
    whole |= {name: found[name] for name in ("memory", "latency", "step") if name in found}
    return {**parts, "": whole, **found[LEFT_OUT]}


def collisions(report: Mapping[str, Any]) -> dict[str, dict[str, float | int | None]]:
    """ "codes_<stream>" → what a tokenizer's report says of items that share codes, by stream; of a single code under `ONE_CODE`."""
    streams = report.get("streams", {ONE_CODE: report} if report else {})
    found = {}
    for name, about in streams.items():
        items = about["present"] if "present" in about else about["items"] - about["items_without_any_modality"]
        values = {"items": items} | {key: about.get(key) for key in COLLISIONS}
        found[f"codes_{name}"] = values | {"moved_share": about["moved"] / max(1, items)}
    return found
