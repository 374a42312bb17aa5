"""The local Hub as an HTTP server on 127.0.0.1; large files are served from `localhost`, which to a client is another host."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from .api import TOKEN, Hub
from .clients import Clients
from .exchange import Answer, Request
from .faults import Fault
from .store import HubError

__all__ = ["TOKEN", "Asked", "LocalHub"]


class Asked(NamedTuple):
    """One request as the server saw it: bytes that came in with it, and the status it was answered with (0: cut off)."""

    method: str
    path: str
    received: int
    status: int


class _Reader:
    """The body of a request, of which a fault may let only half through."""

    def __init__(self, stream: Any, length: int, fault: Fault | None) -> None:
        self.stream, self.left, self.received = stream, length, 0
        self.fault, self.half = fault, length // 2

    def read(self, size: int) -> bytes:
        wanted = min(size, self.left)
        if self.fault is not None and wanted and (self.fault.cut or self.fault.on_half):
            if self.received >= self.half:
                if self.fault.on_half is not None:
                    self.fault.on_half()
                raise ConnectionAbortedError(self.fault.cut)
            wanted = min(wanted, self.half - self.received)
        block = self.stream.read(wanted)
        self.received += len(block)
        self.left -= len(block)
        return block


class LocalHub(Hub):
    """A running Hub; use as a context manager.

    Attributes:
        endpoint: what HF_ENDPOINT is set to.
        faults: what is to go wrong; emptied by the test.
        asked: every request so far.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "hub")
        self.faults: list[Fault] = []
        self.asked: list[Asked] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        port = self._server.server_address[1]
        self.endpoint, self.storage = f"http://127.0.0.1:{port}", f"http://localhost:{port}"

    def __enter__(self) -> LocalHub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def failing(self, *faults: Fault) -> Iterator[None]:
        """These faults, for as long as the block lasts."""
        self.faults.extend(faults)
        try:
            yield
        finally:
            self.faults.clear()

    def clients(self, home: Path, **settings: Any) -> Clients:
        """Processes that take this Hub for huggingface.co."""
        return Clients(self.endpoint, TOKEN, home, **settings)

    def head(self, repo_id: str, kind: str = "model", branch: str = "main") -> str:
        return self.repositories[kind, repo_id].branches[branch]

    def files(self, repo_id: str, kind: str = "model", revision: str = "main") -> dict[str, int]:
        """Sizes of the files by path, without what the Hub itself puts into a new repository."""
        files = self.repositories[kind, repo_id].resolve(revision).files
        return {path: file.size for path, file in files.items() if path != ".gitattributes"}

    def content(self, repo_id: str, path: str, kind: str = "model", revision: str = "main") -> bytes:
        file = self.repositories[kind, repo_id].file(revision, path)[1]
        return file.content if file.sha256 is None else self.objects.path(file.sha256).read_bytes()

    def commits(self, repo_id: str, kind: str = "model") -> list[str]:
        """Titles of the commits but the first, which is the Hub's own."""
        return [commit.title for commit in self.repositories[kind, repo_id].commits.values()][1:]

    def received(self, path: str) -> int:
        """Bytes that came in with requests to paths that match, answered or cut off."""
        return sum(one.received for one in self.asked if re.search(path, one.path))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        fault = next((fault for fault in self.hub.faults if fault.takes(self.command, parts.path)), None)
        length = int(self.headers.get("Content-Length") or 0)
        reader = _Reader(self.rfile, length, None if fault is not None and fault.after_work else fault)
        request = Request(self.command, parts.path, parse_qs(parts.query), self.headers, reader, length)  # type: ignore[arg-type]
        status = 0
        try:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                raise HubError(501, "a body without Content-Length")
            answer = self._answer(request, fault)
            while reader.left and reader.read(1 << 16):
                pass  # what nobody read stands before the next request of this connection
            status = self._send(answer, fault)
        except (ConnectionError, BrokenPipeError) as error:
            self._hang_up(error)
        finally:
            self.hub.asked.append(Asked(self.command, parts.path, reader.received, status))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _answer(self, request: Request, fault: Fault | None) -> Answer:
        if fault is not None and fault.status is not None and not fault.after_work:
            return Answer(fault.status, json.dumps({"error": "injected"}).encode(), dict(fault.headers))
        if fault is not None and fault.meanwhile is not None:
            fault.meanwhile()
        answer = self.hub.answer(request)
        if fault is not None and fault.after_work:
            raise ConnectionAbortedError(fault.cut)
        return answer

    def _send(self, answer: Answer, fault: Fault | None) -> int:
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.content)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return answer.status
        if fault is not None and (fault.cut or fault.on_half) and answer.content:
            self.wfile.write(answer.content[: len(answer.content) // 2])
            self.wfile.flush()
            if fault.on_half is not None:
                fault.on_half()
            raise ConnectionAbortedError(fault.cut)
        self.wfile.write(answer.content)
        return answer.status

    def _hang_up(self, error: Exception) -> None:
        self.close_connection = True
        if str(error) == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())  # at once, before the base class says goodbye in order

    def log_message(self, format: str, *arguments: object) -> None:
        pass
