"""The report that stands beside a tokenizer: quality of the frozen RQ-VAE on its catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..models.cemg.modeling_rqvae import CEMGRQVAE
from .quantise import FeatureBatches, alpha_report, quantise

PCA_ITEMS = 50_000  # PCA's error is estimated on that many items of a larger catalogue
ROWS_AT_ONCE = 8192


def tokenizer_report(model: CEMGRQVAE, vectors: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Quality of a frozen RQ-VAE on all items.

    `levels`: per level `used_codes` (share of K) and `perplexity`; `collision_rate`; `reconstruction_error` as a share of the
    variance of x, beside `pca_error` of PCA to the same latent size without quantisation; `alpha`: mean, standard deviation and
    quantiles of the weight of each content modality over the items that have both.
    """
    data = FeatureBatches({name: vectors[name] for name in model.config.modality_dims}, masks, model.codebooks.device)
    found = quantise(model.eval(), data, keep_latent=False)
    return {
        **found.metrics,
        "pca_error": _pca_error(model, data),
        "alpha": alpha_report(found.alpha),
        "items": len(data),
        "config": model.config.to_dict(),
    }


@torch.inference_mode()
def _pca_error(model: CEMGRQVAE, data: FeatureBatches) -> float:
    """Share of the variance of x that PCA to the size of z (no quantisation) loses, over items with both halves where there are any."""
    sample = data.sample(PCA_ITEMS, torch.Generator().manual_seed(0))
    fused = [model.fuse(*data.batch(rows)) for rows in sample.split(ROWS_AT_ONCE)]
    x, present = torch.cat([part.x for part in fused]), torch.cat([part.present for part in fused])
    complete = present.all(1)
    x = x[complete] if complete.any() else x[:, present.any(0).repeat_interleave(x.shape[1] // 2)]
    centred = x - x.mean(0)
    kept = min(model.config.latent_dim, *centred.shape)
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        torch.manual_seed(0)
        _, values, _ = torch.svd_lowrank(centred, q=min(kept + 8, *centred.shape), niter=2)
    return max(0.0, 1 - (values[:kept].square().sum() / centred.square().sum().clamp_min(1e-12)).item())
