"""Every item its own code: collisions are resolved on the last level by optimal assignment, in all prefixes at once.

Nearest-code assignment leaves items that share all M codes. Items under one (M−1)-prefix compete for the K codes of the last
level, so each prefix with a collision is one assignment problem: cost = squared distance between an item's level-M residual and
the level-M code vectors. Prefixes without a collision keep their codes.

A prefix of l codes has room for K^(M−l) items. What exceeds that moves, from the first level down, to the nearest sibling prefix
with room; a parent that is not overfull always has one, so every catalogue of at most K^M items fits. Distances are held only for
items of prefixes that need resolution, a block of prefixes at a time.

The assignment problems are solved exactly, by shortest augmenting paths (Jonker and Volgenant 1987), one path per prefix and round
and all prefixes in step. Every item starts at its nearest code, so that only the items that lost theirs need a path.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

DISTANCES_AT_ONCE = 2**22  # entries of the distance matrices held at once: 32 MiB each


@dataclass(frozen=True)
class AssignmentReport:
    """What resolution changed."""

    collision_rate_before: float = field(metadata={"help": "Share of items that shared their full code with another."})
    collision_rate_after: float = field(metadata={"help": "The same afterwards; 0 by construction, measured."})
    moved: int = field(metadata={"help": "Items whose code differs from the nearest-code assignment."})
    spilled: int = field(metadata={"help": "Items that had to leave their (M−1)-prefix because it was full."})


def collision_rate(codes: Tensor) -> float:
    """Share of the rows of codes (N, M) that equal another row."""
    return float(_shared(codes, int(codes.max()) + 1).double().mean()) if len(codes) else 0.0


@torch.no_grad()
def assign_unique_codes(codes: Tensor, latent: Tensor, codebooks: Tensor, taken: Tensor | None = None) -> tuple[Tensor, AssignmentReport]:
    """Give every item its own code, M codes long, as near as possible to its nearest-code assignment.

    Args:
        codes: (N, M) integers, nearest-code assignment, 0 … K−1 per level.
        latent: (N, D) encoder outputs z.
        codebooks: (M, K, D) code vectors.
        taken: (T, M) codes that other items hold and keep.

    Returns:
        (N, M) int64 codes on the CPU, all different and none of them taken, and the report, which counts the N items only.

    Raises:
        ValueError: shapes that do not belong together, codes out of range, vectors that are not finite, or N + T > K^M.
    """
    codes, latent, codebooks = codes.cpu(), latent.cpu(), codebooks.cpu()
    taken = codes.new_empty(0, codes.shape[-1]) if taken is None else taken.cpu()
    _check(codes, latent, codebooks, taken)
    nearest, taken = codes.long(), taken.long()
    size, count = codebooks.shape[1], len(nearest)
    resolved = torch.cat([nearest, taken])
    before = _shared(resolved, size)[:count]
    spilled = _fit_prefixes(resolved, latent, codebooks)
    _resolve_last_level(resolved, latent, codebooks)
    after = _shared(resolved, size)[:count]
    report = AssignmentReport(
        collision_rate_before=float(before.double().mean()) if count else 0.0,
        collision_rate_after=float(after.double().mean()) if count else 0.0,
        moved=int((resolved[:count] != nearest).any(dim=1).sum()),
        spilled=spilled,
    )
    logger.info(
        "codes: %.2f %% of items collided, %d moved, %d to another prefix", 100 * report.collision_rate_before, report.moved, spilled
    )
    return resolved[:count].clone(), report


# ---- room ---------------------------------------------------------------------------------------------------------------------


def _fit_prefixes(codes: Tensor, latent: Tensor, codebooks: Tensor) -> int:
    """Change `codes` (N + T, M), in place and in the first N rows only, until no prefix holds more items than it has room for.

    The last column of an item that left its prefix is its nearest last-level code again. Returns how many left theirs.
    """
    levels, size, _ = codebooks.shape
    count, total = len(latent), len(codes)
    left = torch.zeros(count, dtype=torch.bool)
    parents = torch.zeros(total, dtype=torch.int64)
    for level in range(levels):
        gone = left.nonzero().flatten()
        for part in _in_parts(gone, size):
            codes[part, level] = _distances(part, codes, latent, codebooks, level).argmin(dim=1)
        if level == levels - 1:
            break
        capacity = min(size ** (levels - 1 - level), total)
        groups, inverse, held = torch.unique(parents * size + codes[:, level], return_inverse=True, return_counts=True)
        if bool((held > capacity).any()):
            crowded = (held > capacity)[inverse]
            room = capacity - torch.bincount(inverse[count:], minlength=len(groups))
            candidates = crowded[:count].nonzero().flatten()
            own = codes[candidates, level]
            away = torch.cat(
                [
                    _distances(part, codes, latent, codebooks, level).gather(1, mine[:, None]).flatten()
                    for part, mine in zip(_in_parts(candidates, size), _in_parts(own, size), strict=True)
                ]
            )
            order = _ranked(inverse[candidates], away)
            excess = candidates[order[_rank_in_group(inverse[candidates[order]]) >= room[inverse[candidates[order]]]]]
            _move_to_siblings(excess, codes, parents, latent, codebooks, level, capacity)
            left[excess] = True
        parents = torch.unique(parents * size + codes[:, level], return_inverse=True)[1]
    return int(left.sum())


def _move_to_siblings(excess: Tensor, codes: Tensor, parents: Tensor, latent: Tensor, codebooks: Tensor, level: int, capacity: int) -> None:
    """Write into `codes[excess, level]` the nearest code under the same parent with room; nearer items first.

    Every round fills a prefix or places all who ask for it, so there are at most K rounds and mostly a few.
    """
    size = codebooks.shape[1]
    affected, owner = torch.unique(parents[excess], return_inverse=True)
    staying = torch.isin(parents, affected)
    staying[excess] = False
    slot = torch.searchsorted(affected, parents[staying])
    held = torch.bincount(slot * size + codes[staying, level], minlength=len(affected) * size)
    room = capacity - held.view(len(affected), size)
    # Single precision: every item that leaves a full prefix is held at once.
    distance = torch.cat([_distances(part, codes, latent, codebooks, level).float() for part in _in_parts(excess, size)])
    waiting = torch.arange(len(excess))
    while len(waiting):
        full = room[owner[waiting]] <= 0
        closest, wish = distance[waiting].masked_fill_(full, torch.inf).min(dim=1)
        prefix = owner[waiting] * size + wish
        order = _ranked(prefix, closest)
        placed = order[_rank_in_group(prefix[order]) < room.view(-1)[prefix[order]]]
        codes[excess[waiting[placed]], level] = wish[placed]
        room -= torch.bincount(prefix[placed], minlength=room.numel()).view_as(room)
        kept = torch.ones(len(waiting), dtype=torch.bool)
        kept[placed] = False
        waiting = waiting[kept]


# ---- the last level -----------------------------------------------------------------------------------------------------------


def _resolve_last_level(codes: Tensor, latent: Tensor, codebooks: Tensor) -> None:
    """Assign the last column of `codes` (N + T, M), in place, within every prefix where one of the first N rows shares its code."""
    count, size, level = len(latent), codebooks.shape[1], codebooks.shape[0] - 1
    prefixes = _row_ids(codes[:, :-1], size)
    clashing = _shared(torch.stack([prefixes, codes[:, -1]], dim=1), size)
    clashing[count:] = False
    affected = torch.unique(prefixes[clashing])
    rows = torch.isin(prefixes, affected).nonzero().flatten()
    held, members = rows[rows >= count], rows[rows < count]
    members = members[prefixes[members].argsort(stable=True)]
    group = torch.searchsorted(affected, prefixes[members])
    held_group = torch.searchsorted(affected, prefixes[held])
    # Blocks of whole prefixes, so that the distances of one block stay within the bound (or hold one prefix, at most K × K).
    block = (torch.bincount(group, minlength=len(affected)).cumsum(0) * size).div(DISTANCES_AT_ONCE, rounding_mode="floor")
    for number in block.unique().tolist():
        mine = block[group] == number
        part, theirs = members[mine], block[held_group] == number
        local = torch.unique(group[mine])
        cost = _distances(part, codes, latent, codebooks, level)
        occupied = torch.zeros(len(local), size, dtype=torch.bool)
        occupied[torch.searchsorted(local, held_group[theirs]), codes[held[theirs], -1]] = True
        owner = torch.searchsorted(local, group[mine])
        codes[part, -1] = _Assignment(cost.masked_fill_(occupied[owner], torch.inf), owner, len(local)).solve()


class _Assignment:
    """Assignment problems of G groups, solved in step: rows to columns of least total cost, each column once per group.

    Args:
        cost: (R, K) costs, inf = forbidden.
        group: (R,) group 0 … G−1 of each row.
        groups: G.
    """

    def __init__(self, cost: Tensor, group: Tensor, groups: int) -> None:
        self.cost, self.group = cost, group
        # Duals u, v with u_i + v_j ≤ c_ij, equal where row i holds column j.
        self.row_dual, wish = cost.min(dim=1)
        self.column_dual = cost.new_zeros(groups, cost.shape[1])
        self.holder = torch.full((groups, cost.shape[1]), -1)
        self.column = torch.full((len(cost),), -1)
        order = (group * cost.shape[1] + wish).argsort(stable=True)
        first = order[_rank_in_group((group * cost.shape[1] + wish)[order]) == 0]
        self._give(first, wish[first])
        # Costs of equal items differ by rounding; columns as near as that are taken together.
        self.tolerance = 1e-12 * float(self.row_dual.abs().max()) if len(cost) else 0.0

    def solve(self) -> Tensor:
        """(R,) column of each row."""
        losers = (self.column < 0).nonzero().flatten()
        losers = losers[self.group[losers].argsort(stable=True)]
        turn = _rank_in_group(self.group[losers])
        for roots in losers[turn.argsort(stable=True)].split(torch.bincount(turn).tolist()) if len(losers) else []:
            self._augment(roots)
        return self.column

    def _give(self, rows: Tensor, columns: Tensor) -> None:
        self.column[rows] = columns
        self.holder[self.group[rows], columns] = rows

    def _augment(self, roots: Tensor) -> None:
        """Find a column for each of `roots` (A,), rows of different groups, along the shortest path of displacements (Dijkstra)."""
        group = self.group[roots]
        free, duals = self.holder[group] < 0, self.column_dual[group]
        distance = self.cost[roots] - self.row_dual[roots, None] - duals
        source = roots[:, None].repeat(1, distance.shape[1])  # the row from which a column is reached
        scanned = torch.zeros_like(free)
        sink = torch.empty_like(roots)
        live = torch.arange(len(roots))
        while True:
            open_ = distance[live].masked_fill_(scanned[live], torch.inf)
            reached = open_ <= open_.amin(dim=1, keepdim=True) + self.tolerance
            ends = reached & free[live]
            ended = ends.any(dim=1)
            sink[live[ended]] = ends[ended].int().argmax(dim=1)
            live, reached, open_ = live[~ended], reached[~ended], open_[~ended]
            if not len(live):
                break
            scanned[live] |= reached
            slot, column = reached.nonzero(as_tuple=True)
            rows = self.holder[group[live[slot]], column]
            beyond = (open_[slot, column] - self.row_dual[rows])[:, None] + self.cost[rows] - duals[live[slot]]
            origin = rows[:, None].expand_as(beyond)
            if len(slot) > len(live):  # several columns of a group: the nearest of their ways on
                index = slot[:, None].expand_as(beyond)
                best = torch.full_like(open_, torch.inf).scatter_reduce_(0, index, beyond, "amin")
                origin = torch.full_like(open_, -1, dtype=torch.int64).scatter_reduce_(
                    0, index, origin.masked_fill(beyond > best[slot], -1), "amax"
                )
                beyond = best
            better = (beyond < distance[live]) & ~scanned[live]
            distance[live] = torch.where(better, beyond, distance[live])
            source[live] = torch.where(better, origin, source[live])
        length = distance.gather(1, sink[:, None])
        which, column = scanned.nonzero(as_tuple=True)
        gain = (length - distance)[which, column]
        self.column_dual[group[which], column] -= gain
        self.row_dual[self.holder[group[which], column]] += gain
        self.row_dual[roots] += length.flatten()
        path = torch.arange(len(roots))
        while len(path):
            rows = source[path, sink]
            freed = self.column[rows]
            self._give(rows, sink)
            path, sink = path[freed >= 0], freed[freed >= 0]


# ---- helpers --------------------------------------------------------------------------------------------------------------------


def _distances(rows: Tensor, codes: Tensor, latent: Tensor, codebooks: Tensor, level: int) -> Tensor:
    """(R, K) squared distances, in double precision, of what the levels above leave of items `rows` from a level's code vectors."""
    residual = latent[rows].double()
    for above in range(level):
        residual -= codebooks[above, codes[rows, above]]
    centres = codebooks[level].double()
    cross = residual @ centres.T
    return cross.mul_(-2).add_(residual.square().sum(dim=1, keepdim=True)).add_(centres.square().sum(dim=1))


