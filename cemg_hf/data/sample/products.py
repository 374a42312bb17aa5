"""The product types of the sample shop and how each is drawn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import homeware, wearables
from .drawing import Scene

VARIANTS = 3

DRAW: dict[str, Callable[[Scene, int, float], None]] = {
    "mug": homeware.mug,
    "teapot": homeware.teapot,
    "vase": homeware.vase,
    "bottle": homeware.bottle,
    "lamp": homeware.lamp,
    "armchair": homeware.armchair,
    "cushion": homeware.cushion,
    "clock": homeware.clock,
    "planter": homeware.planter,
    "t-shirt": wearables.t_shirt,
    "dress": wearables.dress,
    "sneaker": wearables.sneaker,
    "cap": wearables.cap,
    "tote": wearables.tote,
    "backpack": wearables.backpack,
    "umbrella": wearables.umbrella,
}


def draw_product(kind: str, palette: str, pattern: str, variant: int, rng: np.random.Generator) -> bytes:
    """PNG of one product. `variant` in 0 … VARIANTS-1 chooses the silhouette, `rng` its proportions and shade."""
    scene = Scene(palette, pattern, rng)
    DRAW[kind](scene, variant, float(rng.uniform(0.92, 1.06)))
    return scene.png()
