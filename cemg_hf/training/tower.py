"""A dense tower for a generator that is trained already: the generator stays as it is, the tower and its weight are new."""

from __future__ import annotations

import json
import logging
import shutil
import time
from dataclasses import asdict
from pathlib import Path

from ..artefacts import Manifest, fingerprint_path, is_current, write_folder, write_json
from ..data import PreparedDataset
from ..errors import CEMGError
from .evaluate import load_generator
from .finetune import FinetuneConfig, add_tower, rank_by_codes, try_dense_weights
from .validation import Validation

logger = logging.getLogger(__name__)

REPORT_NAME = "training_report.json"


def give_tower(config: FinetuneConfig, dataset: str | Path, model: str | Path, output: str | Path, seed: int = 42) -> Path:
    """Train the dense tower of `config.dense` for a finished generator and write both as a model folder; skipped when current.

    The same as if `finetune` had trained both, because without a teacher neither learns from the other: the tower first, then the weight
    of its scores on the validation users.

    Args:
        config: settings of `finetune`; those of the generator and its training are not looked at.
        dataset: folder written by `prepare`.
        model: folder written by `finetune`, with or without a tower.
        output: the model folder to write.
        seed: seed of the tower and of the draw of validation users.

    Raises:
        CEMGError: no `finetune.dense`, inputs that do not belong together, or an output that is the model itself.
    """
    output = Path(output)
    if config.dense is None:
        raise CEMGError("finetune.dense: is not set; give the settings of the tower, such as --set finetune.dense.content=true")
    if output.resolve() == Path(model).resolve():
        raise CEMGError(f"{output}: is the model itself; write the model with its new tower somewhere else")
    names = ("dense", "validation_users", "validation_beams", "validation_excludes_history")
    settings = {name: value for name, value in asdict(config).items() if name in names}
    manifest = Manifest("tower", settings, {"dataset": fingerprint_path(dataset), "model": fingerprint_path(model)}, seed)
    if is_current(output, manifest):
        logger.info("tower: %s is up to date", output)
        return output
    started = time.perf_counter()
    data = PreparedDataset.load(dataset)
    generator = load_generator(model, data)
    work = output.with_name(f".{output.name}.dense")
    add_tower(generator, config.dense, dataset, model, work, seed)
    generator.eval()
    cases = Validation(lambda cases: rank_by_codes(generator, config, cases), data, config.validation_users, seed).cases
    weights = try_dense_weights(generator, cases, config)
    generator.config.dense_weight = max(weights, key=lambda weight: weights[weight]["ndcg@10"])
    report = json.loads((Path(model) / REPORT_NAME).read_text(encoding="utf-8"))
    before = report.get("dense", {}).get("seconds", 0.0)
    tower = json.loads((work / REPORT_NAME).read_text(encoding="utf-8"))
    report |= {"dense": tower, "dense_weights": weights, "seconds": report["seconds"] - before + tower["seconds"]}
    with write_folder(output, manifest, started) as scratch:
        generator.save_pretrained(scratch)
        write_json(scratch / REPORT_NAME, report)
    shutil.rmtree(work, ignore_errors=True)
    return output
