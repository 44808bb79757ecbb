"""A server of S3 for tests: moto's, in a thread, behind a layer that counts requests and fails by a plan."""

from __future__ import annotations

import functools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

BUCKET = "bucket"

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
BAD_KEY = b"<Error><Code>InvalidAccessKeyId</Code><Message>The key is not known.</Message></Error>"

Fault = str
"""slow-down, error, denied, bad-key (answers); reset (half the body, then the end), short (half, as if it were all),
corrupt (a byte is another one, which S3's checksum shows)."""


class S3Server:
    """The server. gets: reads of objects by key, those that were answered in full. tries: all reads by key.

    plan: called with the method, the key ("" for a listing) and the query; returns a fault, or None. delay: seconds
    before each answer.
    """

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Silent(WSGIRequestHandler):  # type: ignore[misc]
            def log(self, type: str, message: str, *args: Any) -> None:
                return

        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=Silent)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.gets: Counter[str] = Counter()
        self.tries: Counter[str] = Counter()
        self.bytes_sent: Counter[str] = Counter()
        self.listings = 0
        self.plan: Callable[[str, str, str], Fault | None] = lambda method, key, query: None
        self.delay = 0.0
        self.most_at_once = self._now = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def forget(self) -> None:
        """Sets all counts to 0."""
        self.gets.clear()
        self.tries.clear()
        self.bytes_sent.clear()
        self.listings = self.most_at_once = 0

    def _answer(self, environ: dict[str, Any], start: Any) -> Iterator[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"].lstrip("/")
        bucket, _, key = path.partition("/")
        query = environ["QUERY_STRING"]
        reads = method == "GET" and bool(key)
        with self._lock:
            if reads:
                self.tries[key] += 1
            self.listings += method == "GET" and bucket != "" and not key
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            time.sleep(self.delay)
            yield from self._planned(environ, start, self.plan(method, key, query), key if reads else "")
        finally:
            with self._lock:
                self._now -= 1

    def _planned(self, environ: dict[str, Any], start: Any, fault: Fault | None, key: str) -> Iterator[bytes]:
        refusals = {
            "slow-down": ("503 Slow Down", SLOW_DOWN),
            "error": ("500 Internal Server Error", b""),
            "denied": ("403 Forbidden", DENIED),
            "bad-key": ("403 Forbidden", BAD_KEY),
        }
        if fault in refusals:
            status, body = refusals[fault]
            start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            yield body if environ["REQUEST_METHOD"] != "HEAD" else b""
            return
        answer: list[Any] = []
        body = b"".join(self._app(environ, lambda status, headers, *rest: answer.extend([status, headers])))
        status, headers = answer
        if fault == "corrupt" and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        if fault in {"reset", "short"} and len(body) > 1:
            if fault == "short":
                headers = [
                    pair for pair in headers if not pair[0].lower().startswith(("content-length", "x-amz-check"))
                ]
                headers.append(("Content-Length", str(len(body) // 2)))
            start(status, headers)
            yield body[: len(body) // 2]
            if fault == "reset":
                raise ConnectionResetError
            return
        start(status, headers)
        yield body
        if key and status.startswith("20"):
            with self._lock:
                self.gets[key] += 1
                self.bytes_sent[key] += len(body)


@functools.cache
def client(server: S3Server) -> Any:
    """A client of the server that may do everything."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=server.url,
        region_name="us-east-1",
        aws_access_key_id="maker",
        aws_secret_access_key="of-buckets",
    )


def empty(server: S3Server) -> None:
    """Deletes all that the server holds."""
    import urllib.request

    urllib.request.urlopen(urllib.request.Request(server.url + "/moto-api/reset", method="POST")).close()
