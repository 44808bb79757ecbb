"""Folders on web servers that list their files on pages. Requests are made with fsspec's HTTP session (aiohttp).

A listing is a page of links, as Apache, nginx, Caddy and Python write it. Only links to files and folders directly
inside the listed folder are followed, and redirects to another host are refused, because a server must not be able to
send a build to other machines.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from typing import IO, Any
from urllib.parse import unquote, urljoin, urlsplit

from simsearch.errors import MissingExtraError
from simsearch.images.sources.remote.addresses import has_odd_parts, joined
from simsearch.images.sources.remote.store import (
    CONNECT_SECONDS,
    READ_SECONDS,
    REQUESTS,
    DeniedError,
    MissingError,
    RemoteObject,
    Store,
    TransientError,
    is_picture,
)

REDIRECTS = 3
"""The most redirects that are followed; all stay on the same host."""

PAGE_BYTES = 16 << 20
"""The most bytes of a page that lists a folder."""

PAGES, DEPTH = 100_000, 64
"""Limits on the number of folders in a source, and on their depth. A server may invent folders without end."""


class HttpStore(Store):
    """The files below `https://host/folder`. Raises MissingExtraError if aiohttp or fsspec is not installed."""

    def __init__(self, root: str, *, quick: bool = False) -> None:
        super().__init__(root, quick=quick)
        try:
            import aiohttp
            from fsspec.implementations.http import HTTPFileSystem
        except ImportError as error:
            raise MissingExtraError(f"reading {root}", "remote") from error
        limits = aiohttp.ClientTimeout(None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
        settings = {
            "timeout": limits,
            "auto_decompress": False,
            "headers": {"User-Agent": "simsearch", "Accept-Encoding": "identity"},
        }
        self._files = HTTPFileSystem(client_kwargs=settings, skip_instance_cache=True)

    def server(self) -> str:
        return urlsplit(self.root).netloc

    def _objects(self, within: str) -> Iterator[RemoteObject]:
        pool = ThreadPoolExecutor(REQUESTS, "remote")
        try:
            yield from self._walk(within, pool)
        finally:  # if interrupted, drop the requests that have not started
            pool.shutdown(wait=False, cancel_futures=True)

    def _walk(self, within: str, pool: ThreadPoolExecutor) -> Iterator[RemoteObject]:
        pending, seen = [within], {within}
        while pending:
            folder = pending.pop()
            try:
                names = self._attempt(lambda folder=folder: self._folder(folder))  # type: ignore[misc]
            except (MissingError, DeniedError, TransientError) as error:
                if folder == within:
                    raise
                self.unread.append((folder, str(error)))
                continue
            files = []
            for name, is_folder in names:
                path = f"{folder}/{name}" if folder else name
                if not is_folder:
                    files.append(path)
                elif path.count("/") >= DEPTH or len(seen) >= PAGES:
                    self.unread.append((path, "too deep, or too many folders"))
                elif path not in seen:
                    seen.add(path)
                    pending.append(path)
            yield from (item for item in pool.map(self._facts, files) if item is not None)

    def _facts(self, path: str) -> RemoteObject | None:
        """Returns the path, size and identity of a file in a listing; None if the file is missing or cannot be read.

        The server is only asked about pictures; other files get no size and no identity.
        """
        if not is_picture(path):
            return RemoteObject(path, None, "")  # not a picture: no need to ask
        try:
            return self._attempt(lambda: self._info(path))
        except MissingError:
            return None
        except (DeniedError, TransientError) as error:
            self.unread.append((path, str(error)))
            return None

    def _folder(self, folder: str) -> list[tuple[str, bool]]:
        """Returns the name of each file and folder in a folder, with False for a file and True for a folder."""
        url = (joined(self.root, folder) if folder else self.root) + "/"
        data, headers, final = self._call("GET", url, {}, PAGE_BYTES)
        kind = headers.get("Content-Type", "text/html").partition(";")[0].strip().lower()
        if kind not in {"text/html", "application/xhtml+xml"}:
            raise DeniedError(f"the server sent {kind} in place of a list of files")
        if len(data) > PAGE_BYTES:
            raise DeniedError(f"the list of files is over {PAGE_BYTES:,} bytes")
        text = data.decode("utf-8", "replace")
        if "<html" in text.lower() and "</html" not in text.lower():
            raise TransientError("the list of files is cut off")
        links = _Links()
        links.feed(text)
        base = final if final.endswith("/") else url
        return sorted({name for href in links.found if (name := _name_below(base, href)) is not None})

    def _url(self, path: str) -> str:
        """Returns the URL of a file. path: relative to the root.

        The path may come from a stranger's index. Raises MissingError if it has parts such as `..`, which could lead
        out of the root.
        """
        if has_odd_parts(path):
            raise MissingError("no such file or folder")
        return joined(self.root, path)

    def _info(self, path: str) -> RemoteObject:
        url = self._url(path)
        try:
            _, headers, _ = self._call("HEAD", url, {}, 0)
        except _MethodError:
            return RemoteObject(path, None, "")
        self.ranges = headers.get("Accept-Ranges", "none").lower() == "bytes"
        length = headers.get("Content-Length", "")
        size = int(length) if length.isdecimal() and "Content-Encoding" not in headers else None
        tag, date = headers.get("ETag", ""), headers.get("Last-Modified", "")
        return RemoteObject(path, size, tag or (f"{size} {date}" if date else ""))

    def _read(self, path: str, start: int | None, end: int | None, most: int) -> bytes:
        url = self._url(path)
        if start is None or end is None:
            return bytes(self._call("GET", url, {}, most)[0])
        data, headers, _ = self._call("GET", url, {"Range": f"bytes={start}-{end - 1}"}, most)
        if not headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise DeniedError(f"{self.server()} does not serve parts of files")
        return bytes(data)

    def _save(self, path: str, file: IO[bytes], most: int) -> None:
        self._call("GET", self._url(path), {}, most, file)

    def _call(
        self, method: str, url: str, headers: dict[str, str], most: int, file: IO[bytes] | None = None
    ) -> tuple[bytearray, Any, str]:
        """Makes a request in fsspec's thread. Returns the body, the headers and the final URL.

        most: reading stops when the body is longer than this number of bytes.
        file: if given, the body is written to this file, and an empty body is returned.
        Raises the exceptions that the module `store` defines.
        """
        import aiohttp
        from fsspec.asyn import sync

        limit = self._seconds if file is None else None
        try:
            return sync(self._files.loop, self._request, method, url, headers, most, file, timeout=limit)  # type: ignore[no-any-return]
        except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError) as error:
            raise TransientError(f"{self.server()} broke off the connection") from error
        except TimeoutError as error:
            raise TransientError(f"{self.server()} took too long", connection=True) from error
        except (aiohttp.ClientConnectorCertificateError, aiohttp.InvalidURL) as error:
            raise DeniedError(f"the connection to {self.server()} failed: {type(error).__name__}") from error
        except (aiohttp.ClientConnectionError, ConnectionError) as error:
            raise TransientError(f"no answer from {self.server()}", connection=True) from error
        except aiohttp.ClientError as error:
            raise TransientError(f"{self.server()} broke off the connection: {type(error).__name__}") from error

    async def _request(
        self, method: str, url: str, headers: dict[str, str], most: int, file: IO[bytes] | None
    ) -> tuple[bytearray, Any, str]:
        session = await self._files.set_session()
        for _ in range(REDIRECTS + 1):
            target = self._files.encode_url(url)
            proxy = _proxy(url)
            async with session.request(method, target, headers=headers, allow_redirects=False, proxy=proxy) as answer:
                if answer.status in {301, 302, 303, 307, 308}:
                    url = self._redirected(url, answer.headers.get("Location", ""))
                    continue
                _check_status(self.server(), answer.status, answer.headers)
                data, size = bytearray(), 0
                async for part in answer.content.iter_chunked(1 << 18):
                    if file is None:
                        data += part
                    else:
                        file.write(part)
                    size += len(part)
                    if size > most:
                        answer.close()
                        break
                return data, answer.headers, url
        raise DeniedError(f"{self.server()} redirects more than {REDIRECTS} times")

    def _redirected(self, url: str, location: str) -> str:
        """Returns the target of a redirect. Raises DeniedError if it leads to another host."""
        try:
            target = urljoin(url, location)
            before, after = urlsplit(url), urlsplit(target)
            same = after.hostname == before.hostname and (
                (after.scheme, after.port) == (before.scheme, before.port)
                or (before.scheme, after.scheme, after.port) == ("http", "https", None)
            )
        except ValueError:
            same = False
        if not same:
            raise DeniedError(f"{self.server()} redirects to another host")
        return target


class _MethodError(DeniedError):
    """The server does not support the HTTP method of a request."""


def _proxy(url: str) -> str | None:
    """Returns the environment's proxy for a URL; None if there is none.

    aiohttp's `trust_env` would find the proxy too, but would also send passwords of ~/.netrc.
    """
    parts = urlsplit(url)
    found = urllib.request.getproxies().get(parts.scheme)
    return None if found is None or urllib.request.proxy_bypass(parts.hostname or "") else found


def _check_status(server: str, status: int, headers: Any) -> None:
    """Raises the error for an HTTP status other than 200 and 206."""
    if status in {200, 206}:
        return
    if status in {404, 410}:
        raise MissingError("no such file or folder")
    if status in {405, 501}:
        raise _MethodError(f"{server} answered {status}")
    if status in {408, 425, 429} or status >= 500:
        after = headers.get("Retry-After", "")
        raise TransientError(f"{server} answered {status}", wait=float(after) if after.isdecimal() else 0.0)
    raise DeniedError("access denied" if status in {401, 403} else f"{server} answered {status}")


class _Links(HTMLParser):
    """Collects the targets of the links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]


def _name_below(page: str, href: str) -> tuple[str, bool] | None:
    """Returns the name of the file or folder that a link leads to, and True for a folder; None if it leads elsewhere.

    page: the URL of the listing. href: the link, which has to lead to a place directly inside the listed folder.
    """
    try:
        here, parts = urlsplit(page), urlsplit(urljoin(page, href))
    except ValueError:
        return None
    if parts.query or parts.fragment or (parts.scheme, parts.netloc.lower()) != (here.scheme, here.netloc.lower()):
        return None
    path, folder = (unquote(text, errors="surrogateescape") for text in (parts.path, here.path))
    name = path[len(folder) :].removesuffix("/")
    if not path.startswith(folder) or not name or "/" in name or "\0" in name or has_odd_parts(name):
        return None
    return name, path.endswith("/")
