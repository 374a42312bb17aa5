"""Codes and dense scores in one ranking: the generator writes candidates, the dense tower adds its own, and both are scored by both.

LIGER (arXiv 2411.18814) unifies generative and dense retrieval in this way. An item's score is (1 − w) · Σ log p(code) + w · log p(item),
the second over the softmax of the dense tower over the whole catalogue.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

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
