"""The prefix tree of the catalogue's item codes, as flat tensors that a beam search reads without leaving the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

KEY_BITS = 62  # of a sort key: an int64 without its sign


class Children(NamedTuple):
    """Children of a batch of trie nodes, padded to the largest number of children at that depth, D."""

    first: Tensor  # (...) int64 the first child's number at the next depth; the others follow
    codes: Tensor  # (..., D) int64 code of the edge, 0 … K−1
    valid: Tensor  # (..., D) bool, False on the padding


class ItemTrie:
    """The prefix tree of all item codes (compressed sparse rows per depth).

    Items are sorted by their codes, so that a node of depth m stands for one run of consecutive leaves and its children are
    consecutive nodes of depth m + 1. A node is a number; the root is node 0 of depth 0 and a leaf is a node of depth M. Per item the
    tree holds its leaf and its row (32 bits each) and, per depth, at most one code (8 bits up to K = 256) and one first child (32 bits):
    13 bytes an item for ten million items with 4 × 256 codes.

    Args:
        item_codes: (N, M) raw codes 0 … K−1, one row per item, all rows different, N < 2³¹.
        codebook_size: K.

    Raises:
        ValueError: codes out of range, an empty catalogue, or two items with the same code (names their rows).
    """

    def __init__(self, item_codes: Tensor, codebook_size: int) -> None:
        codes = torch.as_tensor(item_codes)
        if codes.ndim != 2 or codes.numel() == 0:
            raise ValueError(f"item_codes must be N × M with at least one item and level, got shape {tuple(codes.shape)}")
        if int(codes.min()) < 0 or int(codes.max()) >= codebook_size:
            raise ValueError(f"item_codes must lie in 0 … {codebook_size - 1}, found {int(codes.min())} … {int(codes.max())}")
        rows = _order(codes, codebook_size)
        columns = [column[rows].to(_smallest(codebook_size)) for column in codes.T]
        self._build(columns, codebook_size, rows.int())
        self.leaf_of_item = torch.empty_like(self.leaf_items)
        """(N,) int32 leaf of each item index; of a subset, leaf in the whole trie."""
        self.leaf_of_item[rows] = torch.arange(len(rows), dtype=torch.int32, device=codes.device)
        self.whole_leaves: Tensor | None = None
        """Of a subset: (n,) int32 leaf in the whole trie of each of its own leaves, ascending."""

    def _build(self, columns: list[Tensor], codebook_size: int, leaf_items: Tensor) -> None:
        """Args: columns: per level (n,) codes of the leaves, sorted by whole codes; leaf_items: (n,) int32 item of each leaf."""
        self.num_items, self.num_levels, self.codebook_size = len(leaf_items), len(columns), codebook_size
        self.leaf_items = leaf_items
        """(n,) int32 item index of each leaf."""
        self.codes: list[Tensor] = []
        """Per level 0 … M−1: code of the edge that leads to each node of depth m + 1, in the smallest type that holds K − 1, then as many
        zeros as a node has children at most, so that a row of that length begins at every node."""
        self.first_child: list[Tensor] = []
        """Per depth 0 … M−1: (nodes + 1,) int32 first child of each node among the nodes of the next depth."""
        differs = torch.zeros(self.num_items, dtype=torch.bool, device=leaf_items.device)
        differs[0] = True
        starts = torch.zeros(1, dtype=torch.int64, device=leaf_items.device)
        for column in columns:
            differs[1:] |= column[1:] != column[:-1]  # from the leaf before, in the codes so far
            node = differs.cumsum(0, dtype=torch.int32)  # counted from 1: node of the next depth that a leaf is under
            self.first_child.append(torch.cat([node[starts] - 1, node[-1:]]))
            starts = differs.nonzero().flatten()
            self.codes.append(column[starts])
        if len(starts) != self.num_items:
            twin = int((~differs).nonzero()[0])
            first, second = sorted(leaf_items[twin - 1 : twin + 1].tolist())
            raise ValueError(f"items {first} and {second} share one code; item codes must be unique")
        self.max_children = [int((first[1:] - first[:-1]).max()) for first in self.first_child]
        """Per depth 0 … M−1: the largest number of children of a node."""
        self.codes = [functional.pad(codes, (0, most)) for codes, most in zip(self.codes, self.max_children, strict=True)]

    def subset(self, items: Tensor) -> ItemTrie:
        """The trie of the items `items` (n,) alone, n ≥ 1 and all different; items keep the indices they have here, in both directions.

        O(n log n), whatever the size of the catalogue. Items that are not in this trie (of a subset) are left out.

        Raises:
            ValueError: none of them is in it.
        """
        leaves = self.leaves_of(items).sort().values
        leaves = leaves[leaves < self.num_items]
        if not len(leaves):
            raise ValueError("none of the items is in the trie")
        columns, nodes = [], leaves
        for depth in reversed(range(self.num_levels)):
            columns.append(self.codes[depth][nodes])
            nodes = self.parents(depth, nodes)
        part = object.__new__(ItemTrie)
        part._build(columns[::-1], self.codebook_size, self.leaf_items[leaves])
        part.leaf_of_item = self.leaf_of_item
        part.whole_leaves = leaves.int() if self.whole_leaves is None else self.whole_leaves[leaves]
        return part

    def to(self, device: torch.device | str) -> ItemTrie:
        """The same trie on another device (this object itself if it is there already)."""
        device = torch.empty(0, device=device).device  # "cuda" is "cuda:0"
        if self.device == device:
            return self
        moved = object.__new__(ItemTrie)
        moved.__dict__.update(self.__dict__)
        moved.leaf_items, moved.leaf_of_item = self.leaf_items.to(device), self.leaf_of_item.to(device)
        moved.whole_leaves = None if self.whole_leaves is None else self.whole_leaves.to(device)
        for name in ("codes", "first_child"):
            setattr(moved, name, [tensor.to(device) for tensor in getattr(self, name)])
        return moved

    @property
    def device(self) -> torch.device:
        return self.leaf_items.device

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        extra = [] if self.whole_leaves is None else [self.whole_leaves]
        return sum(tensor.nbytes for tensor in (self.leaf_items, self.leaf_of_item, *extra, *self.codes, *self.first_child))

    def num_nodes(self, depth: int) -> int:
        """Number of different prefixes of `depth` codes."""
        return self.num_items if depth == self.num_levels else len(self.first_child[depth]) - 1

    def leaves_of(self, items: Tensor) -> Tensor:
        """(...) int64 leaf of each item index (...); the number of leaves for −1 and for items that are not in this trie."""
        known = (items >= 0) & (items < len(self.leaf_of_item))
        leaves = self.leaf_of_item[items.masked_fill(~known, 0)]
        if self.whole_leaves is not None:
            place = torch.searchsorted(self.whole_leaves, leaves).clamp(max=self.num_items - 1)
            leaves = torch.where(self.whole_leaves[place] == leaves, place, self.num_items)
        return torch.where(known, leaves, self.num_items).long()

    def leaf_range(self, depth: int, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """First leaf and the one after the last, both (...) int64, under `nodes` (...) ≥ 0 of one depth."""
        first, last = nodes, nodes + 1
        for children in self.first_child[depth:]:
            first, last = children[first], children[last]
        return first.long(), last.long()

    def parents(self, depth: int, children: Tensor) -> Tensor:
        """(...) int64 nodes of `depth` whose children `children` (...) of the next depth are; the number of nodes for their number."""
        return torch.searchsorted(self.first_child[depth], children.int(), right=True) - 1

    def children(self, depth: int, nodes: Tensor) -> Children:
        """Children of `nodes` (...,) of one depth; each field is (..., D). Node −1 has no children."""
        bounds, most = self.first_child[depth], self.max_children[depth]
        known = nodes.clamp(min=0)
        first = bounds[known].long()
        count = torch.where(nodes >= 0, bounds[known + 1] - first, 0)
        codes = self.codes[depth].unfold(0, most, 1)[first]  # whole rows of a view: no index per child
        return Children(first, codes.long(), torch.arange(most, device=nodes.device) < count.unsqueeze(-1))

    def walk(self, codes: Tensor) -> Tensor:
        """Node reached from the root along `codes` (..., m), m ≤ M; −1 where no item begins so."""
        nodes = torch.zeros(codes.shape[:-1], dtype=torch.int64, device=codes.device)
        for level in range(codes.shape[-1]):
            nodes = self.descend(level, nodes, codes[..., level])
        return nodes

    def descend(self, depth: int, nodes: Tensor, codes: Tensor) -> Tensor:
        """Follow one edge from each node.

        Args:
            depth: codes that lead to `nodes`.
            nodes: (...) of that depth; −1 stays −1.
            codes: (...), the edge of each.

        Returns:
            (...) nodes of depth + 1; −1 where there is no such edge.
        """
        first, edges = self.first_child[depth], self.codes[depth]
        known = nodes.clamp(min=0)
        end = first[known + 1].long()
        low, high = first[known].long(), end
        for _ in range(self.max_children[depth].bit_length()):  # children stand in the order of their codes
            middle = (low + high) // 2
            right = (low < high) & (edges[middle.clamp(max=len(edges) - 1)] < codes)
            low, high = torch.where(right, middle + 1, low), torch.where(right, high, torch.minimum(middle, high))
        found = (nodes >= 0) & (low < end) & (edges[low.clamp(max=len(edges) - 1)] == codes)
        return torch.where(found, low, -1)

    def allowed(self, depth: int, nodes: Tensor) -> Tensor:
        """(..., K) bool: codes that continue `nodes` (...,) towards an item."""
        children = self.children(depth, nodes)
        mask = torch.zeros(*nodes.shape, self.codebook_size + 1, dtype=torch.bool, device=nodes.device)
        # The padding is written to a column of its own, so that it cannot overwrite code 0.
        slots = torch.where(children.valid, children.codes, self.codebook_size)
        return mask.scatter_(-1, slots, True)[..., : self.codebook_size]


def _smallest(codebook_size: int) -> torch.dtype:
    return torch.uint8 if codebook_size <= 2**8 else torch.int16 if codebook_size <= 2**15 else torch.int32


def _order(codes: Tensor, codebook_size: int) -> Tensor:
    """(N,) int64 rows of `codes` (N, M) in ascending order: stable sorts by as many levels as one key holds, the last ones first."""
    bits = max(1, (codebook_size - 1).bit_length())
    at_once = KEY_BITS // bits
    order: Tensor | None = None
    for end in range(codes.shape[1], 0, -at_once):
        key = torch.zeros(len(codes), dtype=torch.int64, device=codes.device)
        for column in codes.T[max(0, end - at_once) : end]:
            key = key.bitwise_left_shift_(bits).bitwise_or_(column.long())
        order = key.argsort(stable=True) if order is None else order[key[order].argsort(stable=True)]
    assert order is not None
    return order
