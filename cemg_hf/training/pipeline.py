"""All stages in a row: a recipe becomes a run folder with data set, features, tokenizer, model and metrics."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from ..artefacts import MANIFEST_NAME, result_envelope, write_json, write_text
from ..data.prepare import prepare
from ..errors import CEMGError
from .encode import encode
from .evaluate import METRICS_NAME, evaluate
from .finetune import finetune
from .tokenize import REPORT_NAME, tokenize

if TYPE_CHECKING:
    from ..recipes import Recipe

logger = logging.getLogger(__name__)

STAGES = {"prepare": "dataset", "encode": "features", "tokenize": "tokenizer", "finetune": "model", "evaluate": "evaluation"}
"""Each stage and the folder of the run it writes."""
ABLATED = ("image", "text", "collaborative")


def run(recipe: Recipe, output: str | Path, *, until: str = "evaluate", command: str = "") -> dict[str, Any]:
    """Run the stages of a recipe up to and with `until`; what is up to date is skipped, what was killed resumes.

    Args:
        recipe: the experiment.
        output: run folder; afterwards it holds `recipe.yaml`, the stages' folders and, at the end, `metrics.json`.
        until: last stage to run.
        command: recorded in `metrics.json`.

    Returns: the content of `metrics.json`, or an empty dictionary when the last stage was not reached.
    """
    if until not in STAGES:
        raise CEMGError(f"until: {until!r} is no stage; choose one of {', '.join(STAGES)}")
    run_folder = Path(output)
    run_folder.mkdir(parents=True, exist_ok=True)
    write_text(run_folder / "recipe.yaml", yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True))
    folder = {stage: run_folder / name for stage, name in STAGES.items()}
    actions = {
        "prepare": lambda: prepare(recipe.prepare, folder["prepare"], recipe.seed),
        "encode": lambda: encode(recipe.encode, folder["prepare"], folder["encode"], recipe.seed),
        "tokenize": lambda: tokenize(recipe.tokenize, folder["encode"], folder["tokenize"], recipe.seed, folder["prepare"]),
        "finetune": lambda: finetune(recipe.finetune, folder["prepare"], folder["tokenize"], folder["finetune"], recipe.seed),
        "evaluate": lambda: evaluate(
            recipe.evaluate, folder["prepare"], folder["finetune"], folder["evaluate"], command=command, seed=recipe.seed
        ),
    }
    for number, (stage, action) in enumerate(actions.items(), start=1):
        logger.info("stage %d/%d: %s → %s", number, len(actions), stage, folder[stage])
        started = time.perf_counter()
        action()
        logger.info("stage %d/%d: %s took %.1f s", number, len(actions), stage, time.perf_counter() - started)
        if stage == until:
            break
    if until != "evaluate":
        return {}
    seconds = {stage: stage_seconds(folder[stage]) for stage in STAGES}
    measured = json.loads((folder["evaluate"] / METRICS_NAME).read_text())
    envelope = result_envelope(
        measured["metrics"],
        command=command,
        seeds=[recipe.seed],
        seconds=sum(seconds.values()),
        seconds_by_stage=seconds,
        tokenizer=json.loads((folder["tokenize"] / REPORT_NAME).read_text()),
    )
    write_json(run_folder / METRICS_NAME, envelope)
    return envelope


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

    def over_seeds(reduce: Any) -> dict[str, Any]:
        return {
            name: {
                part: {
                    metric: None if None in values else float(reduce(values)) if metric != "n" else int(reduce(values))
                    for metric in runs[0][part]
                    for values in [[one[part][metric] for one in runs]]
                }
                for part in runs[0]
            }
            for name, runs in measured.items()
        }

    envelope = result_envelope(
        over_seeds(np.mean), std=over_seeds(np.std), command=command, seeds=list(seeds), seconds=time.perf_counter() - started
    )
    write_json(Path(output) / "ablations.json", envelope)
    return envelope
