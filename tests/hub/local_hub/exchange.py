"""One request and its answer, whatever carries them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO
from urllib.parse import parse_qs, unquote

from .store import HubError

Handler = Callable[..., "Answer"]


@dataclass(frozen=True)
class Request:
    """A request with its path still quoted, because revisions and paths are quoted into single segments."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    stream: BinaryIO
    length: int

    def body(self) -> bytes:
        return self.stream.read(self.length)

    def json(self) -> Any:
        try:
            return json.loads(self.body() or b"{}")
        except ValueError as error:
            raise HubError(400, f"not JSON: {error}") from error

    def fields(self) -> Mapping[str, Any]:
        """The fields of a JSON or form body."""
        if "json" in self.headers.get("Content-Type", ""):
            return self.json()
        return parse_qs(self.body().decode())


@dataclass
class Answer:
    """Status, headers and bytes; `start` is where a partial content begins."""

    status: int = 200
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def json_answer(content: Any, status: int = 200, **headers: str) -> Answer:
    kind = {"Content-Type": "application/json; charset=utf-8"}
    return Answer(status, json.dumps(content).encode(), kind | {name.replace("_", "-"): value for name, value in headers.items()})


class Routes:
    """Patterns such as `/api/{kind}s/{repo}/tree/{revision}` and who answers them."""

    _PARTS: Mapping[str, str] = {"kind": "model|dataset|space", "repo": "[^/]+/[^/]+", "prefix": "|datasets/|spaces/", "path": ".+"}

    def __init__(self) -> None:
        self._routes: list[tuple[str, re.Pattern[str], Handler]] = []

    def __call__(self, methods: str, pattern: str) -> Callable[[Handler], Handler]:
        parts = re.split(r"\{(\w+)\}", pattern)
        expression = "".join(
            re.escape(part) if place % 2 == 0 else f"(?P<{part}>{self._PARTS.get(part, '[^/]+')})" for place, part in enumerate(parts)
        )

        def register(handler: Handler) -> Handler:
            self._routes.extend((method, re.compile(expression), handler) for method in methods.split())
            return handler

        return register

    def answer(self, owner: Any, request: Request) -> Answer:
        for method, pattern, handler in self._routes:
            if method == request.method and (found := pattern.fullmatch(request.path)):
                return handler(owner, request, **{name: unquote(value) for name, value in found.groupdict().items()})
        raise HubError(404, f"the local Hub does not know {request.method} {request.path}")


def ranged(content: bytes, wanted: str | None) -> tuple[int, bytes, dict[str, str]]:
    """Status, bytes and headers of a range of a content ("bytes=3-", "bytes=0-9", "bytes=-5")."""
    headers = {"Accept-Ranges": "bytes"}
    if wanted is None:
        return 200, content, headers
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted)
    if found is None or not any(found.groups()):
        raise HubError(416, f"not a range: {wanted}")
    first, last = found.groups()
    start = len(content) - int(last) if not first else int(first)
    end = len(content) if not last or not first else min(int(last) + 1, len(content))
    if not 0 <= start < end:
        raise HubError(416, f"{wanted} is outside of {len(content)} bytes")
    return 206, content[start:end], headers | {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
