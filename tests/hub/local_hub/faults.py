"""What can be made to go wrong between a client and the local Hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass
class Fault:
    """The next requests that match are answered with `status`, or cut off half way through their longer body.

    Args:
        method: HTTP method.
        path: regular expression found in the path.
        status: answer with this status instead of doing what was asked.
        headers: of that answer, such as Retry-After.
        cut: None, or how the connection ends after half of the body: "closed" or "reset" (as by a router that lost its state).
        after_work: let the request do its work first, and then lose the answer.
        on_half: called when half of the body has passed, before the connection is cut.
        meanwhile: called before the request does its work, which it then does as if nothing were.
        times: how many requests it concerns; None: all of them.
    """

    method: str
    path: str
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: str | None = None
    after_work: bool = False
    on_half: Callable[[], None] | None = None
    meanwhile: Callable[[], object] | None = None
    times: int | None = 1
    seen: int = field(default=0, init=False)

    def takes(self, method: str, path: str) -> bool:
        """Whether this request is concerned; counts it if so."""
        if method != self.method or not re.search(self.path, path) or (self.times is not None and self.seen >= self.times):
            return False
        self.seen += 1
        return True
