"""Fetching by URL: public addresses only, and one deadline for servers that drip."""

import contextlib
import ipaddress
import socket
import threading

import pytest

from simsearch.errors import ImageError, SimsearchError, UsageError
from simsearch.images.connections import Stop
from simsearch.images.urls import fetch, fetch_public, is_public

PRIVATE = [
    "127.0.0.1",
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "169.254.169.254",
    "192.0.0.8",
    "192.88.99.1",
    "198.18.0.1",
    "203.0.113.5",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:93.184.215.14",
    "::ffff:0:127.0.0.1",
    "::ffff:0:93.184.215.14",
    "64:ff9b::7f00:1",
    "64:ff9b:1::7f00:1",
    "100::1",
    "2001::1",
    "2001:0:7f00:1::",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:5db8:d70e::",
    "3fff::1",
    "3fff:fff:ffff::1",
    "5f00::1",
    "4000::1",
    "fc00::1",
    "fd00::1",
    "fe80::1",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_address_is_not_public(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["93.184.215.14", "8.8.8.8", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "2a00::1"])
def test_address_is_public(address):
    assert is_public(ipaddress.ip_address(address))


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
DRIPS = {
    "nothing": (b"", b""),
    "the status line": (b"HTTP/1.1 2", b"0"),
    "headers": (OK, b"X: y\r\n"),
    "a chunk's size": (CHUNKED, b"0"),
    "chunks": (CHUNKED, b"1\r\nx\r\n"),
    "trailers": (CHUNKED + b"0\r\n", b"X: y\r\n"),
    "100 Continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a body": (OK + b"Content-Length: 99999\r\n\r\n", b"x"),
    "redirects": (b"HTTP/1.1 302 Found\r\nLocation: /\r\n", b"X: y\r\n"),
}


@pytest.fixture
def server():
    """Starts a server on loopback that answers with `start`, and then `drip` again and again; its URL."""
    with contextlib.ExitStack() as stack:
        ended = threading.Event()
        stack.callback(ended.set)

        def answer(client, start, drip, pause):
            with client, contextlib.suppress(OSError):
                client.recv(4096)
                client.sendall(start)
                while drip and not ended.wait(pause):
                    client.sendall(drip)
                ended.wait(0 if drip else 5 * (not start))

        def run(start, drip=b"", pause=0.02):
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def accept():
                with contextlib.suppress(OSError):
                    while True:
                        client, _ = listener.accept()
                        threading.Thread(target=answer, args=(client, start, drip, pause), daemon=True).start()

            threading.Thread(target=accept, daemon=True).start()
            return f"http://127.0.0.1:{listener.getsockname()[1]}/"

        yield run


def fetched(url, seconds=5.0, **options):
    return fetch_public(url, 10_000, seconds, permitted=lambda address: True, any_port=True, **options)


@pytest.mark.parametrize("drip", DRIPS)
def test_one_deadline_for_servers_that_drip(server, drip):
    with pytest.raises(ImageError, match="Timeout"):
        fetched(server(*DRIPS[drip]), seconds=0.3)


@pytest.mark.parametrize("drip", DRIPS)
def test_deadline_of_the_command_line(server, drip):
    with pytest.raises(ImageError, match=r"no answer within 0\.3 s"):
        fetch(server(*DRIPS[drip]), 10_000, 0.3, public_only=False)


def test_answers_to_the_command_line(server):
    assert fetch(server(OK + b"Content-Length: 5\r\n\r\nhello"), 9, 5, public_only=False) == b"hello"
    for answer in (
        b"no HTTP\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\n\r\n",
        OK + b"Content-Length: 99\r\n\r\nx",
        OK + b"\r\n" + bytes(10),
    ):
        with pytest.raises(ImageError):
            fetch(server(answer), 9, 5, public_only=False)
    for url in ("http://", "http://[", "http://a b/"):
        with pytest.raises(ImageError):
            fetch(url, 9, 5, public_only=False)


@pytest.mark.parametrize("drip", DRIPS)
def test_stop_ends_a_fetch(server, drip):
    stop = Stop()
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(ImageError, match="Stopped"):
        fetched(server(*DRIPS[drip]), seconds=60, stop=stop)
    with pytest.raises(ImageError):
        fetched(server(OK + b"Content-Length: 1\r\n\r\nx"), stop=stop)


def test_name_that_is_looked_up_too_long(monkeypatch):
    def slow(*arguments, **more):
        ended.wait(20)
        raise OSError

    ended = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with pytest.raises(ImageError):
        fetched("http://slow.example/", seconds=0.2)
    ended.set()


def test_kinds_of_answers(server):
    assert fetched(server(OK + b"Content-Length: 5\r\n\r\nhello")) == b"hello"
    assert fetched(server(CHUNKED + b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n")) == b"hello"
    assert fetched(server(b"HTTP/1.0 200 OK\r\n\r\nhello")) == b"hello"
    sizes: list[int] = []
    assert fetched(server(OK + b"\r\n" + bytes(5000)), received=sizes.append) == bytes(5000)
    assert sum(sizes) == 5000
    with pytest.raises(ImageError, match="over 10,000 bytes"):
        fetched(server(OK + b"\r\n", bytes(4000), 0))
    with pytest.raises(ImageError, match="too many parts"):
        fetched(server(CHUNKED, b"1\r\nx\r\n" * 100, 0))


@pytest.mark.parametrize("target", ["http://[", "http://]/", "//[::1", "http://[v1.x]/", "http://a:99999/", "\\\\x"])
def test_redirect_that_is_no_url(server, target):
    with pytest.raises(SimsearchError):
        fetched(server(f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()))


def test_only_public_hosts_by_default():
    for url in ("http://127.0.0.1/", "http://[::ffff:0:7f00:1]/", "http://[fec0::1]/", "http://192.88.99.1/"):
        with pytest.raises(UsageError, match="not on the public Internet"):
            fetch(url, 1000, 5, public_only=True)
