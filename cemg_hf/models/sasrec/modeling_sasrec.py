"""SASRec: CEMG's dense tower by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cemg.dense_cemg import DenseTower
from ..next_item import NextItemModel
from .configuration_sasrec import SASRecConfig


class SASRecForNextItem(NextItemModel):
    """Causal self-attention over the items of a history; scores are dot products with item vectors.

    With `content_dim`, an item's vector is its embedding plus a projection of its content vector, which is saved with the model.
    """

    config_class = SASRecConfig
    config: SASRecConfig

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__(config)
        self.tower = DenseTower(config.num_items, config.network())
        self.content_vectors: Tensor | None
        self.register_buffer("content_vectors", torch.zeros(config.num_items, config.content_dim) if config.content_dim else None)
        self.post_init()

    def states(self, items: Tensor, vectors: Tensor) -> Tensor:
        return self.tower(items, vectors)

    def item_vectors(self) -> Tensor:
        return self.tower.item_vectors(content=self.content_vectors)
