"""Configuration of the MMGRec recommender."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


class MMGRecModelConfig(PreTrainedConfig):
    r"""Settings of [`MMGRecForRecommendation`].

    Args:
        num_items (`int`): N, items of the catalogue.
        num_users (`int`): users whose representation h_u the model carries.
        num_levels (`int`, defaults to 4): M, tokens of a Rec-ID: M − 1 semantic ones and the popularity token.
        codebook_size (`int`, defaults to 256): K, tokens per level.
        d_model (`int`, defaults to 64): D, width of the network and of item and user representations (eq. 13 makes them one).
        num_heads (`int`, defaults to 4): attention heads. In the encoder every head is D wide (eq. 19), in the decoder D / heads.
        d_ff (`int`, defaults to 256): width of the feed-forward sublayers.
        num_layers, num_decoder_layers (`int`, default to 2): encoder and decoder layers.
        dropout_rate (`float`, defaults to 0.1): dropout in all sublayers.
        item_causal (`bool`, defaults to `True`): an item of the history attends to itself and earlier ones only, so that one pass over a
            sequence trains all its prefixes. `False` is the paper's bidirectional encoder with one training sample per target.
        max_history (`int`, defaults to 20): N of the paper; a history is cut to its last `max_history` items.
        user_fingerprint (`str`, *optional*): fingerprint of the users the model knows, in order.
    """

    model_type = "mmgrec"

    num_items: int = 0
    num_users: int = 0
    num_levels: int = 4
    codebook_size: int = 256
    d_model: int = 64
    num_heads: int = 4
    d_ff: int = 256
    num_layers: int = 2
    num_decoder_layers: int = 2
    dropout_rate: float = 0.1
    item_causal: bool = True
    max_history: int = 20
    user_fingerprint: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_levels < 2 or self.codebook_size < 2:
            raise ValueError(
                f"num_levels must be ≥ 2 (semantic tokens and the popularity token) and codebook_size ≥ 2, "
                f"got {self.num_levels} and {self.codebook_size}"
            )
        if self.max_history < 1:
            raise ValueError(f"max_history must be ≥ 1, got {self.max_history}")
        if self.d_model % self.num_heads:
            raise ValueError(f"d_model = {self.d_model} must be a multiple of num_heads = {self.num_heads}")
        super().__post_init__(**kwargs)
