"""Hostile requests: each bad input gets its status, on a real socket, and the service continues to work."""

import contextlib
import http.server
import re
import socket
import threading
import time

import pytest
from PIL import Image

import simsearch
from simsearch.errors import ImageError, UsageError
from simsearch.images.urls import fetch, fetch_public
from simsearch.server import body_limit, protocol
from tests.helpers.client import Client, code, png
from tests.helpers.live import answer, raw, serving

KEY = "a-long-key-of-this-test"


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    from tests.helpers.models import Colours
    from tests.helpers.pictures import CLASSES, draw

    folder = tmp_path_factory.mktemp("hostile")
    for number, name in enumerate(CLASSES):
        draw(folder / "photos" / name / "0.png", number)
    with simsearch.build(folder / "photos", folder / "index", model=Colours()) as engine:
        yield engine


@pytest.fixture(scope="module")
def port(engine):
    """A service with tight limits, and a key."""
    app = simsearch.create_app(
        engine,
        api_keys=KEY,
        hosts=("127.0.0.1",),
        max_body=1 << 20,
        max_pixels=10_000,
        head_timeout=1.0,
        body_timeout=1.0,
    )
    with serving(app) as port:
        yield port


def head(*lines, method="GET", path="/v1/items/1", key=True, host="127.0.0.1"):
    given = [f"{method} {path} HTTP/1.1", f"Host: {host}", *([f"X-API-Key: {KEY}"] if key else []), *lines]
    return ("\r\n".join(given) + "\r\n\r\n").encode("latin-1")


def form(data, name="image"):
    body = (
        f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="q.png"\r\n\r\n'.encode()
        + data
        + b"\r\n--b--\r\n"
    )
    sent = head(
        "Content-Type: multipart/form-data; boundary=b",
        f"Content-Length: {len(body)}",
        method="POST",
        path="/v1/search",
    )
    return sent + body