def _in_parts(rows: Tensor, size: int) -> tuple[Tensor, ...]:
    """Parts whose distances from `size` codes stay within the bound."""
    return rows.split(max(1, DISTANCES_AT_ONCE // size))


def _ranked(groups: Tensor, values: Tensor) -> Tensor:
    """Order that sorts by group, and by value within a group."""
    order = values.argsort(stable=True)
    return order[groups[order].argsort(stable=True)]


def _rank_in_group(ordered: Tensor) -> Tensor:
    """Position of each entry within its run of equal neighbours."""
    return torch.arange(len(ordered)) - torch.searchsorted(ordered, ordered, right=False)


def _row_ids(codes: Tensor, size: int) -> Tensor:
    """(N,) numbers that are equal exactly where rows of codes (N, m) are."""
    ids, bound = torch.zeros(len(codes), dtype=torch.int64), 1
    for column in codes.T:
        if bound * size >= 2**62:  # 512 codes on 8 levels would overflow
            ids, bound = torch.unique(ids, return_inverse=True)[1], len(codes)
        ids, bound = ids * size + column, bound * size
    return ids


def _shared(codes: Tensor, size: int) -> Tensor:
    """(N,) bool: whether a row of codes (N, M) equals another."""
    _, inverse, counts = torch.unique(_row_ids(codes, size), return_inverse=True, return_counts=True)
    return counts[inverse] > 1


def _check(codes: Tensor, latent: Tensor, codebooks: Tensor, taken: Tensor) -> None:
    if codebooks.ndim != 3:
        raise ValueError(f"codebooks: shape {tuple(codebooks.shape)}, expected (levels, codes, dimension)")
    levels, size, dimension = codebooks.shape
    for name, given in (("codes", codes), ("taken", taken)):
        if given.ndim != 2 or given.shape[1] != levels or given.is_floating_point() or given.dtype == torch.bool:
            raise ValueError(f"{name}: shape {tuple(given.shape)} of {given.dtype}, expected integers of shape (items, {levels})")
    if tuple(latent.shape) != (len(codes), dimension):
        raise ValueError(f"latent: shape {tuple(latent.shape)}, expected {(len(codes), dimension)}")
    if len(codes) + len(taken) > size**levels:
        raise ValueError(f"{len(codes) + len(taken)} items do not fit into {size}^{levels} codes: raise codebook_size or num_levels")
    for name, given in (("codes", codes), ("taken", taken)):
        outside = ((given < 0) | (given >= size)).any(dim=1)
        if bool(outside.any()):
            raise ValueError(f"{name}: row {int(outside.nonzero()[0])} has a code outside 0 … {size - 1}; assign with this codebook")
    for name, values in (("latent", latent), ("codebooks", codebooks)):
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"{name}: contains NaN or infinite values; train the RQ-VAE again with finite features")
