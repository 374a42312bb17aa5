"""Configuration of SASRec."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from transformers import PreTrainedConfig

from ..cemg.dense_cemg import DenseSettings


class SASRecConfig(PreTrainedConfig):
    """Settings of [`SASRecForNextItem`]: those of `DenseSettings`, and

    Args:
        num_items (`int`): N, items of the catalogue.
    """

    model_type = "sasrec"

    num_items: int = 1
    hidden_size: int = 64
    num_layers: int = 2
    num_heads: int = 2
    feed_forward: int = 1
    layer: str = "sasrec"
    dropout: float = 0.2
    max_history: int = 50
    loss: str = "sampled"
    num_negatives: int = 1024
    label_smoothing: float = 0.0
    cosine_scale: float = 0.0
    content_dim: int = 0
    id_dropout: float = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        self.network()  # refuses what cannot work
        super().__post_init__(**kwargs)

    def network(self) -> DenseSettings:
        """The same as the network takes them."""
        return DenseSettings(**{entry.name: getattr(self, entry.name) for entry in fields(DenseSettings)})
