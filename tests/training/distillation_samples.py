"""Pictures of a few kinds that differ in colour and pattern, and settings of networks small enough for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cemg_hf.settings import from_mapping
from cemg_hf.training.rq_dino import RQDinoTrainingConfig

TINY = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
COLOURS = ((220, 40, 40), (40, 200, 60), (50, 60, 220), (230, 210, 50))


def picture(kind: int, index: int, width: int = 24, height: int = 32) -> Image.Image:
    """Stripes of one of four colours, upright or lying, at a place of their own; a little noise."""
    generator = np.random.default_rng([kind, index])
    rows, columns = np.indices((height, width))
    along = rows if (kind // len(COLOURS)) % 2 else columns
    stripes = ((along + generator.integers(8)) // 4) % 2
    pixels = np.where(stripes[..., None] == 1, np.array(COLOURS[kind % len(COLOURS)]), 245)
    return Image.fromarray(np.clip(pixels + generator.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8))


def write_pictures(folder: Path, per_kind: int = 4, kinds: int = 8) -> Path:
    """`kind-index.png` of every kind."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in range(kinds):
        for index in range(per_kind):
            picture(kind, index).save(folder / f"{kind}-{index}.png")
    return folder


def tiny_settings(**changes: Any) -> RQDinoTrainingConfig:
    """A two-stage ResNet, crops of 16 and 8 pixels, two levels of four codes, two epochs; `crops__size=24` changes a section's setting."""
    values: dict[str, Any] = {
        "backbone": "resnet",
        "backbone_settings": TINY,
        "latent_dim": 8,
        "num_levels": 2,
        "codebook_size": 4,
        "crops": {"size": 16, "local_size": 8, "local_crops": 2},
        "distillation": {"prototypes": 16, "hidden_dim": 16, "bottleneck_dim": 8, "teacher_momentum": 0.9, "revive_every_steps": 10},
        "loop": {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "eval_every": 1},
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            values[section] = {**values[section], key: value}
        else:
            values[name] = value
    return from_mapping(RQDinoTrainingConfig, values, "test")
