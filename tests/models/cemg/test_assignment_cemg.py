"""Unique codes: properties of the resolution, its optimality against scipy, taken codes, refusals."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from cemg_hf.models.cemg import assignment_cemg
from cemg_hf.models.cemg.assignment_cemg import assign_unique_codes, collision_rate


def problem(items: int, levels: int, size: int, dimension: int, seed: int, distinct: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Random items (only `distinct` different vectors), random codebooks of shrinking scale, nearest codes."""
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(max(items, distinct or 0), dimension, generator=generator, dtype=torch.float64)
    if distinct is not None:
        latent = latent[torch.randint(distinct, (items,), generator=generator)]
    scale = 0.6 ** torch.arange(levels, dtype=torch.float64)[:, None, None]
    codebooks = torch.randn(levels, size, dimension, generator=generator, dtype=torch.float64) * scale
    residual, codes = latent.clone(), []
    for codebook in codebooks:
        codes.append(torch.cdist(residual, codebook).argmin(1))
        residual -= codebook[codes[-1]]
    return torch.stack(codes, 1), latent, codebooks


def distortion(codes: Tensor, latent: Tensor, codebooks: Tensor) -> Tensor:
    """(N,) squared distance of each item from the sum of its code vectors."""
    return (latent - codebooks[torch.arange(codes.shape[1]), codes].sum(1)).square().sum(1)


def optimal_last_level(codes: Tensor, latent: Tensor, codebooks: Tensor, taken: Tensor) -> float:
    """Least total distortion with the prefixes of `codes`, by scipy, one prefix after the other."""
    total = 0.0
    residual = latent - codebooks[torch.arange(codes.shape[1] - 1), codes[:, :-1]].sum(1)
    for prefix in codes[:, :-1].unique(dim=0):
        rows = (codes[:, :-1] == prefix).all(1)
        cost = torch.cdist(residual[rows], codebooks[-1]).square()
        cost[:, taken[(taken[:, :-1] == prefix).all(1), -1]] = 1e9
        assigned = linear_sum_assignment(cost.numpy())
        total += float(cost[assigned].sum())
    return total


@settings(deadline=None, max_examples=60)
@given(
    levels=st.integers(1, 4),
    size=st.integers(2, 5),
    share=st.floats(0.0, 1.0),
    taken_share=st.floats(0.0, 1.0),
    distinct=st.integers(1, 40),
    seed=st.integers(0, 10_000),
)
def test_codes_are_unique_optimal_and_fit_up_to_a_full_code_space(
    levels: int, size: int, share: float, taken_share: float, distinct: int, seed: int
) -> None:
    items = max(1, round(share * size**levels))
    codes, latent, codebooks = problem(items, levels, size, 3, seed, distinct)
    space = torch.cartesian_prod(*[torch.arange(size)] * levels).view(-1, levels)
    taken = space[torch.randperm(len(space), generator=torch.Generator().manual_seed(seed))[: round(taken_share * (len(space) - items))]]
    given_codes, given_taken = codes.clone(), taken.clone()
    resolved, report = assign_unique_codes(codes, latent, codebooks, taken)
    assert torch.equal(codes, given_codes)
    assert torch.equal(taken, given_taken)
    assert resolved.dtype == torch.int64
    assert resolved.shape == codes.shape
    assert 0 <= int(resolved.min()) <= int(resolved.max()) < size
    assert len(torch.cat([resolved, taken]).unique(dim=0)) == items + len(taken)
    assert report.collision_rate_after == 0
    keys = torch.cat([codes, taken]).unique(dim=0, return_inverse=True, return_counts=True)
    assert report.collision_rate_before == pytest.approx(float((keys[2][keys[1]] > 1)[:items].double().mean()))
    assert report.moved == (resolved != codes).any(1).sum()
    assert report.spilled >= (resolved[:, :-1] != codes[:, :-1]).any(1).sum()
    if levels > 1:
        best = optimal_last_level(resolved, latent, codebooks, taken)
        assert float(distortion(resolved, latent, codebooks).sum()) == pytest.approx(best, rel=1e-9)
    again, _ = assign_unique_codes(codes, latent, codebooks, taken)
    assert torch.equal(again, resolved)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_prefixes_without_collision_are_untouched(seed: int) -> None:
    codes, latent, codebooks = problem(60, 3, 6, 3, seed)
    resolved, report = assign_unique_codes(codes, latent, codebooks)
    prefix = resolved[:, :-1].unique(dim=0, return_inverse=True)[1]
    stayed = (resolved[:, :-1] == codes[:, :-1]).all(1)
    _, full, counts = codes.unique(dim=0, return_inverse=True, return_counts=True)
    disturbed = torch.isin(prefix, prefix[(counts[full] > 1) | ~stayed])
    assert torch.equal(resolved[~disturbed], codes[~disturbed])
    if report.spilled == 0:
        assert torch.equal(resolved[:, :-1], codes[:, :-1])


