"""What is kept is what would be computed now, whatever was done to its sources, and nothing of it shows anywhere else."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from cemg_hf.models.cemg.kept_cemg import Kept


class Case:
    """A weight, a table and their product, which counts how often it is computed."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.weight, self.table = nn.Parameter(torch.randn(3, 3)), torch.randn(4, 3)
        self.kept, self.computed = Kept(), 0

    def compute(self) -> Tensor:
        self.computed += 1
        return self.table.to(self.weight.dtype) @ self.weight

    def get(self) -> Tensor:
        with torch.inference_mode():
            return self.kept.get([self.weight, self.table], self.compute)

    def step(self, optimizer: type[torch.optim.Optimizer], **settings) -> None:
        self.weight.grad = torch.ones_like(self.weight)
        optimizer([self.weight], lr=0.1, **settings).step()

    def write(self, *, inference: bool) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            self.weight.add_(1)

    def replace_memory_twice(self) -> None:
        """What `module.to(torch.bfloat16).to(torch.float32)` does to a parameter: the first address may come back."""
        self.weight.data = self.weight.data.bfloat16()
        self.weight.data = self.weight.data.float()


CHANGES: dict[str, Callable[[Case], object]] = {
    "written into": lambda case: case.write(inference=False),
    "written into in inference mode": lambda case: case.write(inference=True),
    "the table written into": lambda case: case.table.zero_(),
    "SGD": lambda case: case.step(torch.optim.SGD),
    "SGD, foreach": lambda case: case.step(torch.optim.SGD, foreach=True),
    "SGD, fused": lambda case: case.step(torch.optim.SGD, fused=True),
    "AdamW": lambda case: case.step(torch.optim.AdamW),
    "AdamW, fused": lambda case: case.step(torch.optim.AdamW, fused=True),
    "another parameter": lambda case: setattr(case, "weight", nn.Parameter(case.weight.detach() + 1)),
    "another parameter in the same memory": lambda case: (
        setattr(case, "weight", nn.Parameter(case.weight.data)),
        case.write(inference=False),
    ),
    "another table": lambda case: setattr(case, "table", case.table + 1),
    "other memory": lambda case: setattr(case.weight, "data", torch.ones(3, 3)),
    "to bfloat16": lambda case: setattr(case.weight, "data", case.weight.data.bfloat16()),
    "to bfloat16 and back": Case.replace_memory_twice,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_source_is_noticed(change):
    case = Case()
    before = case.get()
    assert case.get() is before
    assert case.computed == 1
    before = before.clone()
    change(case)
    after = case.get()
    assert torch.equal(after, case.table.to(case.weight.dtype) @ case.weight)
    assert not torch.equal(after.float(), before)
    assert case.get() is after
    assert case.computed == 2


def test_what_a_caller_writes_into_the_result_does_not_stay():
    case = Case()
    case.get()
    with torch.no_grad():
        case.get().zero_()
    assert torch.equal(case.get(), case.compute())


def test_forget_is_for_what_no_account_is_kept_of():
    case = Case()
    case.get()
    case.weight.data.add_(1)
    case.kept.forget()
    assert torch.equal(case.get(), case.compute())


def test_with_gradients_it_is_computed_and_can_be_trained_with():
    case = Case()
    kept = case.get()
    result = case.kept.get([case.weight, case.table], case.compute)
    assert result is not kept
    result.sum().backward()
    assert case.weight.grad is not None
    assert case.get() is kept


def test_what_inference_mode_made_keeps_no_account_and_is_computed_anew():
    case = Case()
    with torch.inference_mode():
        case.table = torch.randn(4, 3)
        first = case.get()
        case.table.zero_()
    assert not torch.equal(first, case.get())


def test_what_is_kept_may_be_trained_with_although_inference_mode_asked_first():
    case = Case()
    result = case.get()
    assert not result.is_inference()
    factor = torch.ones(3, requires_grad=True)
    (result * factor).sum().backward()  # an inference tensor could not be saved for this
    torch.testing.assert_close(factor.grad, result.sum(dim=0))


def test_autocast_has_its_own_result():
    case = Case()
    exact = case.get()
    with torch.autocast("cpu", torch.bfloat16):
        low = case.get()
    assert low.dtype == torch.bfloat16
    assert torch.equal(case.get(), exact)


def test_tensors_without_memory_are_kept_too():
    case = Case()
    case.weight, case.table = nn.Parameter(case.weight.to("meta")), case.table.to("meta")
    assert case.get() is case.get()


def test_tensors_of_classes_of_their_own_are_not_kept():
    class Shard(Tensor):
        pass

    case = Case()
    case.table = case.table.as_subclass(Shard)
    assert case.get() is not case.get()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda kept: pickle.loads(pickle.dumps(kept))])
def test_copies_start_empty(copied):
    case = Case()
    case.get()
    kept = copied(case.kept)
    assert isinstance(kept, Kept)
    assert kept._found is None
    assert case.get() is case.get()


def test_a_compiled_graph_computes_it():
    case = Case()
    kept = case.get()
    compiled = torch.compile(case.get, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(), kept)
    case.write(inference=False)
    torch.testing.assert_close(compiled(), case.compute().detach())


def test_threads_that_ask_while_sources_are_replaced_get_what_belongs_to_them():
    """Readers never see one catalogue's result under another's: each asks with the sources it holds."""
    kept = Kept()
    tables = [torch.full((50, 8), float(number)) for number in range(4)]

    def ask(number: int) -> bool:
        table = tables[number % 4]
        with torch.inference_mode():
            return torch.equal(kept.get([table], lambda: table * 2), table * 2)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(2000)))
