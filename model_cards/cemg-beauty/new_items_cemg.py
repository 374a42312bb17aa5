"""Items that came after training, ranked by beams of their own and, on request, by their content."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .hybrid_cemg import possible_items
from .search_cemg import SearchMixin, evaluating
from .trie_cemg import ItemTrie


class SeparateRankings(NamedTuple):
    """Rankings of trained and of new items, each by beams of its own.

    Item indices (B, W) int64 with −1 for none, and scores fp32.
    """

    items: Tensor
    scores: Tensor
    new_items: Tensor
    new_scores: Tensor


class NewItemsMixin(SearchMixin):
    """Rankings in which new items never compete with trained ones for beams."""

    _split_tries: tuple[ItemTrie, ItemTrie | None, ItemTrie | None] | None = None

    @torch.inference_mode()
    def rank_separately(
        self, input_ids: Tensor, attention_mask: Tensor, num_beams: int, *, trie: ItemTrie | None = None, **filters: Any
    ) -> SeparateRankings:
        """Trained and new items ranked apart, from one pass of the encoder: new items never compete with trained ones for beams.

        Arguments as for `rank`. `merge_rankings(*found, boost)` makes one list of the two, for any boost.
        """
        found = []
        with evaluating(self):
            encoded = self._encode_history(input_ids, attention_mask)
            for part in self._tries_by_age(self.trie if trie is None else trie):
                if part is None:
                    nothing = torch.empty(len(input_ids), 0, device=self.device)
                    found += [nothing.long(), nothing]
                else:
                    found += self._search(part, *encoded, num_beams, None, **filters)
        return SeparateRankings(*found)

    @torch.inference_mode()
    def score_new_items(
        self,
        found: SeparateRankings,
        input_ids: Tensor,
        size: int,
        *,
        dense: float,
        likelihood: float,
        history: Tensor | None = None,
        trie: ItemTrie | None = None,
        excluded_items: Tensor | None = None,
        allowed_items: Tensor | None = None,
        restricted: Tensor | None = None,
    ) -> SeparateRankings:
        """The same with the `size` best of *all* new items by likelihood · Σ log p + dense · cosine with the history.

        Σ log p is known of the items that `rank_separately` found; the others had less than the last of these, and get that. With
        `dense` = 0 the found ones keep their order.

        Raises:
            ValueError: weights that are negative or not finite, or a tokenizer without content vectors.
        """
        for name, weight in (("new_item_dense", dense), ("new_item_likelihood", likelihood)):
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"{name} must be a finite number of at least 0, got {weight}")
        items, scores = found.new_items, found.new_scores
        if not dense:
            return found._replace(new_scores=torch.where(items >= 0, likelihood * scores, -torch.inf))
        vectors = self._on_device("item_vectors")
        if vectors is None:  # also while there is no new item: settings that will fail should fail at once
            raise ValueError("new_item_dense needs content vectors, and this tokenizer holds none; leave it at 0")
        _, part = self._tries_by_age(self.trie if trie is None else trie)
        if part is None:
            return found
        new = part.leaf_items.long()
        cosines = functional.normalize(_history_vectors(self._history(input_ids, history), vectors), dim=1)
        cosines = cosines @ functional.normalize(vectors[new].float(), dim=1).T
        place = torch.full((len(vectors) + 1,), len(new), device=self.device)  # the last column takes what is no item
        place[new] = torch.arange(len(new), device=self.device)
        least = scores.masked_fill(scores == -torch.inf, torch.inf).amin(1, keepdim=True)
        log_probs = torch.where(least == torch.inf, 0.0, least).expand(-1, len(new) + 1).clone()
        log_probs.scatter_(1, place[torch.where(scores > -torch.inf, items, -1)], scores)
        totals = likelihood * log_probs[:, :-1] + dense * cosines

        possible = possible_items(len(vectors), part, len(totals), excluded_items, allowed_items, restricted)[:, new]
        totals = totals.masked_fill(~possible, -torch.inf)
        best, chosen = totals.topk(min(size, len(new)), dim=1)
        return found._replace(new_items=torch.where(best > -torch.inf, new[chosen], -1), new_scores=best)

    def _tries_by_age(self, whole: ItemTrie) -> tuple[ItemTrie | None, ItemTrie | None]:
        """Tries of the trained and of the new items of `whole`, None for one without items. Those of the whole catalogue are kept."""
        kept = self._split_tries
        if kept is not None and kept[0] is whole:
            return kept[1:]
        items = whole.leaf_items.long()
        new = self._on_device("new_items")[items]
        trained, added = (whole.subset(items[rows]) if bool(rows.any()) else None for rows in (~new, new))
        if whole is self.trie:
            self._split_tries = (whole, trained, added)
        return trained, added


def _history_vectors(items: Tensor, vectors: Tensor) -> Tensor:
    """(B, V) sum of the unit content vectors of the items of histories (B, L), −1 = padding."""
    return (functional.normalize(vectors[items.clamp(min=0)].float(), dim=-1) * (items >= 0).unsqueeze(-1)).sum(1)
