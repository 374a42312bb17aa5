"""What the tests of publishing and pulling have in common."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from card_samples import result
from stream_samples import stream_generator

from cemg_hf import CEMGForConditionalGeneration
from cemg_hf.recipes import load_recipe

MODEL_FILES = {"config.json", "generation_config.json", "model.safetensors", "modeling_cemg.py", "README.md", "recipe.yaml"}
MODEL_FILES |= {"tokenizer_config.json", "item_ids.json", "item_codes.safetensors", "rqvae_config.json", "rqvae.safetensors"}


def histories(run: Path) -> list[list[str]]:
    items = json.loads((run / "model" / "item_ids.json").read_text())
    return [items[:3], [], items[5:9]]


def recommended(folder: Path, run: Path) -> list[list[list[Any]]]:
    """What the exported model recommends here, as JSON gives it back."""
    model = CEMGForConditionalGeneration.from_pretrained(folder)
    return json.loads(json.dumps(model.recommend(histories(run), k=10, exclude_history=True)))


def write_stream_run(folder: Path) -> Path:
    """What `cemg run sample --system mscgrec` leaves of a finished run, with a small model as it was drawn."""
    stream_generator().save_pretrained(folder / "model")
    (folder / "model" / "training_report.json").write_text(json.dumps({"steps": 3, "targets": 40, "best_epoch": 1}))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(asdict(load_recipe("sample", system="mscgrec"))))
    measured = result()
    own = {name: {"mscgrec": measured[name]["cemg"]} for name in ("metrics", "intervals")}
    (folder / "metrics.json").write_text(json.dumps(measured | own | {"command": "cemg run sample --system mscgrec"}))
    return folder


def licensed(dataset: Path, name: str) -> Path:
    """The data set under another licence, as `cemg prepare` would have written it."""
    card, manifest = dataset / "README.md", dataset / "manifest.json"
    card.write_text(card.read_text().replace("license: cc-by-4.0", f"license: {name}"))
    manifest.write_text(manifest.read_text().replace('"license": "cc-by-4.0"', f'"license": "{name}"'))
    return dataset
