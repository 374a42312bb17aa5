"""ItemKNN: items bought by the same people as those of the history, the recent ones counting more."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from ..data import PreparedDataset, Ragged
from ..data.splits import EvaluationCases
from ..errors import CEMGError
from .scoring import rank_by_scores

ROWS_AT_ONCE = 4096


@dataclass
class ItemKNNConfig:
    """Settings of ItemKNN; the defaults were chosen on the validation part of Beauty."""

    neighbours: int = field(default=1000, metadata={"help": "Most similar items that are kept of every item."})
    shrink: float = field(default=40.0, metadata={"help": "Added to the denominator of the cosine, against chance co-occurrence."})
    half_life: float | None = field(
        default=1.5, metadata={"help": "A history item counts half of one so many items later; null: all count alike."}
    )

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.shrink < 0 or (self.half_life is not None and self.half_life <= 0):
            raise CEMGError(
                f"item_knn: neighbours = {self.neighbours}, shrink = {self.shrink}, half_life = {self.half_life}: neighbours must be at "
                "least 1, shrink at least 0 and half_life above 0"
            )


class ItemKNN:
    """Cosine neighbours of items (Sarwar et al., 2001) over the training interactions.

    sim(i, j) = |U_i ∩ U_j| / (√|U_i| √|U_j| + shrink); the score of j is Σ over the history of 2^(−age / half_life) · sim(i, j).

    Args:
        training: items of each user, repeats allowed.
        num_items: N.
        config: settings.
    """

    def __init__(self, training: Ragged, num_items: int, config: ItemKNNConfig) -> None:
        self.num_items, self.config = num_items, config
        bought = sp.csr_matrix(
            (np.ones(len(training.values), dtype=np.float32), (training.rows, training.values)), shape=(len(training), num_items)
        )
        bought.data[:] = 1  # a repeat is one purchase
        by_item = bought.T.tocsr()
        norms = np.sqrt(np.asarray(by_item.sum(axis=1)).ravel())
        blocks = [
            self._nearest(by_item[first : first + ROWS_AT_ONCE] @ bought, norms, first) for first in range(0, num_items, ROWS_AT_ONCE)
        ]
        self.similarity: sp.csr_matrix = sp.vstack(blocks, format="csr")

    def _nearest(self, shared: sp.csr_matrix, norms: npt.NDArray[np.floating], first: int) -> sp.csr_matrix:
        """Similarities of a block of items, the best `neighbours` of each, from their counts of shared users."""
        rows = np.repeat(np.arange(shared.shape[0]), np.diff(shared.indptr))
        values = shared.data / (norms[rows + first] * norms[shared.indices] + self.config.shrink)
        values[shared.indices == rows + first] = 0
        order = np.lexsort((-values, rows))
        place = np.arange(len(order)) - shared.indptr[rows[order]]  # rows stay together, each sorted by similarity
        kept = order[(place < self.config.neighbours) & (values[order] > 0)]
        return sp.csr_matrix((values[kept], (rows[kept], shared.indices[kept])), shape=shared.shape)

    def __call__(
        self, cases: EvaluationCases, k: int, *, exclude_history: bool, progress: str | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Item indices (cases, k), best first, −1 where no further item has a score above 0, and their scores."""

        def scores_of(rows: npt.NDArray[np.int64]) -> torch.Tensor:
            histories = cases.histories.take(rows)
            age = np.repeat(histories.offsets[1:], histories.lengths) - 1 - np.arange(len(histories.values))
            weights = np.ones(len(age)) if self.config.half_life is None else 0.5 ** (age / self.config.half_life)
            profile = sp.csr_matrix((weights.astype(np.float32), (histories.rows, histories.values)), shape=(len(rows), self.num_items))
            scores = torch.from_numpy((profile @ self.similarity).toarray())
            return scores.masked_fill(scores <= 0, -torch.inf)

        return rank_by_scores(scores_of, cases.histories, self.num_items, k, exclude_history=exclude_history, progress=progress)

    @classmethod
    def fit(cls, data: PreparedDataset, config: ItemKNNConfig) -> ItemKNN:
        """From the training interactions of a data set."""
        return cls(data.train_sequences(), data.num_items, config)
