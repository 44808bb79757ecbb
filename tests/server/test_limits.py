"""Limits under attack: decoding memory, slow readers and senders, URLs that drip, and a stop in the midst of it."""

import asyncio
import contextlib
import io
import json
import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import simsearch
from simsearch.errors import ImageTooLargeError, UsageError
from simsearch.server import decoding, fetching, files, run
from simsearch.server.middleware import ApiError
from tests.helpers.client import Client, code, png, upload
from tests.helpers.live import answer, raw, serving
from tests.server.test_hostile import permit

httpx = pytest.importorskip("httpx", reason="the [test] extra is not installed")


@pytest.fixture
def app(engine, monkeypatch):
    """A service with 24 MB for decoding, of which a small picture may take 1 MB and a large one 18."""
    monkeypatch.setattr(decoding, "SMALL_BYTES", 1_000_000)
    return simsearch.create_app(engine, memory=40_000_000, max_body=1 << 20, timeout=1.0)


def test_large_pictures_do_not_hold_up_small_ones(app):
    client, large = Client(app), app.state.service.lanes.large
    assert client("POST", "/v1/search", files=upload(png((800, 800)))).status_code == 200
    assert code(client("POST", "/v1/search", files=upload(png((2000, 2000))))) == (413, "image_too_large")
    assert code(client("POST", "/v1/search", files=upload(png((1400, 1400))), data={"crop": "0,0,9,9"})) == (
        413,
        "image_too_large",
    )
    with large.hold(large.total):
        assert code(client("POST", "/v1/search", files=upload(png((800, 800))))) == (503, "timeout")
        assert client("POST", "/v1/search", files=upload(png())).status_code == 200
    with contextlib.ExitStack() as stack:
        for _ in range(decoding.WAITING):
            stack.enter_context(large.admitted(of_item=False))
        refused = client("POST", "/v1/search", files=upload(png((800, 800))))
        assert code(refused) == (429, "too_many_requests")
        assert refused.headers["retry-after"]
        with large.admitted(of_item=True):  # an item's picture still has its turn
            pass


@pytest.mark.parametrize("path", ["/v1/items/1/image", "/v1/items/1/thumbnail"])
def test_files_of_items_have_the_same_limits(tmp_path, colours, monkeypatch, path):
    monkeypatch.setattr(decoding, "SMALL_BYTES", 1_000_000)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(png((3000, 3000)))
    with simsearch.build(tmp_path / "photos", tmp_path / "index", model=colours) as engine:
        tight, enough = (simsearch.create_app(engine, memory=size, max_body=1 << 20) for size in (20 << 20, 400 << 20))
        assert code(Client(tight)("GET", path)) == (413, "image_too_large")
        assert Client(enough)("GET", path).status_code == 200
        assert code(Client(tight)("POST", "/v1/search", json={"id": 1, "flip": True})) == (413, "image_too_large")


def test_lanes_share_the_memory():
    lanes = decoding.Lanes(400 << 20)
    assert lanes.small.total + lanes.large.total == 400 << 20
    with pytest.raises(decoding.LargePictureError), lanes.small.hold(lanes.small.largest + 1):
        pass
    with pytest.raises(ImageTooLargeError), lanes.large.hold(lanes.large.total + 1):
        pass
    lanes.close()


def test_memory_must_suffice_for_a_body(engine):
    with pytest.raises(UsageError, match="needs"):
        simsearch.create_app(engine, memory=32 << 20)
    large = simsearch.create_app(engine, max_body=400 << 20).state.service
    assert large.settings.bodies >= 4 * (400 << 20)
    large.close()
    with pytest.raises(UsageError, match="before the first request"):
        run.memory_for_requests([engine], 1 << 20, 4)
    assert 0 < run.memory_for_requests([engine], 64 << 30, 4) < 64 << 30


# -- slow clients


