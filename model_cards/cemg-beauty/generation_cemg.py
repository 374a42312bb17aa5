"""Decoding into the catalogue: the logits processor for `generate`, and the constrained beam search with its filters.

Rankings are by Σ log p over the M codes of an item (eq. 6), each log p normalised over the K codes of its level *before* the
trie masks, in fp32, without an end token. A model trained with the constrained softmax (MSCGRec) is normalised over the permissible
children instead: the codes that continue the prefix in the whole catalogue, whatever part of it is searched. With that, `generate` +
`PrefixConstrainedLogitsProcessor`, `constrained_beam_search` and scoring every item of the catalogue give the same scores, and the same
lists where the beams are as many as the items.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LogitsProcessor

from .trie_cemg import Children, ItemTrie

NextLevel = Callable[[int, Tensor, Tensor], Tensor]
"""(level, parents (B, W), codes (B, W)) → (B, W, K) logits of `level`, after every beam `parents` of the call before wrote `codes`.

At level 0 there is one beam that wrote nothing, and both are zeros (B, 1)."""


class PrefixConstrainedLogitsProcessor(LogitsProcessor):
    """Keeps `generate` inside the catalogue: only codes that continue an item's code stay possible.

    Vectorised over batch × beams. The place in the trie is found from `input_ids`, because beam search reorders beams between
    steps. Scores are renormalised over the K codes of the level first, so that sums of them are Σ log p of eq. 6.

    Args:
        trie: the catalogue's trie.
        first_code_id: token id of code 0 of level 0 (`CEMGConfig.first_code_id`).
        constrained_softmax: renormalise over the codes that stay possible instead (`CEMGConfig.constrained_softmax`).

    Example:
        >>> model.generate(**inputs, num_beams=20, num_return_sequences=20, logits_processor=[model.prefix_constraint()])
    """

    def __init__(self, trie: ItemTrie, first_code_id: int, constrained_softmax: bool = False) -> None:
        self.trie = trie
        self.first_code_id = first_code_id
        self.constrained_softmax = constrained_softmax

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
        impossible = ~self.trie.allowed(level, nodes)
        level_scores = scores[:, first : first + size].float()
        if self.constrained_softmax:
            level_scores = level_scores.masked_fill(impossible, -torch.inf)
        constrained[:, first : first + size] = level_scores.log_softmax(dim=-1).masked_fill(impossible, -torch.inf)
        return constrained


class ItemFilter:
    """Which items of the trie may come out, per user: the items `allowed` (all of them where a user has no such list) but for `denied`.

    Built from the lists alone, in time and memory O(list · log N) and without a table of the catalogue: for every depth, the nodes on
    the way to an allowed item, or the nodes under which every item is denied. The search looks its beams up in these.

    Args:
        trie: the trie that is searched.
        denied: (B, E) item indices, −1 = none; repeats and items outside the trie are harmless.
        allowed: (B, A) likewise.
        restricted: (B,) bool, the users whose row of `allowed` counts; all of them where None.
    """

    def __init__(
        self, trie: ItemTrie, denied: Tensor | None = None, allowed: Tensor | None = None, restricted: Tensor | None = None
    ) -> None:
        lists = [entries for entries in (denied, allowed) if entries is not None]
        if not lists:
            raise ValueError("an ItemFilter needs a list of items, denied or allowed; search without one to filter nothing")
        none = lists[0].new_full((len(lists[0]), 1), -1)  # no list is empty then
        closing = none if denied is None else torch.cat([denied, none], dim=1)
        nodes = leaves = _unique_rows(trie.leaves_of(closing), trie.num_items)
        self.keeps = torch.zeros_like(none, dtype=torch.bool)
        """(B, 1) whether the user's entries are all she may get, or what she may not."""
        if allowed is not None:
            self.keeps = torch.ones_like(self.keeps) if restricted is None else restricted.unsqueeze(1)
            wanted = trie.leaves_of(torch.cat([allowed, none], dim=1))
            place = torch.searchsorted(leaves, wanted).clamp(max=leaves.shape[1] - 1)
            wanted = wanted.masked_fill(leaves.gather(1, place) == wanted, trie.num_items)
            width = max(leaves.shape[1], wanted.shape[1])
            leaves, wanted = (functional.pad(rows, (0, width - rows.shape[1]), value=trie.num_items) for rows in (leaves, wanted))
            nodes = torch.where(self.keeps, wanted, leaves)
        # Of each level: parents (B, L), −2 where an entry says nothing, and which of the parent's children the entry is, (B, L).
        self.parents: list[Tensor] = []
        self.slots: list[Tensor] = []
        for depth in reversed(range(trie.num_levels)):
            given = nodes < trie.num_nodes(depth + 1)
            parents = trie.parents(depth, nodes)
            # Denied leaves stand in the order of the trie, so those of a node are a run: it is closed when they are all it has.
            first, last = trie.leaf_range(depth + 1, nodes.masked_fill(~given, 0))
            closed = torch.searchsorted(leaves, last) - torch.searchsorted(leaves, first) == last - first
            counts = given & (closed | self.keeps)
            self.parents.insert(0, torch.where(counts, parents, -2))
            first_children = trie.first_child[depth][parents.masked_fill(~given, 0)]
            self.slots.insert(0, (nodes - first_children).masked_fill(~counts, 0))
            nodes = parents

    def apply(self, level: int, nodes: Tensor, valid: Tensor) -> Tensor:
        """(B, W, D) bool: which of the children `valid` (B, W, D) of beams at `nodes` (B, W), all different but for −1, still lead to an
        item that may come out.
        """
        batch, width, slots = valid.shape
        order = nodes.argsort(dim=1)
        ordered = nodes.gather(1, order)
        place = torch.searchsorted(ordered, self.parents[level]).clamp(max=width - 1)
        met = ordered.gather(1, place) == self.parents[level]
        target = torch.where(met, order.gather(1, place) * slots + self.slots[level], width * slots)
        listed = torch.zeros(batch, width * slots + 1, dtype=torch.bool, device=valid.device)  # the last column takes what met no beam
        listed = listed.scatter(1, target, True)[:, :-1].view_as(valid)
        return valid & (listed == self.keeps.unsqueeze(2))


