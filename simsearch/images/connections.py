"""Connections to servers. Every operation ends at a deadline, or at once when a `Stop` is set."""

from __future__ import annotations

import contextlib
import functools
import io
import ipaddress
import os
import select
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, TypeVar

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
T = TypeVar("T")


class Stop:
    """A switch that is passed to fetches; setting it ends all of them at once. Safe for several threads."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self._set = False

    def set(self) -> None:
        """Ends all running fetches that have this switch; later fetches with it fail at once."""
        if not self._set:
            self._set = True
            os.write(self._write, b"x")

    def is_set(self) -> bool:
        return self._set

    def fileno(self) -> int:
        """Returns a file descriptor that becomes readable when the stop is set."""
        return self._read

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._read)
            os.close(self._write)


class StoppedError(OSError):
    """The fetch was ended by `Stop`."""


class Deadline:
    """The time (of `time.monotonic`) at which a fetch must end. `stop` can end the fetch earlier."""

    def __init__(self, end: float, stop: Stop | None) -> None:
        self.end, self.stop = end, stop

    def left(self) -> float:
        """Returns the seconds left. Raises TimeoutError if there are none, StoppedError if `stop` is set."""
        if self.stop is not None and self.stop.is_set():
            raise StoppedError("the fetch was stopped")
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the server took too long")
        return left

    def wait(self, descriptor: int, event: int) -> None:
        """Waits until a descriptor is ready for `event`, such as `select.POLLIN`. Raises the errors of `left`."""
        poll = select.poll()
        poll.register(descriptor, event)
        if self.stop is not None:
            poll.register(self.stop.fileno(), select.POLLIN)
        poll.poll(1000 * self.left())
        self.left()


class Connection(io.RawIOBase):
    """A TCP connection. An operation that is not complete at the deadline ends with a TimeoutError.

    name: the host's name for TLS; None for a connection without encryption. Raises OSError.
    """

    def __init__(self, address: Address, port: int, name: str | None, deadline: Deadline) -> None:
        self._deadline = deadline
        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                self._socket.connect((str(address), port))
            deadline.wait(self._socket.fileno(), select.POLLOUT)
            if error := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, os.strerror(error))
            if name is not None:
                encrypted = _tls().wrap_socket(self._socket, server_hostname=name, do_handshake_on_connect=False)
                self._socket = encrypted
                self._retry(encrypted.do_handshake, select.POLLIN)
        except BaseException:
            self._socket.close()
            raise

    def _retry(self, call: Callable[..., T], event: int, *arguments: Any) -> T:
        """Calls a function of the socket, and returns its result. Whenever the call would block, waits for `event`."""
        while True:
            self._deadline.left()
            try:
                return call(*arguments)
            except ssl.SSLWantWriteError:
                self._deadline.wait(self._socket.fileno(), select.POLLOUT)
            except ssl.SSLWantReadError:
                self._deadline.wait(self._socket.fileno(), select.POLLIN)
            except BlockingIOError:
                self._deadline.wait(self._socket.fileno(), event)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._retry(self._socket.recv_into, select.POLLIN, buffer)

    def sendall(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._retry(self._socket.send, select.POLLOUT, rest) :]

    def close(self) -> None:
        self._socket.close()
        super().close()


class ConnectionSocket:
    """Makes a `Connection` look like a socket to http.client, with only the methods that http.client calls.

    http.client may call `close` before the response is read from the connection, so `close` leaves the connection open.
    The caller that opened the connection closes it.
    """

    def __init__(self, connection: Connection) -> None:
        self.sendall, self._connection = connection.sendall, connection

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self._connection)

    def close(self) -> None:
        """Does nothing, because the response may still have to be read."""


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()
