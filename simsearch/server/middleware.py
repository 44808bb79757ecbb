"""What every request passes on its way in and out: ids, limits, keys, headers, logs, metrics."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect

from simsearch.settings import Settings
from simsearch.telemetry import Metrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("simsearch.serve")

GONE = 499
"""The status that logs and metrics show where a client left before its answer."""

HELD = 16
"""Bodies of the largest size that may be in memory at once."""

LARGEST_HEAD = 1 << 15
"""Bytes of a request's line and headers."""

LARGEST_JSON = 1 << 20
"""Bytes of a body that is not multipart: a vector of some ten thousand numbers fits."""

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
}


class Refused(Exception):  # noqa: N818
    """An answer other than what was asked for. code: one word for programs. message: one sentence for people."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}

    def body(self) -> bytes:
        return json.dumps({"error": {"code": self.code, "message": self.message}}).encode()


class Gate:
    """ASGI middleware around the whole app. guarded: whether a path needs a key.

    closing: whether the process is about to stop, so that clients are told to send no more on their connection.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics,
                 guarded: Callable[[str], bool], closing: Callable[[], bool]) -> None:  # fmt: skip
        self.app, self.settings, self.metrics, self.guarded = app, settings, metrics, guarded
        self.closing = closing
        self._held = 0  # bytes of all bodies of requests that are not answered yet
        self._keys = [hashlib.sha256(key.encode()).digest() for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else secrets.token_hex(8)
        scope["simsearch.id"] = request_id
        headless = scope["method"] == "HEAD"  # which is a GET whose body is kept back
        inner = {**scope, "method": "GET"} if headless else scope
        status, held = 0, list[int]()

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                present = {name for name, _ in message["headers"]}
                extra = {**_HEADERS, "x-request-id": request_id}
                if self.closing():
                    extra["connection"] = "close"
                message["headers"] = [
                    *message["headers"],
                    *((n.encode(), v.encode()) for n, v in extra.items() if n.encode() not in present),
                ]
            elif headless and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            _check_head(scope)
            self._check(path, scope["method"], headers)
            await self.app(inner, self._limited(receive, headers, held), answer)
        except Refused as refused:
            await _send(answer, refused)
        except ClientDisconnect:  # nobody waits for an answer any more
            status = GONE
        except Exception as error:
            if isinstance(error.__cause__, Refused) or status == 0:
                log.error("request failed", exc_info=error, extra={"fields": {"id": request_id}})
                await _send(answer, Refused(503, "internal", "the request failed here; the log has its id"))
            else:
                raise
        finally:
            self._held -= sum(held)
            route = getattr(inner.get("route"), "path", "other")
            took = time.perf_counter() - start
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self.metrics.requests.labels(route, method, str(status)).inc()
            self.metrics.seconds.labels(route).observe(took)
            client = scope.get("client")
            log.info("request", extra={"fields": {
                "id": request_id, "method": method, "path": scope["path"][:200], "status": status,
                "ms": round(1000 * took, 2), "client": client[0] if client else None,
                **inner.get("simsearch.log", {}),
            }})  # fmt: skip

    def _check(self, path: str, method: str, headers: dict[str, str]) -> None:
        """Raises Refused for a wrong host, a page of another site, or a wrong key."""
        host = headers.get("host", "")
        name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
        if self.settings.hosts is not None and name.lower() not in self.settings.hosts:
            raise Refused(400, "bad_host", "this service does not answer to the name in the Host header")
        origin = headers.get("origin")
        foreign = origin and origin not in self.settings.cors and urlsplit(origin).netloc.lower() != host.lower()
        if method in {"POST", "DELETE"} and foreign:
            raise Refused(400, "cross_origin", "pages of other sites may not call this service")
        if self._keys and self.guarded(path) and method != "OPTIONS":
            scheme, _, key = headers.get("authorization", "").partition(" ")
            key = key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
            digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
            if not any(hmac.compare_digest(digest, known) for known in self._keys):
                raise Refused(401, "unauthorized", "this needs a valid API key", {"www-authenticate": "Bearer"})

    def _limited(self, receive: Receive, headers: dict[str, str], held: list[int]) -> Receive:
        """`receive`, with limits on the size of a body and on the time that it takes. held: its sizes, as it comes."""
        multipart = headers.get("content-type", "").lower().startswith("multipart/form-data")
        largest = self.settings.max_body if multipart else min(LARGEST_JSON, self.settings.max_body)
        message = f"the body is over {largest:,} bytes"
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > largest:
            raise Refused(413, "too_large", message)
        complete = False
        deadline = time.monotonic() + self.settings.body_timeout

        async def limited() -> Message:
            nonlocal complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    found = await receive()
            except TimeoutError:
                text = f"the body did not arrive within {self.settings.body_timeout:g} s"
                raise Refused(400, "body_too_slow", text, {"connection": "close"}) from None
            if found["type"] == "http.request":
                held.append(len(found.get("body", b"")))
                self._held += held[-1]
                complete = not found.get("more_body", False)
                if sum(held) > largest:
                    raise Refused(413, "too_large", message)
                if self._held > HELD * self.settings.max_body:
                    self.metrics.rejected.inc()
                    raise Refused(429, "too_many_requests", "too much is being sent at once", {"retry-after": "1"})
            return found

        return limited


def _check_head(scope: Scope) -> None:
    """Raises Refused for a huge head, and for what two programs could read differently: two keys, two lengths."""
    size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
    if size + sum(len(name) + len(value) for name, value in scope["headers"]) > LARGEST_HEAD:
        raise Refused(400, "bad_headers", f"the head is over {LARGEST_HEAD:,} bytes", {"connection": "close"})
    names = [name.decode("latin-1").lower() for name, _ in scope["headers"]]
    repeated = next((name for name in _SINGLE if names.count(name) > 1), None)
    if repeated:
        raise Refused(400, "bad_headers", f"the header {repeated} is given more than once", {"connection": "close"})
    if "transfer-encoding" in names and "content-length" in names:
        text = "a request has either Content-Length or Transfer-Encoding"
        raise Refused(400, "bad_headers", text, {"connection": "close"})


_SINGLE = ("host", "content-length", "content-type", "transfer-encoding", "authorization", "x-api-key", "origin")
_METHODS = {"GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH"}


async def _send(send: Any, refused: Refused) -> None:
    body = refused.body()
    headers = {"content-type": "application/json", "content-length": str(len(body)), "cache-control": "no-store"}
    pairs = [(name.encode(), value.encode()) for name, value in {**headers, **refused.headers}.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname.lower(),
                 "event": record.getMessage(), **getattr(record, "fields", {})}  # fmt: skip
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)
