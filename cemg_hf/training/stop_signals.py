"""Ctrl-C and SIGTERM as a request to stop at the next good moment."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

logger = logging.getLogger(__name__)


class StopSignals:
    """Remembers a first SIGINT or SIGTERM for the loop to act on after the step; a second one acts at once, as before."""

    def __init__(self) -> None:
        self.received = 0
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        # Python runs handlers in the main thread alone and installs them nowhere else.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self._remember) or signal.SIG_DFL
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        logger.warning("received %s: writing a checkpoint and stopping", signal.Signals(number).name)
        self.received = number
        signal.signal(number, self.previous[number])
