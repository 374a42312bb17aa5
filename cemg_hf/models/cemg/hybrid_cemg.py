"""Codes and dense scores in one ranking: the generator writes candidates, the dense tower adds its own, and both are scored by both.

LIGER (arXiv 2411.18814) unifies generative and dense retrieval in this way. An item's score is (1 − w) · Σ log p(code) + w · log p(item),
the second over the softmax of the dense tower over the whole catalogue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .dense_cemg import DenseTower
from .search_cemg import SearchMixin, evaluating
from .trie_cemg import ItemTrie

LEAST_SCORE = -1e30  # in the place of −∞, so that a branch of which nothing is possible still has a distribution


class Candidates(NamedTuple):
    """Items of a batch of histories that either half puts forward, and what both think of them.

    Item indices (B, C) int64 with −1 for none; Σ log p of their codes and log p of the dense tower (B, C) fp32, −inf for none.
    """

    items: Tensor
    codes: Tensor
    dense: Tensor

    def ranking(self, dense_weight: float, size: int) -> tuple[Tensor, Tensor]:
        """Items (B, ≤ size), best first, −1 where there is none, and scores (1 − w) · codes + w · dense."""
        scores = torch.where(self.items >= 0, (1 - dense_weight) * self.codes + dense_weight * self.dense, -torch.inf)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return self.items.gather(1, order)[:, :size], scores[:, :size]


class HybridMixin(SearchMixin):
    """Rankings of generator and dense tower together."""

    if TYPE_CHECKING:
        dense: DenseTower | None
        dense_item_codes: Tensor

    _dense_rows: tuple[ItemTrie, Tensor] | None = None

    @torch.inference_mode()
    def hybrid_candidates(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        num_beams: int,
        *,
        history: Tensor | None = None,
        trie: ItemTrie | None = None,
        excluded_items: Tensor | None = None,
        allowed_items: Tensor | None = None,
        restricted: Tensor | None = None,
    ) -> Candidates:
        """The `num_beams` best items of the beam search and those of the dense tower, every one scored by both.

        Arguments as for `rank`.

        Raises:
            ValueError: a model without a dense tower.
        """
        if self.dense is None:
            raise ValueError("this model has no dense tower, so dense_weight must be 0; train one with finetune.dense")
        trie = self.trie if trie is None else trie
        filters: dict[str, Any] = {"excluded_items": excluded_items, "allowed_items": allowed_items, "restricted": restricted}
        with evaluating(self):
            encoded = self._encode_history(input_ids, attention_mask)
            log_probs = self.dense_log_probs(self._history(input_ids, history, attention_mask))
            possible = possible_items(log_probs.shape[1], trie, len(log_probs), **filters)
            best, found = log_probs.masked_fill(~possible, -torch.inf).topk(min(num_beams, log_probs.shape[1]), dim=1)
            found = found.masked_fill(best == -torch.inf, -1)
            beside = self._beside(*encoded, found)
            written, codes = self._search(trie, *encoded, num_beams, None, beside=beside, **filters)
        twice = (found.unsqueeze(2) == written.unsqueeze(1)).any(dim=2)
        codes = torch.cat([codes, beside.scores.masked_fill(twice, -torch.inf)], dim=1)
        items = torch.cat([written, found.masked_fill(twice, -1)], dim=1)
        dense = log_probs.gather(1, items.clamp(min=0)).masked_fill(items < 0, -torch.inf)
        return Candidates(items, codes, dense)

    def dense_log_probs(self, items: Tensor) -> Tensor:
        """(B, N) fp32 log p of the dense tower over all items of the catalogue, after histories (B, L) of item indices, −1 = padding."""
        assert self.dense is not None
        vectors, longest = self.dense_vectors(), self.dense.settings.max_history
        if items.shape[1] > longest:  # a row's last items, whose end padding may follow
            first = ((items >= 0).sum(dim=1, keepdim=True) - longest).clamp(min=0)
            items = items.gather(1, first + torch.arange(longest, device=items.device))
        states = self.dense.last_states(items, vectors)
        scores = self.dense.scores(states, vectors)
        if self.dense.content is None:  # it knows nothing of new items, which come last
            scores = torch.where(self._tower_rows() >= 0, scores, scores.amin(dim=1, keepdim=True) - 1)
        return scores.log_softmax(dim=1)

    def dense_vectors(self) -> Tensor:
        """(N, d) the dense tower's vectors of the catalogue as it is now; new items are known by their content alone."""
        assert self.dense is not None
        return self.dense.item_vectors(self._tower_rows(), self._on_device("item_vectors"))

    def _tower_rows(self) -> Tensor:
        """(N,) int64 row of each item in the dense tower, −1 for items that came after its training."""
        trie, kept = self.trie, self._dense_rows
        if kept is None or kept[0] is not trie:
            with torch.inference_mode(False):  # the rows of an embedding that may be trained with them later
                trained = ItemTrie(self.dense_item_codes, self.config.codebook_size)  # codes, because indices change when items go
                leaves = trained.walk(self._on_device("item_codes"))
                known = (leaves >= 0) & ~self._on_device("new_items")
                kept = self._dense_rows = (trie, torch.where(known, trained.leaf_items[leaves.clamp(min=0)].long(), -1))
        return kept[1]


