"""Fetches images by URL, for the user of the command line or for a stranger who calls the HTTP service.

A stranger's URL must lead to a public address. The host name is resolved once, all addresses found are checked, and the
connection goes to one of them. So a name that resolves to another address a moment later cannot evade the check. Each
redirect is checked in the same way, and the environment's proxies are not used. The address of a user's URL is not
checked, and the proxies are used.

One time limit covers the whole fetch: resolving the name, connecting, sending and receiving, however slowly the server
sends.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

from simsearch.errors import ImageError, UsageError
from simsearch.images.connections import Address, Connection, ConnectionSocket, Deadline, Stop

REDIRECTS = 3
"""The most redirects that are followed for a stranger."""

PORTS = {"http": 80, "https": 443}
"""The default port of each scheme. A stranger's URL may use only these ports."""

LOOKUPS = 64
"""The most host names that are looked up at once. A lookup cannot be cancelled, so it may outlive the fetch."""

PARTS, PART_BYTES = 1000, 256
"""A response is refused if it comes in more than PARTS parts (chunks, packets) plus one per PART_BYTES bytes."""

WAIT = 20.0
"""Time limit (seconds) of each wait for the server, if the user of the command line gives a URL."""

STOP_CHECK = 0.05
"""Seconds between checks of `Stop` while a name is looked up."""

_PUBLIC_IPV6 = ipaddress.IPv6Network("2000::/3")
_SPECIAL = tuple(
    ipaddress.ip_network(text)
    for text in (
        "192.0.0.0/24",  # protocol assignments
        "192.88.99.0/24",  # relays of 6to4
        "2001::/23",  # protocol assignments; Teredo is 2001::/32
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: leads to an IPv4 address
        "3fff::/20",  # documentation
    )
)

T = TypeVar("T")


def is_public(address: Address) -> bool:
    """Returns True if an address is on the public Internet.

    Returns False for an IPv6 address that contains an IPv4 address (such as 6to4), because a request to it may end at
    that IPv4 address, which need not be public.
    """
    if isinstance(address, ipaddress.IPv6Address) and address not in _PUBLIC_IPV6:
        return False  # among others: mapped and translated IPv4, NAT64, site-local, segment routing
    if any(address in network for network in _SPECIAL):
        return False
    return address.is_global and not address.is_multicast


def fetch(
    url: str,
    largest: int,
    seconds: float,
    *,
    public_only: bool,
    stop: Stop | None = None,
    received: Callable[[int], None] = lambda size: None,
) -> bytes:
    """Fetches the bytes at an http(s) URL.

    largest: the most bytes that are accepted.
    seconds: the time limit of the whole fetch.
    public_only: True for strangers' URLs. Addresses outside the public Internet, and all ports but 80 and 443, are then
    refused.
    stop, received: as for `fetch_public`; only used with `public_only`.
    Raises UsageError for a URL that is refused, ImageError if the fetch fails.
    """
    if public_only:
        return fetch_public(url, largest, seconds, permitted=is_public, stop=stop, received=received)
    done, results = _in_thread(lambda: _download(url, largest, min(seconds, WAIT)), "download")
    if not done.wait(seconds):
        raise ImageError(f"no answer within {seconds:g} s")
    return _result(results)


def _download(url: str, largest: int, wait: float) -> bytes:
    """Fetches the bytes at a user's URL, through the environment's proxies. Raises ImageError.

    wait: the time limit (seconds) of each single wait for the server; `fetch` limits the time of the whole download.
    """
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "simsearch"})
        with urllib.request.urlopen(request, timeout=wait) as response:
            data: bytes = response.read(largest + 1)
            if len(data) <= largest and response.length:
                raise ImageError("the server closed the connection too soon")
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise ImageError(f"no answer within {wait:g} s") from error
        raise ImageError(getattr(reason, "strerror", None) or str(reason) or type(error).__name__) from error
    if len(data) > largest:
        raise ImageError(f"the file is over {largest >> 20} MiB")
    return data


def fetch_public(
    url: str,
    largest: int,
    seconds: float,
    *,
    permitted: Callable[[Address], bool] = is_public,
    any_port: bool = False,
    stop: Stop | None = None,
    received: Callable[[int], None] = lambda size: None,
) -> bytes:
    """Fetches the bytes at a stranger's URL, from permitted addresses only.

    largest, seconds: as for `fetch`, which raises the same errors.
    permitted: returns True for an address that may be connected to.
    any_port: accept all ports.
    stop: a switch that another thread sets to end the fetch early.
    received: called with the size of each part of the response; may raise an exception to end the fetch.
    """
    deadline = Deadline(time.monotonic() + seconds, stop)
    for _ in range(REDIRECTS + 1):
        location, data = _request(url, largest, deadline, permitted, any_port, received)
        if location is None:
            return data
        try:
            url = urljoin(url, location)
        except ValueError:
            raise UsageError("the URL is not valid") from None
    raise ImageError(f"the URL is redirected more than {REDIRECTS} times")


