"""Training without one of an item's modalities now and then, so that items that lack one later are nothing new."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def hide_one(masks: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Masks, modality -> (B,) bool, in which `share` of the items that have several modalities lack a random one of them."""
    given = torch.stack(list(masks.values()))
    drawn = torch.rand(given.shape, device=given.device).masked_fill(~given, -1.0).argmax(0)
    hit = (torch.rand(given.shape[1], device=given.device) < share) & (given.sum(0) > 1)
    return {name: mask & ~(hit & (drawn == index)) for index, (name, mask) in enumerate(masks.items())}
