"""Trains the head that stands in for the collaborative vector of an item nobody has interacted with.

Every item with content and a collaborative vector is an example. One content modality of an item that has both is hidden at
random, so that the head also serves items that come with a text only, or a picture only. A tenth of the items is kept aside; the
epoch with the lowest error on them is the one that stays.
"""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.cemg.modeling_rqvae import COLLABORATIVE, ContentHead
from .modality_dropout import hide_one
from .quantise import FeatureBatches

logger = logging.getLogger(__name__)

EPOCHS = 60
PATIENCE = 8
BATCH_SIZE = 512
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.05
HIDDEN_SHARE = 0.3
HELD_OUT_SHARE = 0.1
FEWEST_ITEMS = 20


def train_content_head(head: ContentHead, data: FeatureBatches) -> dict[str, Any]:
    """Train `head` in place on all items that have content and e^c; uses torch's random state.

    Returns a JSON-able report: `items`, `explained_variance` (share of the variance of e^c on the items kept aside, 1 − MSE / variance)
    and `cosine` between predicted and real e^c there. With fewer than 20 such items the head predicts their mean.
    """
    content = torch.stack([data.masks[name] for name in head.dims]).any(0)
    rows = (content & data.masks[COLLABORATIVE]).nonzero().flatten()
    torch.nn.init.zeros_(head.network.linear.weight)
    head.network.silence()
    if len(rows) < FEWEST_ITEMS:
        with torch.no_grad():
            head.network.linear.bias.copy_(data.batch(rows)[0][COLLABORATIVE].mean(0) if len(rows) else torch.zeros(()))
        return {"items": len(rows), "explained_variance": None, "cosine": None}
    rows = rows[torch.randperm(len(rows)).to(rows.device)]
    aside, rows = rows[: max(2, round(HELD_OUT_SHARE * len(rows)))], rows[max(2, round(HELD_OUT_SHARE * len(rows))) :]
    optimiser = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    best, waited = math.inf, 0
    state: dict[str, Tensor] = {}
    for _ in range(EPOCHS):
        head.train()
        for batch in rows[torch.randperm(len(rows)).to(rows.device)].split(BATCH_SIZE):
            features, masks = data.batch(batch)
            shown = hide_one({name: masks[name] for name in head.dims}, HIDDEN_SHARE)
            loss = F.mse_loss(head(features, shown), features[COLLABORATIVE])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        error = _evaluate(head, data, aside)[0]
        waited = 0 if error < best else waited + 1
        if error < best:
            best, state = error, copy.deepcopy(head.state_dict())
        if waited >= PATIENCE:
            break
    head.load_state_dict(state)
    error, cosine = _evaluate(head, data, aside)
    logger.info("content head: explains %.1f %% of the variance of e^c on items kept aside", 100 * (1 - error))
    return {"items": len(rows) + len(aside), "explained_variance": 1 - error, "cosine": cosine}


@torch.no_grad()
def _evaluate(head: ContentHead, data: FeatureBatches, rows: Tensor) -> tuple[float, float]:
    """Squared error as a share of the variance, and mean cosine, over items `rows`."""
    head.eval()
    features, masks = data.batch(rows)
    predicted, real = head(features, masks), features[COLLABORATIVE]
    variance = (real - real.mean(0)).square().mean().clamp_min(1e-12)
    return ((predicted - real).square().mean() / variance).item(), F.cosine_similarity(predicted, real).mean().item()
