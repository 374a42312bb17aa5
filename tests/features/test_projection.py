from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from cemg_hf.features import projection as projection_module
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


def test_blocks_of_rows_give_what_all_rows_give(raw: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, mask = raw
    whole, kept = Projection.fit(vectors, mask, 5)
    monkeypatch.setattr(projection_module, "ROWS_AT_ONCE", 7)
    parts, kept_of_parts = Projection.fit(vectors, mask, 5)
    np.testing.assert_allclose(parts.components, whole.components, atol=1e-6)
    np.testing.assert_allclose(parts.mean, whole.mean, atol=1e-6)
    np.testing.assert_allclose(parts.scale, whole.scale, rtol=1e-6)
    assert kept_of_parts == pytest.approx(kept)
    assert can_fit(vectors, mask)
    blocks = list(whole.transform_blocks(vectors, mask, rows=7))
    assert [len(block) for block in blocks] == [7] * 8 + [4]
    np.testing.assert_allclose(np.concatenate(blocks), whole.transform(vectors, mask), atol=1e-5)


def test_large_catalogues_are_fitted_on_a_sample_that_is_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection_module, "FIT_ROWS", 2000)
    generator = np.random.default_rng(0)
    vectors = (generator.normal(size=(6000, 4)) * [8, 4, 2, 1] + 3).astype(np.float32)
    mask = generator.random(6000) < 0.9
    vectors[~mask] = np.nan  # neither drawn nor looked at
    one, two = Projection.fit(vectors, mask, 3)[0], Projection.fit(vectors, mask, 3)[0]
    np.testing.assert_array_equal(one.components, two.components)
    reference = PCA(3, svd_solver="full").fit(vectors[mask])
    assert np.abs((one.components * reference.components_).sum(axis=1)).min() > 0.99
    assert not np.allclose(one.mean, reference.mean_, atol=1e-6)  # it was a sample
    block = one.transform(vectors, mask)
    assert (block[mask] ** 2).sum(axis=1).mean() == pytest.approx(3, rel=0.1)
    assert not block[~mask].any()


def test_half_precision_is_fitted_like_its_values(raw: tuple[np.ndarray, np.ndarray]) -> None:
    vectors, mask = raw
    half = vectors.astype(np.float16)
    one, two = Projection.fit(half, mask, 5)[0], Projection.fit(half.astype(np.float32), mask, 5)[0]
    np.testing.assert_array_equal(one.components, two.components)
    np.testing.assert_array_equal(one.transform(half, mask), two.transform(half.astype(np.float32), mask))


@pytest.mark.parametrize("width", [12, 100])
def test_values_that_are_not_finite_are_named(width: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(60, width)).astype(np.float32)
    vectors[17, 3] = np.nan
    with pytest.raises(ValueError, match="row 17 is not finite"):
        Projection.fit(vectors, np.ones(60, dtype=bool), 5)
