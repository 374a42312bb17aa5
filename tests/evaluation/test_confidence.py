"""Bootstrap intervals and the paired comparison."""

from __future__ import annotations

import numpy as np
import pytest

from cemg_hf.errors import CEMGError
from cemg_hf.evaluation import bootstrap_interval, paired_bootstrap


def test_interval_matches_the_normal_approximation() -> None:
    values = (np.arange(20_000) % 25 == 0).astype(float)  # 4 % hits
    interval = bootstrap_interval(values, n=4000)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert interval.mean == pytest.approx(0.04)
    assert interval.low == pytest.approx(0.04 - half, abs=0.05 * half)
    assert interval.high == pytest.approx(0.04 + half, abs=0.05 * half)


def test_interval_of_values_that_all_differ_matches_plain_resampling() -> None:
    generator = np.random.default_rng(1)
    values = generator.exponential(size=400)
    plain = values[generator.integers(0, 400, (4000, 400))].mean(axis=1)
    interval = bootstrap_interval(values, n=4000, level=0.9)
    spread = plain.std()
    assert interval.low == pytest.approx(np.quantile(plain, 0.05), abs=0.12 * spread)
    assert interval.high == pytest.approx(np.quantile(plain, 0.95), abs=0.12 * spread)


def test_seeded_and_independent_of_the_order_of_cases() -> None:
    values = np.random.default_rng(2).integers(0, 2, 500) / 3
    assert bootstrap_interval(values, seed=5) == bootstrap_interval(values, seed=5)
    assert bootstrap_interval(values, seed=5) != bootstrap_interval(values, seed=6)
    shuffled = bootstrap_interval(np.random.default_rng(3).permutation(values), seed=5)
    assert (shuffled.low, shuffled.high) == pytest.approx((bootstrap_interval(values, seed=5).low, bootstrap_interval(values, seed=5).high))


def test_coverage_of_the_interval() -> None:
    """About 95 % of the intervals of samples with mean 0.3 hold 0.3."""
    samples = np.random.default_rng(4).random((300, 400)) < 0.3
    intervals = [bootstrap_interval(sample, n=500, seed=number) for number, sample in enumerate(samples)]
    assert 0.91 < np.mean([interval.low <= 0.3 <= interval.high for interval in intervals]) < 0.98


def test_pairing_finds_what_independent_intervals_hide() -> None:
    generator = np.random.default_rng(5)
    base = (generator.random(5000) < 0.05).astype(float)
    better = np.maximum(base, generator.random(5000) < 0.004)
    difference = paired_bootstrap(better, base)
    assert difference.mean == pytest.approx(better.mean() - base.mean())
    assert difference.low > 0
    assert difference.p_value < 0.01
    assert bootstrap_interval(better).low < bootstrap_interval(base).high
    mirrored = paired_bootstrap(base, better)
    assert (mirrored.low, mirrored.high) == pytest.approx((-difference.high, -difference.low), abs=3e-4)


def test_no_difference_gives_no_small_p_value() -> None:
    values = np.random.default_rng(6).random(100)
    assert paired_bootstrap(values, values).p_value == 1.0
    generator = np.random.default_rng(7)
    p_values = [paired_bootstrap(*(generator.random((2, 300)) < 0.2), n=300, seed=seed).p_value for seed in range(200)]
    assert 0.02 <= np.mean(np.array(p_values) < 0.05 + 1e-9) + 0.01 < 0.11
    assert 0.35 < np.mean(p_values) < 0.65


def test_input_without_an_interval_is_refused() -> None:
    with pytest.raises(CEMGError, match="at least one case"):
        bootstrap_interval(np.empty(0))
    with pytest.raises(CEMGError, match="finite"):
        bootstrap_interval(np.array([1.0, np.nan]))
    with pytest.raises(CEMGError, match="level between 0 and 1"):
        bootstrap_interval(np.ones(3), level=95)
    with pytest.raises(CEMGError, match="same cases"):
        paired_bootstrap(np.ones(3), np.ones(4))
