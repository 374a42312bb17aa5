"""What the sample shop writes about its products: brand, title, categories and description, from phrases of a small grammar.

Only the product type is common ground with the picture. The theme (what it is for) and the making (how it is produced) are
told here and nowhere else; colour, pattern and shape are never mentioned.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .phrases import CLOSINGS, KINDS, MAKINGS, THEMES, TITLES


@dataclass(frozen=True)
class Wording:
    """The text fields of one item."""

    title: str = field(metadata={"help": "Product title."})
    brand: str = field(metadata={"help": "Brand name."})
    categories: list[str] = field(metadata={"help": "From department to theme."})
    description: str = field(metadata={"help": "Four or five sentences."})


def write_item(kind: str, theme: int, making: int, rng: np.random.Generator) -> Wording:
    """Text of one item; `theme` and `making` are indices into `THEMES` and `MAKINGS`."""
    product, purpose, maker = KINDS[kind], THEMES[theme], MAKINGS[making]

    def pick(options: tuple[str, ...]) -> str:
        return options[int(rng.integers(len(options)))]

    brand = pick(maker.brands)
    title = pick(TITLES).format(brand=brand, adjective=pick(maker.adjectives), noun=pick(product.nouns), phrase=pick(purpose.phrases))
    first, second = (purpose.sentences[int(i)] for i in rng.choice(len(purpose.sentences), size=2, replace=False))
    sentences = [first, pick(product.features), second, pick(maker.sentences)]
    if rng.random() < 0.7:
        sentences.append(pick(CLOSINGS))
    return Wording(title, brand, [product.department, product.shelf, purpose.shelf], " ".join(sentences))