def possible_items(
    count: int, trie: ItemTrie, rows: int, excluded_items: Tensor | None, allowed_items: Tensor | None, restricted: Tensor | None
) -> Tensor:
    """(rows or 1, count) bool: items that are in the trie, not excluded and, where a row has a list of allowed ones, on it.

    Args as for `rank`; lists hold item indices, −1 = none.
    """
    device = trie.device
    possible = torch.zeros(1, count, dtype=torch.bool, device=device)
    possible[0, trie.leaf_items.long()] = True

    def listed(entries: Tensor) -> Tensor:
        marked = torch.zeros(rows, count + 1, dtype=torch.bool, device=device)  # the last column takes what is no item
        entries = entries.to(device)
        return marked.scatter_(1, torch.where(entries >= 0, entries, count), True)[:, :-1]

    if excluded_items is not None:
        possible = possible & ~listed(excluded_items)
    if allowed_items is not None:
        allowed = listed(allowed_items)
        possible = possible & (allowed if restricted is None else allowed | ~restricted.to(device).unsqueeze(1))
    return possible


def code_distributions(scores: Tensor, codes: Tensor, trie: ItemTrie) -> Tensor:
    """What a softmax over items says about their codes, level by level: p(c_m | c_1 … c_{m−1}) along the codes of targets.

    p of a code is the mass of the items under it over the mass of the items under its prefix. Items in the order of the trie's leaves
    make every node a run of leaves, and its mass a difference of two cumulative sums: over all leaves for the first level, over those
    under the target's prefix for the others, because a prefix may have next to no mass in the whole.

    Args:
        scores: (n, N) logits of the items, in the order of `trie.leaf_items`.
        codes: (n, M) codes of the targets, which are items of the trie.
        trie: the catalogue.

    Returns: (n, M, K) fp32, rows summing to 1.
    """
    scores = scores.float().clamp(min=LEAST_SCORE)
    below = (scores - scores.amax(dim=1, keepdim=True)).exp().cumsum(dim=1)
    nodes = torch.zeros(len(codes), dtype=torch.int64, device=codes.device)
    start = torch.zeros_like(nodes)
    levels = []
    for level in range(trie.num_levels):
        children = trie.children(level, nodes)
        numbers = children.first.unsqueeze(-1) + torch.arange(children.codes.shape[-1], device=codes.device)
        first, last = trie.leaf_range(level + 1, numbers.clamp(max=trie.num_nodes(level + 1) - 1))
        masses = _between(below, first - start.unsqueeze(1), last - start.unsqueeze(1)).masked_fill(~children.valid, 0.0)
        nothing = masses.sum(dim=1, keepdim=True) == 0  # next to the rest of the catalogue: all children alike
        masses = torch.where(nothing, children.valid.to(masses.dtype), masses)
        spread = torch.zeros(len(codes), trie.codebook_size + 1, dtype=masses.dtype, device=codes.device)
        # Padding goes to a column of its own, so that it cannot overwrite code 0.
        spread.scatter_(1, torch.where(children.valid, children.codes, trie.codebook_size), masses)
        levels.append((spread[:, :-1] / spread[:, :-1].sum(dim=1, keepdim=True)).float())
        nodes = trie.descend(level, nodes, codes[:, level])
        if level + 1 < trie.num_levels:
            start, end = trie.leaf_range(level + 1, nodes)
            places = start.unsqueeze(1) + torch.arange(int((end - start).max()) if len(nodes) else 0, device=codes.device)
            outside = places >= end.unsqueeze(1)
            own = scores.gather(1, places.clamp(max=scores.shape[1] - 1)).masked_fill(outside, -torch.inf)
            below = own.double().softmax(dim=1).cumsum(dim=1)
    return torch.stack(levels, dim=1)


def _between(below: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """(n, D) sums over the runs first … last − 1 from inclusive cumulative sums (n, L)."""
    limit = below.shape[1] - 1
    until = below.gather(1, (last - 1).clamp(0, limit))
    before = below.gather(1, (first - 1).clamp(0, limit)).masked_fill(first <= 0, 0.0)
    return (until - before).clamp(min=0)
