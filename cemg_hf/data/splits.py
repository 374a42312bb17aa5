"""Which interactions are trained on and which are the targets of validation and test: leave-one-out, or by time.

*Leave-one-out*: a user's last item is the test target, the second to last the validation target, the rest is training. Every user is
measured, at the price that training knows what others did after the moment a case is asked at.

*By time*: two instants t1 < t2 cut one timeline for all users. Training is what lies before t1; the validation target is a user's
first interaction in [t1, t2), the test target the first one at or after t2, each given everything that this user did before it.
Nothing that is trained on lies after anything that is asked (Ji, Sun, Zhang & Li 2023, "A critical study on data leakage in recommender
system offline evaluation", TOIS 41(3); Meng et al. 2020, "Exploring data splitting strategies for the evaluation of recommendation
models", RecSys).
Users who appear after an instant have an empty history, and items that appear after t1 no training interactions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ..errors import CEMGError
from .ragged import IntArray, Ragged

SplitKind = Literal["leave_one_out", "time"]
EvaluationSplit = Literal["validation", "test"]
MIN_INTERACTIONS = 3
"""Fewer leave nothing to train on once both targets of leave-one-out are held out: such users are training only."""

_HELD_OUT = {"validation": 2, "test": 1}
"""How many of a user's last interactions the history of a leave-one-out split must not contain."""


@dataclass(frozen=True, eq=False)
class EvaluationCases:
    """One case per evaluated user: given the history, which item came next?"""

    users: IntArray = field(metadata={"help": "User indices, shape (cases,)."})
    histories: Ragged = field(
        metadata={"help": "Item indices before the target, chronological, one row per case; empty only in a split by time."}
    )
    targets: IntArray = field(metadata={"help": "Item index that came next, shape (cases,)."})

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, eq=False)
class SplitPoints:
    """Where each user's chronological interactions are cut; every protocol is one of these."""

    training: IntArray = field(metadata={"help": "How many first interactions of each user are trained on, shape (users,)."})
    targets: Mapping[EvaluationSplit, IntArray] = field(
        metadata={"help": "Place of each user's target among the user's interactions, shape (users,) per split; -1: no case."}
    )


@dataclass(frozen=True)
class TimeCuts:
    """The two instants of a split by time, in the unit of the timestamps."""

    validation_from: int = field(metadata={"help": "t1: what lies before it is trained on."})
    test_from: int = field(metadata={"help": "t2: test targets lie at or after it, validation targets in [t1, t2)."})


def leave_one_out_points(lengths: IntArray) -> SplitPoints:
    """Split points of users with `lengths` (users,) interactions: n − 2 train where n ≥ 3, all of a shorter user."""
    evaluated = lengths >= MIN_INTERACTIONS
    targets: dict[EvaluationSplit, IntArray] = {}
    for split in _SPLITS:
        targets[split] = np.where(evaluated, lengths - _HELD_OUT[split], -1)
    return SplitPoints(np.where(evaluated, lengths - 2, lengths), targets)


def time_points(timestamps: Ragged, cuts: TimeCuts) -> SplitPoints:
    """Split points of users whose interactions happened at `timestamps`, never falling inside a row."""
    before = [
        np.bincount(timestamps.rows[timestamps.values < cut], minlength=len(timestamps)).astype(np.int64)
        for cut in (cuts.validation_from, cuts.test_from)
    ]
    training, until_test = before
    targets: dict[EvaluationSplit, IntArray] = {
        "validation": np.where(until_test > training, training, -1),
        "test": np.where(timestamps.lengths > until_test, until_test, -1),
    }
    return SplitPoints(training, targets)


def time_cuts(timestamps: IntArray, quantiles: Sequence[float]) -> TimeCuts:
    """The instants with these shares of all interactions (total,) before them, as far as interactions at one instant allow.

    Raises:
        CEMGError: a part of the data would be empty.
    """
    ordered = np.sort(timestamps)
    first, second = (int(ordered[min(int(share * len(ordered)), len(ordered) - 1)]) for share in quantiles)
    if not ordered[0] < first < second:
        raise CEMGError(
            f"time_quantiles: {list(quantiles)} cut at {first} and {second}, and the first interaction is at {ordered[0]}; training or "
            f"validation would be empty, move the quantiles apart (many interactions at one instant leave little choice)"
        )
    return TimeCuts(first, second)


def training_part(sequences: Ragged, points: SplitPoints | None = None) -> Ragged:
    """What may be trained on, one row per user: the first interactions up to the split point (default: leave-one-out's)."""
    points = leave_one_out_points(sequences.lengths) if points is None else points
    return sequences.drop_last(sequences.lengths - points.training)


def evaluation_cases(sequences: Ragged, split: EvaluationSplit, points: SplitPoints | None = None) -> EvaluationCases:
    """Cases of one split (default: leave-one-out); the history of a test case contains what validation asks for."""
    if split not in _SPLITS:
        raise ValueError(f"split must be one of {sorted(_SPLITS)}, got {split!r}")
    places = (leave_one_out_points(sequences.lengths) if points is None else points).targets[split]
    users = np.flatnonzero(places >= 0).astype(np.int64)
    places = places[users]
    histories = sequences.take(users).drop_last(sequences.lengths[users] - places)
    return EvaluationCases(users, histories, sequences.values[sequences.offsets[users] + places])


def training_cases(sequences: Ragged, points: SplitPoints | None = None) -> EvaluationCases:
    """Every user's training items but the last as history (it may be empty), the last one as target."""
    training = training_part(sequences, points)
    users = np.flatnonzero(training.lengths > 0).astype(np.int64)
    return EvaluationCases(users, training.take(users).drop_last(1), training.values[training.offsets[users + 1] - 1])


_SPLITS: tuple[EvaluationSplit, ...] = ("validation", "test")
