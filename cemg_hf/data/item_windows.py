"""Batches of training windows as item indices, for networks that read whole items."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .collators import IGNORED_LABEL, TrainingWindows


class ItemWindowCollator:
    """Window numbers → `items` (B, T − 1), −1 = padding, and `labels` (B, T): the item after each prefix, −100 = no target here.

    Args:
        windows: windows for many targets each (`item_causal`).
    """

    def __init__(self, windows: TrainingWindows) -> None:
        self.windows = windows

    def __call__(self, batch: Sequence[int]) -> dict[str, Tensor]:
        array, skipped = self.windows.item_batch(batch)
        items = torch.from_numpy(array)
        slots = torch.arange(items.shape[1])
        size = (items >= 0).sum(dim=1, keepdim=True)
        is_target = (slots >= torch.from_numpy(skipped).unsqueeze(1)) & (items >= 0)
        # The last item of a window is a target only.
        history = items.masked_fill(slots >= size - 1, -1)[:, :-1]
        return {"items": history, "labels": items.masked_fill(~is_target, IGNORED_LABEL)}
