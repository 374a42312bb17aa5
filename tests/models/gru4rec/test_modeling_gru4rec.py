"""GRU4Rec: a GRU over the embeddings its output is compared with."""

from __future__ import annotations

import torch

from cemg_hf.models.gru4rec import GRU4RecConfig, GRU4RecForNextItem


def network(**settings) -> GRU4RecForNextItem:
    torch.manual_seed(0)
    small = {"hidden_size": 8, "recurrent_size": 6, "dropout": 0.0}
    return GRU4RecForNextItem(GRU4RecConfig(num_items=12, **small | settings))


def test_states_are_those_of_the_recurrence_step_by_step() -> None:
    model = network()
    weights = model.gru.state_dict()
    state, expected = torch.zeros(6), []
    for vector in [model.start, *model.item_embedding.weight[[3, 1, 4]] * model.config.hidden_size**0.5]:
        given, own = weights["weight_ih_l0"] @ vector + weights["bias_ih_l0"], weights["weight_hh_l0"] @ state + weights["bias_hh_l0"]
        reset, update = (given[:12] + own[:12]).sigmoid().split(6)
        state = (1 - update) * (given[12:] + reset * own[12:]).tanh() + update * state
        expected.append(model.output(state))
    torch.testing.assert_close(model(torch.tensor([[3, 1, 4]])).states[0], torch.stack(expected), atol=1e-5, rtol=0)


def test_the_gradient_reaches_everything() -> None:
    model = network(num_layers=2, dropout=0.1).train()
    model(torch.tensor([[3, 1, 4], [1, -1, -1]]), torch.tensor([[3, 1, 4, 5], [1, 2, -100, -100]])).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in model.parameters())


def test_input_and_output_share_their_embeddings() -> None:
    model = network()
    assert model.item_vectors() is model.item_embedding.weight
    assert sum(tuple(parameter.shape) == (12, 8) for parameter in model.parameters()) == 1


def test_training_learns_what_follows_what() -> None:
    model = network(hidden_size=16, recurrent_size=24)
    windows = torch.stack([torch.arange(start, start + 6) % 12 for start in range(12)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(60):
        loss = model(windows[:, :-1], windows).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model.eval().scores(windows[:, :-1]).argmax(dim=1) == windows[:, -1]).all()
