"""A small MMGRec recommender over random Rec-IDs, and the slow obvious ways to score its items."""

from __future__ import annotations

import torch
from torch import Tensor

from cemg_hf.models.mmgrec import MMGRecForRecommendation, MMGRecModelConfig, assign_rec_ids

ITEMS, USERS, LEVELS, SIZE, WIDTH = 30, 5, 4, 6, 16


def rec_ids(num_items: int = ITEMS, seed: int = 0) -> Tensor:
    """(N, M) Rec-IDs of items that lie close together, so that many share their semantic tokens."""
    generator = torch.Generator().manual_seed(seed)
    semantic = torch.randint(2, (num_items, LEVELS - 1), generator=generator)
    codebooks = torch.randn(LEVELS - 1, SIZE, 3, generator=generator)
    latent = torch.randn(num_items, 3, generator=generator)
    return assign_rec_ids(semantic, latent, codebooks, torch.randint(9, (num_items,), generator=generator))[0]


def recommender(seed: int = 0, **settings: object) -> MMGRecForRecommendation:
    """Random weights, evaluation mode, catalogue in place."""
    torch.manual_seed(seed)
    network = {"d_model": WIDTH, "num_heads": 2, "d_ff": 32, "max_history": 6, "num_levels": LEVELS, "codebook_size": SIZE}
    model = MMGRecForRecommendation(MMGRecModelConfig(num_items=ITEMS, num_users=USERS, **{**network, **settings})).eval()
    model.set_catalogue([f"i{item}" for item in range(ITEMS)], rec_ids(), torch.randn(ITEMS, WIDTH), torch.randn(USERS, WIDTH))
    return model


@torch.no_grad()
def exhaustive(model: MMGRecForRecommendation, history: Tensor, users: Tensor) -> Tensor:
    """(B, N) Σ log p of every item's Rec-ID, from the loss's own logits, one item at a time."""
    columns = []
    for item in range(model.config.num_items):
        logits = model(history, users, torch.full((len(history), 1), item)).logits[:, 0]
        columns.append(logits.log_softmax(-1).gather(-1, model.item_codes[item].expand(len(history), -1).unsqueeze(-1)).sum((1, 2)))
    return torch.stack(columns, dim=1)
