"""The process: a socket, uvicorn, and an end that lets running answers finish."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn

from ..errors import ConfigError
from .app import make_app
from .asks import Asks
from .engine import Engine
from .settings import Settings

_GRACE_SECONDS = 3


def open_socket(settings: Settings) -> socket.socket:
    """A socket that listens where the settings say.

    Raises
    ------
    ConfigError
        If the address is none of this machine's, or the port is in use.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=256)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"cannot listen on {settings.host}:{settings.port}: {reason}; give another --port or --host") from None


def address(listening: socket.socket) -> str:
    """The URL of a socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(engine: Engine, asks: Asks, listening: socket.socket, ready: Callable[[], None] = lambda: None) -> None:
    """Answer requests until SIGTERM or SIGINT, then finish what runs; a second signal ends it at once.

    Parameters
    ----------
    engine : Engine
        Closed when this returns.
    asks : Asks
    listening : socket
    ready : callable
        Called when requests are taken.
    """
    server = make_server(engine, asks, ready)
    try:
        server.run(sockets=[listening])
    finally:
        engine.drain(0)
        engine.join(10)
        listening.close()


def make_server(engine: Engine, asks: Asks, ready: Callable[[], None] = lambda: None) -> Draining:
    """The server, not yet running; see `serve`."""
    config = uvicorn.Config(
        make_app(engine, asks),
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_keep_alive=20,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        h11_max_incomplete_event_size=64 << 10,
    )
    return Draining(config, engine, ready)


class Draining(uvicorn.Server):
    """A server that, told to stop, refuses what is new and stops when what runs is done."""

    def __init__(self, config: uvicorn.Config, engine: Engine, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._engine, self._ready, self._told = engine, ready, False

    async def startup(self, sockets=None) -> None:
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame) -> None:
        """Note a signal, in whatever the main thread is doing; the next tick acts on it."""
        self.should_exit = self._told
        self._told = True

    async def on_tick(self, counter: int) -> bool:
        stop = await super().on_tick(counter)
        if self._told:
            self._engine.drain(self._engine.settings.drain_seconds)
        return stop or self._told and self._engine.join(0)
