"""Runs the HTTP service as a process, with uvicorn; logs in JSON lines, and finishes open requests before it stops."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import json
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import uvicorn
from PIL import Image

from simsearch.common.machine import own_memory, return_freed_memory
from simsearch.engine import Engine
from simsearch.errors import UsageError
from simsearch.server.protocol import DeadlineProtocol
from simsearch.storage.feature_files import allow_files

IDLE = 1.0
"""After a stop was requested, an open connection has this many seconds to send a request that is on its way."""

GRACE = 35
"""Seconds to finish requests after a stop was requested."""

LEAST_MEMORY = 160 << 20
"""The least memory for requests, in bytes: one fifth of it is for bodies, and must hold a body of 32 MiB."""

OPEN_FILES = 4096
"""Limit of open files: each connection takes one descriptor, and a second one while a file is sent."""

MAPPED_BYTES = 1 << 20
"""Blocks of memory larger than this are returned to the system when they are freed."""


class Server(uvicorn.Server):
    """A uvicorn server that, when it stops, refuses new connections and answers the requests on open connections."""

    stop_signal = 0

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _request_stop(self, number: int, frame: Any) -> None:
        self.force_exit = self.should_exit and number == signal.SIGINT
        self.stop_signal, self.should_exit = number, True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.app.state.service.drain()  # type: ignore[union-attr]
        for _ in range(10):  # accepts connections that are waiting
            await asyncio.sleep(0)
        for server in self.servers:
            server.close()
        connections: list[Any] = list(self.server_state.connections)
        for connection in connections:
            connection.hurry()
        end = asyncio.get_running_loop().time() + IDLE
        while self.server_state.connections and asyncio.get_running_loop().time() < end and not self.force_exit:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)


def server_for(app: Any) -> Server:
    """Returns a server for an app that `create_app` made; the server is not running yet."""
    config = uvicorn.Config(
        app,
        http=DeadlineProtocol,
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE,
        timeout_keep_alive=20,
    )
    return Server(config)


class JsonFormatter(logging.Formatter):
    """Formats a log record as a JSON object in one line; `extra={"fields": {...}}` adds keys."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


@contextlib.contextmanager
def _logs() -> Iterator[None]:
    """In the `with` block, writes the service's log and the warnings of all libraries to stderr as lines of JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    levels = dict.fromkeys(("", "simsearch", "uvicorn.error"), logging.WARNING) | {"simsearch.serve": logging.INFO}
    loggers = {logging.getLogger(name): level for name, level in levels.items()}
    before = [(logger, logger.handlers, logger.propagate, logger.level) for logger in loggers]
    try:
        for logger, level in loggers.items():
            logger.handlers, logger.propagate = [handler], False
            logger.setLevel(level)
        yield
    finally:
        for logger, handlers, propagate, level in before:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


def memory_for_requests(engines: Iterable[Engine], promised: int, batch: int) -> int:
    """Returns the bytes that are left for requests if the whole process may take at most `promised` bytes.

    Before measuring, loads the models and computes a batch of `batch` images, since that memory stays in use.
    Raises UsageError if less than `LEAST_MEMORY` is left.
    """
    for engine in engines:
        pixels = engine.recipe.pixels(Image.new("RGB", (64, 64)))
        engine.load_model().features(np.stack([pixels] * batch))
    used = own_memory()
    if promised - used < LEAST_MEMORY:
        need = -(-(used + LEAST_MEMORY) // 2**20)
        raise UsageError(
            f"too little memory for requests: the service takes {used >> 20} MiB before the first request",
            hint=f"give --memory {need} or more",
        )
    return promised - used


def shown_address(host: str, bound: tuple[Any, ...]) -> str:
    """Returns the URL of a service as text. If it listens on all addresses, adds the URL for other machines.

    host: as given by the user. bound: the address and the port of the listening socket.
    """
    address, port = bound[:2]
    if ipaddress.ip_address(address.partition("%")[0]).is_unspecified:
        here = "[::1]" if ":" in address else "127.0.0.1"
        others = f"http://{socket.gethostname()}:{port}/ (or an address of this machine instead of its name)"
        return f"http://{here}:{port}/ and, for other machines, at {others}"
    return f"http://[{host.strip('[]')}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def run(app: Any, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serves an app that `create_app` made, until SIGTERM or SIGINT. say: called with the URL.

    Raises UsageError if it cannot listen on the port, KeyboardInterrupt after SIGINT.
    """
    allow_files(OPEN_FILES)
    return_freed_memory(MAPPED_BYTES)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
    except OSError as error:
        listener.close()
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}", hint="try another --port") from error
    for served in app.state.service.indexes.values():
        served.run(lambda engine: engine.load_model())
        served.check()
    app.state.service.uploads.sweep(app.state.service.indexes.values() if app.state.service.settings.writable else ())
    listener.listen(1024)  # clients may connect as soon as the URL is known
    say(shown_address(host, listener.getsockname()))
    server = server_for(app)
    gc.collect()
    gc.freeze()  # the present objects stay, so later collections can skip them
    with _logs():
        server.run(sockets=[listener])
    if server.stop_signal == signal.SIGINT:
        raise KeyboardInterrupt
