"""The service under load, from other processes: indexes that are swapped, and a stop. Small; `scripts/bench/serve.py` is not."""

import asyncio
import collections
import shutil
import signal
import time

import httpx
import numpy as np
import pytest

import simsearch
from tests.helpers.live import process
from tests.helpers.pictures import draw


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Forty pictures in two folders."""
    folder = tmp_path_factory.mktemp("load")
    for number in range(40):
        draw(folder / ("first" if number < 24 else "second") / f"{number}.png", number)
    return folder


async def ask(client, url, picture, k):
    found = await client.post(url + "v1/search", files={"image": ("q.png", picture)}, data={"k": str(k)})
    return found.status_code, tuple((m["id"], m["distance"]) for m in found.json().get("matches", ()))


def test_index_is_swapped_under_load(pictures, tiny_weights, tmp_path):
    """Twenty times another index takes the place of the one served: no answer fails, each is of one of the two."""
    model, live = str(tiny_weights), tmp_path / "live"
    query = draw(tmp_path / "query.png", 99).read_bytes()
    right = set()
    for name in ("first", "second"):
        with simsearch.build(pictures / name, tmp_path / name, model=model) as engine:
            right.add(tuple((m.id, m.distance) for m in engine.search(query, 5)))
    assert len(right) == 2
    shutil.copytree(tmp_path / "first", live)
    seen: collections.Counter[tuple[int, object]] = collections.Counter()

    async def load(url):
        done = asyncio.Event()

        async def one(client):
            while not done.is_set():
                seen[await ask(client, url, query, 5)] += 1

        async def swaps():
            for turn in range(20):
                with simsearch.build(pictures / ("second", "first")[turn % 2], tmp_path / "next", model=model):
                    pass
                live.rename(tmp_path / "old")  # for a moment there is none
                (tmp_path / "next").rename(live)
                shutil.rmtree(tmp_path / "old")
                await asyncio.sleep(0.05)
            done.set()

        async with httpx.AsyncClient(timeout=30) as client:
            await asyncio.gather(*(one(client) for _ in range(6)), swaps())
            metrics = (await client.get(url + "metrics")).text
        assert 'simsearch_reloads_total{index="live"}' in metrics

    with process("-i", live) as (server, url, log):
        asyncio.run(load(url))
        assert server.poll() is None
    assert {status for status, _ in seen} == {200}, seen
    assert {answer for _, answer in seen} == right, seen
    assert not [line for line in log if "traceback" in line]


def test_a_stop_under_load_loses_nothing(pictures, tiny_weights, tmp_path):
    """After SIGTERM, what was accepted is answered; then connections are refused, never cut; the exit code is 0."""
    with simsearch.build(pictures / "first", tmp_path / "index", model=str(tiny_weights)):
        pass
    random = np.random.default_rng(0)
    outcomes: collections.Counter[str] = collections.Counter()

    async def load(server, url):
        async def one():
            async with httpx.AsyncClient(timeout=30) as client:
                while True:
                    picture = draw(
                        tmp_path / f"{random.integers(1 << 40)}.png", int(random.integers(1 << 40))
                    ).read_bytes()
                    try:
                        status, matches = await ask(client, url, picture, 3)
                        outcomes["ok" if status == 200 and len(matches) == 3 else f"status {status}"] += 1
                    except httpx.ConnectError:
                        return
                    except httpx.HTTPError as error:
                        outcomes[f"lost: {type(error).__name__}"] += 1
                        return

        tasks = [asyncio.create_task(one()) for _ in range(8)]
        await asyncio.sleep(1.0)
        server.send_signal(signal.SIGTERM)
        await asyncio.gather(*tasks)

    with process("-i", tmp_path / "index") as (server, url, _):
        asyncio.run(load(server, url))
        assert server.wait(30) == 0
    assert set(outcomes) == {"ok"}, outcomes


def test_request_being_sent_at_stop_is_answered(pictures, tiny_weights, tmp_path):
    import socket
    from urllib.parse import urlsplit

    with simsearch.build(pictures / "first", tmp_path / "index", model=str(tiny_weights)):
        pass
    with process("-i", tmp_path / "index") as (server, url, _):
        port = urlsplit(url).port
        body = b'{"id": 1, "k": 2}'
        head = f"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(head.encode() + body[:5])
            time.sleep(0.3)
            server.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            connection.sendall(body[5:])
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        assert server.wait(30) == 0
