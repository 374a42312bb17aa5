"""The decoder as a beam search needs it: every step computes one token per beam and nothing twice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.t5.modeling_t5 import T5Attention, T5Stack


class BeamDecoder:
    """T5's decoder over the beams of a batch of users, with T5's own weights.

    Beams are queries: the keys and values of a user's history exist once per layer, whatever the number of beams. Of the beams' own
    tokens, at most M, keys and values are kept and follow their beams by index. For a model in evaluation mode.

    Args:
        decoder: T5's decoder stack.
        states: (B, S, D) encoder output.
        cross_mask: (B, heads or 1, 1, S) what is added to the attention to the history.
        num_levels: M, the largest number of steps.
    """

    def __init__(self, decoder: T5Stack, states: Tensor, cross_mask: Tensor, num_levels: int) -> None:
        self.decoder = decoder
        self.blocks: list[Any] = list(decoder.block)
        self.cross_mask = cross_mask
        self.cross: list[tuple[Tensor, Tensor]] = []
        """Per layer: keys and values (B, heads, S, d_kv) of the history."""
        self.own: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.blocks]
        """Per layer and step: keys and values (B, W of that step, heads, d_kv) of the beams' own tokens, also of beams that ended."""
        self.ancestors: list[Tensor] = []
        """Per step before: (B, W) which of its beams each beam of now continues."""
        for block in self.blocks:
            attention = block.layer[1].EncDecAttention
            self.cross.append((_heads(attention, attention.k(states)), _heads(attention, attention.v(states))))
        first: T5Attention = self.blocks[0].layer[0].SelfAttention
        self.bias = first.compute_bias(num_levels, num_levels, device=states.device)[0]
        """(heads, M, M) relative position bias of the beams' own tokens."""

    def step(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """(B, W, D) hidden states after one more token per beam.

        Args:
            tokens: (B, W) token ids.
            parents: (B, W) which beam of the step before each beam continues; not looked at in the first step.
        """
        if self.own[0]:
            self.ancestors = [*(beams.gather(1, parents) for beams in self.ancestors), parents]
        hidden = self.decoder.embed_tokens(tokens)
        for number, block in enumerate(self.blocks):
            own, cross, feed_forward = block.layer
            hidden = _finite(hidden + self._attend_to_own(number, own.SelfAttention, own.layer_norm(hidden)))
            hidden = _finite(hidden + self._attend_to_history(number, cross.EncDecAttention, cross.layer_norm(hidden)))
            hidden = _finite(hidden + feed_forward.DenseReluDense(feed_forward.layer_norm(hidden)))
        return self.decoder.final_layer_norm(hidden)

    def _attend_to_own(self, number: int, attention: T5Attention, hidden: Tensor) -> Tensor:
        heads = (attention.n_heads, attention.key_value_proj_dim)
        query = attention.q(hidden).unflatten(-1, heads)
        now = attention.k(hidden).unflatten(-1, heads), attention.v(hidden).unflatten(-1, heads)
        tokens = [tuple(_follow(past, beams) for past in pair) for pair, beams in zip(self.own[number], self.ancestors, strict=True)]
        tokens.append(now)
        self.own[number].append(now)
        # A query has at most M keys: products and sums element by element, a matrix product of this size would be all overhead.
        scores = torch.stack([(query * keys).sum(-1) for keys, _ in tokens])  # (tokens, B, W, heads)
        bias = self.bias[:, len(tokens) - 1, : len(tokens)].T[:, None, None]
        weights = (scores + bias).float().softmax(dim=0).to(hidden.dtype).unsqueeze(-1)
        context = weights[0] * tokens[0][1]
        for weight, (_, values) in zip(weights[1:], tokens[1:], strict=True):
            context = torch.addcmul(context, weight, values)
        return attention.o(context.flatten(-2))

    def _attend_to_history(self, number: int, attention: T5Attention, hidden: Tensor) -> Tensor:
        keys, values = self.cross[number]
        query = _heads(attention, attention.q(hidden))
        mask = self.cross_mask.expand(-1, query.shape[1], query.shape[2], -1)
        context = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=1.0)  # T5 does not scale
        return attention.o(context.transpose(1, 2).flatten(-2))


def _follow(past: Tensor, beams: Tensor) -> Tensor:
    """Rows `beams` (B, W) of past (B, V, heads, d_kv), as (B, W, heads, d_kv)."""
    batch, width = past.shape[:2]
    rows = beams + width * torch.arange(batch, device=beams.device).unsqueeze(1)
    return past.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, beams.shape)


def _heads(attention: T5Attention, values: Tensor) -> Tensor:
    """(B, L, heads · d_kv) → (B, heads, L, d_kv)."""
    return values.unflatten(-1, (attention.n_heads, attention.key_value_proj_dim)).transpose(1, 2)


def _finite(hidden: Tensor) -> Tensor:
    """Half precision overflows in T5's residual stream; it is clamped as T5 does."""
    if hidden.dtype != torch.float16:
        return hidden
    largest = torch.finfo(hidden.dtype).max
    return hidden.clamp(-largest, largest)
