"""MMGRec's recommender: an encoder with relation-aware self-attention over the history, a decoder that writes the next item's Rec-ID.

What the paper leaves open, and what is done here
- *Order.* The encoder has no positions (section 3.3.2): it reads a set. Its input is the chronological history all the same, cut to its
  last items. With `item_causal` an item attends to itself and to earlier ones only, which is not in the paper; one pass then trains all
  prefixes of a sequence. `item_causal=False` is the paper's encoder. Either way a target never sees later interactions of its user
  (the paper, which splits at random, shows the whole history without the target).
- *h_u* comes from the graph of the training interactions, hence also from the targets trained on. Only the three scalars of eq. 18
  see it; it is no token of the input, which figure 2 could also be read as: that would give the target away in training.
  A user the graph does not know has the mean of all users.
- *Eq. 18*: one MLP per layer gives the three scalars; the U of every layer are its own, shared by its heads.
- *Start.* A learned `<s>` comes before the history, so that an empty one has something to attend to.
- *Input embeddings* (eq. 13) start as h_i and are trained further.
- *Rec-ID tokens.* Loss and scores are over the K tokens of the level in question and there is no end token, as everywhere in this package;
  the decoder's positions are learned.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import cached_file

from ..cemg.generation_cemg import ItemFilter, constrained_beam_search
from ..cemg.objective_cemg import IGNORED
from ..cemg.trie_cemg import ItemTrie
from ..next_item import ITEM_IDS_FILE
from .configuration_mmgrec import MMGRecModelConfig


class MMGRecOutput(NamedTuple):
    """`loss`: mean over targets and levels; `logits` (B, T, M, K) over the tokens of each level."""

    loss: Tensor
    logits: Tensor


class RelationAwareAttention(nn.Module):
    """Multi-head self-attention with user-specific relations between the items (eq. 14–19).

    X = softmax(E (W^Q W^Kᵀ + W_u^Q W_u^Kᵀ) Eᵀ / √D) E (W^V + W_u^V), with W_u = MLP(h_u) · U. The W are D × D and differ between heads, the
    U are shared by them. Both products are one: of queries and keys that hold the two parts side by side.
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.width, self.num_heads, self.dropout = width, num_heads, dropout
        self.query, self.key, self.value = (nn.Linear(width, num_heads * width, bias=False) for _ in range(3))
        self.user_query, self.user_key, self.user_value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.user_scales = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))
        self.output = nn.Linear(num_heads * width, width)

    def forward(self, items: Tensor, user: Tensor, allowed: Tensor) -> Tensor:
        """(B, S, D) → (B, S, D).

        Args:
            items: (B, S, D) e.
            user: (B, D) h_u.
            allowed: (B, S or 1, S) bool, which items each item attends to.
        """
        query_scale, key_scale, value_scale = self.user_scales(user)[:, None, None].unbind(dim=-1)  # (B, 1, 1) each
        query = self._both(self.query(items), query_scale * self.user_query(items))
        key = self._both(self.key(items), key_scale * self.user_key(items))
        value = self._heads(self.value(items)) + (value_scale * self.user_value(items)).unsqueeze(1)
        mixed = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=allowed.unsqueeze(1),
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.width**-0.5,
        )
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _heads(self, values: Tensor) -> Tensor:
        """(B, S, heads · D) → (B, heads, S, D)."""
        return values.unflatten(-1, (self.num_heads, self.width)).transpose(1, 2)

    def _both(self, own: Tensor, shared: Tensor) -> Tensor:
        """Of (B, S, heads · D) per head and (B, S, D) for all heads: (B, heads, S, 2D)."""
        return torch.cat([self._heads(own), shared.unsqueeze(1).expand(-1, self.num_heads, -1, -1)], dim=-1)


class RelationAwareLayer(nn.Module):
    """Relation-aware self-attention and a feed-forward network, each with a residual connection and layer normalisation after it."""

    def __init__(self, config: MMGRecModelConfig) -> None:
        super().__init__()
        self.attention = RelationAwareAttention(config.d_model, config.num_heads, config.dropout_rate)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.d_model, config.d_ff), nn.ReLU(), nn.Dropout(config.dropout_rate), nn.Linear(config.d_ff, config.d_model)
        )
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(config.d_model), nn.LayerNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, items: Tensor, user: Tensor, allowed: Tensor) -> Tensor:
        """As `RelationAwareAttention.forward`."""
        items = self.attention_norm(items + self.dropout(self.attention(items, user, allowed)))
        return self.feed_forward_norm(items + self.dropout(self.feed_forward(items)))


