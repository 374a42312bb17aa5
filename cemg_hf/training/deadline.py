"""When this process has to stop. It is a budget of the call and not of the experiment, so it stands in no settings and no manifest."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import CEMGError

_deadline: float | None = None


class OutOfTime(CEMGError):
    """The time of this call is used up; what was done is saved, and the same call continues."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Within the block, training loops write a checkpoint and raise `OutOfTime` after so many seconds, and no further stage begins.

    None: no limit of its own. Within another limit the one that comes first counts.
    """
    global _deadline
    outer = _deadline
    if seconds is not None:
        _deadline = min(time.monotonic() + seconds, math.inf if outer is None else outer)
    try:
        yield
    finally:
        _deadline = outer


def time_is_up() -> bool:
    """Whether the limit, if there is one, has passed."""
    return _deadline is not None and time.monotonic() >= _deadline
