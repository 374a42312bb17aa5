"""The validation of every stage that trains a recommender: HR, NDCG and MRR on a fixed draw of users."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from torch import nn

from ..data import PreparedDataset
from ..data.splits import EvaluationCases
from ..errors import CEMGError
from ..evaluation.metrics import ranking_metrics

WIDTH = 20


class Validation:
    """Called by `train` after an epoch: metrics of the model as it is, on the same users every time.

    Args:
        rank: (cases, ≤ 20) item indices for cases, best first; closes over the model that is trained.
        data: the prepared data set.
        users: how many users are drawn, by the seed; 0 = all.
        seed: seed of the draw.

    Raises:
        CEMGError: nobody to validate on.
    """

    def __init__(self, rank: Callable[[EvaluationCases], npt.NDArray[np.int64]], data: PreparedDataset, users: int, seed: int) -> None:
        self.rank = rank
        cases = data.evaluation_cases("validation")
        if len(cases) == 0:
            raise CEMGError(f"{data.folder}: nobody has the three interactions that validation needs; give longer histories")
        if 0 < users < len(cases):
            chosen = np.sort(np.random.default_rng(seed).choice(len(cases), users, replace=False))
            cases = EvaluationCases(cases.users[chosen], cases.histories.take(chosen), cases.targets[chosen])
        self.cases = cases

    def __call__(self, model: nn.Module) -> dict[str, float]:
        ranked = self.rank(self.cases)
        metrics = ranking_metrics(ranked, self.cases.targets, ks=sorted({10, ranked.shape[1]}))
        return {name: value for name, value in metrics.items() if value is not None}
