"""GRU4Rec: a gated recurrent network over item embeddings, whose output is compared with the same embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..cemg.dense_cemg import EMBEDDING_STD
from ..next_item import NextItemModel
from .configuration_gru4rec import GRU4RecConfig


class GRU4RecForNextItem(NextItemModel):
    """The network of Hidasi et al. (2016) over users instead of sessions, with tied input and output embeddings.

    The paper trains by pairwise losses on the other items of a batch; softmax over the catalogue, full or sampled, is what later
    comparisons found it to need (Petrov & Macdonald, 2022; Hidasi & Czapp, 2023).
    """

    config_class = GRU4RecConfig
    config: GRU4RecConfig

    def __init__(self, config: GRU4RecConfig) -> None:
        super().__init__(config)
        self.item_embedding = nn.Embedding(config.num_items, config.hidden_size)
        self.start = nn.Parameter(torch.empty(config.hidden_size))
        between = config.dropout if config.num_layers > 1 else 0.0
        self.gru = nn.GRU(config.hidden_size, config.recurrent_size, config.num_layers, batch_first=True, dropout=between)
        self.output = nn.Linear(config.recurrent_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        for weight in (self.item_embedding.weight, self.start):
            nn.init.normal_(weight, std=EMBEDDING_STD)
        self.post_init()

    def states(self, items: Tensor, vectors: Tensor) -> Tensor:
        embedded = functional.embedding(items.clamp(min=0), vectors) * self.config.hidden_size**0.5
        sequence = torch.cat([self.start.expand(len(items), 1, -1), embedded], dim=1)
        hidden, _ = self.gru(self.dropout(sequence))  # padding is at the end, where no real item reads it
        return self.output(self.dropout(hidden))

    def item_vectors(self) -> Tensor:
        return self.item_embedding.weight
