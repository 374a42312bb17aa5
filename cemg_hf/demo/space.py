"""The demo as a Space: a folder that runs on the Hub as it is, and holds no item texts, pictures or weights of its own."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import gradio as gr
import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

import cemg_hf

from ..artefacts import Manifest, read_manifest, write_folder, write_text
from ..errors import CEMGError
from ..features.store import FeatureStore

STAGE = "space"
FEATURES = "features"
SHORTEST = 60  # characters that the Hub allows a short description

APP = '''"""What `cemg demo` shows, as a Space. Models and items come from the Hub; everything else is in the package beside this file."""

from cemg_hf.demo.app import launch
from cemg_hf.demo.loading import open_demo

launch(open_demo({models!r}, dataset={dataset!r}, features={features!r}), {title!r})
'''

README = """# {title}

Pick a shopper or build a history, and see what {models} recommend{s} next: the code that was written for every item, what the decoder
looked at, and how much of the item's content came from its picture and from its text.

The same page on your own machine: `cemg demo {command}`
"""


def export_space(
    output: str | Path,
    models: Sequence[str],
    *,
    title: str,
    dataset: str | None = None,
    features: Sequence[str] = (),
) -> Path:
    """Write app.py, requirements.txt, README.md with the Space's settings, the package, and the features that explain and add items.

    Args:
        output: folder to write; an earlier Space there is replaced when the new one is complete.
        models: Hub ids.
        title: of the page and of the Space.
        dataset: Hub id of the data set with items and shoppers.
        features: folders written by `encode`, one per model in order, that the Space shall hold; without them it shows no α and takes no
            new items. They hold vectors, and the words that a TF-IDF encoder knows.

    Raises:
        CEMGError: local folders in the place of Hub ids, or an output that holds something else.
    """
    output = Path(output)
    for option, name in [*(("MODEL", model) for model in models), *([("--dataset", dataset)] if dataset is not None else [])]:
        _check_id(option, name)
    if len(features) > len(models):
        raise CEMGError(f"--features: {len(features)} folders for {len(models)} models; give one for each, in their order")
    for folder in features:
        FeatureStore.load(folder)
    if output.exists() and (not output.is_dir() or any(output.iterdir())) and (read_manifest(output) or {}).get("stage") != STAGE:
        raise CEMGError(f"{output}: exists and is no exported Space, and would be replaced; name another folder")
    copied = [FEATURES if len(features) == 1 else f"{FEATURES}-{number + 1}" for number in range(len(features))]
    settings = {"title": title, "models": list(models), "dataset": dataset, "features": copied}
    with write_folder(output, Manifest(STAGE, settings, {}, 0)) as scratch:
        write_text(scratch / "app.py", APP.format(**settings))
        write_text(scratch / "requirements.txt", _requirements())
        write_text(scratch / "README.md", _readme(title, models, dataset))
        shutil.copytree(Path(cemg_hf.__file__).parent, scratch / "cemg_hf", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        for source, name in zip(features, copied, strict=True):
            shutil.copytree(source, scratch / name, ignore=shutil.ignore_patterns("cache"))
    return output


def _check_id(option: str, name: str) -> None:
    if Path(name).exists():
        raise CEMGError(f"{option} {name}: a folder here; a Space loads from the Hub, so publish it with `cemg publish` and give its id")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise CEMGError(f"{option} {name}: not a Hub id such as org/cemg-beauty ({error})") from error


def _requirements() -> str:
    """What the package needs, extras aside; gradio comes with the Space. A Space without a GPU has no use for CUDA."""
    try:
        needed = requires("cemg-hf") or []
    except PackageNotFoundError as error:
        raise CEMGError("the package is not installed, so that what it needs is not known; run `pip install .` in its checkout") from error
    lines = ["--extra-index-url https://download.pytorch.org/whl/cpu", *(line for line in needed if "extra ==" not in line)]
    return "\n".join(lines) + "\n"


def _readme(title: str, models: Sequence[str], dataset: str | None) -> str:
    settings = {
        "title": title,
        "emoji": "🛍️",
        "colorFrom": "green",
        "colorTo": "indigo",
        "sdk": "gradio",
        "sdk_version": gr.__version__,
        "app_file": "app.py",
        "models": list(models),
        "short_description": "Recommendations that say where they come from"[:SHORTEST],
    }
    if dataset is not None:
        settings["datasets"] = [dataset]
    front = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    command = " ".join([*models, *([f"--dataset {dataset}"] if dataset is not None else [])])
    text = README.format(title=title, models=" and ".join(models), s="s" if len(models) == 1 else "", command=command)
    return f"---\n{front}---\n\n{text}"
