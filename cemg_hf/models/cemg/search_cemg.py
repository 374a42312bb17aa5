"""The search of a trained generator: one pass over a history, then level by level through the trie of the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .decoding_cemg import BeamDecoder
from .generation_cemg import Diversity, ItemFilter, PrefixConstrainedLogitsProcessor, constrained_beam_search
from .tokenization_cemg import CEMGTokenizer
from .trie_cemg import ItemTrie

if TYPE_CHECKING:
    from transformers import T5PreTrainedModel as Base
else:
    Base = object


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout, whatever the model's mode; the mode is as before afterwards."""
    training = model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


class SearchMixin(Base):
    """The catalogue on the model's device, the constrained beam search in it, and the scores of given items."""

    if TYPE_CHECKING:
        config: Any
        tokenizer: CEMGTokenizer | None
        encoder: Any
        decoder: Any

        def _cross_attention_mask(self, attention_mask: Tensor, seen_items: Tensor | None) -> Tensor: ...
        def _level_logits(self, hidden: Tensor, first_level: int) -> Tensor: ...

    _moved_trie: tuple[ItemTrie, ItemTrie] | None = None
    _moved_tensors: tuple[ItemTrie, dict[str, Tensor | None]] | None = None

    @property
    def trie(self) -> ItemTrie:
        """The trie of the tokenizer's catalogue as it is now, on the model's device."""
        if self.tokenizer is None:
            raise ValueError(
                "the model has no catalogue yet; load it from a folder that holds its tokenizer, or call model.set_tokenizer(tokenizer)"
            )
        trie = self.tokenizer.trie
        moved = self._moved_trie
        if moved is None or moved[0] is not trie or moved[1].device != self.device:
            with torch.inference_mode(False):  # what a search moves, a training step may have to keep for its backward pass
                moved = self._moved_trie = (trie, trie.to(self.device))
        return moved[1]

    def prefix_constraint(self) -> PrefixConstrainedLogitsProcessor:
        """The logits processor that keeps transformers' own `generate` loop inside the catalogue."""
        return PrefixConstrainedLogitsProcessor(self.trie, self.config.first_code_id, self.config.constrained_softmax)

    def _on_device(self, name: str) -> Any:
        """The tensor (or None) that the tokenizer has under `name`, such as "item_codes": moved once, not with every batch."""
        trie, moved = self.trie, self._moved_tensors
        if moved is None or moved[0] is not trie:
            moved = self._moved_tensors = (trie, {})
        if name not in moved[1]:
            tensor = getattr(self.tokenizer, name)
            with torch.inference_mode(False):  # as above
                moved[1][name] = None if tensor is None else tensor.to(self.device)
        return moved[1][name]

    @torch.inference_mode()
    def score_items(self, input_ids: Tensor, attention_mask: Tensor, items: Tensor) -> Tensor:
        """(B, C) fp32 Σ log p of the codes of items (B, C), −inf for −1: what the beam search gives them if it finds them."""
        with evaluating(self):
            return self._score(*self._encode_history(input_ids, attention_mask), items.to(self.device))

    def _score(self, attention_mask: Tensor, states: Tensor, items: Tensor) -> Tensor:
        """`score_items` from encoded histories: the candidates are the beams, and none of them ever leaves."""
        trie, config = self.trie, self.config
        codes = self._on_device("item_codes")[items.clamp(min=0)]
        next_level = self._level_scorer(attention_mask, states)
        beams = torch.arange(items.shape[1], device=self.device).expand(len(items), -1)
        total = torch.zeros(items.shape, device=self.device)
        nodes = torch.zeros_like(items)
        for level in range(config.num_levels):
            logits = next_level(level, beams, codes[..., level - 1]).float()
            if config.constrained_softmax:
                logits = logits.masked_fill(~trie.allowed(level, nodes), -torch.inf)
                nodes = trie.descend(level, nodes, codes[..., level])
            total = total + logits.log_softmax(dim=-1).gather(-1, codes[..., level : level + 1]).squeeze(-1)
        return total.masked_fill(items < 0, -torch.inf)

    def _encode_history(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Attention mask on the model's device, and the encoder's states (B, S, D)."""
        input_ids, attention_mask = input_ids.to(self.device), attention_mask.to(self.device)
        return attention_mask, self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    def _search(
        self,
        trie: ItemTrie,
        attention_mask: Tensor,
        states: Tensor,
        num_beams: int,
        diversity: Diversity | None = None,
        *,
        excluded_items: Tensor | None = None,
        allowed_items: Tensor | None = None,
        restricted: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Constrained beam search in `trie` from encoded histories."""
        next_level = self._level_scorer(attention_mask, states)
        items = None
        if excluded_items is not None or allowed_items is not None:
            items = ItemFilter(
                trie, *(None if rows is None else rows.to(trie.device) for rows in (excluded_items, allowed_items, restricted))
            )
        whole = self.trie if self.config.constrained_softmax else None
        return constrained_beam_search(next_level, trie, len(states), num_beams, items, diversity, normalised_in=whole)

    def _level_scorer(self, attention_mask: Tensor, states: Tensor) -> Callable[[int, Tensor, Tensor], Tensor]:
        """(level, parents (B, W), codes (B, W) of the level before) → logits (B, W, K) of a level; to be called level by level."""
        config = self.config
        decoder = BeamDecoder(self.decoder, states, self._cross_attention_mask(attention_mask, seen_items=None), config.num_levels)

        def next_level(level: int, parents: Tensor, codes: Tensor) -> Tensor:
            first = config.first_code_id + (level - 1) * config.codebook_size
            tokens = codes + first if level else torch.full_like(codes, config.decoder_start_token_id)
            hidden = decoder.step(tokens, parents)
            if config.scale_decoder_outputs:
                hidden = hidden * config.d_model**-0.5
            return self._level_logits(hidden.unsqueeze(-2), first_level=level).squeeze(-2)

        return next_level
