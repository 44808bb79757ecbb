"""One connection to the service: uvicorn's HTTP/1.1 protocol with the limits that uvicorn has no option for.

uvicorn waits without limit for the head of a request, so a few hundred clients that send a byte a minute would keep all
others out. DeadlineProtocol adds:

- a deadline for the head of a request;
- a limit on connections, with an error in JSON at once (uvicorn's `limit_concurrency` waits for a request and answers
  in plain text);
- an end to connections whose client stops reading a response, or goes on sending a body that was refused;
- an error in JSON for bytes that are not HTTP.

If there are too many connections, the service closes the connections on which it has waited longest: for a request, for
the client to read a response, or for a body. So silent connections do not keep other clients out.
"""

from __future__ import annotations

import asyncio
import math
import re
import socket
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from simsearch.server.middleware import MAX_HEAD_BYTES, ApiError

MAX_CONNECTIONS = 512
"""The most connections open at once."""

STALL_SECONDS = 30.0
"""A client that does not read the buffered part of a response (64 to 128 KiB) in this time is disconnected."""

PATIENCE = 2.0
"""Seconds after which the connection of a slow client may be closed, if there are too many connections."""

SETTLING = 0.1
"""Seconds for which up to twice MAX_CONNECTIONS may be open before some are closed."""

LAST_STALL_SECONDS = 2.0
"""Used instead of STALL_SECONDS while the service stops."""

SEND_BUFFER = 1 << 17
"""Bytes that the system may buffer per connection; by default, it buffers megabytes for a client that reads slowly."""

MAX_DISCARDED_BYTES = 64 << 20
"""Up to this many bytes of a refused body are discarded; a client that is cut off while it sends sees no response."""


CHUNKS, CHUNK_BYTES = 1000, 256
"""A body may have CHUNKS chunks, and one more for each CHUNK_BYTES bytes: a tiny chunk takes as long as a large one."""

_HEAD_END = re.compile(rb"\r?\n\r?\n")  # h11 takes a bare LF for the end of a line
_LENGTH = re.compile(rb"(?im)^content-length[ \t]*:([^\r\n]*)")


_ODD_LINE = re.compile(rb"(?<!\r)\n|\n[ \t]")
"""Matches an end of line without CR, or a header that continues on the next line."""


class _StrictConnection(h11.Connection):
    """Refuses bodies in too many chunks, and heads that a proxy in front of the service may read differently.

    Such a head has more than one Content-Length (h11 accepts equal ones), a line that ends in LF alone or continues on
    the next line, or a version of HTTP other than 1.0 and 1.1.
    """

    _chunks = _received = 0

    def next_event(self) -> Any:
        if self.their_state is h11.IDLE:
            self._chunks = self._received = 0
            waiting = self.trailing_data[0]
            end = _HEAD_END.search(waiting)
            lengths = _LENGTH.findall(waiting, 0, end.start()) if end else []
            if len(lengths) > 1 or any(b"," in length for length in lengths):
                raise h11.RemoteProtocolError("the head has more than one Content-Length", error_status_hint=400)
            if end and _ODD_LINE.search(waiting, 0, end.end()):
                raise h11.RemoteProtocolError("a line ends in LF alone or is continued", error_status_hint=400)
        event = super().next_event()
        if isinstance(event, h11.Request):
            _check_version(event)
        if isinstance(event, h11.Data):
            self._chunks += 1
            self._received += len(event.data)
            if self._chunks > CHUNKS + self._received // CHUNK_BYTES:
                raise h11.RemoteProtocolError("the body has too many chunks", error_status_hint=400)
        return event


def _check_version(request: h11.Request) -> None:
    """Raises RemoteProtocolError for HTTP versions other than 1.0 and 1.1, and for chunked bodies in HTTP 1.0."""
    chunked = any(name == b"transfer-encoding" for name, _ in request.headers)
    if request.http_version != b"1.1" and (request.http_version != b"1.0" or chunked):
        raise h11.RemoteProtocolError("only HTTP 1.1, and 1.0 without chunks, is supported", error_status_hint=400)


def _too_many() -> ApiError:
    return ApiError(503, "too_many_connections", "too many connections at once", {"retry-after": "1"})


