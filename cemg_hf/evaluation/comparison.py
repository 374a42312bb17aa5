"""Systems side by side on the same cases: means and spreads over seeds, intervals, and paired tests between any two.

A comparison is of users, not of seeds: the values of one user are averaged over the seeds of a system before two systems are paired, so
the intervals say what other users would change. What another training run would change stands beside it as the spread over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from ..errors import CEMGError
from .confidence import bootstrap_interval, paired_bootstrap
from .metrics import METRICS, hit_ranks, per_case_metrics
from .predictions import Predictions
from .protocol import EXCLUDING, cold_start_slices
from .report import SliceIntervals, SliceValues
from .rescoring import DEFAULT_COLD_THRESHOLD, with_metric
from .runs import MeasuredRun, shared_machine
from .seeds import sample_std

DEFAULT_METRIC, DEFAULT_SLICE = "ndcg@10", "test_excluding_history"
DEFAULT_SLICES = ("test", DEFAULT_SLICE)
"""Both rankings that tables show: which system is ahead may depend on whether the history is excluded."""
RESAMPLES = 20_000
"""Of the paired tests: a p-value of 5e-5 must be possible: Holm multiplies the smallest by the number of pairs, 105 of 15 systems."""


@dataclass(frozen=True, eq=False)
class ComparedSystem:
    """One row: a system over its seeds."""

    name: str = field(metadata={"help": "Name of the row, unlike that of any other."})
    seeds: list[int] = field(metadata={"help": "Seeds the figures are means over."})
    sources: list[str] = field(metadata={"help": "Where the figures come from."})
    metrics: SliceValues = field(metadata={"help": "Means over the seeds, slice -> metric -> value."})
    std: SliceValues = field(metadata={"help": "Standard deviations over the seeds; empty for a single one."})
    intervals: SliceIntervals = field(metadata={"help": "95 % bootstrap intervals over users, slice -> metric -> [low, high]."})
    seconds_by_stage: Mapping[str, float] = field(default_factory=dict, metadata={"help": "Wall time of each stage, mean over the seeds."})
    machine: Mapping[str, Any] | None = field(default=None, metadata={"help": "What all runs were measured on; None: unknown, or several."})
    machine_by_stage: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict, metadata={"help": "What each stage ran on, where it is the same machine in all runs."}
    )


@dataclass(frozen=True)
class ComparedPair:
    """The first system minus the second, over the same users."""

    a: str = field(metadata={"help": "Name of the first system."})
    b: str = field(metadata={"help": "Name of the second system."})
    difference: float = field(metadata={"help": "Mean over users of a − b."})
    low: float = field(metadata={"help": "Lower end of its 95 % bootstrap interval."})
    high: float = field(metadata={"help": "Upper end."})
    p_value: float = field(metadata={"help": "Two-sided, of the paired bootstrap."})
    p_holm: float = field(metadata={"help": "The same, corrected by Holm's method for the number of pairs that are tested on the slice."})
    n: int = field(metadata={"help": "Number of users."})
    slice: str = field(metadata={"help": "The cases they are compared on."})


@dataclass(frozen=True, eq=False)
class Comparison:
    """Systems and the differences between those whose predictions are there."""

    metric: str = field(metadata={"help": "What the pairs are compared by, such as ndcg@10 or mrr@10."})
    slices: tuple[str, ...] = field(metadata={"help": "The cases they are compared on, each a family of tests of its own."})
    systems: list[ComparedSystem] = field(metadata={"help": "One entry per row."})
    pairs: list[ComparedPair] = field(metadata={"help": "Every two systems with predictions, on every slice."})

    def pairs_of(self, slice_name: str) -> list[ComparedPair]:
        """Those that were tested on one slice."""
        return [pair for pair in self.pairs if pair.slice == slice_name]

    def envelope_parts(self) -> dict[str, Any]:
        """The entries of the one envelope that a comparison fills: metrics, std where there is any, intervals, and its own."""
        std = {system.name: system.std for system in self.systems if system.std}
        return {
            "metrics": {system.name: system.metrics for system in self.systems},
            "std": std or None,
            "seeds": sorted({seed for system in self.systems for seed in system.seeds}),
            "intervals": {system.name: system.intervals for system in self.systems},
            "metric": self.metric,
            "slices": list(self.slices),
            "pairs": [asdict(pair) for pair in self.pairs],
            "systems": {
                system.name: {"seeds": system.seeds, "sources": system.sources}
                | {name: dict(value) for name in ("seconds_by_stage", "machine", "machine_by_stage") if (value := getattr(system, name))}
                for system in self.systems
            },
        }


def compare(
    runs: Sequence[MeasuredRun],
    metric: str = DEFAULT_METRIC,
    slice_name: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Put runs side by side and test every two of them.

    Runs of one system name become one row if their seeds are all different; otherwise each is a row named after its place. The p-values
    are corrected within each slice, whose tests answer one question: who is ahead in this ranking.

    Args:
        runs: what `read_runs` read.
        metric: "hr@K", "ndcg@K" or "mrr@K", what the pairs are tested by. A run that was evaluated without it gets it from its
            predictions; a row without predictions is shown with what it has.
        slice_name: the cases they are tested on; None: all test cases, without and with the history excluded (`DEFAULT_SLICES`).
        resamples, seed: of the paired bootstrap.

    Raises:
        CEMGError: nothing to compare, an unknown metric or slice, lists too short for the metric, or runs of different test cases,
            catalogues or protocols.
    """
    if not runs:
        raise CEMGError("runs: none given; name at least one run folder or file of results")
    _check_same_protocol(runs)
    slices = DEFAULT_SLICES if slice_name is None else (slice_name,)
    for part in slices:
        _check_metric(runs, metric, part)
    runs = [with_metric(run, metric) for run in runs]
    cases = _SharedCases(runs)
    groups = _grouped(runs)
    paired = {name: members for name, members in groups.items() if all(run.predictions is not None for run in members)}
    systems = [_row(name, members, cases if name in paired and len(members) > 1 else None) for name, members in groups.items()]
    pairs = []
    for part in slices:
        values = {name: cases.values(members, metric, part) for name, members in paired.items()}
        pairs += _tested({(a, b): (values[a], values[b]) for a, b in combinations(values, 2)}, part, resamples, seed)
    return Comparison(metric, slices, systems, pairs)


