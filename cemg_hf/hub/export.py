"""A run as the folder that is published: weights in half precision, tokenizer, code, endpoint handler and card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import yaml

from ..artefacts import Manifest, fingerprint_path, read_manifest, write_folder, write_text
from ..errors import CEMGError
from ..training.loading import open_model
from .model_card import model_card

STAGE = "export"
HANDLER = Path(__file__).with_name("handler.py")
REQUIREMENTS = "transformers>=5.17\n"  # what an Inference Endpoint has to update; torch it has, in a build for its own machine
DTYPES = ("bfloat16", "float16", "float32")


def export_model(run: str | Path, output: str | Path, *, name: str | None = None, dtype: str = "bfloat16") -> Path:
    """Write the model of a run folder as it goes to the Hub, its card made of the run's own results.

    Args:
        run: folder written by `cemg run`, with `recipe.yaml`, `model/` and `metrics.json`.
        output: folder to write; what stood there is replaced when the new one is complete.
        name: what the card's example loads (default: `output`).
        dtype: precision of the weights; scores are summed in single precision whatever it is.

    Raises:
        CEMGError: a run that is not complete, an unknown precision, or an output that holds something else than an exported model.
    """
    run, output = Path(run), Path(output)
    if dtype not in DTYPES:
        raise CEMGError(f"dtype: {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    missing = [part for part in ("recipe.yaml", "metrics.json", "model/config.json") if not (run / part).is_file()]
    if missing:
        raise CEMGError(f"{run}: {missing[0]} is missing; finish the run with `cemg run` first")
    if output.exists() and (not output.is_dir() or any(output.iterdir())) and (read_manifest(output) or {}).get("stage") != STAGE:
        raise CEMGError(f"{output}: exists and is no exported model, and would be replaced; name another folder")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    result = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    report = json.loads((run / "model" / "training_report.json").read_text(encoding="utf-8"))
    model = open_model(run / "model", dtype=dtype)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in result["seconds_by_stage"].items())
    training = (
        f"{parameters:,} parameters ({dtype}), trained for {report['steps']:,} steps on {report['targets']:,} targets per epoch; best "
        f"epoch by validation NDCG@10: {report['best_epoch']}. Stages: {stages}. Every setting is in `recipe.yaml` of this folder."
    )
    card = model_card(
        name=name or str(output),
        title=f"cemg-{recipe['name']}",
        description=recipe["description"],
        data=recipe["prepare"]["name"],
        license_name=recipe["prepare"]["license"],
        system=recipe["system"],
        result=result,
        training=training,
        tokenizer=model.tokenizer,
    )
    manifest = Manifest(STAGE, {"dtype": dtype, "name": name}, {"model": fingerprint_path(run / "model")}, recipe["seed"])
    with write_folder(output, manifest) as scratch:
        model.save_pretrained(scratch)
        write_text(scratch / "README.md", card)
        shutil.copyfile(run / "recipe.yaml", scratch / "recipe.yaml")
        shutil.copyfile(HANDLER, scratch / HANDLER.name)
        write_text(scratch / "requirements.txt", REQUIREMENTS)
    return output
