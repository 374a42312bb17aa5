"""The service as a process: a socket, uvicorn, and an end without loss."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from types import FrameType

import uvicorn

from ..errors import CEMGError
from .app import create_app
from .service import RecommendService

logger = logging.getLogger(__name__)

BACKLOG = 2048
EXIT_MARGIN_SECONDS = 5.0


class DrainingServer(uvicorn.Server):
    """On the first SIGTERM or Ctrl-C the service stops taking requests, and the port closes a while later; a second one closes it at once.

    Between the two, who asks is told so (503, and the connection closes with the answer). Closing at once would cut off requests that
    are on their way on open connections.
    """

    def __init__(self, config: uvicorn.Config, service: RecommendService) -> None:
        super().__init__(config)
        self.service = service
        self.draining = False

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.draining:
            super().handle_exit(sig, frame)
            return
        self.draining = True
        # Signals arrive between any two instructions; the loop changes the service between two callbacks.
        self.loop.call_soon_threadsafe(self._drain, sig)

    def _drain(self, sig: int) -> None:
        logger.info("received %s: finishing what is queued", signal.Signals(sig).name)
        self.service.stop()
        self.loop.call_later(self.service.config.drain_seconds, super().handle_exit, sig, None)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is a free one.

    Raises:
        CEMGError: the port is taken, or the host is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise CEMGError(f"cannot listen on {host} port {port} ({error.strerror}); choose others with --host and --port") from error


def serve(service: RecommendService, listening: socket.socket, admin_token: str | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C; return when every request that was taken is answered.

    Raises:
        CEMGError: there was no model to load, or it refuses the settings.
    """
    config = uvicorn.Config(
        create_app(service, admin_token),
        log_config=None,
        access_log=False,
        server_header=False,
        # Beyond the deadline of the last request nothing is left to answer.
        timeout_graceful_shutdown=int(service.config.deadline_seconds + EXIT_MARGIN_SECONDS),
    )
    server = DrainingServer(config, service)

    def give_up() -> None:
        server.should_exit = True

    service.on_failure = give_up
    # uvicorn raises the signal again when it is done, for those who had a handler before; this one lets the process end with status 0.
    previous = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[listening])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if service.failure is not None:
        raise service.failure
