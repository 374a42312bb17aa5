"""Ranked lists from models that score the whole catalogue."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..data.splits import EvaluationCases
from .ranking import pad

SCORES_AT_ONCE = 8_000_000
"""Scores in memory at once (32 MB)."""


@torch.inference_mode()
def rank_by_scores(
    scores_of: Callable[[npt.NDArray[np.int64]], Tensor],
    cases: EvaluationCases,
    num_items: int,
    k: int,
    *,
    exclude_history: bool,
    progress: str | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The k items of the highest scores for every case.

    Args:
        scores_of: rows of `cases` (B,) → (B, N) scores; −inf for items that must not come out. May be changed in place.
        cases: whom to rank for.
        num_items: N.
        k: length of the lists.
        exclude_history: leave out the items of each history.
        progress: label of a progress bar.

    Returns: item indices (cases, k), best first, −1 where there is no further item, and their scores (−inf there).
    """
    ranked = np.full((len(cases), k), -1, dtype=np.int64)
    found = np.full((len(cases), k), -np.inf, dtype=np.float32)
    width, size = min(k, num_items), max(1, SCORES_AT_ONCE // num_items)
    order = np.argsort(-cases.histories.lengths, kind="stable")  # rows of similar length together
    with tqdm(total=len(order), desc=progress, unit="user", disable=progress is None, leave=False) as bar:
        for first in range(0, len(order), size):
            rows = order[first : first + size]
            scores = scores_of(rows)
            if exclude_history:
                history = torch.from_numpy(pad(cases.histories.take(rows))).to(scores.device)
                # Padding points to a column that is cut off again.
                hidden = torch.zeros(len(rows), num_items + 1, dtype=torch.bool, device=scores.device)
                hidden.scatter_(1, torch.where(history >= 0, history, num_items), True)
                scores = scores.masked_fill(hidden[:, :-1], -torch.inf)
            best, items = scores.topk(width, dim=1)
            ranked[rows, :width] = items.masked_fill(best == -torch.inf, -1).cpu().numpy()
            found[rows, :width] = best.float().cpu().numpy()
            bar.update(len(rows))
    return ranked, found
