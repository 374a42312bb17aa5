"""The MSCGRec generator: CEMG's T5 over histories that show several code streams of every item, and that writes one of them.

What the paper leaves open, and what is done here
- *Missing modalities*: one learned token per stream stands in the place of the codes, in training at random and where an item has none.
- *Dual positions* take the place of T5's relative positions in the encoder. Both distances count between any two tokens: the same level
  of the same stream is at distance 0 inside an item, whichever items the tokens belong to. `<s>` is item 0.
- The decoder writes one item, so T5's own relative positions are the distance inside its codes already; its attention to the history has
  CEMG's bias by the age of an item (with `item_causal`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration
from transformers import initialization as init

from ..cemg.modeling_cemg import CEMGEncoder, CEMGForConditionalGeneration
from ..cemg.tokenization_cemg import CEMGTokenizer
from .configuration_mscgrec import MSCGRecConfig
from .tokenization_mscgrec import MSCGRecTokenizer


class DistanceBias(nn.Embedding):
    """Bias of the attention by a signed distance −`most` … `most`, per head."""

    def __init__(self, most: int, num_heads: int) -> None:
        super().__init__(2 * most + 1, num_heads)
        self.most = most

    def forward(self, places: Tensor) -> Tensor:
        """(B, S) places → (B, heads, S, S) bias of token q's attention to token k; distances beyond `most` count as `most`."""
        distance = (places.unsqueeze(1) - places.unsqueeze(2)).clamp(-self.most, self.most)
        return super().forward(distance + self.most).movedim(-1, 1)


class MSCGRecEncoder(CEMGEncoder):
    """CEMG's encoder, with two relative positions in the place of T5's when the configuration says so."""

    item_distance: DistanceBias
    slot_distance: DistanceBias

    def _self_attention_mask(self, attention_mask: Tensor) -> Tensor:
        if not self.config.dual_positions:
            return super()._self_attention_mask(attention_mask)
        dtype = self.final_layer_norm.weight.dtype
        start = attention_mask.argmax(dim=1, keepdim=True)  # where `<s>` stands, after padding on the left
        if not bool(start.any()):
            start = start[:1]  # all rows have the same places
        place = (torch.arange(attention_mask.shape[1], device=attention_mask.device) - start).clamp(min=0)
        tokens = self.config.tokens_per_item
        item, slot = (place + tokens - 1) // tokens, (place - 1).clamp(min=0) % tokens
        bias = (self.item_distance(item) + self.slot_distance(slot)).to(dtype)
        return bias.masked_fill(~self._visible(attention_mask).unsqueeze(1), torch.finfo(dtype).min)


class MSCGRecForConditionalGeneration(CEMGForConditionalGeneration):
    """CEMG's generator over several code streams; `recommend`, `rank`, `generate` and the loss are CEMG's, of the first stream."""

    config_class = MSCGRecConfig
    item_tokenizer_class = MSCGRecTokenizer
    carries_code = False
    _auto_class = None  # CEMG's code is copied into saved folders; this one needs the package

    def __init__(self, config: MSCGRecConfig) -> None:
        super().__init__(config)
        self.encoder.__class__ = MSCGRecEncoder
        if config.dual_positions:
            attention = self.encoder.block[0].layer[0].SelfAttention
            attention.has_relative_attention_bias = False
            del attention.relative_attention_bias
            self.encoder.item_distance = DistanceBias(config.max_history, config.num_heads)
            self.encoder.slot_distance = DistanceBias(config.tokens_per_item - 1, config.num_heads)
            for module in (self.encoder.item_distance, self.encoder.slot_distance):
                self._init_weights(module)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DistanceBias):  # as T5's own relative positions
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_factor * self.config.d_model**-0.5)

    def set_tokenizer(self, tokenizer: CEMGTokenizer) -> None:
        """As in CEMG; the tokenizer's first stream has to be the one that the decoder was trained to write.

        Raises:
            ValueError: another stream first, or as in CEMG.
        """
        streams, mine = getattr(tokenizer, "streams", None), self.config.streams
        if streams is not None and streams != mine and sorted(streams) == sorted(mine):
            raise ValueError(
                f"the decoder was trained to write {mine[0]} codes, after histories of {', '.join(mine)}; it cannot write those of a "
                f"tokenizer whose streams are {', '.join(streams)}: attach tokenizer.with_layout(…, decoded={mine[0]!r}), or train "
                f"with streams.decoded={streams[0]}"
            )
        super().set_tokenizer(tokenizer)

    @classmethod
    def from_t5(cls, backbone: T5ForConditionalGeneration, tokenizer: Any, **settings: Any) -> CEMGForConditionalGeneration:
        """As in CEMG, with the positions that the T5 was trained with.

        Raises:
            ValueError: `dual_positions`, or as in CEMG.
        """
        if settings.setdefault("dual_positions", False):
            raise ValueError("a pretrained T5 has relative positions of its own; set dual_positions=False")
        return super().from_t5(backbone, tokenizer, **settings)
