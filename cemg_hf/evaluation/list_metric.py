"""What the `evaluate` modules of this package have in common; they compute through `metrics` and add nothing of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import datasets
import evaluate

from .metrics import list_metrics

INPUTS = """
Args:
    predictions: one list of item ids per case, best first; strings, or integers where -1 means no item. Lists may differ in length.
    references: the relevant item's id of each case.
    k: one cut-off or several (default 10).
Returns:
    {{"{name}@10": float}}, one entry per cut-off.
"""


class ListMetric(evaluate.Metric):
    """A metric of ranked lists with one relevant item each. A module takes this one by its own module's name: `evaluate.load` looks for the
    first metric among a module's names."""

    metric: ClassVar[str]
    """Its name before the @K."""
    description_of: ClassVar[str]
    """What `evaluate` shows of it."""

    def _info(self) -> evaluate.MetricInfo:
        # Strings first: the item ids "7" and "007" are different items, and would be one as integers.
        return evaluate.MetricInfo(
            description=self.description_of,
            citation="",
            inputs_description=INPUTS.format(name=self.metric),
            features=[
                datasets.Features({"predictions": datasets.Sequence(datasets.Value(kind)), "references": datasets.Value(kind)})
                for kind in ("string", "int64")
            ],
        )

    def _compute(
        self, predictions: Sequence[Sequence[int | str]], references: Sequence[int | str], k: int | Sequence[int] = 10
    ) -> dict[str, float | None]:
        return list_metrics(self.metric, predictions, references, k)
