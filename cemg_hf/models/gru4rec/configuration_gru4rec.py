"""Configuration of GRU4Rec."""

from __future__ import annotations

from transformers import PreTrainedConfig


class GRU4RecConfig(PreTrainedConfig):
    """Settings of [`GRU4RecForNextItem`].

    Args:
        num_items (`int`): N, items of the catalogue.
        hidden_size (`int`, defaults to 64): width of the item embeddings and of what is compared with them.
        recurrent_size (`int`, defaults to 128): width of the GRU.
        num_layers (`int`, defaults to 1): layers of the GRU.
        dropout (`float`, defaults to 0.3): dropout of embeddings, and between layers.
        max_history (`int`, defaults to 50): items of a history the network reads, the most recent ones.
        loss, num_negatives, label_smoothing: see `DenseSettings`.
    """

    model_type = "gru4rec"

    num_items: int = 1
    hidden_size: int = 64
    recurrent_size: int = 128
    num_layers: int = 1
    dropout: float = 0.3
    max_history: int = 50
    loss: str = "full"
    num_negatives: int = 1024
    label_smoothing: float = 0.0
