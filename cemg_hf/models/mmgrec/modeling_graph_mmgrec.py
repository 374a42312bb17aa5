"""The graph half of MMGRec's Graph RQ-VAE (eq. 4, 5 and L_bpr of eq. 10): multimodal item features + user–item graph → h_u, h_i.

The other half, encoder, residual codebooks and decoder over h_i (eq. 6–9 and L_rqvae), is `CEMGRQVAE`.

What the paper leaves open, and what is done here
- *Alternating the two losses.* L_rqvae takes h_i as given (no gradient reaches it): otherwise shrinking h_i would lower it. The two
  losses then share no parameter, and alternating them until both have converged is training the graph first and the RQ-VAE after.
- *Layers.* Their number is not given; the first maps 2D to D, further ones D to D, each with LeakyReLU as eq. 5 has it.
- *A missing modality* is a zero block of the concatenation.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn import SAGEConv


class GraphLoss(NamedTuple):
    """`loss` is Σ over the triples / the number asked for."""

    loss: Tensor


class MultimodalGraphEncoder(nn.Module):
    """Item and user representations by graph convolution over the bipartite graph of interactions.

    h_i^(0) = [f_i W ; h^c_i] with the concatenated features f_i and a learned h^c_i, h_u^(0) learned (eq. 4);
    h^(n) = LeakyReLU(h^(n−1) W₁ + mean over neighbours of h^(n−1) W₂), which is GraphSAGE's layer (eq. 5).

    Args:
        features: (N, Σ d_m) content vectors of the items, zeros where a modality is missing.
        neighbours: (U + N, U + N) sparse CSR adjacency, values 1; node u is user u, node U + i is item i.
        dimension: D.
        num_layers: graph convolutions.
        l2: weight of the squared norms of the batch's h^(0) in the loss.
    """

    def __init__(self, features: Tensor, neighbours: Tensor, dimension: int, num_layers: int, l2: float) -> None:
        super().__init__()
        self.num_users, self.l2 = neighbours.shape[0] - len(features), l2
        self.neighbours = neighbours  # no buffer: it is no state, and data parallelism would try to broadcast it
        self.register_buffer("features", features, persistent=False)
        self.features: Tensor
        self.content = nn.Linear(features.shape[1], dimension, bias=False)
        self.collaborative = nn.Embedding(len(features), dimension)
        self.users = nn.Embedding(self.num_users, 2 * dimension)
        widths = [2 * dimension, *[dimension] * num_layers]
        self.convolutions = nn.ModuleList(SAGEConv(before, after, aggr="mean", bias=False) for before, after in pairwise(widths))
        for weight in (self.content.weight, self.collaborative.weight, self.users.weight):
            nn.init.xavier_uniform_(weight)

    def initial(self) -> Tensor:
        """(U + N, 2D) h^(0) of users, then items (eq. 4)."""
        return torch.cat([self.users.weight, torch.cat([self.content(self.features), self.collaborative.weight], dim=1)])

    def propagate(self, nodes: Tensor) -> Tensor:
        """(U + N, D) h of h^(0) (U + N, 2D) (eq. 5)."""
        self.neighbours = self.neighbours.to(nodes.device)
        for convolution in self.convolutions:
            nodes = functional.leaky_relu(convolution(nodes, self.neighbours))
        return nodes

    def representations(self) -> tuple[Tensor, Tensor]:
        """h_u (U, D) and h_i (N, D)."""
        nodes = self.propagate(self.initial())
        return nodes[: self.num_users], nodes[self.num_users :]

    def forward(self, users: Tensor, labels: Tensor, negatives: Tensor, num_items_in_batch: Tensor | int | None = None) -> GraphLoss:
        """L_bpr with its L2 term (eq. 10).

        Args:
            users, labels, negatives: (B,) user, item she interacted with (−100 is ignored) and item she did not.
            num_items_in_batch: divide by this number instead of by the batch's own.
        """
        counted = labels >= 0
        nodes = torch.stack([users, labels.clamp(min=0) + self.num_users, negatives + self.num_users])
        initial = self.initial()
        user, item, negative = functional.embedding(nodes, self.propagate(initial))
        preferred = functional.logsigmoid((user * (item - negative)).sum(-1))
        norms = functional.embedding(nodes, initial).square().sum(dim=(0, 2))
        loss = ((self.l2 * norms - preferred) * counted).sum()
        return GraphLoss(loss / (counted.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch))
