"""Configuration of the CEMG generator: a T5 whose vocabulary ends with the codes of the items."""

from __future__ import annotations

from typing import Any

from transformers import T5Config


class CEMGConfig(T5Config):
    r"""Settings of [`CEMGForConditionalGeneration`]; everything a `T5Config` has, and the geometry of the codes.

    The vocabulary is laid out as `base_vocab_size` tokens of the backbone (`<pad>`, `</s>` and, for a pretrained T5, its text
    tokens), one `<s>` that opens every history, then M blocks of K code tokens, level by level.

    Args:
        num_levels (`int`, defaults to 4): M, codes per item.
        codebook_size (`int`, defaults to 256): K, codes per level.
        base_vocab_size (`int`, defaults to 2): rows of the embedding that come before `<s>`.
        item_causal (`bool`, defaults to `True`): encode the history so that a token sees only the tokens of its own and of
            earlier items. One pass over a sequence then trains all its prefixes (eq. 5 of the paper). `False` is a
            bidirectional encoder and one training sample per prefix (TIGER).
        max_history (`int`, defaults to 20): a history is cut to its last `max_history` items.
        tie_lm_head (`bool`, defaults to `True`): the head shares the embedding's rows. `False` only for a T5 backbone whose head
            is a matrix of its own (`T5Config` itself always sets `tie_word_embeddings`).
        constrained_softmax (`bool`, defaults to `False`): log p of a code is normalised over the codes that continue its prefix towards
            an item of the catalogue, in training and in every ranking (MSCGRec, arXiv 2602.03713). `False` is all K codes of the level.
        dense (`dict`, *optional*): a dense tower beside the generator: `num_items` and the fields of `DenseSettings`.
        dense_weight (`float`, defaults to 0): w of `recommend` and `rank`, unless they are given another: an item's score is
            (1 − w) · Σ log p of its codes + w · log p of the dense tower. 0 is the codes alone.
        catalogue_fingerprint (`str`, *optional*): fingerprint of the catalogue the model was trained on; a tokenizer with
            another catalogue is refused.

    The defaults are TIGER's network: 4 + 4 layers, 6 heads of 64, width 128, feed-forward 1024.
    """

    model_type = "cemg"

    vocab_size: int = 0  # derived from the geometry; a value that contradicts it is refused
    d_model: int = 128
    d_kv: int = 64
    d_ff: int = 1024
    num_layers: int = 4
    num_heads: int = 6
    num_levels: int = 4
    codebook_size: int = 256
    base_vocab_size: int = 2
    item_causal: bool = True
    max_history: int = 20
    tie_lm_head: bool = True
    constrained_softmax: bool = False
    dense: dict[str, Any] | None = None
    dense_weight: float = 0.0
    catalogue_fingerprint: str | None = None
    bos_token_id: int | None = None
    decoder_start_token_id: int | None = 0

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_levels < 1 or self.codebook_size < 2:
            raise ValueError(f"num_levels must be ≥ 1 and codebook_size ≥ 2, got {self.num_levels} and {self.codebook_size}")
        if self.max_history < 1:
            raise ValueError(f"max_history must be ≥ 1, got {self.max_history}")
        if not 0 <= self.dense_weight <= 1:
            raise ValueError(f"dense_weight must lie in 0 … 1, got {self.dense_weight}")
        self.bos_token_id = self.base_vocab_size
        vocab_size = self.needed_vocab_size
        if self.vocab_size == 0:
            self.vocab_size = vocab_size
        elif self.vocab_size != vocab_size:
            raise ValueError(f"vocab_size is {self.vocab_size}, but {self.num_levels} × {self.codebook_size} codes need {vocab_size}")
        scale_decoder_outputs = kwargs.pop("scale_decoder_outputs", None)
        super().__post_init__(**kwargs)
        if scale_decoder_outputs is not None:
            # T5Config derives this from an argument it does not save, so a saved T5 v1.1 backbone would come back scaled.
            self.scale_decoder_outputs = scale_decoder_outputs

    @property
    def first_code_id(self) -> int:
        """Token id of code 0 of level 0; code c of level m is `first_code_id + m * codebook_size + c`."""
        return self.base_vocab_size + 1

    @property
    def needed_vocab_size(self) -> int:
        """Rows of the embedding that this geometry asks for."""
        return self.first_code_id + self.num_levels * self.codebook_size

    @property
    def tokens_per_item(self) -> int:
        """Tokens that an item of the history is written with."""
        return self.num_levels
