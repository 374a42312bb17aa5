from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from cemg_hf.features.projection import Projection, can_fit


@pytest.fixture
def raw() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    vectors = (generator.normal(size=(60, 12)) * np.linspace(5, 0.1, 12) + 3).astype(np.float32)
    mask = generator.random(60) < 0.8
    return np.where(mask[:, None], vectors, 0).astype(np.float32), mask


@pytest.mark.parametrize("dimension", [4, 12, 768])
def test_projection_is_sklearns_pca_up_to_one_scalar(raw: tuple[np.ndarray, np.ndarray], dimension: int) -> None:
    vectors, mask = raw
    projection, kept = Projection.fit(vectors, mask, dimension)
    reference = PCA(min(dimension, 12), svd_solver="full").fit(vectors[mask].astype(np.float64))
    block = projection.transform(vectors, mask)[mask]
    expected = reference.transform(vectors[mask].astype(np.float64))
    ratio = np.linalg.norm(block) / np.linalg.norm(expected)
    signs = np.sign((block * expected).sum(axis=0))
    np.testing.assert_allclose(block, expected * signs * ratio, atol=2e-4)
    assert kept == pytest.approx(reference.explained_variance_ratio_.sum(), abs=1e-6)


def test_block_is_centred_with_mean_squared_norm_equal_to_its_width(raw: tuple[np.ndarray, np.ndarray]) -> None:
    vectors, mask = raw
    projection, _ = Projection.fit(vectors, mask, 5)
    block = projection.transform(vectors, mask)
    assert block.dtype == np.float32
    np.testing.assert_allclose(block[mask].mean(axis=0), 0, atol=1e-5)
    assert (block[mask] ** 2).sum(axis=1).mean() == pytest.approx(5, rel=1e-5)
    assert not block[~mask].any()


def test_full_projection_keeps_ratios_of_distances(raw: tuple[np.ndarray, np.ndarray]) -> None:
    vectors, mask = raw
    projection, kept = Projection.fit(vectors, mask, 768)
    block = projection.transform(vectors, mask)[mask]
    before = np.linalg.norm(vectors[mask][:, None] - vectors[mask][None], axis=-1)
    after = np.linalg.norm(block[:, None] - block[None], axis=-1)
    np.testing.assert_allclose(after, before * projection.scale, atol=1e-4)
    assert kept == pytest.approx(1.0)


def test_masked_rows_do_not_enter_the_fit(raw: tuple[np.ndarray, np.ndarray]) -> None:
    vectors, mask = raw
    disturbed = np.where(mask[:, None], vectors, np.float32(1e3))
    for first, second in zip(_arrays(vectors, mask), _arrays(disturbed, mask), strict=True):
        np.testing.assert_array_equal(first, second)


def _arrays(vectors: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    projection, _ = Projection.fit(vectors, mask, 5)
    return [projection.mean, projection.components, projection.scale]


@pytest.mark.parametrize(("items", "width", "expected"), [(4, 12, 3), (12, 4, 4), (2, 3, 1)])
def test_width_is_bounded_by_raw_width_and_items(items: int, width: int, expected: int) -> None:
    vectors = np.random.default_rng(1).normal(size=(items, width)).astype(np.float32)
    projection, _ = Projection.fit(vectors, np.ones(items, dtype=bool), 768)
    assert projection.dimension == expected


def test_what_has_no_variance_cannot_be_fitted() -> None:
    same = np.ones((5, 3), dtype=np.float32)
    everyone = np.ones(5, dtype=bool)
    assert not can_fit(same, everyone)
    assert not can_fit(np.eye(5, 3, dtype=np.float32), np.arange(5) == 2)
    assert not can_fit(np.zeros((5, 0), dtype=np.float32), everyone)
    assert can_fit(np.eye(5, 3, dtype=np.float32), everyone)
    with pytest.raises(ValueError, match="two items"):
        Projection.fit(same, everyone, 2)
