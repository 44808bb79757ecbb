"""A web server for tests that lists folders, counts requests, and fails if told to."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit


class Web(ThreadingHTTPServer):
    """files: by path, which begins with a slash. pages: of folders that are not listed by themselves.

    gets, heads: answered requests by path. etags, ranges, heads_known: what the server can do. redirects, statuses: by
    path; a status is given as often as its number says. lost: paths whose body ends in its middle.
    """

    daemon_threads = True

    def __init__(self, files: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.pages = dict(files), dict[str, str]()
        self.gets, self.heads = Counter[str](), Counter[str]()
        self.etags = self.ranges = self.heads_known = True
        self.redirects, self.statuses, self.lost = dict[str, str](), dict[str, list[int]](), set[str]()
        self.headers_seen: list[dict[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def forget(self) -> None:
        self.gets.clear()
        self.heads.clear()

    def page(self, folder: str) -> str | None:
        """Returns the listing of a folder, as Apache writes it; None if there is none."""
        if folder in self.pages:
            return self.pages[folder]
        names = {path[len(folder) :].partition("/") for path in self.files if path.startswith(folder)}
        links = sorted({name + slash for name, slash, _ in names})
        rows = "".join(f'<li><a href="{quote(name)}">{name}</a></li>' for name in links)
        header = '<a href="?C=N;O=D">Name</a><a href="../">Parent Directory</a>'
        return f"<html><body>{header}<ul>{rows}</ul></body></html>" if links else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Web

    def log_message(self, format: str, *args: object) -> None:
        return

    def do_HEAD(self) -> None:
        if not self.server.heads_known:
            self._send(405, b"")
            return
        self._serve(self.server.heads)

    def do_GET(self) -> None:
        self._serve(self.server.gets)

    def _serve(self, counts: Counter[str]) -> None:
        web, path = self.server, unquote(urlsplit(self.path).path)
        web.headers_seen.append({name.lower(): value for name, value in self.headers.items()})
        if web.statuses.get(path):
            self._send(web.statuses[path].pop(), b"")
            return
        if path in web.redirects:
            self._send(302, b"", {"Location": web.redirects[path]})
            return
        if path.endswith("/"):
            page = web.page(path)
            counts[path] += 1
            self._send(200 if page else 404, (page or "").encode(), {"Content-Type": "text/html"})
            return
        if path not in web.files:
            self._send(404, b"")
            return
        counts[path] += 1
        data = web.files[path]
        headers = {"Content-Type": "application/octet-stream"}
        if web.etags:
            headers["ETag"] = f'"{hashlib.md5(data).hexdigest()}"'
        status, wanted = 200, self.headers.get("Range", "")
        if web.ranges:
            headers["Accept-Ranges"] = "bytes"
            if wanted.startswith("bytes="):
                start, _, end = wanted[6:].partition("-")
                stop = min(int(end) + 1, len(data))
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
                status, data = 206, data[int(start) : stop]
        self._send(status, data, headers, cut=path in web.lost)

    def _send(self, status: int, data: bytes, headers: Mapping[str, str] | None = None, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True


@contextmanager
def serving(files: Mapping[str, bytes]) -> Iterator[Web]:
    """Serves files by their paths for the duration of the block."""
    web = Web(files)
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        web.shutdown()
        thread.join()
        web.server_close()


def folder_files(folder: Path, under: str = "/pictures/") -> dict[str, bytes]:
    """Returns the files of a folder by their paths on a server."""
    return {
        under + path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
