"""Every item its own code: collisions are resolved on the last level by optimal assignment.

Nearest-code assignment leaves items that share all M codes. Items under one (M−1)-prefix compete for the K codes of the last
level, so each prefix with a collision is one assignment problem: cost = squared distance between an item's level-M residual and
the level-M code vectors. Prefixes without a collision keep their codes.

A prefix of l codes has room for K^(M−l) items. What exceeds that moves, from the first level down, to the nearest sibling prefix
with room; a parent that is not overfull always has one, so every catalogue of at most K^M items fits, and nothing larger than
(items that move) × K is ever held.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..errors import CEMGError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AssignmentReport:
    """What resolution changed."""

    collision_rate_before: float = field(metadata={"help": "Share of items that shared their full code with another."})
    collision_rate_after: float = field(metadata={"help": "The same afterwards; 0 by construction, measured."})
    moved: int = field(metadata={"help": "Items whose code differs from the nearest-code assignment."})
    spilled: int = field(metadata={"help": "Items that had to leave their (M−1)-prefix because it was full."})


def collision_rate(codes: np.ndarray) -> float:
    """Share of the rows of codes (N, M) that equal another row."""
    if not len(codes):
        return 0.0
    _, inverse, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    return float((counts[inverse.ravel()] > 1).mean())


def assign_unique_codes(codes: np.ndarray, latent: np.ndarray, codebooks: np.ndarray) -> tuple[np.ndarray, AssignmentReport]:
    """Give every item its own code, M codes long, as near as possible to its nearest-code assignment.

    Args:
        codes: (N, M) integers, nearest-code assignment, 0 … K−1 per level.
        latent: (N, D) encoder outputs z.
        codebooks: (M, K, D) code vectors.

    Returns:
        (N, M) int64 codes without duplicates, and the report.

    Raises:
        CEMGError: shapes that do not belong together, codes out of range, vectors that are not finite, or N > K^M.
    """
    codes = np.asarray(codes)
    latent = np.asarray(latent, dtype=np.float64)
    codebooks = np.asarray(codebooks, dtype=np.float64)
    _check(codes, latent, codebooks)
    nearest = codes.astype(np.int64)
    resolved, residuals, spilled = _fit_prefixes(nearest, latent, codebooks)
    _resolve_last_level(resolved, residuals, codebooks[-1])
    report = AssignmentReport(
        collision_rate_before=collision_rate(nearest),
        collision_rate_after=collision_rate(resolved),
        moved=int((resolved != nearest).any(axis=1).sum()),
        spilled=spilled,
    )
    logger.info(
        "codes: %.2f %% of items collided, %d moved, %d to another prefix", 100 * report.collision_rate_before, report.moved, spilled
    )
    return resolved, report


def _fit_prefixes(nearest: np.ndarray, latent: np.ndarray, codebooks: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Codes whose prefixes all have room, the residuals (N, D) that the last level has to code, and how many items left their prefix.

    The last column of an item that left its prefix is its nearest last-level code again.
    """
    levels, size, _ = codebooks.shape
    resolved, residuals = nearest.copy(), latent.copy()
    parents = np.zeros(len(nearest), dtype=np.int64)
    left = np.zeros(len(nearest), dtype=bool)
    for level in range(levels):
        codebook = codebooks[level]
        resolved[left, level] = _squared_distances(residuals[left], codebook).argmin(axis=1)
        if level == levels - 1:
            break
        capacity = size ** (levels - 1 - level)
        chosen = codebook[resolved[:, level]]
        excess = _excess(parents * size + resolved[:, level], np.square(residuals - chosen).sum(axis=1), capacity)
        if len(excess):
            resolved[excess, level] = _nearest_with_room(excess, parents, resolved[:, level], residuals[excess], codebook, capacity)
            left[excess] = True
        residuals -= codebook[resolved[:, level]]
        parents = np.unique(parents * size + resolved[:, level], return_inverse=True)[1].ravel()
    return resolved, residuals, int(left.sum())


def _excess(groups: np.ndarray, distance: np.ndarray, capacity: int) -> np.ndarray:
    """Rows beyond the first `capacity` of their group, counted from the smallest distance up."""
    order = np.lexsort((distance, groups))
    ordered = groups[order]
    first = np.searchsorted(ordered, ordered, side="left")
    return order[np.arange(len(order)) - first >= capacity]