@pytest.mark.parametrize("block", [1, 40, 2**22])
def test_working_in_small_blocks_changes_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codes, latent, codebooks = problem(200, 3, 6, 3, seed=4, distinct=120)
    taken = torch.tensor([[0, 0, 0], [5, 5, 5]])
    expected, _ = assign_unique_codes(codes, latent, codebooks, taken)
    monkeypatch.setattr(assignment_cemg, "DISTANCES_AT_ONCE", block)
    resolved, _ = assign_unique_codes(codes, latent, codebooks, taken)
    found, best = (float(distortion(given, latent, codebooks).sum()) for given in (resolved, expected))
    assert found == pytest.approx(best, rel=1e-9)
    assert len(torch.cat([resolved, taken]).unique(dim=0)) == 202


def test_an_overfull_prefix_sends_its_farthest_items_to_the_nearest_sibling() -> None:
    codebooks = torch.tensor([[[0.0], [10.0], [30.0]], [[-1.0], [0.0], [1.0]]])
    latent = torch.tensor([[0.0], [0.5], [-0.5], [2.0]])  # four items, three places under code 0
    codes = torch.tensor([[0, 1], [0, 1], [0, 1], [0, 2]])
    resolved, report = assign_unique_codes(codes, latent, codebooks)
    assert resolved[:, 0].tolist() == [0, 0, 0, 1]
    assert resolved[3, 1] == 0  # 2 − 10 = −8 is nearest to −1
    assert report.spilled == 1


def test_taken_codes_take_room_in_their_prefix_and_in_its_siblings() -> None:
    codebooks = torch.tensor([[[0.0], [10.0], [30.0]], [[-1.0], [0.0], [1.0]]])
    taken = torch.tensor([[0, 0], [0, 1], [0, 2], [1, 0], [1, 1]])
    resolved, report = assign_unique_codes(torch.tensor([[0, 1], [0, 1]]), torch.tensor([[0.1], [0.0]]), codebooks, taken)
    assert resolved[0].tolist() == [1, 2]  # the nearer of the two gets the last place under code 1
    assert resolved[1].tolist() == [2, 0]
    assert report.spilled == report.moved == 2
    assert report.collision_rate_before == 1.0


def test_identical_items_get_distinct_codes_and_fill_the_code_space() -> None:
    codes, latent, codebooks = problem(64, 3, 4, 5, seed=0, distinct=1)
    assert collision_rate(codes) == 1.0
    resolved, report = assign_unique_codes(codes, latent, codebooks)
    assert len(resolved.unique(dim=0)) == 64
    assert collision_rate(resolved) == 0.0
    assert report.spilled > 0


def test_code_spaces_beyond_64_bits() -> None:
    codes, latent, codebooks = problem(300, 10, 512, 4, seed=0, distinct=200)
    resolved, report = assign_unique_codes(codes, latent, codebooks, codes[:100].unique(dim=0))
    assert report.collision_rate_after == 0
    assert len(resolved.unique(dim=0)) == 300


def test_many_items_with_many_collisions_take_seconds() -> None:
    codes, latent, codebooks = problem(20_000, 4, 256, 16, seed=1, distinct=9_000)
    assert collision_rate(codes) > 0.6
    started = time.process_time()  # the machine may be busy with other things
    resolved, _ = assign_unique_codes(codes, latent, codebooks)
    assert time.process_time() - started < 10
    assert len(resolved.unique(dim=0)) == 20_000


def test_nothing_to_assign() -> None:
    codes, latent, codebooks = problem(3, 2, 4, 2, seed=0)
    resolved, report = assign_unique_codes(codes[:0], latent[:0], codebooks, codes)
    assert resolved.shape == (0, 2)
    assert report.moved == report.collision_rate_before == collision_rate(codes[:0]) == 0


def test_bad_input_is_named() -> None:
    codes, latent, codebooks = problem(5, 1, 4, 2, seed=0)
    with pytest.raises(ValueError, match=r"5 items do not fit into 4\^1"):
        assign_unique_codes(codes, latent, codebooks)
    codes, latent, codebooks = problem(5, 2, 4, 2, seed=0)
    with pytest.raises(ValueError, match=r"17 items do not fit into 4\^2"):
        assign_unique_codes(codes, latent, codebooks, torch.zeros(12, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="latent: shape"):
        assign_unique_codes(codes, latent[:4], codebooks)
    with pytest.raises(ValueError, match="taken: shape"):
        assign_unique_codes(codes, latent, codebooks, codes[:, :1])
    broken = torch.arange(5)[:, None] == 2
    with pytest.raises(ValueError, match="codes: row 2 has a code outside"):
        assign_unique_codes(codes.masked_fill(broken, 9), latent, codebooks)
    with pytest.raises(ValueError, match="latent: contains NaN"):
        assign_unique_codes(codes, latent.masked_fill(broken, torch.nan), codebooks)
