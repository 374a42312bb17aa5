"""Teaches the fusion which content predicts the next item.

Under reconstruction alone x is its own target: nothing tells W_q and W_k which modality matters for an item, and on MovieLens α
followed whichever was easier to rebuild. Here an item's content half of x has to pick out the items bought right after it
(InfoNCE over the items of a batch, corrected for how often an item is drawn: Yi et al. 2019). The collaborative half stays out of
the contrast: it knows co-occurrence already and would leave content nothing to learn. Afterwards the fusion is frozen, so the
RQ-VAE reconstructs a fixed x. `epochs: 0` is the paper's way, fusion trained by reconstruction.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from ..data.ragged import Ragged
from ..errors import CEMGError
from ..models.cemg.modeling_rqvae import CONTENT_MODALITIES, GuidedFusion
from .quantise import FeatureBatches

logger = logging.getLogger(__name__)


@dataclass
class NextItemConfig:
    """Training of the fusion by contrast with the next item."""

    epochs: int = field(
        default=5, metadata={"help": "Passes over the pairs; 0: the fusion learns from reconstruction alone, as in the paper."}
    )
    pairs_per_epoch: int = field(default=50_000, metadata={"help": "At most this many pairs, drawn anew each epoch."})
    window: int = field(default=3, metadata={"help": "How many of the following items of a training sequence count as next."})
    batch_size: int = field(default=1024, metadata={"help": "Pairs per step; the other items of the batch are the negatives."})
    learning_rate: float = field(default=5e-4, metadata={"help": "Learning rate of AdamW."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    temperature: float = field(default=0.1, metadata={"help": "Divides the cosine similarities."})
    train_projections: bool = field(
        default=True, metadata={"help": "Learn the projections of image and text too, not only the attention between them."}
    )

    def __post_init__(self) -> None:
        for name in ("pairs_per_epoch", "window", "batch_size"):
            if getattr(self, name) < 1:
                raise CEMGError(f"next_item.{name}: {getattr(self, name)} is not a positive integer")
        if self.epochs < 0 or self.weight_decay < 0:
            raise CEMGError("next_item: epochs and weight_decay cannot be negative")
        for name in ("learning_rate", "temperature"):
            if not getattr(self, name) > 0:
                raise CEMGError(f"next_item.{name}: {getattr(self, name)} is not positive")


def next_item_pairs(sequences: Ragged, window: int) -> np.ndarray:
    """(P, 2) int64 item pairs (i, j): j follows i within `window` places in one training sequence, i ≠ j."""
    rows = np.repeat(np.arange(len(sequences)), sequences.lengths)
    items = sequences.values.astype(np.int64)
    pairs = [np.empty((0, 2), dtype=np.int64)]
    for gap in range(1, window + 1):
        before, after = items[:-gap], items[gap:]
        kept = (rows[:-gap] == rows[gap:]) & (before != after)
        pairs.append(np.stack([before[kept], after[kept]], axis=1))
    return np.concatenate(pairs)


def train_fusion(fusion: GuidedFusion, data: FeatureBatches, pairs: np.ndarray, config: NextItemConfig) -> dict[str, Any]:
    """Train `fusion` in place on pairs (P, 2) of item rows; returns a JSON-able report with the loss per epoch.

    Only pairs in which both items have content count. Nothing is trained where there are none, or no content modality at all.
    Uses torch's random state.
    """
    names = [name for name in CONTENT_MODALITIES if name in fusion.config.modality_dims]
    usable = torch.from_numpy(pairs).to(data.device)
    content = (
        torch.stack([data.masks[name] for name in names]).any(0) if names else torch.zeros(len(data), dtype=torch.bool, device=data.device)
    )
    usable = usable[content[usable].all(1)]
    trained = list(fusion.query.parameters()) + list(fusion.key.parameters()) if fusion.guided else []
    if config.train_projections:
        trained += [parameter for name in names for parameter in fusion.projections[name].parameters()]
    if not len(usable) or not trained or not config.epochs:
        logger.info("fusion: nothing to train by contrast with the next item (%d pairs with content)", len(usable))
        return {"pairs": len(usable), "loss": []}
    drawn = torch.bincount(usable[:, 1], minlength=len(data)).float()
    log_share = (drawn / drawn.sum()).clamp_min(1e-12).log()
    fusion.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    losses = []
    progress = tqdm(range(config.epochs), desc="fusion", unit="epoch")
    for _ in progress:
        order = torch.randperm(len(usable))[: config.pairs_per_epoch].to(data.device)
        total = torch.zeros((), device=data.device)
        for rows in order.split(config.batch_size):
            loss = _contrast(fusion, data, usable[rows], log_share, config.temperature)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            total += loss.detach() * len(rows)
        losses.append(round(total.item() / len(order), 4))
        progress.set_postfix(loss=f"{losses[-1]:.4f}")
    fusion.requires_grad_(False)
    for filler in (fusion.missing_content, fusion.missing_collaborative):  # what stands in for an absent half stays the encoder's to learn
        filler.requires_grad_(True)
    return {"pairs": len(usable), "loss": losses}


def _contrast(fusion: GuidedFusion, data: FeatureBatches, pairs: Tensor, log_share: Tensor, temperature: float) -> Tensor:
    """InfoNCE of pairs (B, 2); other pairs' next items are negatives, except repetitions of the right one."""
    items, places = pairs.unique(return_inverse=True)  # an item is fused once however often it occurs
    width = fusion.config.dimension
    content = F.normalize(fusion(*data.batch(items)).x[:, :width], dim=1)
    targets = pairs[:, 1]
    scores = content[places[:, 0]] @ content[places[:, 1]].T / temperature - log_share[targets]
    repeated = (targets[None] == targets[:, None]).fill_diagonal_(False)
    return F.cross_entropy(scores.masked_fill(repeated, torch.finfo(scores.dtype).min), torch.arange(len(pairs), device=data.device))
