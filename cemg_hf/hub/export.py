"""A run as the folder that is published: weights in half precision, tokenizer, code, endpoint handler and card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..artefacts import Manifest, fingerprint_path, read_manifest, write_folder, write_text
from ..errors import CEMGError
from ..evaluation.runs import machines_by_stage
from ..training.loading import open_model
from .contents import values_without_local_paths
from .model_card import CardModel, eval_results, model_card

if TYPE_CHECKING:
    from ..models.cemg import CEMGForConditionalGeneration

STAGE = "export"
HANDLER = Path(__file__).with_name("handler.py")
REQUIREMENTS = "transformers>=5.17\n"  # what an Inference Endpoint has to update; torch it has, in a build for its own machine
NEEDS_PACKAGE = (
    "This is the system `{system}` of the package, with a network of its own: the folder holds no code, and loads where cemg_hf is "
    "installed and imported (`import cemg_hf`)."
)
DTYPES = ("bfloat16", "float16", "float32")


def export_model(
    run: str | Path,
    output: str | Path,
    *,
    name: str | None = None,
    dtype: str = "bfloat16",
    comparison: str | Path | None = None,
    published: str | Path | None = None,
    dataset_repo: str | None = None,
) -> Path:
    """Write the model of a run folder as it goes to the Hub, its card made of the run's own results.

    Paths of this machine in the recipe and in the card's command are cut to their last part.

    Args:
        run: folder written by `cemg run`, with `recipe.yaml`, `model/` and `metrics.json`.
        output: folder to write; what stood there is replaced when the new one is complete.
        name: what the card's example loads (default: the name of `output`).
        dtype: precision of the weights; scores are summed in single precision whatever it is.
        comparison: results of other systems on the same test cases (`compare.json` of `cemg compare`), shown beside the run's own.
        published: `metrics.json` of `cemg evaluate` on this folder as an earlier call wrote it: the card then says what its rounded weights
            reach.
        dataset_repo: Hub id of the published data set; named in the card, and `.eval_results/` then holds the figures of its tasks.

    Raises:
        CEMGError: a run that is not complete, an unknown precision, a comparison or an evaluation on other test cases, or an output that
            holds something else than an exported model.
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
    # Runs of earlier versions have the machine of each stage in its manifest alone.
    result = {"machine_by_stage": machines_by_stage(run, result.get("seconds_by_stage", {}))} | result
    beside = None if comparison is None else read_results(comparison)
    model = open_model(run / "model", dtype=dtype)
    assert model.tokenizer is not None  # a model folder without its catalogue does not open
    item_ids = model.tokenizer.item_ids
    about = CardModel(
        name=name or output.resolve().name,
        recipe=recipe,
        examples=tuple(item_ids[:2]),
        items=len(item_ids),
        training=_training(run, model, dtype),
        carries_code=model.carries_code,
        notice="" if model.carries_code else NEEDS_PACKAGE.format(system=recipe["system"]),
        published=None if published is None else read_results(published),
        dataset_repo=dataset_repo,
    )
    card = model_card(about, result, beside)
    manifest = Manifest(STAGE, {"dtype": dtype, "name": name}, {"model": fingerprint_path(run / "model")}, recipe["seed"])
    with write_folder(output, manifest) as scratch:
        model.save_pretrained(scratch)
        write_text(scratch / "README.md", card)
        published = values_without_local_paths(recipe)
        write_text(scratch / "recipe.yaml", yaml.safe_dump(published, sort_keys=False, allow_unicode=True))
        if model.carries_code:
            shutil.copyfile(HANDLER, scratch / HANDLER.name)
            write_text(scratch / "requirements.txt", REQUIREMENTS)
        if dataset_repo is not None:
            write_text(scratch / ".eval_results" / f"{recipe['prepare']['name']}.yaml", eval_results(about, result))
    return output


def read_results(path: str | Path) -> dict[str, Any]:
    """Envelope of a file of results.

    Raises:
        CEMGError: there is no such file, or it is something else.
    """
    path = Path(path)
    if not path.is_file():
        raise CEMGError(f"{path}: no such file; give the `compare.json` that `cemg compare` wrote")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        _ = [slices["test"]["n"] for slices in content["metrics"].values()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CEMGError(f"{path}: not a file of ranking results ({type(error).__name__}: {error}); give that of `cemg compare`") from error
    return content


def _training(run: Path, model: CEMGForConditionalGeneration, dtype: str) -> str:
    report = json.loads((run / "model" / "training_report.json").read_text(encoding="utf-8"))
    return (
        f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters ({dtype}), trained for {report['steps']:,} steps on "
        f"{report['targets']:,} targets per epoch; best epoch by validation NDCG@10: {report['best_epoch']}. Every setting is in "
        "`recipe.yaml` of this folder."
    )