def _nearest_with_room(
    excess: np.ndarray, parents: np.ndarray, codes: np.ndarray, residuals: np.ndarray, codebook: np.ndarray, capacity: int
) -> np.ndarray:
    """For each item of `excess` (E,) the nearest code under its parent with room; nearer items first.

    Every round fills a prefix or places all who ask for it, so there are at most K rounds and mostly a few.
    """
    size = len(codebook)
    affected, owner = np.unique(parents[excess], return_inverse=True)
    staying = np.ones(len(parents), dtype=bool)
    staying[excess] = False
    position = np.searchsorted(affected, parents).clip(max=len(affected) - 1)
    staying &= affected[position] == parents
    taken = np.bincount(position[staying] * size + codes[staying], minlength=len(affected) * size)
    room = capacity - taken.reshape(len(affected), size)
    distance = _squared_distances(residuals, codebook)
    found = np.full(len(excess), -1, dtype=np.int64)
    waiting = np.arange(len(excess))
    while len(waiting):
        open_distance = np.where(room[owner[waiting]] > 0, distance[waiting], np.inf)
        wish = open_distance.argmin(axis=1)
        prefix = owner[waiting] * size + wish
        order = np.lexsort((open_distance[np.arange(len(waiting)), wish], prefix))
        rank = np.arange(len(order)) - np.searchsorted(prefix[order], prefix[order], side="left")
        placed = order[rank < room.ravel()[prefix[order]]]
        found[waiting[placed]] = wish[placed]
        room -= np.bincount(prefix[placed], minlength=room.size).reshape(room.shape)
        waiting = np.delete(waiting, placed)
    return found


def _resolve_last_level(codes: np.ndarray, residuals: np.ndarray, codebook: np.ndarray) -> None:
    """Assign the last column of `codes`, in place, within every prefix that holds two items with the same code."""
    prefixes = (
        np.unique(codes[:, :-1], axis=0, return_inverse=True)[1].ravel() if codes.shape[1] > 1 else np.zeros(len(codes), dtype=np.int64)
    )
    _, full, counts = np.unique(prefixes * len(codebook) + codes[:, -1], return_inverse=True, return_counts=True)
    colliding = np.unique(prefixes[counts[full.ravel()] > 1])
    members = np.flatnonzero(np.isin(prefixes, colliding))
    members = members[np.argsort(prefixes[members], kind="stable")]
    bounds = np.searchsorted(prefixes[members], colliding, side="left")
    for rows in np.split(members, bounds[1:]) if len(members) else []:
        assigned_rows, assigned = linear_sum_assignment(_squared_distances(residuals[rows], codebook))
        codes[rows[assigned_rows], -1] = assigned


def _squared_distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(B, K) squared distances of points (B, D) from centres (K, D)."""
    return np.square(points).sum(axis=1)[:, None] - 2 * points @ centres.T + np.square(centres).sum(axis=1)


def _check(codes: np.ndarray, latent: np.ndarray, codebooks: np.ndarray) -> None:
    if codebooks.ndim != 3:
        raise CEMGError(f"codebooks: shape {codebooks.shape}, expected (levels, codes, dimension)")
    levels, size, dimension = codebooks.shape
    if codes.ndim != 2 or codes.shape[1] != levels or not np.issubdtype(codes.dtype, np.integer):
        raise CEMGError(f"codes: shape {codes.shape} of {codes.dtype}, expected integers of shape (items, {levels})")
    if latent.shape != (len(codes), dimension):
        raise CEMGError(f"latent: shape {latent.shape}, expected {(len(codes), dimension)}")
    if len(codes) > size**levels:
        raise CEMGError(f"{len(codes)} items do not fit into {size}^{levels} codes: raise codebook_size or num_levels")
    if len(codes) and (codes.min() < 0 or codes.max() >= size):
        row = int(np.flatnonzero(((codes < 0) | (codes >= size)).any(axis=1))[0])
        raise CEMGError(f"codes: row {row} has a code outside 0 … {size - 1}; assign with this codebook")
    for name, values in (("latent", latent), ("codebooks", codebooks)):
        if not np.isfinite(values).all():
            raise CEMGError(f"{name}: contains NaN or infinite values; train the RQ-VAE again with finite features")