JSON = "Content-Type: application/json"
POST = {"method": "POST", "path": "/v1/search"}
SENT = {
    "well formed": (head(), 200, None),
    "no key": (head(key=False), 401, "unauthorized"),
    "wrong key": (head("Authorization: Bearer nearly", key=False), 401, "unauthorized"),
    "key with a byte that is no ASCII": (head("X-API-Key: \xff", key=False), 401, "unauthorized"),
    "two keys": (head(f"X-API-Key: {KEY}"), 400, "bad_headers"),
    "two authorizations": (
        head("Authorization: Bearer x", f"Authorization: Bearer {KEY}", key=False),
        400,
        "bad_headers",
    ),
    "two hosts": (head("Host: other"), 400, "bad_request"),
    "another host": (head(host="evil.example"), 400, "bad_host"),
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", 400, "bad_request"),
    "no host, HTTP/1.0": (b"GET /health HTTP/1.0\r\n\r\n", 400, "bad_host"),
    "a target of another site": (head(path="http://evil.example/v1/items/1"), 404, "not_found"),
    "one huge header": (head("X-Large: " + "x" * 100_000), 400, None),
    "very many headers": (head(*(f"X-{n}: {n}" for n in range(5000))), 400, None),
    "a header without a colon": (head("nonsense"), 400, "bad_request"),
    "a name with a space": (head("X Y: 1"), 400, "bad_request"),
    "a space before the colon": (head("Content-Length : 1"), 400, "bad_request"),
    "a NUL in a value": (head("X-Y: a\0b"), 400, "bad_request"),
    "a bare CR in a value": (head("X-Y: a\rInjected: b"), 400, "bad_request"),
    "no HTTP at all": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "bad_request"),
    "HTTP/2 without asking": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, None),
    "an unknown method": (head(method="BREW"), 405, "method_not_allowed"),
    "TRACE": (head(method="TRACE"), 405, "method_not_allowed"),
    "an upgrade that is not offered": (head("Connection: Upgrade", "Upgrade: websocket"), 200, None),
    "an upgrade to HTTP/2": (
        head("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: x"),
        200,
        None,
    ),
    "a length that is no number": (head(JSON, "Content-Length: many", **POST), 400, "bad_request"),
    "a negative length": (head(JSON, "Content-Length: -1", **POST), 400, "bad_request"),
    "a length over 2**64": (head(JSON, "Content-Length: 99999999999999999999", **POST), 413, "too_large"),
    "two lengths": (head(JSON, "Content-Length: 9", "Content-Length: 10", **POST) + b'{"id": 1}', 400, "bad_request"),
    "two lengths that agree": (
        head(JSON, "Content-Length: 9", "Content-Length: 9", **POST) + b'{"id": 1}',
        400,
        "bad_request",
    ),
    "a list of lengths that agree": (head(JSON, "Content-Length: 9, 9", **POST) + b'{"id": 1}', 400, "bad_request"),
    "two lengths, lines end in LF": (
        head(JSON, "Content-Length: 9", "Content-Length: 9", **POST).replace(b"\r\n", b"\n") + b'{"id": 1}',
        400,
        "bad_request",
    ),
    "lines end in LF": (head().replace(b"\r\n", b"\n"), 400, "bad_request"),
    "one line ends in LF": (
        head(JSON, "X: y\nContent-Length: 9", **POST) + b'{"id": 1}',
        400,
        "bad_request",
    ),
    "a header in two lines": (head(JSON, "Transfer-Encoding:\r\n chunked", **POST), 400, "bad_request"),
    "HTTP/2.0 in the first line": (head().replace(b"HTTP/1.1", b"HTTP/2.0"), 400, "bad_request"),
    "HTTP/1.9": (head().replace(b"HTTP/1.1", b"HTTP/1.9"), 400, "bad_request"),
    "chunks in HTTP/1.0": (
        head(JSON, "Transfer-Encoding: chunked", **POST).replace(b"HTTP/1.1", b"HTTP/1.0"),
        400,
        "bad_request",
    ),
    "a compressed body": (
        head(JSON, "Content-Encoding: gzip", "Content-Length: 9", **POST) + b'{"id": 1}',
        415,
        "unsupported_media_type",
    ),
    "chunks of one byte": (
        head(JSON, "Transfer-Encoding: chunked", **POST) + b"1\r\n \r\n" * 2000,
        400,
        "bad_request",
    ),
    "a whole URL": (head(path="http://127.0.0.1/v1/items/1"), 200, None),
    "an origin that is no URL": (head(JSON, "Origin: http://[", "Content-Length: 9", **POST), 400, "cross_origin"),
    "an id with a point": (head(method="DELETE", path="/v1/items/1.0"), 404, "not_found"),
    "an unknown parameter": (head(path="/v1/items/1/thumbnail?sise=64"), 422, "bad_argument"),
    "lengths in a list": (head(JSON, "Content-Length: 9, 10", **POST) + b'{"id": 1}', 400, "bad_request"),
    "two content types": (
        head(JSON, "Content-Type: text/plain", "Content-Length: 9", **POST) + b'{"id": 1}',
        400,
        "bad_headers",
    ),
    "CL.TE": (
        head(JSON, "Content-Length: 6", "Transfer-Encoding: chunked", **POST) + b"0\r\n\r\nG",
        400,
        "bad_headers",
    ),
    "TE.CL": (
        head(JSON, "Transfer-Encoding: chunked", "Content-Length: 4", **POST) + b"1\r\n{\r\n0\r\n\r\n",
        400,
        "bad_headers",
    ),
    "TE of another kind": (head(JSON, "Transfer-Encoding: gzip", **POST) + b"x", 400, "bad_request"),
    "TE disguised": (head(JSON, "Transfer-Encoding: xchunked", **POST) + b"0\r\n\r\n", 400, "bad_request"),
    "TE twice": (
        head(JSON, "Transfer-Encoding: chunked", "Transfer-Encoding: identity", **POST) + b"0\r\n\r\n",
        400,
        "bad_request",
    ),
    "a chunk of no size": (head(JSON, "Transfer-Encoding: chunked", **POST) + b"zz\r\n{}\r\n", 400, "bad_request"),
    "a chunk of 2**64": (head(JSON, "Transfer-Encoding: chunked", **POST) + b"ffffffffffffffffffff\r\n", 400, None),
    "a body of 50 MB, announced": (head(JSON, "Content-Length: 50000000", **POST), 413, "too_large"),
    "no picture": (form(b"not an image"), 422, "bad_image"),
    "nothing": (form(b""), 422, "bad_image"),
    "a bomb": (form(png((200, 200))), 413, "image_too_large"),
    "a picture under another name": (form(png(), "picture"), 422, "bad_argument"),
    "a body of no type": (head("Content-Length: 1", **POST) + b"x", 415, "unsupported_media_type"),
    "JSON of another charset": (head(JSON, "Content-Length: 2", **POST) + b"\xff\xfe", 400, "bad_json"),
}


