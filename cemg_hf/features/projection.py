"""From raw vectors to the block a modality contributes: PCA, then one scale for the whole block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA

from ..errors import CEMGError

ROWS_AT_ONCE = 16_384  # rows converted, projected or written together: 50 MB at 768 float32 columns
FIT_ROWS = 200_000
FIT_SEED = 0


@dataclass(frozen=True)
class Projection:
    """e = s · C (r − μ) for a raw vector r.

    `mean` μ (D,), `components` C (d_m, D) with orthonormal rows, `scale` s (0-d), all float32. One scalar per block: the mean squared
    norm over the items it was fitted on is d_m (unit mean variance per coordinate); angles and ratios of distances stay as PCA left them.
    """

    mean: np.ndarray
    components: np.ndarray
    scale: np.ndarray

    @property
    def dimension(self) -> int:
        """d_m, the width of the block."""
        return self.components.shape[0]

    @classmethod
    def fit(cls, vectors: np.ndarray, mask: np.ndarray, dimension: int) -> tuple[Projection, float]:
        """The projection of the items present in `mask` to min(dimension, D, n − 1), and the share of their variance that it keeps.

        Of more than 200,000 items present, that many are drawn at random (always the same ones) and fitted. `vectors` may be a memory map.
        Errors: ValueError with fewer than two items or none that differ (`can_fit` tells beforehand) or for values that are not finite.
        """
        rows = np.flatnonzero(mask)
        if not can_fit(vectors, mask):
            raise ValueError(f"PCA needs at least two items that differ, got {len(rows)}")
        if len(rows) > FIT_ROWS:
            rows = np.sort(np.random.default_rng(FIT_SEED).choice(rows, FIT_ROWS, replace=False, shuffle=False))
        kept = min(dimension, vectors.shape[1], len(rows) - 1)
        # Both ways are exact and deterministic; the covariance is the cheaper one for tall matrices, and it can be summed block by block.
        principal = _by_covariance if len(rows) > vectors.shape[1] else _by_decomposition
        mean, components, variances, total = principal(vectors, rows, kept)
        # Mean squared norm of the projected items: their variances have n − 1 in the denominator.
        scale = np.sqrt(kept / (variances.sum() * (len(rows) - 1) / len(rows)))
        projection = cls(mean.astype(np.float32), components.astype(np.float32), np.asarray(scale, dtype=np.float32))
        return projection, float(variances.sum() / total)

    def transform(self, vectors: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Block (N, d_m) float32 of raw vectors (N, D); zero rows where `mask` is False."""
        block = np.empty((len(vectors), self.dimension), dtype=np.float32)
        start = 0
        for part in self.transform_blocks(vectors, mask):
            block[start : start + len(part)] = part
            start += len(part)
        return block

    def transform_blocks(self, vectors: np.ndarray, mask: np.ndarray, rows: int = ROWS_AT_ONCE) -> Iterator[np.ndarray]:
        """The rows of `transform`, in order, `rows` at a time: for vectors and blocks that stay on disk."""
        for start in range(0, len(vectors), rows):
            part = slice(start, start + rows)
            block = (vectors[part].astype(np.float32) - self.mean) @ self.components.T * self.scale
            yield np.where(mask[part, None], block, np.float32(0.0)).astype(np.float32, copy=False)


def can_fit(vectors: np.ndarray, mask: np.ndarray) -> bool:
    """Whether there are two items that differ: fewer have no variance to keep."""
    rows = np.flatnonzero(mask)
    return len(rows) >= 2 and any((vectors[part] != vectors[rows[0]]).any() for part in _parts(rows))


def _parts(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), ROWS_AT_ONCE):
        yield rows[start : start + ROWS_AT_ONCE]


Principal = tuple[np.ndarray, np.ndarray, np.ndarray, float]
"""Mean (D,), components (kept, D), their variances (kept,), and the variance of all D directions together."""


def _by_decomposition(vectors: np.ndarray, rows: np.ndarray, kept: int) -> Principal:
    """By singular value decomposition of the few rows there are."""
    present = vectors[rows].astype(np.float64)
    _check_finite(present, rows)
    pca = PCA(kept, svd_solver="full").fit(present)
    return pca.mean_, pca.components_, pca.explained_variance_, float(pca.explained_variance_.sum() / pca.explained_variance_ratio_.sum())


def _by_covariance(vectors: np.ndarray, rows: np.ndarray, kept: int) -> Principal:
    """By the eigenvectors of the covariance, summed in double precision over blocks of rows."""
    width = vectors.shape[1]
    total, products = np.zeros(width), np.zeros((width, width))
    for part in _parts(rows):
        present = vectors[part].astype(np.float64)
        _check_finite(present, part)
        total += present.sum(axis=0)
    mean = total / len(rows)
    for part in _parts(rows):
        centred = vectors[part].astype(np.float64) - mean
        products += centred.T @ centred
    values, directions = np.linalg.eigh(products / (len(rows) - 1))
    values, components = values[::-1].clip(min=0), directions.T[::-1]
    # The sign of an eigenvector is arbitrary: its largest entry is positive, as in scikit-learn.
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
    return mean, (components * np.sign(largest))[:kept], values[:kept], float(values.sum())


def _check_finite(block: np.ndarray, rows: np.ndarray) -> None:
    finite = np.isfinite(block).all(axis=1)
    if not finite.all():
        raise CEMGError(f"vectors: row {int(rows[~finite][0])} is not finite; mask it or encode it again")
