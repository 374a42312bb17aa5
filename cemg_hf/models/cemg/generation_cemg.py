"""Decoding into the catalogue: the trie of item codes, the logits processor for `generate`, and the constrained beam search.

Rankings are by Σ log p over the M codes of an item (eq. 6), each log p normalised over the K codes of its level *before* the
trie masks, in fp32, without an end token. With that, `generate` + `PrefixConstrainedLogitsProcessor`, `constrained_beam_search`
and scoring every item of the catalogue give the same lists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor


class Children(NamedTuple):
    """Children of a batch of trie nodes, padded to the largest number of children at that depth, D."""

    nodes: Tensor  # (..., D) int64 node numbers at the next depth
    codes: Tensor  # (..., D) int64 code of the edge, 0 … K−1
    valid: Tensor  # (..., D) bool, False on the padding


class ItemTrie:
    """The prefix tree of all item codes as flat tensors (compressed sparse rows per depth).

    Items are sorted by their codes, so the node `n` of depth m stands for one run of consecutive leaves,
    `first_leaf[m][n] … first_leaf[m][n + 1]`, and its children are consecutive nodes of depth m + 1. A node is a number; the
    root is node 0 of depth 0 and a leaf is a node of depth M.

    Args:
        item_codes: (N, M) raw codes 0 … K−1, one row per item, all rows different.
        codebook_size: K.

    Raises:
        ValueError: codes out of range, an empty catalogue, or two items with the same code (names their rows).
    """

    def __init__(self, item_codes: Tensor, codebook_size: int) -> None:
        codes = torch.as_tensor(item_codes).to(torch.int64)
        if codes.ndim != 2 or codes.numel() == 0:
            raise ValueError(f"item_codes must be N × M with at least one item and level, got shape {tuple(codes.shape)}")
        if int(codes.min()) < 0 or int(codes.max()) >= codebook_size:
            raise ValueError(f"item_codes must lie in 0 … {codebook_size - 1}, found {int(codes.min())} … {int(codes.max())}")
        self.num_items, self.num_levels = codes.shape
        self.codebook_size = codebook_size
        leaf_items = torch.arange(self.num_items, device=codes.device)
        for level in reversed(range(self.num_levels)):  # sorts by whole codes; a single key would overflow at 512 codes on 8 levels
            leaf_items = leaf_items[codes[leaf_items, level].argsort(stable=True)]
        ordered = codes[leaf_items]
        # (N, M): whether a leaf's first m + 1 codes are others than its predecessor's.
        differs = torch.ones_like(ordered)
        differs[1:] = (ordered[1:] != ordered[:-1]).long().cummax(dim=1).values
        if not bool(differs[:, -1].all()):
            repeated = int((differs[:, -1] == 0).nonzero()[0])
            rows = sorted(leaf_items[repeated - 1 : repeated + 1].tolist())
            raise ValueError(f"items {rows[0]} and {rows[1]} share one code; item codes must be unique")
        self.leaf_items = leaf_items
        """(N,) item index of each leaf."""
        self.codes: list[Tensor] = []
        """Per level 0 … M−1: (nodes of depth m + 1,) code of the edge that leads to the node."""
        self.first_child: list[Tensor] = []
        """Per depth 0 … M−1: (nodes + 1,) first child of each node among the nodes of the next depth."""
        self.edge_keys: list[Tensor] = []
        """Per level: (nodes of depth m + 1,) parent · K + code, ascending, to find a child by its code."""
        closing = leaf_items.new_tensor([self.num_items])
        self.first_leaf = [torch.cat([starts, closing]) for starts in (closing * 0, *(column.nonzero().flatten() for column in differs.T))]
        """Per depth 0 … M: (nodes + 1,) first leaf of each node, closed by N."""
        for level in range(self.num_levels):
            starts = self.first_leaf[level + 1][:-1]
            self.codes.append(ordered[starts, level])
            self.first_child.append(torch.searchsorted(self.first_leaf[level + 1], self.first_leaf[level]))
            parents = torch.searchsorted(self.first_leaf[level], starts, right=True) - 1
            self.edge_keys.append(parents * codebook_size + self.codes[level])
        self.max_children = [int((first[1:] - first[:-1]).max()) for first in self.first_child]
        """Per depth 0 … M−1: the largest number of children of a node."""
        self.leaf_of_item = torch.empty_like(leaf_items)
        """(N,) leaf of each item index."""
        self.leaf_of_item[leaf_items] = torch.arange(self.num_items, device=codes.device)

    def to(self, device: torch.device | str) -> ItemTrie:
        """The same trie on another device (this object itself if it is there already)."""
        if self.leaf_items.device == torch.device(device):
            return self
        moved = object.__new__(ItemTrie)
        moved.__dict__.update(self.__dict__)
        moved.leaf_items, moved.leaf_of_item = self.leaf_items.to(device), self.leaf_of_item.to(device)
        for name in ("first_leaf", "codes", "first_child", "edge_keys"):
            setattr(moved, name, [tensor.to(device) for tensor in getattr(self, name)])
        return moved

    @property
    def device(self) -> torch.device:
        return self.leaf_items.device

    def num_nodes(self, depth: int) -> int:
        return len(self.first_leaf[depth]) - 1

    def subset(self, items: Tensor) -> ItemTrie:
        """The trie of the items `items` (n,) alone, n ≥ 1 and all different. Items keep the indices they have here, in both directions."""
        leaves = self.leaf_of_item[items]
        nodes = [torch.searchsorted(first, leaves, right=True) - 1 for first in self.first_leaf[1:]]
        codes = torch.stack([codes[node] for codes, node in zip(self.codes, nodes, strict=True)], dim=1)
        part = ItemTrie(codes, self.codebook_size)
        part.leaf_items = items[part.leaf_items]
        # An item outside gets the number that `sorted_leaves` pads with, so that excluding it excludes nothing.
        part.leaf_of_item = torch.full_like(self.leaf_of_item, part.num_items)
        part.leaf_of_item[part.leaf_items] = torch.arange(part.num_items, device=items.device)
        return part

    def children(self, depth: int, nodes: Tensor) -> Children:
        """Children of `nodes` (...,) of one depth; each field is (..., D). Node −1 has no children."""
        first = self.first_child[depth]
        slots = torch.arange(self.max_children[depth], device=nodes.device)
        start = first[nodes.clamp(min=0)].unsqueeze(-1)
        valid = (start + slots < first[nodes.clamp(min=0) + 1].unsqueeze(-1)) & (nodes >= 0).unsqueeze(-1)
        child = torch.where(valid, start + slots, 0)
        return Children(child, self.codes[depth][child], valid)

    def walk(self, codes: Tensor) -> Tensor:
        """Node reached from the root along `codes` (..., m), m ≤ M; −1 where no item begins so."""
        nodes = torch.zeros(codes.shape[:-1], dtype=torch.int64, device=codes.device)
        for level in range(codes.shape[-1]):
            code = codes[..., level]
            wanted = nodes * self.codebook_size + code
            child = torch.searchsorted(self.edge_keys[level], wanted).clamp(max=len(self.edge_keys[level]) - 1)
            found = (nodes >= 0) & (code >= 0) & (code < self.codebook_size) & (self.edge_keys[level][child] == wanted)
            nodes = torch.where(found, child, -1)
        return nodes

    def allowed(self, depth: int, nodes: Tensor) -> Tensor:
        """(..., K) bool: codes that continue `nodes` (...,) towards an item."""
        children = self.children(depth, nodes)
        mask = torch.zeros(*nodes.shape, self.codebook_size + 1, dtype=torch.bool, device=nodes.device)
        # The padding is written to a column of its own, so that it cannot overwrite code 0.
        slots = torch.where(children.valid, children.codes, self.codebook_size)
        return mask.scatter_(-1, slots, True)[..., : self.codebook_size]

    def fully_excluded(self, depth: int, nodes: Tensor, excluded_leaves: Tensor) -> Tensor:
        """Which `nodes` (B, ...) hold only excluded items.

        Args:
            excluded_leaves: (B, E) int64 *different* leaves in ascending order, padded at the end with N.
        """
        batch = nodes.shape[0]
        first = self.first_leaf[depth][nodes.reshape(batch, -1)]
        last = self.first_leaf[depth][nodes.reshape(batch, -1) + 1]
        inside = torch.searchsorted(excluded_leaves, last.contiguous()) - torch.searchsorted(excluded_leaves, first.contiguous())
        return (inside == last - first).reshape(nodes.shape)

    def sorted_leaves(self, items: Tensor) -> Tensor:
        """(B, E) item indices, −1 = none, as the ascending, duplicate-free leaves `fully_excluded` takes."""
        leaves = torch.where(items >= 0, self.leaf_of_item[items.clamp(min=0)], self.num_items).sort(dim=-1).values
        repeated = torch.zeros_like(leaves, dtype=torch.bool)
        repeated[:, 1:] = leaves[:, 1:] == leaves[:, :-1]
        return leaves.masked_fill(repeated, self.num_items).sort(dim=-1).values


class PrefixConstrainedLogitsProcessor(LogitsProcessor):
    """Keeps `generate` inside the catalogue: only codes that continue an item's code stay possible.

    Vectorised over batch × beams. The place in the trie is found from `input_ids`, because beam search reorders beams between
    steps. Scores are renormalised over the K codes of the level first, so that sums of them are Σ log p of eq. 6.

    Args:
        trie: the catalogue's trie.
        first_code_id: token id of code 0 of level 0 (`CEMGConfig.first_code_id`).

    Example:
        >>> model.generate(**inputs, num_beams=20, num_return_sequences=20, logits_processor=[model.prefix_constraint()])
    """

    def __init__(self, trie: ItemTrie, first_code_id: int) -> None:
        self.trie = trie
        self.first_code_id = first_code_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Args: input_ids (B·W, 1 + m) decoder tokens with the start token; scores (B·W, V). Returns (B·W, V), fp32.

        Raises:
            ValueError: generation goes on after the M codes of an item.
        """
        self.trie = self.trie.to(scores.device)
        level = input_ids.shape[1] - 1
        if level >= self.trie.num_levels:
            raise ValueError(f"an item has {self.trie.num_levels} codes; generate with max_new_tokens={self.trie.num_levels}")
        size = self.trie.codebook_size
        offsets = self.first_code_id + size * torch.arange(level, device=input_ids.device)
        nodes = self.trie.walk(input_ids[:, 1:] - offsets)
        first = self.first_code_id + level * size
        constrained = torch.full_like(scores, -torch.inf, dtype=torch.float32)
        log_probs = scores[:, first : first + size].float().log_softmax(dim=-1)
        constrained[:, first : first + size] = log_probs.masked_fill(~self.trie.allowed(level, nodes), -torch.inf)
        return constrained