@pytest.mark.parametrize("name", SENT)
def test_bytes_and_their_status(port, name):
    sent, status, word = SENT[name]
    found = raw(port, sent)
    assert found[:2] == (status, word) or (word is None and found[0] == status)
    assert raw(port, head())[0] == 200


PATHS = [
    "/v1/items/../../etc/passwd",
    "/v1/items/..%2f..%2fetc%2fpasswd",
    "/v1/items/%2e%2e/image",
    "/v1/items//etc/passwd",
    "/v1/items//etc/passwd/image",
    "/v1/items/1%00/image",
    "/v1/items/1/image/../../../etc/passwd",
    "/v1/items/..;/1",
    "/v1/items/1%2f..%2f2",
    "/v1/items/abc",
    "/v1/items/-1/image",
    "/v1/items/-1/thumbnail",
    "/v1/items/1.5/image",
    "/v1/items/1e0/image",
    "/v1/items/0x1/image",
    "/v1/items/99999999999999999999",
    "/v1/items/99999999999999999999/image",
    "/v1/items/%d9%a1/image%00",
    "/v1/items/1/image%20",
    "/static/../simsearch/settings.py",
    "//etc/passwd",
    "/v1/items/",
    "/v1/items/1/thumbnail?size=1e9",
    "/v1/items/1/thumbnail?size=99999",
    "/v1/items/1?index=../other",
    "/v1/items/1?index=%00",
]


@pytest.mark.parametrize("path", PATHS)
def test_ids_are_no_paths(port, path):
    assert raw(port, head(path=path))[0] in {404, 422}


def test_ids_in_other_digits_are_item_or_none(port):
    assert raw(port, head(path="/v1/items/%D9%A1"))[0] in {200, 404, 422}


def test_request_after_refused_one_is_not_read(port):
    """The body of a refused request is never taken for the next request."""
    smuggled = head(path="/health")
    for lines in (("Content-Length: 0", "Transfer-Encoding: chunked"), ("Content-Length: 99999999999",)):
        found = raw(port, head(JSON, *lines, **POST) + smuggled, more=True)
        assert found[0] in {400, 413}
        assert found[3] == b""


def test_pipelined_requests_get_answers_in_order(port):
    sent = head() + head(path="/v1/items/99") + head("Connection: close", path="/health")
    first, _, _, rest = raw(port, sent, more=True)
    assert first == 200
    assert re.findall(rb"HTTP/1.1 (\d+)", rest) == [b"404", b"200"]


def trickle(port, data, pause):
    """Sends byte by byte until there is an answer; the answer and the seconds it took."""
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.settimeout(pause)
        for place in range(len(data)):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(data[place : place + 1])
            try:
                connection.recv(1, socket.MSG_PEEK)
                break
            except TimeoutError:
                continue
        connection.settimeout(10)
        return answer(connection)[:2], time.monotonic() - start


def test_slow_heads_and_bodies_have_a_deadline(port):
    assert trickle(port, head(), 0.05)[0] == (400, "head_too_slow")
    assert trickle(port, b"", 0.05)[0] == (400, "head_too_slow")  # a connection that says nothing
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:  # a second request on the way
        connection.sendall(head() + b"GET /v1/it")
        assert b"head_too_slow" in answer(connection, more=True)[3]
    sent = head(JSON, "Content-Length: 99", **POST) + b'{"id": 1'
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(sent)
        assert answer(connection)[:2] == (400, "body_too_slow")


def test_idle_connection_is_closed_without_a_word(port):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(head("Content-Length: 5000000", JSON, **POST) + bytes(5_000_000))  # refused, and discarded
        found = answer(connection, more=True)
        assert (found[:2], found[3]) == ((413, "too_large"), b"")


def test_who_sends_too_much_can_read_why(port):
    import httpx

    for content in (bytes(5_000_000), iter([bytes(100_000)] * 50)):  # announced, and in chunks
        headers = {"content-type": "application/json", "x-api-key": KEY}
        found = httpx.post(f"http://127.0.0.1:{port}/v1/search", content=content, headers=headers)
        assert code(found) == (413, "too_large")


