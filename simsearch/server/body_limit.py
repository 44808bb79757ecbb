"""The middleware that limits request bodies: their size, the time to receive them, and the memory for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from starlette.datastructures import Headers

from simsearch.server.middleware import ApiError
from simsearch.server.settings import Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

SMALL_BODY, RESERVED = 1 << 20, 4
"""The last 1/RESERVED of the memory for bodies is kept free for bodies of at most SMALL_BODY bytes."""

SLOW_SECONDS = 2.0
"""Seconds after which a body that is still arriving may be dropped, if a small body needs the memory."""

MAX_JSON_BYTES = 1 << 20
"""The most bytes of a body that is not multipart, enough for a vector of ten thousand numbers."""


class ReceivedBytes:
    """Counts the bytes of all request bodies in memory, and limits the time to receive a body.

    limit: the most bytes of all bodies together. rejected: called for each refused request. largest: the most bytes of
    one body.
    """

    def __init__(self, limit: int, rejected: Callable[[], None], largest: int = 0) -> None:
        self.limit, self.rejected = limit, rejected
        self._limit_of_large = max(limit - limit // RESERVED, min(limit, largest))
        self.total = 0
        self._lock = threading.Lock()
        self._waits: dict[asyncio.Timeout, tuple[float, int]] = {}

    def count(self, size: int, large: bool = False) -> bool:
        """Adds `size` bytes to the total; returns False if the total is then above the limit.

        size: negative for freed bytes. large: True if the body has more than `SMALL_BODY` bytes. Large bodies have a
        lower limit for the total, so that some memory stays free for small bodies.
        """
        with self._lock:
            self.total += size
            return size <= 0 or self.total <= (self._limit_of_large if large else self.limit)

    def add(self, size: int) -> None:
        """Adds `size` bytes to the total. Raises ApiError if the total is then above the limit.

        The total includes the bytes even if the error is raised.
        """
        if not self.count(size):
            raise self.refusal()

    def refusal(self) -> ApiError:
        self.rejected()
        return ApiError(429, "too_many_requests", "the memory for requests is full at the moment", {"retry-after": "1"})

    def hurry(self, seconds: float) -> None:
        """Shortens the time limit of each body that is being received: it ends in at most `seconds`."""
        end = asyncio.get_running_loop().time() + seconds
        for wait in self._waits:
            when = wait.when()
            if when is not None and when > end:
                wait.reschedule(end)

    def end_slowest(self) -> bool:
        """Stops receiving the body that has been arriving for the longest time, if this time exceeds `SLOW_SECONDS`.

        Ignores bodies of which no bytes have arrived yet. Returns False if there is no such body.
        """
        now = asyncio.get_running_loop().time()
        slow = {wait: since for wait, (since, held) in self._waits.items() if held and now - since > SLOW_SECONDS}
        if not slow:
            return False
        wait = min(slow, key=lambda each: slow[each])
        del self._waits[wait]
        wait.reschedule(now)
        return True

    @contextlib.asynccontextmanager
    async def waiting(self, seconds: float, since: float, held: int) -> AsyncIterator[None]:
        """Raises TimeoutError in the `with` block after `seconds`, or earlier because of `hurry` or `end_slowest`.

        since: the event loop's time when the body began to arrive. held: bytes of the body received so far.
        `end_slowest` uses `since` and `held` to choose a body.
        """
        async with asyncio.timeout(max(0.0, seconds)) as wait:
            self._waits[wait] = since, held
            try:
                yield
            finally:
                self._waits.pop(wait, None)


class BodyLimit:
    """Limits the size of a body, the time it may take to arrive, and the memory that all bodies take together."""

    def __init__(self, app: ASGIApp, settings: Settings, received: ReceivedBytes) -> None:
        self.app, self.settings, self.received = app, settings, received

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        multipart = headers.get("content-type", "").lower().startswith("multipart/form-data")
        limit = self.settings.max_body if multipart else min(MAX_JSON_BYTES, self.settings.max_body)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise _too_large(limit)
        received = 0
        complete = False
        since = asyncio.get_running_loop().time()

        async def receive_within_limits() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            message = await self._receive_in_time(since, received, receive)
            if message["type"] == "http.request":
                size = len(message.get("body", b""))
                received += size
                complete = not message.get("more_body", False)
                large = received > SMALL_BODY
                if not self.received.count(size, large) and (large or not self.received.end_slowest()):
                    raise self.received.refusal()
                if received > limit:
                    raise _too_large(limit)
            return message

        try:
            await self.app(scope, receive_within_limits, send)
        finally:
            self.received.add(-received)

    async def _receive_in_time(self, since: float, received: int, receive: Receive) -> Message:
        left = since + self.settings.body_timeout - asyncio.get_running_loop().time()
        try:
            async with self.received.waiting(left, since, received):
                return await receive()
        except TimeoutError:
            text = "the body did not arrive in time"
            raise ApiError(400, "body_too_slow", text, {"connection": "close"}) from None


def _too_large(limit: int) -> ApiError:
    return ApiError(413, "too_large", f"the body is over {limit:,} bytes")
