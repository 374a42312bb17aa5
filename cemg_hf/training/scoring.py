"""Ranked lists from models that score the whole catalogue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..data import Ragged
from ..models.next_item import NextItemModel
from .ranking import pad, progress_bar

SCORES_AT_ONCE = 8_000_000
"""Scores in memory at once (32 MB)."""


@torch.inference_mode()
def rank_by_scores(
    scores_of: Callable[[npt.NDArray[np.int64]], Tensor],
    histories: Ragged,
    num_items: int,
    k: int,
    *,
    exclude_history: bool,
    batch_size: int | None = None,
    progress: str | tqdm[Any] | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The k items of the highest scores for every history.

    Args:
        scores_of: rows of `histories` (B,) → (B, N) scores; −inf for items that must not come out. May be changed in place.
        histories: item indices, one row per user, chronological.
        num_items: N.
        k: length of the lists.
        exclude_history: leave out the items of each history.
        batch_size: users whose scores are made at once (default, and at most: as many as `SCORES_AT_ONCE` allows).
        progress: label of a progress bar, or a bar to advance by these users; none when omitted.

    Returns: item indices (rows, k), best first, −1 where there is no further item, and their scores (−inf there).
    """
    ranked = np.full((len(histories), k), -1, dtype=np.int64)
    found = np.full((len(histories), k), -np.inf, dtype=np.float32)
    most = max(1, SCORES_AT_ONCE // num_items)
    width, size = min(k, num_items), most if batch_size is None else min(batch_size, most)
    order = np.argsort(-histories.lengths, kind="stable")  # rows of similar length together
    with progress_bar(progress, len(order)) as bar:
        for first in range(0, len(order), size):
            rows = order[first : first + size]
            scores = scores_of(rows)
            if exclude_history:
                history = torch.from_numpy(pad(histories.take(rows))).to(scores.device)
                # Padding points to a column that is cut off again.
                hidden = torch.zeros(len(rows), num_items + 1, dtype=torch.bool, device=scores.device)
                hidden.scatter_(1, torch.where(history >= 0, history, num_items), True)
                scores = scores.masked_fill(hidden[:, :-1], -torch.inf)
            best, items = scores.topk(width, dim=1)
            ranked[rows, :width] = items.masked_fill(best == -torch.inf, -1).cpu().numpy()
            found[rows, :width] = best.float().cpu().numpy()
            bar.update(len(rows))
    return ranked, found


def rank_with_network(
    model: NextItemModel,
    histories: Ragged,
    k: int,
    *,
    exclude_history: bool = False,
    batch_size: int | None = None,
    progress: str | tqdm[Any] | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The k items that a network over whole items scores highest after every history; arguments and result as for `rank_by_scores`."""
    recent = histories.last(model.config.max_history)

    def scores_of(rows: npt.NDArray[np.int64]) -> Tensor:
        return model.scores(torch.from_numpy(pad(recent.take(rows))).to(model.device))

    return rank_by_scores(
        scores_of, histories, model.config.num_items, k, exclude_history=exclude_history, batch_size=batch_size, progress=progress
    )