def test_a_body_of_50_mb_is_cut_off(port, monkeypatch):
    """In chunks, so that nothing announces it."""
    monkeypatch.setattr(protocol, "MAX_DISCARDED_BYTES", 1 << 20)
    chunk = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(head("Content-Type: multipart/form-data; boundary=b", "Transfer-Encoding: chunked", **POST))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while sent < 50_000_000:
                connection.sendall(chunk)
                sent += len(chunk)
    assert sent < 20_000_000  # what lies in the buffers of both ends, and no more
    assert raw(port, head())[0] == 200


def test_clients_that_leave(port):
    for data in (b"", b"GET", head()[:-2], form(png())[:-9], form(png())):
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(data)
    assert raw(port, head())[0] == 200


def test_bodies_together_have_a_limit(engine):
    app = simsearch.create_app(engine, max_body=1 << 20, memory=10 << 20, body_timeout=2.5, api_keys=KEY)
    start = head("Content-Type: multipart/form-data; boundary=b", "Content-Length: 1000000", **POST)
    start += b'--b\r\nContent-Disposition: form-data; name="image"; filename="q"\r\n\r\n' + bytes(900_000)
    with serving(app) as port, contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10)) for _ in range(3)]
        for connection in waiting:
            connection.sendall(start)
        found = sorted(answer(connection)[:2] for connection in waiting)
        assert found == [(400, "body_too_slow"), (400, "body_too_slow"), (429, "too_many_requests")]
        assert raw(port, form(png()))[0] == 200  # and is free again


def test_slow_bodies_give_way(engine, monkeypatch):
    """Small searches are answered, however much is being sent by others."""
    monkeypatch.setattr(body_limit, "SMALL_BODY", 100_000)
    app = simsearch.create_app(engine, max_body=1 << 20, memory=10 << 20, body_timeout=60)
    received = app.state.service.received
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="q"\r\n\r\n'
    with serving(app) as port, contextlib.ExitStack() as stack:

        def send(size, length):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            start = head("Content-Type: multipart/form-data; boundary=b", f"Content-Length: {length}", **POST)
            connection.sendall(start + part + bytes(size - len(part)))
            return connection

        def wait_for(total):
            while received.total < total:
                time.sleep(0.01)

        first = send(900_000, 1_000_000)
        wait_for(900_000)
        assert answer(send(900_000, 1_000_000))[:2] == (429, "too_many_requests")  # it would leave small ones no room
        for _ in range(12):
            send(98_000, 99_000)
        wait_for(900_000 + 12 * 98_000)
        assert answer(send(98_000, 99_000))[:2] == (429, "too_many_requests")
        monkeypatch.setattr(body_limit, "SLOW_SECONDS", 0.2)
        time.sleep(0.4)
        small = send(98_000, 99_000)
        assert answer(first)[:2] == (400, "body_too_slow")
        end = b"\r\n--b--\r\n"
        small.sendall(bytes(1000 - len(end)) + end)
        assert answer(small)[:2] == (422, "bad_image")
        assert raw(port, form(png()))[0] == 200


def test_stuck_reader_is_cut_off_slow_one_is_not(tmp_path, monkeypatch):
    import numpy as np
    from PIL import Image

    from tests.helpers.models import Colours

    noise = np.random.default_rng(0).integers(0, 256, (2400, 2400, 3), dtype=np.uint8)
    (tmp_path / "photos").mkdir()
    Image.fromarray(noise).save(tmp_path / "photos" / "large.png", compress_level=0)
    size = (tmp_path / "photos" / "large.png").stat().st_size
    monkeypatch.setattr(protocol, "STALL_SECONDS", 0.5)
    with (
        simsearch.build(tmp_path / "photos", tmp_path / "index", model=Colours()) as engine,
        serving(simsearch.create_app(engine)) as port,
    ):
        for pause, whole in ((0.05, True), (1.8, False)):
            received = 0
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                connection.sendall(b"GET /v1/items/1/image HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
                time.sleep(pause)
                with contextlib.suppress(ConnectionResetError):
                    while chunk := connection.recv(1 << 20):
                        received += len(chunk)
                        time.sleep(pause if whole else 0)
            assert (received > size) == whole


HEALTH = b"GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


def test_connections_are_bounded(engine, monkeypatch):
    """Clients that are served or send their body keep their place; those that come too late are told so."""
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 4)
    with serving(simsearch.create_app(engine)) as port, contextlib.ExitStack() as stack:
        for _ in range(4):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            connection.sendall(SENDING)
        time.sleep(0.2)
        assert raw(port, b"")[:2] == (503, "too_many_connections")
        monkeypatch.setattr(protocol, "PATIENCE", 0.1)
        assert raw(port, HEALTH)[0] == 200  # in the place of a slow one


