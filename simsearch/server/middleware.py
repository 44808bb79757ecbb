"""The middlewares of the HTTP service, outermost first: ResponseHeaders, AccessLog, Authentication and BodyLimit.

BodyLimit is in `simsearch.server.body_limit`. All are plain ASGI middlewares. Authentication and BodyLimit raise
ApiError for a request that they refuse; AccessLog turns the error into a response.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import random
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from simsearch.server.prometheus import PrometheusMetrics
from simsearch.server.settings import Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("simsearch.serve")

CLIENT_LEFT = 499
"""The status in logs and metrics for a request whose client closed the connection early, as in nginx."""

MAX_HEAD_BYTES = 1 << 15
"""The most bytes of a request's head: its first line and headers."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METHODS = {"GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH"}
_DEFAULT_HEADERS = {
    "cache-control": "private, no-cache",  # shared caches do not treat X-API-Key as a credential
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
}
# If one of these headers were repeated, a proxy and this service could use different values.
_SINGLE_HEADERS = (
    "host",
    "content-length",
    "content-type",
    "transfer-encoding",
    "authorization",
    "x-api-key",
    "origin",
)


class ApiError(Exception):
    """An error that is sent as a JSON response. code: one word for programs. message: one sentence for people."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}

    def body(self) -> bytes:
        """Returns the JSON object {"error": {"code", "message"}}."""
        return json.dumps({"error": {"code": self.code, "message": self.message}}).encode()


class ResponseHeaders:
    """Adds an id to each request and protective headers to each response; answers HEAD like GET, without the body.

    closing: returns True while the service stops; responses then tell clients that the connection will be closed.
    """

    def __init__(self, app: ASGIApp, closing: Callable[[], bool]) -> None:
        self.app, self.closing = app, closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"{random.getrandbits(64):016x}"
        method = scope["method"]
        scope = {
            **_with_path_alone(scope),
            "method": "GET" if method == "HEAD" else method,
            "simsearch.id": request_id,
            "simsearch.method": method,  # for the log
        }

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=list(message["headers"]))
                for name, value in {**_DEFAULT_HEADERS, "x-request-id": request_id}.items():
                    headers.setdefault(name, value)
                if self.closing():
                    headers.setdefault("connection", "close")
                message = {**message, "headers": headers.raw}
            elif message["type"] == "http.response.body" and method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        await self.app(scope, receive, send_with_headers)


def _with_path_alone(scope: Scope) -> Scope:
    """Returns the ASGI scope. If its path is a whole URL of this host, only the path of that URL is kept."""
    path: str = scope["path"]
    if not path.lower().startswith("http://"):
        return scope
    host, slash, rest = path[len("http://") :].partition("/")
    if host.lower() != Headers(scope=scope).get("host", "").lower():
        return scope
    raw: bytes = scope.get("raw_path") or path.encode()
    return {**scope, "path": slash + rest or "/", "raw_path": raw[len("http://") + len(host) :] or b"/"}


class AccessLog:
    """Logs and counts each request, and turns errors into responses."""

    def __init__(self, app: ASGIApp, metrics: PrometheusMetrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        status = 0

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note_status)
        except ApiError as refused:
            await _respond(refused, scope, receive, send_and_note_status)
        except ClientDisconnect:
            status = CLIENT_LEFT
        except Exception as error:
            if status and not isinstance(error.__cause__, ApiError):  # part of the response has been sent
                raise
            log.error("request failed", exc_info=error, extra={"fields": {"id": scope["simsearch.id"]}})
            internal = ApiError(503, "internal", "an error in the service; its log has the id of this request")
            await _respond(internal, scope, receive, send_and_note_status)
        finally:
            self._record(scope, status, time.perf_counter() - start)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        method = scope["simsearch.method"] if scope["simsearch.method"] in _METHODS else "other"
        self.metrics.requests.labels(route, method, str(status)).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        client = scope.get("client")
        fields = {
            "id": scope["simsearch.id"],
            "method": method,
            "path": scope["path"][:200],
            "status": status,
            "ms": round(1000 * seconds, 2),
            "client": client[0] if client else None,
            **scope.get("simsearch.log", {}),
        }
        log.info("request", extra={"fields": fields})


async def _respond(refused: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    headers = {"cache-control": "no-store", **refused.headers}
    response = Response(refused.body(), refused.status, headers, media_type="application/json")
    await response(scope, receive, send)


class Authentication:
    """Refuses requests with an ambiguous head, for another host, from another site's page, or without a valid key.

    needs_key: returns True for a path that the API keys protect; called only if the settings have API keys.
    """

    def __init__(self, app: ASGIApp, settings: Settings, needs_key: Callable[[str], bool]) -> None:
        self.app, self.settings, self.needs_key = app, settings, needs_key
        self._digests = [hashlib.sha256(key.encode()).digest() for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            _check_head(scope, headers)
            self._check_host(headers)
            self._check_origin(scope["method"], headers)
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            if self._digests and self.needs_key(path) and scope["method"] != "OPTIONS":
                self._check_key(headers)
        await self.app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        """Raises ApiError if the name in the Host header is not one of the accepted names.

        This prevents DNS rebinding, in which the name of another site resolves to this machine.
        """
        host = headers.get("host", "")
        name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
        if self.settings.hosts is not None and name.lower() not in self.settings.hosts:
            raise ApiError(400, "bad_host", "this service does not answer to the name in the Host header")

    def _check_origin(self, method: str, headers: Headers) -> None:
        """Raises ApiError for a POST or DELETE request from a page of another site that `cors` does not name.

        This prevents request forgery: any page can make a browser send a form here, but the browser names the page's
        origin.
        """
        origin = headers.get("origin")
        if method not in {"POST", "DELETE"} or origin in self.settings.cors:
            return
        if not origin:  # some requests of pages lack Origin, but browsers then send Sec-Fetch-Site
            if headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
                raise _cross_origin()
            return
        try:
            same = urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
        except ValueError:  # such as http://[
            same = False
        if not same:
            raise _cross_origin()

    def _check_key(self, headers: Headers) -> None:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        if not any(hmac.compare_digest(digest, known) for known in self._digests):
            raise ApiError(
                401,
                "unauthorized",
                "this needs a valid API key, as Authorization: Bearer KEY",
                {"www-authenticate": "Bearer"},
            )


def _cross_origin() -> ApiError:
    return ApiError(400, "cross_origin", "pages of other sites may not call this service")


def _check_head(scope: Scope, headers: Headers) -> None:
    """Raises ApiError for a head that is too large, or that a proxy and this service may read differently."""
    size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
    size += sum(len(name) + len(value) for name, value in scope["headers"])
    if size > MAX_HEAD_BYTES:
        raise ApiError(400, "bad_headers", f"the head is over {MAX_HEAD_BYTES:,} bytes", {"connection": "close"})
    repeated = next((name for name in _SINGLE_HEADERS if len(headers.getlist(name)) > 1), None)
    if repeated:
        raise ApiError(400, "bad_headers", f"the header {repeated} is given more than once", {"connection": "close"})
    if "transfer-encoding" in headers and "content-length" in headers:
        text = "Content-Length and Transfer-Encoding exclude each other"
        raise ApiError(400, "bad_headers", text, {"connection": "close"})
