from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cemg_hf.errors import CEMGError
from cemg_hf.training.code_assignment import assign_unique_codes, collision_rate


def problem(items: int, levels: int, size: int, dimension: int, seed: int, distinct: int | None = None) -> tuple[np.ndarray, ...]:
    """Random items (only `distinct` different vectors), random codebooks of shrinking scale, nearest codes."""
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(max(items, distinct or 0), dimension))
    if distinct is not None:
        latent = latent[rng.integers(0, distinct, items)]  # duplicates
    codebooks = rng.normal(size=(levels, size, dimension)) * 0.6 ** np.arange(levels)[:, None, None]
    residual, codes = latent.copy(), []
    for codebook in codebooks:
        distance = (residual**2).sum(1)[:, None] - 2 * residual @ codebook.T + (codebook**2).sum(1)
        codes.append(distance.argmin(1))
        residual = residual - codebook[codes[-1]]
    return np.stack(codes, 1), latent, codebooks


def last_residuals(codes: np.ndarray, latent: np.ndarray, codebooks: np.ndarray) -> np.ndarray:
    residual = latent.copy()
    for level in range(codes.shape[1] - 1):
        residual -= codebooks[level, codes[:, level]]
    return residual


@settings(deadline=None, max_examples=60)
@given(
    levels=st.integers(1, 4), size=st.integers(2, 5), share=st.floats(0.0, 1.0), distinct=st.integers(1, 40), seed=st.integers(0, 10_000)
)
def test_codes_are_unique_in_range_and_fit_up_to_a_full_code_space(levels: int, size: int, share: float, distinct: int, seed: int) -> None:
    items = max(1, round(share * size**levels))
    codes, latent, codebooks = problem(items, levels, size, 3, seed, distinct)
    resolved, report = assign_unique_codes(codes, latent, codebooks)
    assert resolved.dtype == np.int64
    assert resolved.shape == codes.shape
    assert resolved.min() >= 0
    assert resolved.max() < size
    assert len(np.unique(resolved, axis=0)) == items
    assert report.collision_rate_after == 0
    assert report.collision_rate_before == collision_rate(codes)
    assert report.moved == (resolved != codes).any(1).sum()
    assert report.spilled >= (resolved[:, :-1] != codes[:, :-1]).any(1).sum()
    again, _ = assign_unique_codes(codes, latent, codebooks)
    np.testing.assert_array_equal(again, resolved)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_prefixes_without_collision_are_untouched(seed: int) -> None:
    codes, latent, codebooks = problem(60, 3, 6, 3, seed)
    resolved, report = assign_unique_codes(codes, latent, codebooks)
    prefix = np.unique(resolved[:, :-1], axis=0, return_inverse=True)[1].ravel()
    stayed = (resolved[:, :-1] == codes[:, :-1]).all(1)
    full = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    collides = full[2][full[1].ravel()] > 1
    disturbed = np.isin(prefix, np.unique(prefix[collides | ~stayed]))
    np.testing.assert_array_equal(resolved[~disturbed], codes[~disturbed])
    if report.spilled == 0:
        np.testing.assert_array_equal(resolved[:, :-1], codes[:, :-1])


@pytest.mark.parametrize("seed", range(6))
def test_cost_of_a_colliding_group_is_the_brute_force_minimum(seed: int) -> None:
    _, latent, codebooks = problem(4, 2, 5, 2, seed)
    codes = np.zeros((4, 2), dtype=np.int64)  # one prefix for all, so that the group is the whole problem
    residual = last_residuals(codes, latent, codebooks)
    cost = ((residual[:, None] - codebooks[-1][None]) ** 2).sum(-1)
    codes[:, 1] = cost.argmin(1)
    if collision_rate(codes) == 0:
        codes[:, 1] = 0
    resolved, report = assign_unique_codes(codes, latent, codebooks)
    rows = np.arange(4)
    best = min(cost[rows, list(choice)].sum() for choice in itertools.permutations(range(5), 4))
    assert report.spilled == 0
    assert cost[rows, resolved[:, 1]].sum() == pytest.approx(best)


def test_an_overfull_prefix_sends_its_farthest_items_to_the_nearest_sibling() -> None:
    codebooks = np.array([[[0.0], [10.0], [30.0]], [[-1.0], [0.0], [1.0]]])
    latent = np.array([[0.0], [0.5], [-0.5], [2.0]])  # four items, three places under code 0
    codes = np.array([[0, 1], [0, 1], [0, 1], [0, 2]])
    resolved, report = assign_unique_codes(codes, latent, codebooks)
    np.testing.assert_array_equal(resolved[:, 0], [0, 0, 0, 1])
    assert resolved[3, 1] == 0  # 2 − 10 = −8 is nearest to −1
    assert report.spilled == 1


def test_identical_items_get_distinct_codes() -> None:
    codes, latent, codebooks = problem(64, 3, 4, 5, seed=0, distinct=1)
    assert collision_rate(codes) == 1.0
    resolved, report = assign_unique_codes(codes, latent, codebooks)
    assert len(np.unique(resolved, axis=0)) == 64
    assert report.spilled > 0


def test_twenty_thousand_items_with_many_collisions_take_seconds() -> None:
    codes, latent, codebooks = problem(20_000, 4, 256, 16, seed=1, distinct=9_000)
    assert collision_rate(codes) > 0.6
    started = time.perf_counter()
    resolved, _ = assign_unique_codes(codes, latent, codebooks)
    assert time.perf_counter() - started < 10
    assert len(np.unique(resolved, axis=0)) == 20_000


def test_bad_input_is_named() -> None:
    codes, latent, codebooks = problem(5, 1, 4, 2, seed=0)
    with pytest.raises(CEMGError, match=r"5 items do not fit into 4\^1"):
        assign_unique_codes(codes, latent, codebooks)
    codes, latent, codebooks = problem(5, 2, 4, 2, seed=0)
    with pytest.raises(CEMGError, match="latent: shape"):
        assign_unique_codes(codes, latent[:4], codebooks)
    with pytest.raises(CEMGError, match="row 2 has a code outside"):
        assign_unique_codes(np.where(np.arange(5)[:, None] == 2, 9, codes), latent, codebooks)
    with pytest.raises(CEMGError, match="latent: contains NaN"):
        assign_unique_codes(codes, np.where(np.arange(5)[:, None] == 2, np.nan, latent), codebooks)
