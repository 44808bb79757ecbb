"""Fetches images by URL, for the user of the command line or for a stranger who calls the HTTP service.

For a stranger only public addresses are fetched from. The name is resolved once, all its addresses are checked, and the
connection goes to one that was checked, so a name that resolves to another address a moment later gains nothing. Each
redirect passes the same checks, and the environment's proxies are not used.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable
from urllib.parse import urljoin, urlsplit

from simsearch.errors import ImageError, UsageError

REDIRECTS = 3
"""The most redirects that are followed for a stranger."""

PORTS = {"http": 80, "https": 443}
"""By scheme: the default port; a stranger may name no other ones."""

_NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Returns True if an address, and any IPv4 address embedded in it, belongs to the public Internet."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address.teredo or any(address in net for net in _NAT64) or int(address) < 2**32:
            return False
        if inner is not None and not is_public(inner):
            return False
    return address.is_global and not address.is_multicast


def fetch(url: str, largest: int, seconds: float, *, public_only: bool) -> bytes:
    """Fetches the bytes at an http(s) URL.

    largest: the most bytes that are accepted.
    seconds: the time limit of the whole request if `public_only`, else of each wait for the server.
    public_only: refuse addresses that are not on the public Internet, and ports but 80 and 443; for strangers' URLs.
    Raises UsageError for a URL that is refused, ImageError if the fetch fails.
    """
    if public_only:
        return fetch_public(url, largest, seconds)
    request = urllib.request.Request(url, headers={"User-Agent": "simsearch"})
    try:
        with urllib.request.urlopen(request, timeout=seconds) as response:
            data: bytes = response.read(largest + 1)
    except (OSError, ValueError) as error:  # URLError is an OSError
        raise ImageError(str(getattr(error, "reason", error))) from error
    if len(data) > largest:
        raise ImageError(f"over {largest >> 20} MiB")
    return data


def fetch_public(
    url: str,
    largest: int,
    seconds: float,
    *,
    permitted: Callable[[Address], bool] = is_public,
    any_port: bool = False,
) -> bytes:
    """Does the work of `fetch` with `public_only`.

    permitted: returns True for an address that may be connected to. any_port: accept all ports.
    """
    deadline = time.monotonic() + seconds
    for _ in range(REDIRECTS + 1):
        location, data = _request(url, largest, deadline, permitted, any_port)
        if location is None:
            return data
        url = urljoin(url, location)
    raise ImageError(f"over {REDIRECTS} redirects")


def _request(
    url: str, largest: int, deadline: float, permitted: Callable[[Address], bool], any_port: bool
) -> tuple[str | None, bytes]:
    """Makes one request and returns the location that it is redirected to, or None and the bytes."""
    scheme, host, port, target = _parts(url, any_port)
    address = _resolve(host, port, permitted)
    try:
        connection = http.client.HTTPConnection(host, port, timeout=_left(deadline))
        connection.sock = socket.create_connection((str(address), port), timeout=_left(deadline))
        if scheme == "https":
            connection.sock = ssl.create_default_context().wrap_socket(connection.sock, server_hostname=host)
        try:
            connection.request("GET", target, headers={"User-Agent": "simsearch", "Accept": "image/*"})
            response = connection.getresponse()
            if response.status in {301, 302, 303, 307, 308}:
                return response.headers.get("location", ""), b""
            if response.status != 200:
                raise ImageError(f"{host} answered with status {response.status}")
            data = bytearray()
            while chunk := response.read1(1 << 16):
                data += chunk
                if len(data) > largest:
                    raise ImageError(f"the answer of {host} is over {largest:,} bytes")
                left = _left(deadline)
                if connection.sock:
                    connection.sock.settimeout(left)
            return None, bytes(data)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException) as error:
        raise ImageError(f"{host} cannot be reached: {type(error).__name__}") from error


def _parts(url: str, any_port: bool) -> tuple[str, str, int, str]:
    """Splits a URL into scheme, host, port and path. Raises UsageError for one that is not allowed."""
    try:
        split = urlsplit(url)
        host = (split.hostname or "").encode("idna").decode() if ":" not in (split.hostname or "") else split.hostname
        port = split.port or PORTS.get(split.scheme, 0)
    except (ValueError, UnicodeError):
        raise UsageError("the URL cannot be read") from None
    if split.scheme not in PORTS or not host:
        raise UsageError("only http and https URLs are fetched")
    if split.username is not None or split.password is not None:
        raise UsageError("URLs with a user or password are not fetched")
    if port not in PORTS.values() and not any_port:
        raise UsageError("only the ports 80 and 443 are fetched from")
    target = (split.path or "/") + (f"?{split.query}" if split.query else "")
    if not (target.isascii() and target.isprintable()) or " " in target:
        raise UsageError("the URL has characters that must be escaped")
    return split.scheme, host, port, target


def _resolve(host: str, port: int, permitted: Callable[[Address], bool]) -> Address:
    """Returns a permitted address of a host. Raises ImageError if it has none, UsageError if any is not permitted."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    except (OSError, UnicodeError, ValueError):
        raise ImageError("the URL's host has no address") from None
    if not addresses or not all(permitted(address) for address in addresses):
        raise UsageError("the URL's host is not on the public Internet")
    return addresses[0]


def _left(deadline: float) -> float:
    """Returns the seconds until the deadline. Raises TimeoutError after it."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("too slow")
    return left
