"""A made-up catalogue and small settings for the tests of tokenizer training."""

from __future__ import annotations

import numpy as np

from cemg_hf.training.tokenizer_config import TokenizerTrainingConfig


def shop(count: int = 240, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Items of 8 groups that show in all three modalities; a tenth of each modality is missing."""
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 8, count)
    vectors, masks = {}, {}
    for name, size in {"image": 10, "text": 16, "collaborative": 6}.items():
        values = 2 * rng.normal(size=(8, size))[groups] + 0.5 * rng.normal(size=(count, size))
        mask = rng.random(count) > 0.1
        values -= values[mask].mean(0)
        values *= np.sqrt(size / np.square(values[mask]).sum(1).mean())
        vectors[name] = np.where(mask[:, None], values, 0).astype(np.float32)
        masks[name] = mask
    return vectors, masks, groups


def settings(**values: object) -> TokenizerTrainingConfig:
    given = {
        "dimension": 16,
        "num_levels": 3,
        "codebook_size": 8,
        "hidden_dims": [32],
        "latent_dim": 8,
        "epochs": 12,
        "evaluation_interval": 3,
    }
    return TokenizerTrainingConfig(**{**given, **values})
