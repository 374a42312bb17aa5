"""All stages in a row: a recipe becomes a run folder with data set, features, tokenizer, model and metrics."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..artefacts import MANIFEST_NAME, result_envelope, write_json
from ..data.prepare import prepare
from ..errors import CEMGError
from ..evaluation.runs import METRICS_NAME, machines_by_stage
from ..evaluation.seeds import over_seeds
from ..recipes import Recipe
from .deadline import OutOfTime, time_is_up
from .encode import encode
from .evaluate import evaluate
from .finetune import finetune
from .run_folder import begin, finish
from .stage_store import StageStore
from .systems import FAMILIES, evaluate_system, stages_of
from .tokenize import REPORT_NAME, tokenize

logger = logging.getLogger(__name__)

STAGES = {"prepare": "dataset", "encode": "features", "tokenize": "tokenizer", "finetune": "model", "evaluate": "evaluation"}
"""Each stage of CEMG and the folder of the run it writes."""
FOLDERS = STAGES | {"train": "model"}
"""The same with the stage that trains any other system."""
ABLATED = ("image", "text", "collaborative")


def run(
    recipe: Recipe, output: str | Path, *, until: str = "evaluate", command: str = "", store: StageStore | None = None
) -> dict[str, Any]:
    """Run the stages of a recipe up to and with `until`; what is up to date is skipped, what was killed resumes.

    Args:
        recipe: the experiment.
        output: run folder; afterwards it holds `recipe.yaml`, the stages' folders and, at the end, `metrics.json`. One that other settings
            have left there is set aside until then; see `run_folder`.
        until: last stage to run.
        command: recorded in `metrics.json`.
        store: where stages that other runs have in common with this one are taken from and kept.

    Returns: the content of `metrics.json`, or an empty dictionary when the last stage was not reached.
    """
    stages = stages_of(recipe)
    if until not in stages:
        raise CEMGError(f"until: {until!r} is no stage; choose one of {', '.join(stages)}")
    run_folder = Path(output)
    _check_time(run_folder, stages[0])  # a run that cannot begin leaves the folder as it is
    run_folder.mkdir(parents=True, exist_ok=True)
    begin(recipe, run_folder)
    folder = {stage: run_folder / name for stage, name in FOLDERS.items()}
    actions: dict[str, Callable[[], Any]] = {
        "prepare": lambda: prepare(recipe.prepare, folder["prepare"], recipe.seed),
        "encode": lambda: encode(recipe.encode, folder["prepare"], folder["encode"], recipe.seed),
        "tokenize": lambda: tokenize(recipe.tokenize, folder["encode"], folder["tokenize"], recipe.seed, folder["prepare"], recipe.streams),
        "finetune": lambda: finetune(
            recipe.finetune, folder["prepare"], folder["tokenize"], folder["finetune"], recipe.seed, recipe.streams
        ),
        "evaluate": lambda: evaluate_generator(recipe, folder, command),
    }
    if recipe.family != "cemg":
        family = FAMILIES[recipe.family]
        if family.train is not None:
            actions["train"] = partial(family.train, recipe, folder)
        actions["evaluate"] = lambda: evaluate_system(recipe, folder, command)
    for number, stage in enumerate(stages, start=1):
        logger.info("stage %d/%d: %s → %s", number, len(stages), stage, folder[stage])
        _check_time(run_folder, stage)
        started = time.perf_counter()
        with nullcontext() if store is None else store.turn(stage):
            if store is None or not store.take(stage, folder[stage]):
                actions[stage]()
                if store is not None:
                    store.keep(stage, folder[stage])
        logger.info("stage %d/%d: %s took %.1f s", number, len(stages), stage, time.perf_counter() - started)
        if stage == until:
            break
    if until != "evaluate":
        return {}
    seconds = {stage: stage_seconds(folder[stage]) for stage in stages}
    measured = json.loads((folder["evaluate"] / METRICS_NAME).read_text())
    if recipe.family == "cemg" and recipe.finetune.dense is not None:
        codes = json.loads((codes_alone(folder["evaluate"]) / METRICS_NAME).read_text())
        for part in ("metrics", "intervals"):
            measured[part] = codes[part] | measured[part]
        seconds["evaluate"] += stage_seconds(codes_alone(folder["evaluate"]))
    about: dict[str, Any] = {name: measured[name] for name in ("system", "protocol", "intervals")}
    if "tokenize" in stages:
        about["tokenizer"] = json.loads((folder["tokenize"] / REPORT_NAME).read_text())
    envelope = result_envelope(
        measured["metrics"],
        command=command,
        seeds=[recipe.seed],
        seconds=sum(seconds.values()),
        seconds_by_stage=seconds,
        machine_by_stage=machines_by_stage(run_folder, stages),
        **about,
    )
    finish(recipe, run_folder, envelope)
    return envelope


def _check_time(run_folder: Path, stage: str) -> None:
    if time_is_up():
        raise OutOfTime(f"{run_folder}: the time of this call is used up before {stage}; run the same command again to continue")


def evaluate_generator(recipe: Recipe, folder: Mapping[str, Path], command: str) -> None:
    """Measure a generator as it recommends and, where it has a dense tower, its codes alone as a system of their own beside it."""
    measured = partial(evaluate, recipe.evaluate, folder["prepare"], folder["finetune"], command=command, seed=recipe.seed)
    measured(folder["evaluate"], name=recipe.system)
    if recipe.finetune.dense is not None:
        measured(codes_alone(folder["evaluate"]), name=f"{recipe.system}, codes only", dense_weight=0)


def codes_alone(evaluation: Path) -> Path:
    """Folder of the second evaluation, beside the first."""
    return evaluation.with_name(f"{evaluation.name}-codes-only")


def stage_seconds(folder: Path) -> float:
    """Wall time of the stage that wrote a folder; for training the sum over all its resumed parts."""
    report = folder / "training_report.json"
    if report.is_file():
        return float(json.loads(report.read_text())["seconds"])
    return float(json.loads((folder / MANIFEST_NAME).read_text())["seconds"])


def without_modality(recipe: Recipe, modality: str) -> Recipe:
    """The ablation "w/o <modality>" of a recipe: the same experiment with one encoder fewer."""
    kept = [name for name in recipe.encode.modalities if name != modality]
    return replace(recipe, name=f"{recipe.name}-without-{modality}", encode=replace(recipe.encode, modalities=kept))


def run_ablations(recipe: Recipe, output: str | Path, seeds: Sequence[int], command: str = "") -> dict[str, Any]:
    """CEMG and CEMG without each modality, over several seeds; writes `ablations.json` and returns its content.

    Every variant has a run folder `output/seed-S/<variant>`; the means and standard deviations over seeds are of the same
    envelope as `metrics.json`.
    """
    variants = {"cemg": recipe} | {f"cemg-without-{name}": without_modality(recipe, name) for name in ABLATED}
    measured: dict[str, list[dict[str, Any]]] = {}
    started = time.perf_counter()
    for seed in seeds:
        for name, variant in variants.items():
            result = run(replace(variant, seed=seed), Path(output) / f"seed-{seed}" / name, command=command)
            measured.setdefault(name, []).append(result["metrics"]["cemg"])
            if name == "cemg":
                measured.setdefault("popularity", []).append(result["metrics"]["popularity"])
    mean, std = over_seeds(measured)
    envelope = result_envelope(mean, std=std, command=command, seeds=list(seeds), seconds=time.perf_counter() - started)
    write_json(Path(output) / "ablations.json", envelope)
    return envelope
