"""LETTER's diversity loss (arXiv 2405.07314): the code vectors of a level form clusters of equal size, and each is drawn to its own.

Per item and level, with the chosen code vector e, another code vector e₊ of its cluster, drawn at random, and the level's vectors e_j:

    L_div = −log exp⟨e, e₊⟩ / Σ_{j ≠ code} exp⟨e, e_j⟩

Two things are done differently here. Code vectors are moving averages of the residuals they code, so the gradient goes straight through
e to the residual, and the code vectors follow. Products are divided by the level's mean squared norm, as the temperature of the entropy
loss follows the data: otherwise the softness of the softmax would depend on the scale of the latent space.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from ..models.cemg.modeling_rqvae import squared_distances

ITERATIONS = 10


class ClusterDiversity:
    """The loss, and the clusters it refers to. Draws from torch's random state.

    Args:
        num_clusters: clusters per level, at most; every one has two codes or more.
    """

    def __init__(self, num_clusters: int) -> None:
        self.num_clusters = num_clusters
        self.members = torch.empty(0, dtype=torch.int64)
        """(M, K) codes of each level, those of one cluster one after the other."""
        self.place = self.members
        """(M, K) where each code stands in `members`."""
        self.begin = self.members
        """(M, K) where the cluster of each code begins in `members`."""
        self.size = self.members
        """(M, K) number of codes in the cluster of each code."""

    @torch.no_grad()
    def fit(self, codebooks: Tensor) -> None:
        """Cluster the vectors of every level of codebooks (M, K, D) anew."""
        num_clusters = max(1, min(self.num_clusters, codebooks.shape[1] // 2))
        labels = torch.stack([balanced_clusters(vectors, num_clusters) for vectors in codebooks])
        self.members = labels.argsort(dim=1, stable=True)
        self.place = self.members.argsort(dim=1)
        counts = functional.one_hot(labels, num_clusters).sum(1)
        self.begin, self.size = (counts.cumsum(1) - counts).gather(1, labels), counts.gather(1, labels)

    def loss(self, codes: Tensor, residuals: Tensor, codebooks: Tensor) -> Tensor:
        """L_div, mean over items and levels.

        Args:
            codes: (B, M) chosen codes.
            residuals: (B, M, D) what each level had to code.
            codebooks: (M, K, D).
        """
        levels = torch.arange(codebooks.shape[0], device=codes.device)
        place, begin, size = (table[levels, codes] for table in (self.place, self.begin, self.size))
        # Another place in the same cluster: one to size − 1 further on, around the end.
        step = 1 + (torch.rand(codes.shape, device=codes.device) * (size - 1)).long().clamp(max=size - 2)
        partners = self.members[levels, begin + (place - begin + step) % size]
        chosen = residuals + (codebooks[levels, codes] - residuals).detach()
        scale = codebooks.square().sum(-1).mean(1).clamp_min(1e-6)
        products = torch.einsum("bmd,mkd->bmk", chosen, codebooks) / scale[:, None]
        products = products.scatter(-1, codes.unsqueeze(-1), -torch.inf)
        return functional.cross_entropy(products.flatten(0, 1), partners.flatten())


def balanced_clusters(vectors: Tensor, num_clusters: int) -> Tensor:
    """(K,) cluster of each of the vectors (K, D), by k-means with clusters whose sizes differ by at most one.

    Lloyd's iterations with the nearest-centre step solved as an assignment of vectors to places (Bradley, Bennett and Demiriz 2000).
    The centres start at vectors drawn from torch's random state.
    """
    count = len(vectors)
    places = np.arange(count) % num_clusters  # the cluster of each place
    centres = vectors[torch.randperm(count)[:num_clusters].to(vectors.device)]
    labels = torch.full((count,), -1)
    for _ in range(ITERATIONS):
        costs = squared_distances(vectors, centres).cpu().double().numpy()
        _, chosen = linear_sum_assignment(costs[:, places])
        found = torch.from_numpy(places[chosen])
        if torch.equal(found, labels):
            break
        labels = found
        member = functional.one_hot(labels, num_clusters).to(vectors)
        centres = member.T @ vectors / member.sum(0).unsqueeze(1)
    return labels.to(vectors.device)