class Diversity(NamedTuple):
    """How the `size` items of a list are spread over first codes, the coarsest branches of the catalogue.

    At most `max_per_first_code` items share one, and at least `min_first_codes` different ones occur, as far as there are such items.
    """

    size: int
    max_per_first_code: int | None = None
    min_first_codes: int | None = None

    def check(self, num_beams: int) -> None:
        """Raises ValueError for settings that cannot work."""
        if not 1 <= self.size <= num_beams:
            raise ValueError(f"a list of {self.size} items needs as many beams at least, got num_beams={num_beams}")
        for name in ("max_per_first_code", "min_first_codes"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= self.size:
                raise ValueError(f"{name} must be 1 … k = {self.size}, got {value}")

    def beams_per_first_code(self, num_beams: int) -> int:
        """Beams that one first code may hold during the search, so that enough other branches survive to fill the list."""
        if self.max_per_first_code is None:
            return num_beams
        branches = -(-self.size // self.max_per_first_code)
        return max(self.max_per_first_code, num_beams // branches)

    def best(self, first_codes: Tensor, scores: Tensor, count: int, per_first_code: int) -> Tensor:
        """(B, min(count, C)) places of the candidates to keep, of scores (B, C) and their first codes (B, C).

        The best of each of the leading `min_first_codes` branches comes first, then everything within `per_first_code`, then the rest;
        within these by score.
        """
        order = scores.argsort(dim=1, descending=True, stable=True)
        codes = first_codes.gather(1, order)
        by_code = codes.argsort(dim=1, stable=True)
        grouped = codes.gather(1, by_code)
        place = torch.arange(codes.shape[1], device=codes.device).expand_as(codes)
        rank = torch.empty_like(place).scatter(1, by_code, place - torch.searchsorted(grouped, grouped))  # within its branch
        leads = (rank == 0) & ((rank == 0).cumsum(1) <= (self.min_first_codes or 0))
        tier = torch.where(leads, 0, torch.where(rank < per_first_code, 1, 2))
        tier = tier.masked_fill(scores.gather(1, order) == -torch.inf, 3)
        return order.gather(1, tier.argsort(dim=1, stable=True)[:, :count])


def constrained_beam_search(
    next_level: NextLevel,
    trie: ItemTrie,
    batch_size: int,
    num_beams: int,
    items: ItemFilter | None = None,
    diversity: Diversity | None = None,
    normalised_in: ItemTrie | None = None,
) -> tuple[Tensor, Tensor]:
    """Beam search over the M levels of the trie; with `num_beams` ≥ N it scores the whole catalogue.

    All shapes follow from B, `num_beams` and the trie, and nothing is read back from the device, so the search can be compiled whole.

    Args:
        next_level: the network, see `NextLevel`; it is called once per level.
        trie: the catalogue, on the device of the computation.
        batch_size: B.
        num_beams: W, beams kept after every level.
        items: which items may come out; others leave the trie, so beams are never spent on prefixes that lead to none.
        diversity: spread of the list over first codes; the list has at most `diversity.size` items then.
        normalised_in: the whole catalogue, of which `trie` is all or a part: log p of a code is normalised over the codes that continue
            the beam in it (a model trained with the constrained softmax). None: over the K codes of the level.

    Returns:
        items (B, W) int64, best first, −1 where fewer than W items are possible, and scores (B, W) fp32, Σ log p (−inf there).
    """
    nodes = torch.zeros(batch_size, 1, dtype=torch.int64, device=trie.device)
    scores = torch.zeros(batch_size, 1, dtype=torch.float32, device=trie.device)
    parents = codes = first_codes = places = nodes
    for level in range(trie.num_levels):
        children = trie.children(level, nodes)
        permissible = None
        if normalised_in is not None:  # `places` are the beams' nodes in that trie
            permissible = children if normalised_in is trie else normalised_in.children(level, places)
        if items is not None:
            children = children._replace(valid=items.apply(level, nodes, children.valid))
        totals = _child_scores(next_level(level, parents, codes), children, scores, permissible)
        if diversity is None or level == 0:
            scores, chosen = totals.topk(min(num_beams, totals.shape[1]), dim=1)
        else:
            groups = first_codes.repeat_interleave(children.codes.shape[-1], 1)
            chosen = diversity.best(groups, totals, num_beams, diversity.beams_per_first_code(num_beams))
            scores = totals.gather(1, chosen)
        slots = children.codes.shape[-1]
        parents, codes = chosen // slots, children.codes.flatten(1).gather(1, chosen)
        nodes = torch.where(scores > -torch.inf, children.first.gather(1, parents) + chosen % slots, -1)
        first_codes = codes if level == 0 else first_codes.gather(1, parents)
        if normalised_in is not None and normalised_in is not trie:
            places = normalised_in.descend(level, places.gather(1, parents), codes)
    if diversity is not None:
        nodes, scores = _spread_list(nodes, scores, first_codes, diversity)
    return torch.where(nodes >= 0, trie.leaf_items[nodes.clamp(min=0)].long(), -1), scores


def _child_scores(logits: Tensor, children: Children, scores: Tensor, permissible: Children | None = None) -> Tensor:
    """(B, W·D) fp32 scores of all children: those of the beams (B, W) and log p of the child's code.

    log p is over the K logits (B, W, K), or over those of the `permissible` children alone, among which `children` are.
    """
    log_probs = code_log_probs(logits, children.codes, permissible)
    return torch.where(children.valid, log_probs + scores.unsqueeze(-1), -torch.inf).flatten(1)


def code_log_probs(logits: Tensor, codes: Tensor, permissible: Children | None) -> Tensor:
    """(…, D) fp32 log p of codes (…, D), over the K logits (…, K) of their level or over those of the `permissible` children alone."""
    logits = logits.float()
    if permissible is None:
        return logits.log_softmax(dim=-1).gather(-1, codes)
    possible = logits.gather(-1, permissible.codes).masked_fill(~permissible.valid, -torch.inf)
    return logits.gather(-1, codes) - possible.logsumexp(dim=-1, keepdim=True)


def _spread_list(nodes: Tensor, scores: Tensor, first_codes: Tensor, diversity: Diversity) -> tuple[Tensor, Tensor]:
    """The list out of the last beams (B, W): at most `size` of them, what would break the limit left out, best first."""
    limit = diversity.max_per_first_code or nodes.shape[1]
    chosen = diversity.best(first_codes, scores, diversity.size, limit)
    nodes, scores, first_codes = (values.gather(1, chosen) for values in (nodes, scores, first_codes))
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    nodes, first_codes = nodes.gather(1, order), first_codes.gather(1, order)
    same = (first_codes.unsqueeze(1) == first_codes.unsqueeze(2)).tril(-1).sum(2)  # better ones with the same first code
    over = same >= limit
    scores, order = scores.masked_fill(over, -torch.inf).sort(dim=1, descending=True, stable=True)
    return nodes.masked_fill(over, -1).gather(1, order), scores


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


def _unique_rows(values: Tensor, filler: int) -> Tensor:
    """(B, L) ascending and free of repeats; freed places are at the end and hold `filler`, which is larger than any value."""
    ordered = values.sort(dim=1).values
    repeated = torch.zeros_like(ordered, dtype=torch.bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return ordered.masked_fill(repeated, filler).sort(dim=1).values
