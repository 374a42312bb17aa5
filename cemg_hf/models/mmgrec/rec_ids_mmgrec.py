"""Rec-IDs: M − 1 semantic tokens, then the rank by popularity among the items that share them (MMGRec, eq. 11 and 12)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cemg.assignment_cemg import AssignmentReport, assign_unique_codes


def assign_rec_ids(semantic: Tensor, latent: Tensor, codebooks: Tensor, popularity: Tensor) -> tuple[Tensor, AssignmentReport]:
    """Every item its own Rec-ID.

    The popularity token counts from 0; equally popular items follow each other in catalogue order. The paper bounds neither the number
    of items with equal semantic tokens nor the ranks; here there are K tokens per level, so of more than K such items those
    farthest from their code vector move to the nearest tuple with room.

    Args:
        semantic: (N, M − 1) integers 0 … K−1, nearest-code assignment (eq. 8).
        latent: (N, D') encoder outputs z.
        codebooks: (M − 1, K, D') code vectors.
        popularity: (N,) training interactions of every item.

    Returns:
        (N, M) int64 Rec-IDs on the CPU, all different, and the report of the assignment, in which a collision is one of semantic tokens.

    Raises:
        ValueError: shapes that do not belong together, codes out of range, vectors that are not finite, or N > K^M.
    """
    # A level of equal code vectors has no preference among its codes: what is left of the assignment is the room of the prefixes.
    room = torch.cat([codebooks.cpu(), torch.zeros_like(codebooks[:1]).cpu()])
    placed, report = assign_unique_codes(torch.cat([semantic.cpu(), semantic.new_zeros(len(semantic), 1).cpu()], dim=1), latent, room)
    tuples = torch.unique(placed[:, :-1], dim=0, return_inverse=True)[1]
    order = torch.argsort(popularity.cpu(), descending=True, stable=True)
    order = order[tuples[order].argsort(stable=True)]
    ordered = tuples[order]
    rank = torch.empty_like(tuples)
    rank[order] = torch.arange(len(order)) - torch.searchsorted(ordered, ordered)
    return torch.cat([placed[:, :-1], rank.unsqueeze(1)], dim=1), report
