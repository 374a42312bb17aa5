from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch_geometric.utils import to_torch_csr_tensor

from cemg_hf.models.mmgrec import MultimodalGraphEncoder

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")
USERS, ITEMS, WIDTH = 6, 9, 4


def encoder(layers: int = 2) -> tuple[MultimodalGraphEncoder, np.ndarray]:
    """The encoder of a random graph, whose last user and last item have no edge, and its (U, N) edges."""
    torch.manual_seed(0)
    has = np.random.default_rng(0).random((USERS, ITEMS)) < 0.4
    has[-1], has[:, -1] = False, False
    users, items = torch.from_numpy(has).nonzero(as_tuple=True)
    edges = torch.stack([users, items + USERS])
    adjacency = to_torch_csr_tensor(torch.cat([edges, edges.flip(0)], dim=1), size=(USERS + ITEMS, USERS + ITEMS))
    return MultimodalGraphEncoder(torch.randn(ITEMS, 7), adjacency, WIDTH, layers, l2=0.01), has


def test_propagation_is_equation_five_node_by_node() -> None:
    model, has = encoder()
    state = {name: value.detach() for name, value in model.named_parameters()}
    items = [torch.cat([state["content.weight"] @ model.features[i], state["collaborative.weight"][i]]) for i in range(ITEMS)]
    nodes = [*state["users.weight"], *items]
    around = [[USERS + i for i in range(ITEMS) if has[u, i]] for u in range(USERS)]
    around += [[u for u in range(USERS) if has[u, i]] for i in range(ITEMS)]
    for layer in range(2):
        own, others = state[f"convolutions.{layer}.lin_r.weight"], state[f"convolutions.{layer}.lin_l.weight"]
        means = [torch.stack([nodes[n] for n in near]).mean(0) if near else torch.zeros_like(nodes[0]) for near in around]
        nodes = [functional.leaky_relu(own @ node + others @ mean) for node, mean in zip(nodes, means, strict=True)]
    users, found = model.representations()
    torch.testing.assert_close(torch.cat([users, found]), torch.stack(nodes))
    assert found.shape == (ITEMS, WIDTH)


def test_the_loss_is_bpr_over_the_triples_that_count() -> None:
    model, _ = encoder()
    users, items = model.representations()
    triples = [(0, 1, 2), (3, 4, 5)]
    initial = model.initial()
    expected = 0.0
    for u, i, j in triples:
        norms = initial[u].square().sum() + initial[USERS + i].square().sum() + initial[USERS + j].square().sum()
        expected = expected - functional.logsigmoid(users[u] @ items[i] - users[u] @ items[j]) + 0.01 * norms
    batch = {"users": torch.tensor([0, 3, 1]), "labels": torch.tensor([1, 4, -100]), "negatives": torch.tensor([2, 5, 0])}
    torch.testing.assert_close(model(**batch).loss, expected / 2)
    torch.testing.assert_close(model(**batch, num_items_in_batch=10).loss, expected / 10)


def test_every_parameter_learns() -> None:
    model, _ = encoder()
    model(torch.arange(USERS), torch.arange(USERS), torch.arange(USERS) + 1).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
