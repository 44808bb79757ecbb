"""Fetching a picture by URL on behalf of a stranger: public addresses only, within limits of size and time.

The name is resolved once, every address is checked, and the connection goes to the address that was checked, so a name
that resolves to something else a moment later gains nothing. Each redirect passes the same checks. Proxies of the
environment are not used.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from urllib.parse import urljoin, urlsplit

from simsearch.errors import ImageError, UsageError

REDIRECTS = 3
PORTS = {"http": 80, "https": 443}
_NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Whether an address, and any IPv4 address wrapped in it, belongs to the public Internet."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address.teredo or any(address in net for net in _NAT64) or int(address) < 2**32:
            return False
        if inner is not None and not is_public(inner):
            return False
    return address.is_global and not address.is_multicast


def fetch(
    url: str,
    largest: int,
    seconds: float,
    *,
    permitted: Callable[[Address], bool] = is_public,
    any_port: bool = False,
) -> bytes:
    """The bytes at an http(s) URL. Raises UsageError for one that is not allowed, ImageError if it cannot be had."""
    deadline = time.monotonic() + seconds
    for _ in range(REDIRECTS + 1):
        found, data = _once(url, largest, deadline, permitted, any_port)
        if found is None:
            return data
        url = urljoin(url, found)
    raise ImageError(f"over {REDIRECTS} redirects")


def _once(
    url: str, largest: int, deadline: float, permitted: Callable[[Address], bool], any_port: bool
) -> tuple[str | None, bytes]:
    """One request: where it is redirected to, or its bytes."""
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
                    raise ImageError(f"what {host} sent is over {largest:,} bytes")
                connection.sock.settimeout(_left(deadline)) if connection.sock else None
                _left(deadline)
            return None, bytes(data)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException) as error:
        raise ImageError(f"{host} cannot be reached: {type(error).__name__}") from error


def _parts(url: str, any_port: bool) -> tuple[str, str, int, str]:
    """Scheme, host, port and path of a URL. Raises UsageError for one that is not allowed."""
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
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    except (OSError, UnicodeError, ValueError):
        raise ImageError("the URL's host has no address") from None
    if not addresses or not all(permitted(address) for address in addresses):
        raise UsageError("the URL's host is not on the public Internet")
    return addresses[0]


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("too slow")
    return left