def _request(
    url: str,
    largest: int,
    deadline: Deadline,
    permitted: Callable[[Address], bool],
    any_port: bool,
    received: Callable[[int], None],
) -> tuple[str | None, bytes]:
    """Makes one request. For a redirect, returns its location and no bytes; otherwise returns None and the content.

    The arguments are those of `fetch_public`, with the time limit as a `Deadline`.
    """
    scheme, host, port, target = _parts(url, any_port)
    address = _resolve(host, port, permitted, deadline)
    try:
        with contextlib.closing(Connection(address, port, host if scheme == "https" else None, deadline)) as opened:
            connection = http.client.HTTPConnection(host, port)
            connection.sock = ConnectionSocket(opened)
            connection.request("GET", target, headers={"User-Agent": "simsearch", "Accept": "image/*"})
            with contextlib.closing(connection.getresponse()) as response:
                if response.status in {301, 302, 303, 307, 308}:
                    return response.headers.get("location", ""), b""
                if response.status != 200:
                    raise ImageError(f"{host} answered with status {response.status}")
                data = bytearray()
                parts = 0
                while chunk := response.read1(1 << 16):
                    data += chunk
                    parts += 1
                    received(len(chunk))
                    if len(data) > largest:
                        raise ImageError(f"the answer of {host} is over {largest:,} bytes")
                    if parts > PARTS + len(data) // PART_BYTES:
                        raise ImageError(f"the answer of {host} comes in too many parts")
                return None, bytes(data)
    except (OSError, http.client.HTTPException) as error:
        raise ImageError(f"{host} cannot be reached: {type(error).__name__}") from error


def _parts(url: str, any_port: bool) -> tuple[str, str, int, str]:
    """Splits a URL into scheme, host, port and path. Raises UsageError for a URL that is not allowed."""
    try:
        split = urlsplit(url)
        host = (split.hostname or "").encode("idna").decode() if ":" not in (split.hostname or "") else split.hostname
        port = split.port or PORTS.get(split.scheme, 0)
    except (ValueError, UnicodeError):
        raise UsageError("the URL is not valid") from None
    if split.scheme not in PORTS or not host:
        raise UsageError("only http and https URLs are fetched")
    if split.username is not None or split.password is not None:
        raise UsageError("URLs with a user or password are not fetched")
    if port not in PORTS.values() and not any_port:
        raise UsageError("only URLs with the ports 80 and 443 are fetched")
    target = (split.path or "/") + (f"?{split.query}" if split.query else "")
    if not (target.isascii() and target.isprintable()) or " " in target:
        raise UsageError("the URL has characters that must be escaped")
    return split.scheme, host, port, target


_lookups = threading.BoundedSemaphore(LOOKUPS)


def _resolve(host: str, port: int, permitted: Callable[[Address], bool], deadline: Deadline) -> Address:
    """Returns an address of a host, after checking all its addresses.

    Raises ImageError if no address is found, UsageError if any of the host's addresses is not permitted.
    """
    try:
        found = _look_up(host, port, deadline)
        addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    except (OSError, UnicodeError, ValueError):
        raise ImageError("no address was found for the URL's host") from None
    if not addresses or not all(permitted(address) for address in addresses):
        raise UsageError("the URL's host is not on the public Internet")
    return addresses[0]


def _look_up(host: str, port: int, deadline: Deadline) -> list[Any]:
    """Looks up a host's addresses by `socket.getaddrinfo`, in a thread, since the call cannot be cancelled.

    Raises OSError if the host has no address, the time is over, the fetch is stopped, or too many look-ups are running.
    Raises ValueError if the host's name cannot be encoded.
    """
    if not _lookups.acquire(blocking=False):
        raise OSError("too many names are being looked up")

    def look_up() -> list[Any]:
        try:
            return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        finally:
            _lookups.release()

    done, results = _in_thread(look_up, "lookup")
    while not done.wait(min(STOP_CHECK, deadline.left())):
        pass
    return _result(results)


def _in_thread(call: Callable[[], T], name: str) -> tuple[threading.Event, list[T | Exception]]:
    """Starts a call in a new thread called `name`; the caller need not wait for the end.

    Returns an event that is set when the call has ended, and a list that then contains the result or the exception.
    """
    results: list[T | Exception] = []
    done = threading.Event()

    def act() -> None:
        try:
            results.append(call())
        except Exception as error:
            results.append(error)
        finally:
            done.set()

    threading.Thread(target=act, name=name, daemon=True).start()
    return done, results


def _result(results: list[T | Exception]) -> T:
    if isinstance(results[0], Exception):
        raise results[0]
    return results[0]
