"""When this process has to stop. It is a budget of the call and not of the experiment, so it stands in no settings and no manifest."""

from __future__ import annotations

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

    None: no limit. Limits do not nest.
    """
    global _deadline
    _deadline = None if seconds is None else time.monotonic() + seconds
    try:
        yield
    finally:
        _deadline = None


def time_is_up() -> bool:
    """Whether the limit, if there is one, has passed."""
    return _deadline is not None and time.monotonic() >= _deadline
