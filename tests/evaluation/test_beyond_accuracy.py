"""Coverage, popularity bias and diversity, against their definitions written out."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from cemg_hf.errors import CEMGError
from cemg_hf.evaluation import describe_recommendations, intra_list_distances
from cemg_hf.evaluation.beyond_accuracy import gini, inter_user_diversity, item_exposure

ITEMS, PLACES = 9, 4
LISTS = st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=PLACES, unique=True), min_size=1, max_size=8)


def rectangle(lists: list[list[int]], width: int = PLACES) -> np.ndarray:
    return np.array([[*row, *[-1] * (width - len(row))] for row in lists])


def test_coverage_and_popularity_of_what_is_recommended() -> None:
    counts = np.array([7, 7, 3, 0, 0, 1])
    everything = np.array([[0, 1, 2, 3, 4, 5]])
    figures = describe_recommendations(everything, counts, k=6)
    assert {name: figures[name] for name in ("coverage@6", "popularity_percentile@6", "average_popularity@6", "gini@6")} == pytest.approx(
        {"coverage@6": 1.0, "popularity_percentile@6": 0.5, "average_popularity@6": 3.0, "gini@6": 0.0}
    )
    assert figures["inter_user_diversity@6"] is None
    assert "intra_list_distance@6" not in figures
    popular = describe_recommendations(everything[:, :2], counts, k=2)
    assert (popular["coverage@2"], popular["popularity_percentile@2"]) == pytest.approx((2 / 6, 5 / 6))
    short = describe_recommendations(np.array([[3, -1], [4, -1]]), counts, k=2)
    assert (short["coverage@2"], short["popularity_percentile@2"]) == pytest.approx((2 / 6, 1 / 6))
    assert short["inter_user_diversity@2"] == 1.0
    nothing = describe_recommendations(np.full((3, 2), -1), counts, np.eye(6), k=2)
    assert len(nothing) == 6
    assert set(nothing.values()) == {None}


@given(LISTS)
def test_figures_are_their_definitions(lists: list[list[int]]) -> None:
    ranked, counts = rectangle(lists), np.arange(ITEMS)[::-1] * 3
    exposure = item_exposure(ranked, ITEMS, PLACES)
    if exposure.any():
        mean_difference = np.abs(exposure[:, None] - exposure).mean()
        assert gini(exposure) == pytest.approx(mean_difference / (2 * exposure.mean()))
    shares = [len(set(a) & set(b)) / PLACES for a, b in combinations(lists, 2)]
    expected = 1 - np.mean(shares) if shares else None
    assert inter_user_diversity(exposure, len(lists), PLACES) == pytest.approx(expected)
    popularity = [np.mean(counts[row]) for row in lists if row]
    figures = describe_recommendations(ranked, counts, k=PLACES)
    assert figures[f"average_popularity@{PLACES}"] == pytest.approx(np.mean(popularity) if popularity else None)


@given(LISTS, st.integers(0, 2**16))
def test_distance_inside_a_list_is_the_mean_over_its_pairs(lists: list[list[int]], seed: int) -> None:
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(ITEMS, 3)) * (generator.random((ITEMS, 1)) < 0.8)
    norms = np.linalg.norm(vectors, axis=1)
    found = intra_list_distances(rectangle(lists), vectors)
    for value, row in zip(found, lists, strict=True):
        pairs = [(a, b) for a, b in combinations(row, 2) if norms[a] and norms[b]]
        expected = [1 - vectors[a] @ vectors[b] / (norms[a] * norms[b]) for a, b in pairs]
        assert value == pytest.approx(np.mean(expected) if expected else np.nan, abs=1e-9, nan_ok=True)
    np.testing.assert_allclose(intra_list_distances(rectangle(lists), sparse.csr_array(vectors)), found, atol=1e-12)


def test_extremes() -> None:
    exposure = np.array([0, 0, 0, 5])
    assert gini(exposure) == pytest.approx(3 / 4)
    assert gini(np.zeros(4)) is None
    same = np.tile(np.arange(PLACES), (5, 1))
    assert inter_user_diversity(item_exposure(same, ITEMS), 5, PLACES) == 0
    assert intra_list_distances(same, np.ones((ITEMS, 2))).tolist() == pytest.approx([0] * 5, abs=1e-12)
    assert intra_list_distances(same, np.eye(ITEMS)).tolist() == pytest.approx([1] * 5)


def test_vectors_that_do_not_fit_are_refused() -> None:
    ranked = np.array([[0, 5]])
    with pytest.raises(CEMGError, match="item 5 is recommended"):
        intra_list_distances(ranked, np.ones((5, 2)))
    with pytest.raises(CEMGError, match="NaN"):
        intra_list_distances(ranked, np.full((6, 2), np.nan))
