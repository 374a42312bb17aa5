"""Leave-one-out: a user's last item is the test target, the second to last the validation target, the rest is training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from .ragged import IntArray, Ragged

EvaluationSplit = Literal["validation", "test"]
MIN_INTERACTIONS = 3
"""Fewer leave nothing to train on once both targets are held out: such users are training only."""

_HELD_OUT = {"validation": 2, "test": 1}
"""How many of a user's last interactions the history of a split must not contain."""


@dataclass(frozen=True, eq=False)
class EvaluationCases:
    """One case per evaluated user: given the history, which item came next?"""

    users: IntArray = field(metadata={"help": "User indices, shape (cases,)."})
    histories: Ragged = field(metadata={"help": "Item indices before the target, chronological, one row per case, never empty."})
    targets: IntArray = field(metadata={"help": "Item index that came next, shape (cases,)."})

    def __len__(self) -> int:
        return len(self.targets)


def training_part(sequences: Ragged) -> Ragged:
    """What may be trained on: n − 2 interactions of a user with n ≥ 3, all of a shorter user. One row per user."""
    return sequences.drop_last(np.where(sequences.lengths >= MIN_INTERACTIONS, 2, 0))


def leave_one_out(sequences: Ragged, split: EvaluationSplit) -> EvaluationCases:
    """Cases of one split; the history of a test case contains the validation item."""
    if split not in _HELD_OUT:
        raise ValueError(f"split must be one of {sorted(_HELD_OUT)}, got {split!r}")
    held_out = _HELD_OUT[split]
    users = np.flatnonzero(sequences.lengths >= MIN_INTERACTIONS).astype(np.int64)
    targets = sequences.values[sequences.offsets[users + 1] - held_out]
    return EvaluationCases(users, sequences.take(users).drop_last(held_out), targets)


def training_cases(sequences: Ragged) -> EvaluationCases:
    """Every user's training items but the last as history (it may be empty), the last one as target."""
    training = training_part(sequences)
    users = np.flatnonzero(training.lengths > 0).astype(np.int64)
    return EvaluationCases(users, training.take(users).drop_last(1), training.values[training.offsets[users + 1] - 1])
