from __future__ import annotations

import pytest
import torch
from torch import nn

from cemg_hf.training.dropout import ByteDropout, use_byte_dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_mean_stays_and_the_rate_is_that_asked_for(rate: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ones = torch.ones(1001, 999, dtype=dtype)
    dropped = ByteDropout(rate)(ones)
    assert (dropped == 0).float().mean().item() == pytest.approx(rate, abs=0.003)
    assert dropped.float().mean().item() == pytest.approx(1, abs=0.005)
    assert dropped.unique().numel() == 2
    rows = (dropped == 0).float()
    for shift in (1, 2, 8):  # neighbours of one draw are independent
        both = (rows[:, shift:] * rows[:, :-shift]).mean().item()
        assert both == pytest.approx(rate**2, abs=0.003)


def test_gradients_go_where_values_went() -> None:
    torch.manual_seed(0)
    values = torch.randn(33, 7, requires_grad=True)
    dropped = ByteDropout(0.3)(values)
    dropped.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad * values.detach(), dropped.detach())


def test_it_is_reproducible_and_does_nothing_in_evaluation() -> None:
    layer, values = ByteDropout(0.4), torch.randn(5, 5)
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(layer(values))
    assert torch.equal(*draws)
    assert torch.equal(layer.eval()(values), values)
    assert torch.equal(ByteDropout(0.0)(values), values)


def test_every_dropout_of_a_model_is_exchanged_and_nothing_else() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.2), nn.Sequential(nn.Dropout(0.5), nn.AlphaDropout(0.5)))
    before = model.state_dict()
    use_byte_dropout(model)
    assert [type(module).__name__ for module in model.modules()] == [
        "Sequential",
        "Linear",
        "ByteDropout",
        "Sequential",
        "ByteDropout",
        "AlphaDropout",
    ]
    assert model.state_dict().keys() == before.keys()
    assert model[1].p == 0.2
