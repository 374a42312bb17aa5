"""From raw vectors to the block a modality contributes: PCA, then one scale for the whole block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA


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

        Errors: ValueError with fewer than two items or none that differ; `can_fit` tells beforehand.
        """
        present = vectors[mask].astype(np.float64)
        count, width = present.shape
        if not can_fit(vectors, mask):
            raise ValueError(f"PCA needs at least two items that differ, got {count}")
        # Both solvers are exact and deterministic; the covariance is the cheaper one for tall matrices.
        pca = PCA(n_components=min(dimension, width, count - 1), svd_solver="covariance_eigh" if count > width else "full")
        pca.fit(present)
        projected = (present - pca.mean_) @ pca.components_.T
        scale = np.sqrt(pca.n_components_ / np.mean(np.sum(projected**2, axis=1)))
        projection = cls(pca.mean_.astype(np.float32), pca.components_.astype(np.float32), np.asarray(scale, dtype=np.float32))
        return projection, float(np.sum(pca.explained_variance_ratio_))

    def transform(self, vectors: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Block (N, d_m) float32 of raw vectors (N, D); zero rows where `mask` is False."""
        block = (vectors.astype(np.float32) - self.mean) @ self.components.T * self.scale
        return np.where(mask[:, None], block, np.float32(0.0)).astype(np.float32, copy=False)


def can_fit(vectors: np.ndarray, mask: np.ndarray) -> bool:
    """Whether there are two items that differ: fewer have no variance to keep."""
    present = vectors[mask]
    return len(present) >= 2 and bool((present != present[0]).any())
