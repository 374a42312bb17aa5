"""The content-kNN baseline against the obvious loop, and what it must never recommend."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from cemg_hf.data import Ragged
from cemg_hf.errors import CEMGError
from cemg_hf.evaluation import content_knn
from cemg_hf.evaluation.content_knn import ContentKNNRecommender

ITEMS = 25
HISTORIES = Ragged.from_lists([[1, 2, 3, 2], [], [7], [3], [*range(10)]])


def content(seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Two modalities; item 3 has neither, some items have one."""
    rng = np.random.default_rng(seed)
    vectors = [rng.normal(size=(ITEMS, width)).astype(np.float32) for width in (6, 4)]
    masks = [rng.random(ITEMS) < 0.8, rng.random(ITEMS) < 0.8]
    masks[0][[1, 2, 7]] = True
    for mask in masks:
        mask[3] = False
    return vectors, masks


def unit(vector: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(vector)
    return vector / norm if norm else vector


@pytest.mark.parametrize("half_life", [1.0, 4.0, np.inf])
@pytest.mark.parametrize("exclude", [False, True])
def test_ranks_by_cosine_as_the_obvious_loop_does(half_life: float, exclude: bool) -> None:
    vectors, masks = content()
    candidates = np.arange(ITEMS) % 3 != 0
    found = ContentKNNRecommender(vectors, masks, half_life).rank(HISTORIES, ITEMS, candidates=candidates, exclude_history=exclude)
    items = [unit(np.concatenate([unit(v[i] * m[i]) for v, m in zip(vectors, masks, strict=True)])) for i in range(ITEMS)]
    for row, history in enumerate(HISTORIES.to_lists()):
        profile = sum((0.5 ** ((len(history) - 1 - place) / half_life) * items[i] for place, i in enumerate(history)), np.zeros(10))
        possible = [i for i in range(ITEMS) if candidates[i] and items[i].any() and not (exclude and i in history)]
        expected = sorted(possible, key=lambda i: -float(unit(profile) @ items[i])) if profile.any() else []
        assert found[row, : len(expected)].tolist() == expected
        assert (found[row, len(expected) :] == -1).all()


def test_memory_does_not_grow_with_users_times_items(monkeypatch: pytest.MonkeyPatch) -> None:
    items, users = 20_000, 500  # 40 MB of cosines
    rng = np.random.default_rng(0)
    recommender = ContentKNNRecommender([rng.normal(size=(items, 4)).astype(np.float32)])
    histories = Ragged.from_lengths(rng.integers(0, items, users), np.ones(users, dtype=np.int64))
    whole = recommender.rank(histories, 5)
    monkeypatch.setattr(content_knn, "COSINES_AT_ONCE", 10 * items)
    tracemalloc.start()
    parts = recommender.rank(histories, 5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(parts, whole)
    assert peak < 10e6


def test_histories_without_content_get_empty_lists() -> None:
    found = ContentKNNRecommender(*content()).rank(HISTORIES, 5)
    assert (found[[1, 3]] == -1).all()  # no history; an item without content
    assert (found[[0, 2, 4]] >= 0).all()
    assert not (found == 3).any()


def test_a_short_half_life_looks_at_the_last_item_only() -> None:
    nearest = ContentKNNRecommender(*content(), half_life=0.01)
    assert np.array_equal(nearest.rank(Ragged.from_lists([[1, 2, 7]]), 10), nearest.rank(Ragged.from_lists([[7]]), 10))


def test_no_modality_outweighs_another_by_its_scale() -> None:
    vectors, masks = content()
    expected = ContentKNNRecommender(vectors, masks).rank(HISTORIES, 10)
    assert np.array_equal(ContentKNNRecommender([1000 * vectors[0], vectors[1]], masks).rank(HISTORIES, 10), expected)


def test_masked_values_have_no_influence() -> None:
    vectors, masks = content()
    expected = ContentKNNRecommender(vectors, masks).rank(HISTORIES, 10)
    vectors[0][~masks[0]] = np.nan
    assert np.array_equal(ContentKNNRecommender(vectors, masks).rank(HISTORIES, 10), expected)


def test_bad_input_is_refused() -> None:
    vectors, masks = content()
    broken = [vectors[0].copy(), vectors[1]]
    broken[0][7] = np.inf
    for call, message in [
        (lambda: ContentKNNRecommender([]), "no modality"),
        (lambda: ContentKNNRecommender(vectors, masks, 0.0), "half_life"),
        (lambda: ContentKNNRecommender(vectors, masks[:1]), "masks"),
        (lambda: ContentKNNRecommender([vectors[0], vectors[1][:3]], masks), "modality 1"),
        (lambda: ContentKNNRecommender(broken, masks), "modality 0, row 7"),
        (lambda: ContentKNNRecommender(vectors, masks).rank(HISTORIES, 0), "k: 0"),
        (lambda: ContentKNNRecommender(vectors, masks).rank(HISTORIES, 3, candidates=np.ones(4, bool)), "candidates"),
        (lambda: ContentKNNRecommender(vectors, masks).rank(Ragged.from_lists([[ITEMS]]), 3), "histories"),
    ]:
        with pytest.raises(CEMGError, match=message):
            call()
