"""Codebooks of the residual quantiser: PCA and k-means start, moving averages, revival of dead codes."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from ..models.cemg.modeling_rqvae import CEMGRQVAE, ResidualQuantiser, squared_distances

KMEANS_ITERATIONS = 30


@torch.no_grad()
def initialise_autoencoder(model: CEMGRQVAE, x: Tensor) -> None:
    """PCA of fused vectors x (N, 2d) on the linear path, scaled so that z has unit mean variance. Uses torch's random state."""
    mean = x.mean(0)
    size = min(model.config.latent_dim, *x.shape)
    _, _, directions = torch.svd_lowrank(x - mean, q=min(size + 8, *x.shape), niter=4)
    components = directions[:, :size].T
    spread = ((x - mean) @ components.T).square().mean().sqrt().item()
    model.initialise_linear(components, mean, scale=1 / max(spread, 1e-6))


@torch.no_grad()
def initialise_codebooks(model: ResidualQuantiser, latent: Tensor) -> None:
    """Set every level's codebook to the k-means centroids of the residuals of z (N, D) that the levels above leave."""
    residual = latent
    levels, size, _ = model.codebooks.shape
    for level in range(levels):
        model.set_codes(level, torch.from_numpy(_centroids(residual.cpu().numpy(), size)))
        residual = residual - model.codebooks[level][squared_distances(residual, model.codebooks[level]).argmin(1)]


def _centroids(points: np.ndarray, size: int) -> np.ndarray:
    """(size, D) k-means centroids; with fewer distinct points than `size` the rest are jittered copies of points."""
    state = int(torch.randint(2**31 - 1, (1,)))
    distinct = np.unique(points, axis=0)
    if len(distinct) <= size:
        generator = np.random.default_rng(state)
        copies = distinct[generator.integers(0, len(distinct), size - len(distinct))]
        jitter = 0.01 * points.std() * generator.standard_normal(copies.shape)
        return np.concatenate([distinct, copies + jitter]).astype(points.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return KMeans(size, n_init=1, max_iter=KMEANS_ITERATIONS, random_state=state).fit(points).cluster_centers_.astype(points.dtype)


class MovingAverageCodebooks(nn.Module):
    """Code vectors as moving averages of the residuals they code (van den Oord et al. 2017, appendix A.1).

    What the averages have summed up are buffers, so that a module that contains this one takes them along in its checkpoints.
    """

    counts: Tensor
    sums: Tensor
    used: Tensor

    def __init__(self, model: ResidualQuantiser, decay: float, items_per_batch: int) -> None:
        super().__init__()
        object.__setattr__(self, "model", model)  # not as a part of this module: its weights have an owner
        self.model: ResidualQuantiser
        self.decay = decay
        size = model.codebooks.shape[1]
        self.start_count = items_per_batch / size
        self.register_buffer("counts", torch.full(model.codebooks.shape[:2], self.start_count, device=model.codebooks.device))
        self.register_buffer("sums", model.codebooks * self.start_count)
        self.register_buffer("used", torch.zeros_like(self.counts))

    @torch.no_grad()
    def update(self, codes: Tensor, residuals: Tensor) -> None:
        """One step with codes (B, M) and residuals (B, M, D)."""
        levels, size, dimension = self.sums.shape
        flat = (codes + torch.arange(levels, device=codes.device) * size).ravel()
        counts = torch.bincount(flat, minlength=levels * size).to(self.counts).view(levels, size)
        sums = torch.zeros(levels * size, dimension, device=codes.device).index_add_(0, flat, residuals.detach().flatten(0, 1))
        self.used += counts
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums.view_as(self.sums), 1 - self.decay)
        self.model.codebooks.copy_(self.sums / self.counts.clamp_min(1e-6)[..., None])

    @torch.no_grad()
    def revive(self, latent: Tensor) -> int:
        """Move the codes that no item took since the last call to residuals drawn by their quantisation error; how many were moved.

        Levels follow each other, so that a level sees the residuals that the codes moved above it leave.
        """
        residual, revived = latent, 0
        for level, used in enumerate(self.used):
            codebook = self.model.codebooks[level]
            error = squared_distances(residual, codebook).amin(1).clamp_min(0)
            dead = (used == 0).nonzero().ravel()[: int((error > 0).sum())]
            if len(dead):
                drawn = residual[torch.multinomial(error.cpu(), len(dead)).to(residual.device)]
                self.model.set_codes(level, drawn, dead)
                self.counts[level, dead] = self.start_count
                self.sums[level, dead] = drawn * self.start_count
                revived += len(dead)
            residual = residual - self.model.codebooks[level][squared_distances(residual, self.model.codebooks[level]).argmin(1)]
        self.used.zero_()
        return revived