class MMGRecForRecommendation(PreTrainedModel):
    """History of items → Rec-ID of the next one. The folder of `save_pretrained` holds the catalogue: item ids, Rec-IDs, user vectors."""

    config_class = MMGRecModelConfig
    base_model_prefix = "mmgrec"
    main_input_name = "history"

    def __init__(self, config: MMGRecModelConfig) -> None:
        super().__init__(config)
        width, levels, size = config.d_model, config.num_levels, config.codebook_size
        self.items = nn.Embedding(config.num_items + 1, width)  # the last row is `<s>`
        self.encoder = nn.ModuleList(RelationAwareLayer(config) for _ in range(config.num_layers))
        self.tokens = nn.Embedding(1 + levels * size, width)  # row 0 opens every Rec-ID
        self.positions = nn.Embedding(levels, width)
        layer = nn.TransformerDecoderLayer(width, config.num_heads, config.d_ff, config.dropout_rate, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, config.num_decoder_layers)
        self.head = nn.Linear(width, levels * size)
        self.dropout = nn.Dropout(config.dropout_rate)
        self.register_buffer("item_codes", torch.zeros(config.num_items, levels, dtype=torch.int64))
        self.register_buffer("user_vectors", torch.zeros(config.num_users + 1, width))  # the last row is the mean: user −1
        self.item_codes: Tensor
        """(N, M) int64 Rec-IDs."""
        self.user_vectors: Tensor
        """(U + 1, D) h_u."""
        self.item_ids: list[str] = []
        self._trie: ItemTrie | None = None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Xavier, as the paper has it, but embeddings standard normal, which is the scale of h_i."""
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.MultiheadAttention):
            init.xavier_uniform_(module.in_proj_weight)
            init.zeros_(module.in_proj_bias)

    @torch.no_grad()
    def set_catalogue(self, item_ids: list[str], item_codes: Tensor, item_vectors: Tensor, user_vectors: Tensor) -> None:
        """Put in what Rec-ID assignment found: Rec-IDs (N, M), h_i (N, D) as input embeddings, h_u (U, D).

        Raises:
            ValueError: another catalogue size, Rec-ID length, number of users or width than the configuration has.
        """
        expected = {
            "item_codes": (item_codes, (self.config.num_items, self.config.num_levels)),
            "item_vectors": (item_vectors, (self.config.num_items, self.config.d_model)),
            "user_vectors": (user_vectors, (self.config.num_users, self.config.d_model)),
        }
        for name, (values, shape) in expected.items():
            if tuple(values.shape) != shape:
                raise ValueError(f"{name}: shape {tuple(values.shape)}, expected {shape}")
        if len(item_ids) != len(item_codes):
            raise ValueError(f"item_ids: {len(item_ids)} of them for {len(item_codes)} Rec-IDs; give one per item")
        self.item_codes.copy_(item_codes)
        self.items.weight[:-1].copy_(item_vectors)
        self.user_vectors[:-1].copy_(user_vectors)
        self.user_vectors[-1].copy_(user_vectors.mean(dim=0) if len(user_vectors) else self.user_vectors[-1])
        self.item_ids, self._trie = list(item_ids), None

    @property
    def trie(self) -> ItemTrie:
        """The prefix tree of the Rec-IDs, on the device of the model."""
        if self._trie is None:
            self._trie = ItemTrie(self.item_codes, self.config.codebook_size)
        self._trie = self._trie.to(self.device)
        return self._trie

    # ---- loading and saving ---------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """As in transformers, with the item ids of the catalogue."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        where = {key: kwargs[key] for key in ("cache_dir", "local_files_only", "token", "revision", "subfolder") if key in kwargs}
        item_ids = cached_file(pretrained_model_name_or_path, ITEM_IDS_FILE, **where)
        assert item_ids is not None, "cached_file raises for what is missing"
        model.item_ids = json.loads(Path(item_ids).read_text(encoding="utf-8"))
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As in transformers, with the item ids of the catalogue."""
        super().save_pretrained(save_directory, *args, **kwargs)
        (Path(save_directory) / ITEM_IDS_FILE).write_text(json.dumps(self.item_ids, ensure_ascii=False), encoding="utf-8")

    # ---- the network ------------------------------------------------------------------------------------------------------

    def encode(self, history: Tensor, users: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder states (B, 1 + H, D) of `<s>` and the history, and which of them there are, (B, 1 + H) bool.

        Args:
            history: (B, H) item indices, chronological, −1 behind a shorter one.
            users: (B,) user indices, −1 for a user the model does not know.
        """
        given = history >= 0
        present = torch.cat([given.new_ones(len(given), 1), given], dim=1)
        start = history.new_full((len(history), 1), self.config.num_items)
        states = self.dropout(self.items(torch.cat([start, history.clamp(min=0)], dim=1)))
        allowed = present.unsqueeze(1)
        if self.config.item_causal:
            place = torch.arange(present.shape[1], device=history.device)
            allowed = allowed & (place <= place.unsqueeze(1))
        user = self.user_vectors[users]
        for layer in self.encoder:
            states = layer(states, user, allowed)
        return states, present

    def decode(self, prefixes: Tensor, states: Tensor, seen: Tensor) -> Tensor:
        """Decoder over C independent Rec-IDs per user (targets in training, beams in the search) in one pass.

        They lie one after the other in one sequence; each is causal in itself and sees no other.

        Args:
            prefixes: (B, C, m) decoder tokens, the opening one first.
            states: (B, S, D) encoder states.
            seen: (B, S) bool, states that all of the user's Rec-IDs see, or (B, C, S), those each one sees.

        Returns: (B, C, m, D).
        """
        _, count, length = prefixes.shape
        token = torch.arange(count * length, device=prefixes.device)
        block = token.div(length, rounding_mode="floor")
        own = (block == block.unsqueeze(1)) & (token <= token.unsqueeze(1))
        masks: dict[str, Tensor] = {"memory_key_padding_mask": ~seen}
        if seen.ndim == 3:
            masks = {"memory_mask": ~seen.repeat_interleave(length, dim=1).repeat_interleave(self.config.num_heads, dim=0)}
        inputs = self.dropout(self.tokens(prefixes) + self.positions.weight[:length]).flatten(1, 2)
        return self.decoder(inputs, states, tgt_mask=~own, **masks).unflatten(1, (count, length))

    def forward(self, history: Tensor, users: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> MMGRecOutput:
        """Cross-entropy between the decoder's output and the targets' Rec-IDs.

        Args:
            history, users: as for `encode`.
            labels: (B, T) item indices, −100 is ignored. T = 1: the item after the whole history; T = 1 + H, for an item-causal model:
                target t (from 0) sees the first t items of the history.
            num_items_in_batch: divide the loss by this number of targets instead of by the batch's own.
        """
        if labels.shape[1] not in (1, 1 + history.shape[1]) or (labels.shape[1] > 1 and not self.config.item_causal):
            raise ValueError(
                f"labels: {labels.shape[1]} targets for a history of {history.shape[1]} items; give one, or, to an item-causal model, "
                "one more than the history has"
            )
        counted = labels != IGNORED
        codes = self.item_codes[labels.clamp(min=0)]
        states, present = self.encode(history, users)
        seen = present
        if labels.shape[1] > 1:
            place = torch.arange(labels.shape[1], device=labels.device)
            seen = present.unsqueeze(1) & (place <= place.unsqueeze(1))
        prefixes = torch.cat([torch.zeros_like(codes[..., :1]), self._as_tokens(codes[..., :-1])], dim=-1)
        hidden = self.decode(prefixes, states, seen)
        weight, bias = self._level_heads()
        logits = torch.einsum("bcmd,mkd->bcmk", hidden, weight) + bias
        aims = codes.masked_fill(~counted.unsqueeze(-1), IGNORED)
        loss = functional.cross_entropy(logits.flatten(0, 2).float(), aims.flatten(), ignore_index=IGNORED, reduction="sum")
        count = counted.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return MMGRecOutput(loss / (self.config.num_levels * count), logits)

    @torch.no_grad()
    def rank(self, history: Tensor, users: Tensor, num_beams: int, excluded_items: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Most probable next items by constrained beam search, for a model in evaluation mode.

        Args:
            history, users: as for `encode`.
            num_beams: W.
            excluded_items: (B, E) item indices that may not come out, −1 = none.

        Returns: item indices (B, ≤ W), best first, −1 where fewer are possible, and Σ log p (−inf there).
        """
        states, present = self.encode(history, users)
        weight, bias = self._level_heads()
        written = torch.zeros(len(history), 1, 1, dtype=torch.int64, device=history.device)

        def next_level(level: int, parents: Tensor, codes: Tensor) -> Tensor:
            nonlocal written
            if level:
                before = written.gather(1, parents.unsqueeze(-1).expand(-1, -1, level))
                written = torch.cat([before, (1 + (level - 1) * self.config.codebook_size + codes).unsqueeze(-1)], dim=-1)
            return functional.linear(self.decode(written, states, present)[:, :, -1], weight[level], bias[level])

        excluded = None if excluded_items is None else ItemFilter(self.trie, denied=excluded_items)
        return constrained_beam_search(next_level, self.trie, len(history), num_beams, excluded)

    def _as_tokens(self, codes: Tensor) -> Tensor:
        """Decoder tokens of Rec-IDs (…, m), m ≤ M."""
        return 1 + codes + self.config.codebook_size * torch.arange(codes.shape[-1], device=codes.device)

    def _level_heads(self) -> tuple[Tensor, Tensor]:
        """Weights (M, K, D) and biases (M, K) of the output layer, by level."""
        levels = (self.config.num_levels, self.config.codebook_size)
        return self.head.weight.unflatten(0, levels), self.head.bias.unflatten(0, levels)
