"""The catalogue of the sample shop: hidden attributes of every item, and the items' pictures and texts made from them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .drawing import PALETTES, PATTERNS
from .phrases import KINDS, MAKINGS, THEMES
from .products import DRAW, VARIANTS, draw_product
from .wording import Wording, write_item


@dataclass(frozen=True)
class Attributes:
    """What every item is, as int64 arrays of length N. All attributes are independent of one another and evenly distributed."""

    kind: np.ndarray = field(metadata={"help": "Product type, index into KINDS: in picture and text."})
    palette: np.ndarray = field(metadata={"help": "Index into PALETTES: in the picture only."})
    pattern: np.ndarray = field(metadata={"help": "Index into PATTERNS: in the picture only."})
    variant: np.ndarray = field(metadata={"help": "Silhouette of the type: in the picture only, without influence on behaviour."})
    theme: np.ndarray = field(metadata={"help": "Index into THEMES: in the text only."})
    making: np.ndarray = field(metadata={"help": "Index into MAKINGS: in the text only."})
    community: np.ndarray = field(metadata={"help": "Hidden circle of taste: only in who buys what."})


def draw_attributes(items: int, communities: int, rng: np.random.Generator) -> Attributes:
    """Independent, evenly distributed attributes for `items` items."""
    sizes = (len(KINDS), len(PALETTES), len(PATTERNS), VARIANTS, len(THEMES), len(MAKINGS), communities)
    return Attributes(*(rng.permutation(np.arange(items) % size) for size in sizes))


def draw_pictures(attributes: Attributes, rng: np.random.Generator) -> list[bytes]:
    """One PNG per item."""
    kinds, palettes = list(DRAW), list(PALETTES)
    columns = (attributes.kind, attributes.palette, attributes.pattern, attributes.variant)
    return [
        draw_product(kinds[kind], palettes[palette], PATTERNS[pattern], int(variant), rng)
        for kind, palette, pattern, variant in zip(*columns, strict=True)
    ]


def write_texts(attributes: Attributes, rng: np.random.Generator) -> list[Wording]:
    """Title, brand, categories and description per item."""
    kinds = list(KINDS)
    columns = (attributes.kind, attributes.theme, attributes.making)
    return [write_item(kinds[kind], int(theme), int(making), rng) for kind, theme, making in zip(*columns, strict=True)]