class DeadlineProtocol(H11Protocol):
    """One client's connection. Each deadline is `head_timeout` seconds, a setting of the app that is served."""

    _deadline: asyncio.TimerHandle | None = None
    _stall_check: asyncio.TimerHandle | None = None
    _discarded = 0
    silent_since = body_since = paused_since = math.inf

    def __init__(self, config: uvicorn.Config, *arguments: Any, **more: Any) -> None:
        super().__init__(config, *arguments, **more)
        self.conn = _StrictConnection(h11.SERVER, 2 * MAX_HEAD_BYTES)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        connected = transport.get_extra_info("socket")
        if connected is not None and connected.family != socket.AF_UNIX:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        if len(self.connections) > 2 * MAX_CONNECTIONS:
            self._refuse(_too_many())
            return
        self._note_waiting()
        self._update_deadline()
        if len(self.connections) > MAX_CONNECTIONS and not vars(self.server_state).get("relieving"):
            vars(self.server_state)["relieving"] = True
            self.loop.call_later(SETTLING, self._relieve)  # gives new connections time to send a request

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._discarded = self._discarded + len(data) if self._discards_body() else 0
        if self._discarded > MAX_DISCARDED_BYTES:
            self.transport.close()
        self._note_waiting()
        self._update_deadline()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note_waiting()
        if self._discards_body() or self.conn.trailing_data[0]:
            self._update_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_deadline()
        self._cancel_stall_check()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.paused_since = self.loop.time()
        self._schedule_stall_check()

    def resume_writing(self) -> None:
        self.paused_since = math.inf
        self._cancel_stall_check()
        super().resume_writing()

    def hurry(self) -> None:
        """Shortens the time limit for a client that has stopped reading a response; called when the service stops."""
        if self._stall_check is not None:
            self._cancel_stall_check()
            self._schedule_stall_check()

    def _unsupported_upgrade_warning(self) -> None:
        """Leaves out uvicorn's warning, which any client could cause by asking for an upgrade of the protocol."""

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, "bad_request", "the request cannot be read as HTTP"))

    # -- too many connections

    def _relieve(self) -> None:
        """Closes the connections that `_rank` puts first, until MAX_CONNECTIONS are left or the rest must stay open."""
        vars(self.server_state)["relieving"] = False
        alive: Any = [each for each in self.connections if not each.transport.is_closing()]
        found = [(rank, each) for each in alive if (rank := each._rank()) is not None]
        found.sort(key=lambda pair: pair[0])
        for _, each in found[: max(0, len(alive) - MAX_CONNECTIONS)]:
            if each.cycle is None:
                each._refuse(_too_many())
            else:
                each.transport.abort()

    def _rank(self) -> tuple[int, float] | None:
        """Returns a sort key, lowest for the connection to close first; None if the connection must stay open."""
        late = self.loop.time() - PATIENCE
        if self.silent_since < math.inf:
            return (0 if self.cycle is None else 1), self.silent_since  # 0: it never sent a request
        if self.paused_since < late:
            return 2, self.paused_since
        return (3, self.body_since) if self.body_since < late else None

    def _note_waiting(self) -> None:
        """Records since when the service has been waiting for a head, or for the rest of a body."""
        state, now = self.conn.their_state, self.loop.time()
        self.silent_since = min(self.silent_since, now) if state is h11.IDLE else math.inf
        self.body_since = min(self.body_since, now) if state is h11.SEND_BODY else math.inf

    # -- a client that stops reading

    def _schedule_stall_check(self) -> None:
        app: Any = self.config.app
        seconds = LAST_STALL_SECONDS if app.state.service.draining else STALL_SECONDS
        self._stall_check = self.loop.call_later(seconds, self.transport.abort)

    def _cancel_stall_check(self) -> None:
        if self._stall_check is not None:
            self._stall_check.cancel()
            self._stall_check = None

    # -- a head that does not arrive

    def _discards_body(self) -> bool:
        """Returns True while the client still sends the body of a request that has been answered."""
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

    def _update_deadline(self) -> None:
        """Starts the deadline if the service waits for something that has a deadline; otherwise cancels the deadline.

        The head of a request has a deadline, and so has the rest of a body that the service will throw away.
        Bytes that arrive do not extend a deadline that has been started.
        """
        if self.conn.their_state is not h11.IDLE and not self._discards_body():
            self._cancel_deadline()
        elif self._deadline is None and not self.transport.is_closing():
            app: Any = self.config.app
            self._deadline = self.loop.call_later(app.state.service.settings.head_timeout, self._refuse_late_head)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse_late_head(self) -> None:
        self._deadline = None
        if self.conn.our_state is h11.IDLE and self.cycle is not None and not self.conn.trailing_data[0]:
            self.transport.close()  # an idle connection: all its requests have been answered
        elif not self.transport.is_closing():
            self._refuse(ApiError(400, "head_too_slow", "the head of the request did not arrive in time"))

    def _refuse(self, refused: ApiError) -> None:
        """Sends an error response, if one can still be sent, and closes the connection."""
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            body = refused.body()
            headers = {
                **refused.headers,
                "content-type": "application/json",
                "content-length": str(len(body)),
                "x-content-type-options": "nosniff",
                "connection": "close",
            }
            pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
            response = h11.Response(status_code=refused.status, headers=pairs)
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
