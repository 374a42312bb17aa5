"""What every request passes: its size is limited, its answer is counted."""

from __future__ import annotations

import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .metrics import ServingMetrics
from .problems import Problem


class BodyLimit:
    """413 for bodies of more than `max_bytes`, told by their Content-Length or while they arrive."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # The rest of the body is not read, so the connection is of no further use.
        problem = Problem(413, f"the body has more than {self.max_bytes} bytes; send less at once", headers={"Connection": "close"})
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if int(declared) > self.max_bytes:
            await problem.response()(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise problem
            return message

        await self.app(scope, counted, send)


class CountRequests:
    """Counts answers by route and status, and their seconds."""

    def __init__(self, app: ASGIApp, metrics: ServingMetrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                route: Any = scope.get("route")
                name = "none" if route is None else route.path  # the route, not the path: anybody can ask for any path
                self.metrics.requests.labels(name, message["status"]).inc()
                self.metrics.request_seconds.labels(name).observe(time.perf_counter() - started)
            await send(message)

        await self.app(scope, receive, counting)