SENDING = b"POST /v1/search HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"


def test_silent_connections_keep_nobody_out(engine, monkeypatch):
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 4)
    with serving(simsearch.create_app(engine)) as port, contextlib.ExitStack() as stack:

        def connect(sent):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            connection.sendall(sent)
            return connection

        served = connect(HEALTH.replace(b"Connection: close\r\n", b""))
        received = b""
        while b"ok" not in received:
            received += served.recv(1000)
        silent = []
        for _ in range(9):
            silent.append(connect(b"GET"))
            time.sleep(0.05)
        time.sleep(0.3)
        assert raw(port, HEALTH)[0] == 200
        served.sendall(HEALTH)  # it had sent a request, so the silent ones went first
        assert served.recv(1000).startswith(b"HTTP/1.1 200")
        assert answer(silent[0])[:2] == (503, "too_many_connections")


def test_slow_readers_give_way(tmp_path, colours, monkeypatch):
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr(protocol, "PATIENCE", 0.1)
    (tmp_path / "photos").mkdir()
    Image.new("L", (3000, 3000)).save(tmp_path / "photos" / "a.bmp")
    with (
        simsearch.build(tmp_path / "photos", tmp_path / "index", model=colours) as engine,
        serving(simsearch.create_app(engine)) as port,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(2):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(b"GET /v1/items/1/image HTTP/1.1\r\nHost: h\r\n\r\n")
            assert connection.recv(100)
        time.sleep(0.5)
        assert raw(port, HEALTH)[0] == 200


# -- pictures by URL


class Site(http.server.BaseHTTPRequestHandler):
    """Another machine: pictures, redirects, and what goes on for ever."""

    def do_GET(self):
        status, headers, body = 200, {}, b""
        if self.path == "/picture.png":
            body = png()
        elif self.path.startswith("/to?"):
            status, headers = 302, {"Location": self.path[4:]}
        elif self.path == "/large":
            body = bytes(1 << 21)
        elif self.path == "/slow":
            headers = {"Content-Length": "1000000"}
        elif self.path == "/nowhere":
            status = 404
        elif self.path == "/lost":
            status = 302
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)
            while self.path == "/slow":
                self.wfile.write(b"x")
                time.sleep(0.05)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


TARGETS = [
    "http://127.0.0.1/",
    "http://127.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0177.0.0.1/",
    "http://[::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::127.0.0.1]/",
    "http://0/",
    "http://0.0.0.0/",
    "http://localhost/",
    "http://LOCALHOST./",
    "http://169.254.169.254/meta",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",
    "http://[fe80::1]/",
    "http://[fe80::1%25eth0]/",
    "http://[fc00::1]/",
    "http://[::]/",
    "http://224.0.0.1/",
    "http://[ff02::1]/",
    "http://255.255.255.255/",
    "http://[64:ff9b::7f00:1]/",
    "http://[64:ff9b:1::7f00:1]/",
    "http://[2002:7f00:1::]/",
    "http://[2001:0:7f00:1::]/",
    "http://192.0.2.1/",
    "http://192.88.99.1/",
    "http://[::ffff:0:127.0.0.1]/",
    "http://[fec0::1]/",
    "http://[3fff::1]/",
    "http://[5f00::1]/",
    "http://[2002:5db8:d70e::]/",
    "http://198.18.0.1/",
    "file:///etc/passwd",
    "ftp://example.org/",
    "gopher://127.0.0.1/",
    "data:image/png;base64,AAAA",
    "//127.0.0.1/",
    "http:127.0.0.1",
    "http://user@example.org/",
    "http://user:word@example.org/",
    "http://example.org:22/",
    "http://example.org:99999/",
    "http://example.org:0/",
    "http://127。0。0。1/",
    "http://１２７.0.0.1/",
    "http:///",
    "http://[::1",
    "http://]/",
    "",
    " ",
    "http://example.org/a b",
    "http://example.org/\r\nX: y",
    "http://example.org\r\nX: y/",
    "http://%31%32%37.0.0.1/",
    "http://127.0.0.1#@example.org/",
    "http://example.org\\@127.0.0.1/",
    "HTTP://127.0.0.1/",
    "http://" + "a" * 300 + "/",
    "http://\ud800/",
]


