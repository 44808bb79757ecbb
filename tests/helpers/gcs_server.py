"""As much of Google Cloud Storage as a build uses: listing, facts and content of objects, over JSON."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET = "bucket"


class GcsServer(ThreadingHTTPServer):
    """objects: content by key. gets: reads by key. statuses: by key ("" for a listing), each given once."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.gets: Counter[str] = Counter()
        self.statuses: dict[str, list[int]] = {}
        self.page = 7
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: GcsServer

    def log_message(self, format: str, *args: object) -> None:
        return

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        _, _, _, bucket, kind, *rest = parts.path.removeprefix("/storage").split("/")
        key = unquote(rest[0]) if rest else ""
        server = self.server
        if server.statuses.get(key):
            self._send(server.statuses[key].pop(), b"{}")
        elif bucket != BUCKET or kind != "o" or (key and key not in server.objects):
            self._send(404, b"{}")
        elif not key:
            names = sorted(name for name in server.objects if name.startswith(query.get("prefix", "")))
            start = int(query.get("pageToken", 0))
            page = {"items": [self._facts(name) for name in names[start : start + server.page]]}
            following = {"nextPageToken": str(start + server.page)} if start + server.page < len(names) else {}
            self._send(200, json.dumps(page | following).encode())
        elif query.get("alt") == "media":
            data, wanted = server.objects[key], self.headers.get("Range", "")
            if wanted:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                data = data[int(first) : int(last) + 1]
            server.gets[key] += 1
            self._send(206 if wanted else 200, data)
        else:
            self._send(200, json.dumps(self._facts(key)).encode())

    def _facts(self, name: str) -> dict[str, str]:
        data = self.server.objects[name]
        digest = base64.b64encode(hashlib.md5(data).digest()).decode()
        return {"name": name, "size": str(len(data)), "md5Hash": digest, "etag": "changes with the metadata"}

    def _send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving() -> Iterator[GcsServer]:
    """Runs the server for the duration of the block."""
    server = GcsServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
