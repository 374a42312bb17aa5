"""Several runs that differ by their seed alone, as one row."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from .report import SliceValues

Row = dict[str, dict[str, float | int | None]]


def over_seeds(runs: Mapping[str, Sequence[SliceValues]], some: Collection[str] = ()) -> tuple[dict[str, Row], dict[str, Row]]:
    """Means and standard deviations over the runs of each system.

    Args:
        runs: system -> one entry per seed, slice -> metric -> value. What was not measured under every seed is left out: a run may be older
            than a metric.
        some: slices, such as times, whose mean is over the seeds that have them, instead of being left out. One seed alone has no spread.

    Returns:
        system -> slice -> metric -> mean, and the same of the standard deviation (of a sample, over n − 1; 0 for a single seed). A value
        that is None under any seed is None; "n" stays an integer.
    """

    def reduced(reduce: Callable[[Sequence[float]], np.floating], least: int = 1) -> dict[str, Row]:
        return {
            system: {
                part: {
                    metric: _reduced([one[metric] for one in measured], metric, reduce)
                    for metric in measured[0]
                    if all(metric in one for one in measured)
                }
                for part in dict.fromkeys(part for one in seeds for part in one)
                if len(measured := [one[part] for one in seeds if part in one]) == len(seeds) or (part in some and len(measured) >= least)
            }
            for system, seeds in runs.items()
        }

    return reduced(np.mean), reduced(sample_std, least=2)


def of_one_machine(
    runs: Sequence[SliceValues], machines: Sequence[str], here: str, timed: Collection[str]
) -> tuple[list[SliceValues], str]:
    """One row's runs without the seconds of those that other machines made, and the machine that is left: seconds of two have no mean.

    It is this machine where it made a run, else the one that made most of them.

    Args: runs: one row's; machines: what each was made on; here: this machine; timed: the slices that hold seconds of a run.
    """
    chosen = here if here in machines else max(machines, key=machines.count)
    untimed = [{name: run[name] for name in run if name not in timed} for run in runs]
    return [run if where == chosen else other for run, other, where in zip(runs, untimed, machines, strict=True)], chosen


def sample_std(values: Sequence[float]) -> np.floating:
    """Standard deviation over n − 1: what seeds say about other seeds. 0 for a single value."""
    return np.std(values, ddof=min(1, len(values) - 1))


def _reduced(values: Sequence[float | int | None], metric: str, reduce: Callable[[Sequence[float]], np.floating]) -> float | int | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    value = float(reduce(known))
    return round(value) if metric == "n" else value