def test_file_is_read_as_client_takes_it():
    class Watched(io.BytesIO):
        taken = 0

        def read(self, size=-1):
            data = super().read(size)
            self.taken += len(data)
            return data

    async def go():
        file, sent, released = Watched(bytes(10 << 20)), asyncio.Event(), []
        with ThreadPoolExecutor(1) as pool:
            response = files.FileResponse(file, "image/png", {}, pool, lambda: released.append(True))

            async def send(message):
                if message["type"] == "http.response.body":
                    sent.set()
                    await asyncio.Event().wait()  # a client that takes nothing

            async def receive():
                await asyncio.Event().wait()

            sending = asyncio.ensure_future(response({"type": "http"}, receive, send))
            await sent.wait()
            await asyncio.sleep(0.05)
            taken = file.taken
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending
        assert taken <= files.CHUNK
        assert file.closed
        assert released

    asyncio.run(go())


def test_file_that_becomes_shorter(tmp_path, colours):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.bmp").write_bytes(bmp(3000))
    with (
        simsearch.build(tmp_path / "photos", tmp_path / "index", model=colours) as engine,
        serving(simsearch.create_app(engine)) as port,
        socket.create_connection(("127.0.0.1", port), timeout=10) as connection,
    ):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(b"GET /v1/items/1/image HTTP/1.1\r\nHost: h\r\n\r\n")
        assert connection.recv(100)
        (tmp_path / "photos" / "a.bmp").write_bytes(b"")
        received = 0
        with contextlib.suppress(ConnectionError):
            while chunk := connection.recv(1 << 20):
                received += len(chunk)
        assert received < 9_000_000
        assert raw(port, b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n")[0] == 200


def bmp(side):
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("L", (side, side)).save(buffer, "BMP")
    return buffer.getvalue()


SLOW = b"POST /v1/search HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
SEARCH = b"POST /v1/search HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"


def test_slow_senders_keep_nobody_out(engine):
    with serving(simsearch.create_app(engine, in_flight=1)) as port, contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(socket.create_connection(("127.0.0.1", port))).sendall(SLOW)
        time.sleep(0.1)
        assert raw(port, SEARCH + b'{"id": 1}')[0] == 200


def test_all_bodies_count_together():
    from simsearch.server.body_limit import ReceivedBytes

    rejected = []
    received = ReceivedBytes(100, lambda: rejected.append(1))
    received.add(100)
    with pytest.raises(ApiError):
        received.add(1)
    received.add(-101)
    received.add(100)
    assert rejected == [1]


# -- the stop


def test_stop_with_dripping_urls_and_slow_clients(engine, monkeypatch):
    """Everything here would last for minutes; the helper waits 30 s for the end."""
    permit(monkeypatch, "127.0.0.1", limit=600)
    monkeypatch.setattr(fetching, "FETCH_SECONDS", 600)
    app = simsearch.create_app(engine, allow_urls=True, timeout=600, body_timeout=600)
    ended, dripping = threading.Event(), threading.Semaphore(0)

    def drip(client):
        with client, contextlib.suppress(OSError):
            client.sendall(b"HTTP/1.1 200 OK\r\n")
            dripping.release()
            while not ended.wait(0.02):
                client.sendall(b"X: y\r\n")

    def accept(listener):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=drip, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        body = json.dumps({"url": f"http://127.0.0.1:{listener.getsockname()[1]}/"}).encode()
        searching = []
        with serving(app) as port:
            for _ in range(8):
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
                connection.sendall(SEARCH.replace(b" 9\r", f" {len(body)}\r".encode()) + body)
                searching.append(connection)
            for _ in searching:
                dripping.acquire(timeout=10)
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            slow.sendall(SLOW)
        ended.set()
        assert [answer(connection)[:2] for connection in searching] == [(503, "draining")] * 8
        assert answer(slow)[:2] == (400, "body_too_slow")


def test_too_many_fetches_at_once(engine, monkeypatch):
    app = simsearch.create_app(engine, allow_urls=True)
    monkeypatch.setattr(app.state.service.fetcher, "_running", fetching.FETCHES)
    assert code(Client(app).search(url="http://93.184.215.14/")) == (429, "too_many_requests")


def test_warnings_of_libraries_are_json(capsys):
    with run._logs():
        logging.getLogger("python_multipart.multipart").warning("Did not find %s", "a\nboundary")
        logging.getLogger("python_multipart.multipart").debug("unsaid")
    lines = capsys.readouterr().err.splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["Did not find a\nboundary"]