def constrained_beam_search(
    level_log_probs: Callable[[Tensor], Tensor],
    trie: ItemTrie,
    batch_size: int,
    num_beams: int,
    excluded_items: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Beam search over the M levels of the trie; with `num_beams` ≥ N it scores the whole catalogue.

    Args:
        level_log_probs: maps prefixes (B, W, m) of raw codes to (B, W, K) log-probabilities of the next level.
        trie: the catalogue, on the device of the computation.
        batch_size: B.
        num_beams: beams kept after every level.
        excluded_items: (B, E) item indices that must not come out, −1 = none. They leave the trie, so beams are never spent
            on prefixes that lead to excluded items only.

    Returns:
        items (B, W) int64, best first, −1 where fewer than W items are possible, and scores (B, W) fp32, Σ log p (−inf there).
    """
    excluded_leaves = None if excluded_items is None else trie.sorted_leaves(excluded_items)
    nodes = torch.zeros(batch_size, 1, dtype=torch.int64, device=trie.device)
    scores = torch.zeros(batch_size, 1, dtype=torch.float32, device=trie.device)
    prefixes = torch.empty(batch_size, 1, 0, dtype=torch.int64, device=trie.device)
    for level in range(trie.num_levels):
        children = trie.children(level, nodes)
        possible = children.valid
        if excluded_leaves is not None:
            possible = possible & ~trie.fully_excluded(level + 1, children.nodes, excluded_leaves)
        totals = scores.unsqueeze(-1) + level_log_probs(prefixes).float().gather(-1, children.codes)
        totals = totals.masked_fill(~possible, -torch.inf).flatten(1)
        scores, chosen = totals.topk(min(num_beams, totals.shape[1]), dim=-1)
        parents = chosen // children.codes.shape[-1]
        codes = children.codes.flatten(1).gather(1, chosen)
        nodes = children.nodes.flatten(1).gather(1, chosen)
        prefixes = torch.cat([prefixes.gather(1, parents.unsqueeze(-1).expand(-1, -1, level)), codes.unsqueeze(-1)], dim=-1)
    return torch.where(scores > -torch.inf, trie.leaf_items[nodes], -1), scores


def merge_rankings(items: Tensor, scores: Tensor, others: Tensor, other_scores: Tensor, boost: float, size: int) -> tuple[Tensor, Tensor]:
    """One ranking out of two that share no item, the scores of the second raised by `boost`.

    Args:
        items, scores: (B, V), −1 and −inf where there is no item.
        others, other_scores: (B, W), the same for the second ranking, in any order.
        boost: added to the scores of the second.
        size: longest list wanted.

    Returns: items and scores (B, min(size, V + W)), best first; equal scores in the order given.
    """
    both = torch.cat([scores, other_scores + boost], dim=1)
    order = both.argsort(dim=1, descending=True, stable=True)[:, :size]
    return torch.cat([items, others], dim=1).gather(1, order), both.gather(1, order)
