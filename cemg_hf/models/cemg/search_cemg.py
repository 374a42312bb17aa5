"""The search of a trained generator: one pass over a history, then level by level through the trie of the catalogue."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .decoding_cemg import BeamDecoder
from .generation_cemg import (
    Diversity,
    ItemFilter,
    NextLevel,
    PrefixConstrainedLogitsProcessor,
    code_log_probs,
    constrained_beam_search,
)
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


class ItemsBeside:
    """Given items that are scored while a search goes on: beams beside its own, which none of them displaces.

    To the search it is the network. One pass of the decoder then scores what the search finds and what is given.

    Args:
        next_level: the network.
        trie: the whole catalogue.
        items: (B, C) item indices, −1 = none.
        codes: (B, C, M) their codes, anything for −1.
        constrained_softmax: whether log p is over the codes that continue the prefix in the catalogue.
    """

    def __init__(self, next_level: NextLevel, trie: ItemTrie, items: Tensor, codes: Tensor, constrained_softmax: bool) -> None:
        self.next_level, self.trie, self.codes = next_level, trie, codes
        self.absent = items < 0
        self.total = torch.zeros(items.shape, device=codes.device)
        self.width = 0  # of the search, at the level before
        self.nodes: list[Tensor] = []
        """With the constrained softmax, per level: (B, C) the nodes at which the items' codes of the level begin."""
        if constrained_softmax:
            node = trie.leaves_of(items.masked_fill(self.absent, 0))
            for depth in reversed(range(trie.num_levels)):
                node = trie.parents(depth, node)
                self.nodes.insert(0, node)

    def __call__(self, level: int, parents: Tensor, codes: Tensor) -> Tensor:
        """(B, W, K) logits for the W beams of the search; arguments as for `NextLevel`, of which the first level has one beam."""
        width = codes.shape[1]
        if level == 0:
            logits = self.next_level(level, parents, codes)
            own = logits.expand(-1, self.total.shape[1], -1)
        else:
            # All items begin at the one beam of the first level, and follow themselves from then on, behind the beams of the search.
            first = torch.arange(self.total.shape[1], device=codes.device) + self.width if level > 1 else parents.new_zeros(1)
            parents = torch.cat([parents, first.expand(self.total.shape)], dim=1)
            logits = self.next_level(level, parents, torch.cat([codes, self.codes[..., level - 1]], dim=1))
            logits, own = logits[:, :width], logits[:, width:]
        permissible = self.trie.children(level, self.nodes[level]) if self.nodes else None
        self.total = self.total + code_log_probs(own, self.codes[..., level : level + 1], permissible).squeeze(-1)
        self.width = width
        return logits

    @property
    def scores(self) -> Tensor:
        """(B, C) fp32 Σ log p of the levels so far, −inf for −1."""
        return self.total.masked_fill(self.absent, -torch.inf)


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
            beside = self._beside(*self._encode_history(input_ids, attention_mask), items.to(self.device))
            nobody = beside.codes.new_zeros(len(items), 1)
            for level in range(self.config.num_levels):  # without a search: one beam for the first level, none afterwards
                beside(level, nobody[:, level:], nobody[:, level:])
            return beside.scores

    def _beside(self, attention_mask: Tensor, states: Tensor, items: Tensor) -> ItemsBeside:
        """Items (B, C) to score on encoded histories."""
        codes = self._on_device("item_codes")[items.clamp(min=0)]
        return ItemsBeside(self._level_scorer(attention_mask, states), self.trie, items, codes, self.config.constrained_softmax)

    def _encode_history(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Attention mask on the model's device, and the encoder's states (B, S, D)."""
        input_ids, attention_mask = input_ids.to(self.device), attention_mask.to(self.device)
        return attention_mask, self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    def _history(self, input_ids: Tensor, history: Tensor | None, attention_mask: Tensor | None = None) -> Tensor:
        """(B, L) item indices of histories, −1 = padding at the end: those given, or what the tokens (B, S) that are not masked tell."""
        if history is not None:
            return history.to(self.device)
        if attention_mask is not None:  # whatever stands in masked places is no item
            input_ids = input_ids.masked_fill(attention_mask == 0, self.config.pad_token_id)
        return history_items(input_ids.to(self.device), self.trie, self.config.first_code_id)

    def _search(
        self,
        trie: ItemTrie,
        attention_mask: Tensor,
        states: Tensor,
        num_beams: int,
        diversity: Diversity | None = None,
        *,
        beside: ItemsBeside | None = None,
        excluded_items: Tensor | None = None,
        allowed_items: Tensor | None = None,
        restricted: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Constrained beam search in `trie` from encoded histories; `beside` are items to score in the same pass."""
        next_level = self._level_scorer(attention_mask, states) if beside is None else beside
        items = None
        if excluded_items is not None or allowed_items is not None:
            items = ItemFilter(
                trie, *(None if rows is None else rows.to(trie.device) for rows in (excluded_items, allowed_items, restricted))
            )
        whole = self.trie if self.config.constrained_softmax else None
        return constrained_beam_search(next_level, trie, len(states), num_beams, items, diversity, normalised_in=whole)

    def _level_scorer(self, attention_mask: Tensor, states: Tensor) -> NextLevel:
        """The network of a search over encoded histories; to be called level by level."""
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


def history_items(input_ids: Tensor, trie: ItemTrie, first_code_id: int) -> Tensor:
    """(B, L) item indices of token sequences (B, S), chronological, −1 = padding at the end, wherever the tokens' padding stands.

    Tokens that are no item of the trie are left out.
    """
    levels, size = trie.num_levels, trie.codebook_size
    if input_ids.shape[1] < levels:
        return input_ids.new_zeros(len(input_ids), 0)
    windows = (input_ids - first_code_id).unfold(1, levels, 1)  # an item begins where a code of the first level stands
    begins = (windows[..., 0] >= 0) & (windows[..., 0] < size)
    leaves = trie.walk(windows - size * torch.arange(levels, device=input_ids.device))
    present = begins & (leaves >= 0)
    items = torch.where(present, trie.leaf_items[leaves.clamp(min=0)].long(), -1)
    order = (~present).to(torch.uint8).argsort(dim=1, stable=True)
    longest = int(present.sum(dim=1).max())
    return items.gather(1, order)[:, :longest]
