"""One connection to the service: uvicorn's protocol, with a limit on the time that a request's head may take.

uvicorn waits for ever for the head of a request, so that a few hundred clients that send a byte a minute would keep all
others out. Here there is a deadline, the number of connections is bounded, and what is no HTTP is answered in JSON.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from simsearch.server.middleware import Refused

MOST = 512
"""Connections open at once."""

STALL = 30.0
"""Seconds without a byte taken, after which a client that does not read its answer is cut off."""

LINGER = 64 << 20
"""Bytes of a body that are read and thrown away after it was refused: a client that is cut off sees no answer."""


class Connection(H11Protocol):
    """One client. What it may do comes from the settings of the app that is served."""

    _deadline: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _thrown = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MOST:
            self._refuse(Refused(503, "too_many_connections", "too many connections at once", {"retry-after": "1"}))
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._thrown = self._thrown + len(data) if self._refused_body() else 0
        if self._thrown > LINGER:
            self.transport.close()
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._refused_body() or self.conn.trailing_data[0]:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        self._flows()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._look_again(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._flows()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        self._refuse(Refused(400, "bad_request", "the request cannot be read as HTTP"))

    def _look_again(self, left: int) -> None:
        self._stalled = self.loop.call_later(STALL, self._look, left)

    def _look(self, left: int) -> None:
        """Whether the client has taken anything since `left` bytes were left."""
        now = self.transport.get_write_buffer_size()
        if now >= left:
            self.transport.abort()
        else:
            self._look_again(now)

    def _flows(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _refused_body(self) -> bool:
        """Whether the client still sends what was answered already."""
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

    def _watch(self) -> None:
        """While a head is incomplete, a deadline runs; it does not begin anew with each byte."""
        if self.conn.their_state is not h11.IDLE and not self._refused_body():
            self._unwatch()
        elif self._deadline is None and not self.transport.is_closing():
            app: Any = self.config.app
            self._deadline = self.loop.call_later(app.state.service.settings.head_timeout, self._late)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self._refuse(Refused(400, "head_too_slow", "the head of the request did not arrive in time"))

    def _refuse(self, refused: Refused) -> None:
        """Answers, where an answer can still be sent, and closes."""
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            body = refused.body()
            headers = {**refused.headers, "content-type": "application/json", "content-length": str(len(body)),
                       "x-content-type-options": "nosniff", "connection": "close"}  # fmt: skip
            pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
            response = h11.Response(status_code=refused.status, headers=pairs)
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
