"""How far a mean over cases could be off: bootstrap intervals, and the paired comparison of two systems on the same cases."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..errors import CEMGError

_CELLS_AT_ONCE = 4_000_000
_MULTINOMIAL_COST = 10
"""What drawing one entry of a multinomial costs, in draws of one case (measured: 6 to 25)."""


@dataclass(frozen=True)
class Interval:
    """A mean and its percentile bootstrap interval."""

    mean: float = field(metadata={"help": "Mean over the cases given."})
    low: float = field(metadata={"help": "Lower end of the interval."})
    high: float = field(metadata={"help": "Upper end of the interval."})
    level: float = field(metadata={"help": "Confidence level, such as 0.95."})


@dataclass(frozen=True)
class PairedDifference(Interval):
    """Mean of a − b over the same cases, its interval, and the two-sided p-value of "no difference"."""

    p_value: float = field(metadata={"help": "Share of null resamples whose mean is at least as far from 0 as the one measured."})


def bootstrap_interval(values: np.ndarray, n: int = 1000, seed: int = 0, level: float = 0.95) -> Interval:
    """Percentile interval of the mean of `values` (cases,) over `n` resamples of the cases with replacement.

    Raises:
        CEMGError: no values, values that are not finite, or settings out of range.
    """
    values, means = _resampled_means(values, n, seed, level)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean=float(values.mean()), low=float(low), high=float(high), level=level)


def paired_bootstrap(a: np.ndarray, b: np.ndarray, n: int = 1000, seed: int = 0, level: float = 0.95) -> PairedDifference:
    """Compare two systems on the same cases: `a` and `b` (cases,) are one metric per case, in the same order.

    The p-value centres the resampled means on 0 (Davison & Hinkley 1997, §4.4): (1 + #{|d* − d| ≥ |d|}) / (n + 1).
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise CEMGError(f"b: shape {b.shape} where a has {a.shape}; a paired comparison needs the same cases in the same order")
    differences, means = _resampled_means(a - b, n, seed, level)
    mean = differences.mean()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    # Rounding must not decide whether a resample is as extreme as the measurement.
    extreme = np.abs(means - mean) >= abs(mean) - 1e-12
    return PairedDifference(float(mean), float(low), float(high), level, p_value=float((1 + extreme.sum()) / (n + 1)))


def _resampled_means(values: np.ndarray, n: int, seed: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    """`values` checked, and the means of `n` resamples.

    Drawing cases with replacement draws the number of times each distinct value occurs from a multinomial. A ranking metric has a
    few dozen distinct values whatever the number of cases, so a resample costs that little. Values that mostly differ are drawn one
    by one, in the order of their size, so that the order of the cases decides nothing.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise CEMGError(f"values: shape {values.shape}; pass one finite number per case, for at least one case")
    if n < 1 or not 0 < level < 1:
        raise CEMGError(f"n = {n}, level = {level}: n must be at least 1 and level between 0 and 1")
    distinct, counts = np.unique(values, return_counts=True)
    generator = np.random.default_rng(seed)
    repeated = len(distinct) * _MULTINOMIAL_COST < len(values)
    step = max(1, _CELLS_AT_ONCE // (len(distinct) if repeated else len(values)))
    sizes = [min(step, n - start) for start in range(0, n, step)]
    if repeated:
        means = [generator.multinomial(len(values), counts / len(values), size=size) @ distinct / len(values) for size in sizes]
    else:
        ordered = np.repeat(distinct, counts)
        means = [ordered[generator.integers(0, len(ordered), (size, len(ordered)))].mean(axis=1) for size in sizes]
    return values, np.concatenate(means)