def compare_pairs(
    pairs: Mapping[tuple[str, str], Sequence[tuple[Sequence[MeasuredRun], Sequence[MeasuredRun]]]],
    metric: str = DEFAULT_METRIC,
    slice_name: str = DEFAULT_SLICE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[ComparedPair]:
    """Test chosen pairs of systems only, corrected for the number of these.

    Args:
        pairs: names of two systems → per data set the runs of either, one per seed, all with predictions. Within a data set the values of a
            user are means over the runs; where the seed makes the data set too, there is one per seed, and the users of all count.
        metric, slice_name, resamples, seed: as for `compare`.

    Raises:
        CEMGError: an unknown metric or slice, runs without predictions, or of different test cases, catalogues or protocols.
    """
    values: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
    for names, samples in pairs.items():
        found = [_paired_values(a, b, metric, slice_name) for a, b in samples]
        values[names] = np.concatenate([a for a, _ in found]), np.concatenate([b for _, b in found])
    return _tested(values, slice_name, resamples, seed)


def _tested(
    values: Mapping[tuple[str, str], tuple[np.ndarray, np.ndarray]], slice_name: str, resamples: int, seed: int
) -> list[ComparedPair]:
    """One family of tests: names of two systems → their (cases,) values, of which there may be none on a slice without cases."""
    tests = {names: paired_bootstrap(a, b, resamples, seed) for names, (a, b) in values.items() if len(a)}
    corrected = holm([test.p_value for test in tests.values()])
    return [
        ComparedPair(*names, test.mean, test.low, test.high, test.p_value, p_holm, len(values[names][0]), slice_name)
        for (names, test), p_holm in zip(tests.items(), corrected, strict=True)
    ]


def _paired_values(a: Sequence[MeasuredRun], b: Sequence[MeasuredRun], metric: str, slice_name: str) -> tuple[np.ndarray, np.ndarray]:
    """(cases,) values of two systems on one data set, in the same order of users."""
    runs = [*a, *b]
    for run in runs:
        _saved(run)
    _check_same_protocol(runs)
    _check_metric(runs, metric, slice_name)
    cases = _SharedCases(runs)
    return cases.values(a, metric, slice_name), cases.values(b, metric, slice_name)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number m: the i-th smallest times m − i + 1, never falling, at most 1.

    Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6.
    """
    given = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(given, kind="stable")
    corrected = np.empty_like(given)
    corrected[order] = np.minimum(np.maximum.accumulate(given[order] * np.arange(len(given), 0, -1)), 1.0)
    return corrected.tolist()


class _SharedCases:
    """The cases of all runs with predictions, checked to be the same, and the values of a system on them in one order of users."""

    def __init__(self, runs: Sequence[MeasuredRun]) -> None:
        saved = [run for run in runs if run.predictions is not None]
        self.thresholds = {run.protocol["cold_threshold"] for run in runs if run.protocol is not None and "cold_threshold" in run.protocol}
        self.orders: dict[int, np.ndarray] = {}
        self.ranks: dict[tuple[int, str], np.ndarray] = {}
        first: tuple[MeasuredRun, list[np.ndarray]] | None = None
        for run in saved:
            users, order, identity = _identity(run)
            if len(np.unique(users)) < len(users):
                raise CEMGError(f"{run.source}: a user has several predictions; there must be one case per user")
            self.orders[id(run)] = order
            if first is None:
                first = run, identity
                continue
            for what, own, other in zip(_IDENTITY, identity, first[1], strict=True):
                if not np.array_equal(own, other):
                    raise CEMGError(
                        f"{run.source} and {first[0].source}: different {what}, so their figures cannot be compared; evaluate both on the "
                        f"same prepared data set"
                    )

    def values(self, members: Sequence[MeasuredRun], metric: str, slice_name: str) -> np.ndarray:
        """(cases of the slice,) means over the runs of one system, in the shared order of users."""
        suffix = EXCLUDING if slice_name.endswith(EXCLUDING) else ""
        part, k = slice_name.removesuffix(EXCLUDING), int(metric.partition("@")[2])
        threshold = min(self.thresholds, default=DEFAULT_COLD_THRESHOLD)
        columns, rows = [], np.empty(0, dtype=bool)
        for run in members:
            predictions, order = _saved(run), self.orders[id(run)]
            columns.append(per_case_metrics(self._ranks(run, suffix, k), [k])[metric][order])
            rows = cold_start_slices(predictions.targets, predictions.train_item_counts, threshold)[part][order]
        return np.mean(columns, axis=0)[rows]

    def _ranks(self, run: MeasuredRun, suffix: str, k: int) -> np.ndarray:
        key = id(run), suffix
        if key not in self.ranks:
            predictions = _saved(run)
            lists = predictions.ranked_excluding_history if suffix else predictions.ranked
            ranks = hit_ranks(lists, predictions.targets).numpy()
            self.ranks[key] = np.where(ranks < lists.shape[1], ranks, np.iinfo(np.int64).max)
        return self.ranks[key]


_IDENTITY = ("test users", "test targets", "catalogues of candidates", "training interactions")


def _identity(run: MeasuredRun) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """The users, the order that sorts them, and what two comparable runs have in common (`_IDENTITY`)."""
    predictions = _saved(run)
    users, items = np.asarray(predictions.user_ids, dtype=str), np.asarray(predictions.item_ids, dtype=str)
    order, catalogue = np.argsort(users, kind="stable"), np.argsort(items, kind="stable")
    identity = [users[order], items[predictions.targets][order], items[catalogue], predictions.train_item_counts[catalogue]]
    return users, order, identity


def cases_of_run(run: MeasuredRun) -> tuple[bytes, ...]:
    """Equal for runs whose users can be paired: their test cases, catalogues and training counts.

    Raises:
        CEMGError: no predictions were saved.
    """
    return tuple(values.tobytes() for values in _identity(run)[2])


def _saved(run: MeasuredRun) -> Predictions:
    if run.predictions is None:
        raise CEMGError(f"{run.source}: no predictions were saved, so it cannot be tested; evaluate the system again")
    return run.predictions


def _check_same_protocol(runs: Sequence[MeasuredRun]) -> None:
    recorded = [run for run in runs if run.protocol is not None]
    for run in recorded[1:]:
        if run.protocol != recorded[0].protocol:
            raise CEMGError(
                f"{run.source} ({run.protocol}) and {recorded[0].source} ({recorded[0].protocol}): different protocols, so their figures "
                f"cannot be compared; evaluate both alike"
            )
    first, *others = [(run.source, n) for run in runs if (n := run.metrics["test"].get("n")) is not None] or [("", 0)]
    for source, n in others:
        if n != first[1]:
            raise CEMGError(f"{source}: {n:,.0f} test cases where {first[0]} has {first[1]:,.0f}; compare runs on one prepared data set")


def _check_metric(runs: Sequence[MeasuredRun], metric: str, slice_name: str) -> None:
    name, _, k = metric.partition("@")
    if name not in METRICS or not k.isdecimal():
        raise CEMGError(f"metric: {metric!r} has no value per user that could be tested; choose hr@K, ndcg@K or mrr@K, such as ndcg@10")
    for run in runs:
        if slice_name not in run.metrics:
            raise CEMGError(f"slice: {slice_name!r} is not in {run.source}; it has {', '.join(run.metrics)}")
    lacking = [run for run in runs if metric not in run.metrics[slice_name]]
    for run in lacking:
        places = int(k) if run.predictions is None else run.predictions.ranked.shape[1]
        if places < int(k):
            raise CEMGError(
                f"metric: {metric!r} is not in {run.source}, and its lists of {places} are too short for it; evaluate the system again "
                f"with {k} among evaluate.ks"
            )
    if lacking and not any(metric in run.metrics[slice_name] or run.predictions is not None for run in runs):
        known = [one for one in lacking[0].metrics[slice_name] if one.partition("@")[0] in METRICS]
        raise CEMGError(f"metric: {metric!r} is not in {lacking[0].source}; it has {', '.join(known)}")


def _grouped(runs: Sequence[MeasuredRun]) -> dict[str, list[MeasuredRun]]:
    """Rows by name: the seeds of a system together, runs that are not told apart by their seeds each by itself."""
    by_system: dict[str, list[MeasuredRun]] = {}
    for run in runs:
        by_system.setdefault(run.system, []).append(run)
    groups: dict[str, list[MeasuredRun]] = {}
    for system, members in by_system.items():
        seeds = [seed for run in members for seed in run.seeds]
        if len(members) == 1 or (len(set(seeds)) == len(seeds) and all(len(run.seeds) == 1 for run in members)):
            groups[system] = members
            continue
        for run in members:
            name, number = f"{system} ({run.source})", 2
            while name in groups:
                name, number = f"{system} ({run.source}) #{number}", number + 1
            groups[name] = [run]
    return groups


def _row(name: str, members: Sequence[MeasuredRun], cases: _SharedCases | None) -> ComparedSystem:
    """One system over its runs; `cases` (None: take the intervals as saved) gives the intervals of the means over several."""
    seeds, sources = [seed for run in members for seed in run.seeds], [run.source for run in members]
    seconds = _mean_seconds(members)
    made_on = {stage: [run.machine_by_stage.get(stage) for run in members] for stage in seconds}
    machines = {stage: shared_machine(found) for stage, found in made_on.items()}
    # Seconds of different machines have no mean; where nobody knows the machines, they are taken for the same.
    seconds = {stage: spent for stage, spent in seconds.items() if machines[stage] is not None or None in made_on[stage]}
    spent = seconds, shared_machine([run.machine for run in members]), {stage: one for stage, one in machines.items() if one is not None}
    if len(members) == 1:
        only = members[0]
        return ComparedSystem(name, seeds, sources, only.metrics, only.std, only.intervals, *spent)
    metrics: dict[str, dict[str, float | int | None]] = {}
    std: dict[str, dict[str, float | int | None]] = {}
    intervals: dict[str, dict[str, list[float] | None]] = {}
    for part in (part for part in members[0].metrics if all(part in run.metrics for run in members)):
        for metric in (metric for metric in members[0].metrics[part] if all(metric in run.metrics[part] for run in members)):
            measured = [value for run in members if (value := run.metrics[part][metric]) is not None]
            known = len(measured) == len(members)
            mean = float(np.mean(measured)) if known else None
            metrics.setdefault(part, {})[metric] = round(mean) if metric == "n" and mean is not None else mean
            if metric == "n":
                continue
            std.setdefault(part, {})[metric] = float(sample_std(measured)) if known else None
            if cases is not None and metric.partition("@")[0] in METRICS:
                values = cases.values(members, metric, part)
                found = bootstrap_interval(values) if len(values) else None
                intervals.setdefault(part, {})[metric] = None if found is None else [found.low, found.high]
    return ComparedSystem(name, seeds, sources, metrics, std, intervals, *spent)


def _mean_seconds(members: Sequence[MeasuredRun]) -> dict[str, float]:
    """Seconds of each stage, over the runs; none where a run does not say."""
    first = members[0].seconds_by_stage
    if any(set(run.seconds_by_stage) != set(first) for run in members):
        return {}
    return {stage: round(float(np.mean([run.seconds_by_stage[stage] for run in members])), 2) for stage in first}