@pytest.mark.parametrize("url", TARGETS)
def test_targets_that_are_not_public(engine, url):
    with pytest.raises((UsageError, ImageError)):
        fetch(url, 1000, 1, public_only=True)
    client = Client(simsearch.create_app(engine, allow_urls=True))
    sent = {"content": b'{"url": "http://\\ud800/"}', "headers": {"content-type": "application/json"}}
    found = client("POST", "/v1/search", **sent) if "\ud800" in url else client.search(url=url)
    assert found.status_code == 422


def permit(monkeypatch, *allowed, limit=1.0):
    """Lets the service fetch from the test's site, as if its address were public; from no other."""
    from simsearch.server import fetching

    def fetched(url, largest, seconds, *, public_only, **more):
        assert public_only
        seconds = min(seconds, limit)
        return fetch_public(url, largest, seconds, permitted=lambda a: str(a) in allowed, any_port=True, **more)

    monkeypatch.setattr(fetching, "fetch", fetched)


def test_picture_is_fetched_from_allowed_address(engine, site, monkeypatch):
    permit(monkeypatch, "127.0.0.1")
    client = Client(simsearch.create_app(engine, allow_urls=True, max_body=1 << 20))
    for url in (f"{site}/picture.png", f"{site}/to?/picture.png", f"{site}/to?{site}/picture.png"):
        found = client.search(url=url, k=2)
        assert found.status_code == 200
        assert [m["id"] for m in found.json()["matches"]] == [m.id for m in engine.search(png(), 2)]
        assert found.json()["query"] == f"url:{url}"


def test_redirects_and_answers_that_are_refused(engine, site, monkeypatch):
    permit(monkeypatch, "127.0.0.1")
    client = Client(simsearch.create_app(engine, allow_urls=True, max_body=1 << 20))
    refused = {
        f"{site}/to?http://127.0.0.2:80/": "not on the public Internet",
        f"{site}/to?http://169.254.169.254/latest/meta-data": "not on the public Internet",
        f"{site}/to?http://[::1]/": "not on the public Internet",
        f"{site}/to?//10.0.0.1/x": "not on the public Internet",
        f"{site}/to?file:///etc/passwd": "only http and https",
        f"{site}/to?http://[": "is not valid",
        f"{site}/to?/to?/to?/to?/to?/picture.png": "redirected more than",
        f"{site}/lost": "redirected more than",
        f"{site}/nowhere": "status 404",
        f"{site}/large": "over 1,048,576 bytes",
        f"{site}/slow": "cannot be reached",
    }
    for url, words in refused.items():
        found = client.search(url=url)
        assert found.status_code == 422, url
        assert words in found.json()["error"]["message"], url


def test_a_name_is_resolved_once(engine, site, monkeypatch):
    """A name that is public when it is looked at and private a moment later gains nothing."""
    asked = []
    real = socket.getaddrinfo

    def rebinding(host, port, *rest, **more):
        if host == "rebinding.example":
            asked.append(host)
            address = "127.0.0.1" if len(asked) == 1 else "10.0.0.1"
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]
        return real(host, port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    port = site.rpartition(":")[2]
    seen = fetch_public(
        f"http://rebinding.example:{port}/picture.png",
        10_000,
        5,
        any_port=True,
        permitted=lambda a: str(a) == "127.0.0.1",
    )
    assert seen == png()
    assert len(asked) == 1
    with pytest.raises(UsageError, match="public Internet"):  # one private address among several is one too many
        monkeypatch.setattr(
            socket,
            "getaddrinfo",
            lambda host, port, *_, **__: [
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
                for address in ("93.184.215.14", "10.0.0.1")
            ],
        )
        fetch("http://two.example/", 10_000, 5, public_only=True)


def test_urls_are_off_unless_allowed(engine):
    assert code(Client(simsearch.create_app(engine)).search(url="http://example.org/")) == (422, "urls_off")
