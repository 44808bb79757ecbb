#!/usr/bin/env python3
"""Attacks a service on loopback while ordinary clients use it, and checks that they notice nothing.

    scripts/bench/attack.py [--seconds 20] [--memory 1024] [--clients 64] [--readers 250] [--silent 600] [--bombs 20]
                            [--drips 8]

Draws sixty pictures and one of 17 MB, builds an index and serves it with --memory and --allow-urls. For --seconds:
--clients search by a picture of their own and look at the thumbnails of the matches, once a second each; --bombs send
pictures of 63 megapixels in a few KB, some with crop and flip, one after the other; --readers fetch the picture of
17 MB at 4 KiB a second; --silent connections send half a head, and again when they are closed. Then --drips searches
name URLs of servers that drip headers, and the service gets SIGTERM.
Checked: no ordinary request fails, their 99th percentile is under 1 s, the service's memory (without mapped files)
stays below --memory, and it has ended 5 s after SIGTERM. Exit code 1 if not. The limit of 1 s is for two quiet cores.
Only loopback addresses are used; the service under test is made to take them for public ones.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np
from PIL import Image

SERVE = """
import sys
from simsearch.images import urls
from simsearch.server import fetching

def fetch(url, largest, seconds, *, public_only, **more):
    more |= {"permitted": lambda address: address.is_loopback, "any_port": True}
    return urls.fetch_public(url, largest, seconds, **more)

fetching.fetch = fetch
from simsearch.__main__ import run
sys.argv[0] = "simsearch"
run()
"""
SIDE = 7930  # 62.9 megapixels


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {
        "seconds": 20,
        "memory": 1024,
        "clients": 64,
        "readers": 250,
        "silent": 600,
        "bombs": 20,
        "drips": 8,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{len(os.sched_getaffinity(0))} cores, load {load}; {vars(options)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        simsearch = [sys.executable, "-m", "simsearch"]
        subprocess.run([*simsearch, "sample", f"{folder}/drawn", "-n", "60"], check=True, stderr=subprocess.DEVNULL)
        noise = np.random.default_rng(0).integers(0, 256, (2400, 2400, 3), dtype=np.uint8)
        Image.fromarray(noise).save(f"{folder}/drawn/large.png", compress_level=0)
        index = f"{folder}/index"
        subprocess.run([*simsearch, "build", f"{folder}/drawn", "-i", index], check=True, stderr=subprocess.DEVNULL)
        arguments = ["serve", "-i", index, "--port", "0", "--memory", str(options.memory), "--allow-urls"]
        with subprocess.Popen([sys.executable, "-c", SERVE, *arguments], stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr is not None
            found = re.search(r"http://127.0.0.1:(\d+)", server.stderr.readline())
            if found is None:
                sys.exit(f"error: the service did not start\n{server.stderr.read()}")
            log: list[str] = []
            threading.Thread(target=log.extend, args=(server.stderr,), daemon=True).start()
            try:
                return attack(server, int(found[1]), Path(folder) / "drawn", options, log)
            finally:
                server.kill()


def attack(server: subprocess.Popen[str], port: int, drawn: Path, options: argparse.Namespace, log: list[str]) -> int:
    """Runs the attack; prints what it found and returns the exit code."""
    memory = Memory(server.pid)
    print(f"memory before the first request: {memory.text()}", flush=True)
    pictures = [path.read_bytes() for path in sorted(drawn.glob("*/*"))]
    context = multiprocessing.get_context("spawn")
    results: Any = context.SimpleQueue()
    until = time.time() + 3 + options.seconds
    attackers = [
        context.Process(target=work, args=(results, "readers", port, options.readers, until + 30, []), daemon=True),
        context.Process(target=work, args=(results, "silent", port, options.silent, until, []), daemon=True),
        context.Process(target=work, args=(results, "bombs", port, options.bombs, until, bombs()), daemon=True),
    ]
    ordinary = context.Process(target=work, args=(results, "clients", port, options.clients, until, pictures))
    for process in attackers:
        process.start()
    time.sleep(3)
    ordinary.start()
    ordinary.join()
    found = {}
    while not {"clients", "bombs"} <= found.keys():
        name, counts, seconds = results.get()
        found[name] = counts, seconds
    searches, seconds = found["clients"]
    failed = sum(count for status, count in searches.items() if status not in {200, 304})
    p50, p99 = (1000 * float(np.quantile(seconds, q)) for q in (0.5, 0.99))
    print(f"ordinary requests: {len(seconds):,}, {failed} failed {dict(searches)}; p50 {p50:.0f} ms, p99 {p99:.0f} ms")
    print(f"bombs: {sum(found['bombs'][0].values()):,}, {dict(found['bombs'][0])}")
    print(f"memory: {memory.text()}; promised {options.memory} MiB", flush=True)
    took = stop_under_drips(server, port, options.drips)
    print(f"SIGTERM with {options.drips} dripping URLs and {options.readers} slow readers: ended after {took:.1f} s")
    tracebacks = sum("traceback" in line for line in log)
    odd = [line for line in log if not line.startswith("{")]
    print(f"log: {len(log):,} lines, {tracebacks} tracebacks, {len(odd)} lines that are not JSON")
    print("".join([line for line in log if "traceback" in line][:2] + odd[:3]), end="")
    for process in attackers:
        process.kill()
    good = not failed and p99 < 1000 and memory.peak < options.memory << 20 and took < 5 and not tracebacks and not odd
    print("passed" if good else "FAILED")
    return 0 if good else 1


class Memory(threading.Thread):
    """Samples the memory of a process: `peak` in bytes, without mapped files."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.path, self.peak, self.peak_mapped = Path(f"/proc/{pid}/status"), 0, 0
        self.sample()
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError, KeyError):
            while True:
                self.sample()
                time.sleep(0.02)

    def sample(self) -> None:
        lines = dict(line.split(":", 1) for line in self.path.read_text().splitlines())
        sizes = {name: int(lines[name].split()[0]) << 10 for name in ("RssAnon", "RssShmem", "VmRSS")}
        self.peak = max(self.peak, sizes["RssAnon"] + sizes["RssShmem"])
        self.peak_mapped = max(self.peak_mapped, sizes["VmRSS"])

    def text(self) -> str:
        return f"at most {self.peak >> 20} MiB ({self.peak_mapped >> 20} with mapped files)"


def bombs() -> list[bytes]:
    """Bodies of searches by pictures of 63 megapixels, in several formats, some with crop and flip."""
    files = []
    for mode, form, more in (("1", "PNG", {}), ("P", "PNG", {"transparency": 0}), ("RGB", "WEBP", {"lossless": True})):
        buffer = io.BytesIO()
        Image.new(mode, (SIDE, SIDE)).save(buffer, form, **more)
        files.append(buffer.getvalue())
    return [form_body(file, **more) for file in files for more in ({}, {"flip": "true"}, {"crop": "5,5,7000,7000"})]


def form_body(file: bytes, **fields: str) -> bytes:
    parts = [f'--b\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{text}\r\n' for name, text in fields.items()]
    head = "".join(parts) + '--b\r\ncontent-disposition: form-data; name="image"; filename="q"\r\n\r\n'
    return head.encode() + file + b"\r\n--b--\r\n"


def work(results: Any, name: str, port: int, count: int, until: float, bodies: list[bytes]) -> None:
    """Runs `count` clients of a kind in this process, until a time, and reports their statuses and seconds."""
    statuses: Counter[Any] = Counter()
    seconds: list[float] = []

    async def go() -> None:
        client = {"clients": ordinary_client, "bombs": bomber, "readers": slow_reader, "silent": silent}[name]
        await asyncio.gather(*(client(port, number, until, bodies, statuses, seconds) for number in range(count)))

    asyncio.run(go())
    results.put((name, statuses, seconds))


class Connection:
    """A connection that is kept open from one request to the next."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        if self.streams is None:
            self.streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.streams
        kind = "content-type: multipart/form-data; boundary=b\r\n" if body else ""
        head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\n{kind}content-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        try:
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = re.search(rb"content-length: (\d+)", answer)
            data = await reader.readexactly(int(length[1])) if length else b""
        except (OSError, asyncio.IncompleteReadError):
            self.streams = None
            raise
        if b"connection: close" in answer:
            self.streams = None
        return int(answer.split()[1]), data


async def ordinary_client(
    port: int, number: int, until: float, pictures: list[bytes], statuses: Counter[Any], seconds: list[float]
) -> None:
    connection = Connection(port)

    async def timed(method: str, path: str, body: bytes = b"") -> bytes:
        start = time.perf_counter()
        status: int | str
        try:
            status, data = await connection.request(method, path, body)
        except (OSError, asyncio.IncompleteReadError) as error:
            status, data = type(error).__name__, b""
        if isinstance(status, int) and status >= 400:
            status = f"{status} {json.loads(data)['error']['code']}"
            data = b""
        seconds.append(time.perf_counter() - start)
        statuses[status] += 1
        return data

    await asyncio.sleep(number / 64)
    while time.time() < until:
        start = time.perf_counter()
        data = await timed("POST", "/v1/search", form_body(pictures[number % len(pictures)], k="3", flip="true"))
        for match in json.loads(data or b"{}").get("matches", []):
            await timed("GET", f"/v1/items/{match['id']}/thumbnail")
        await asyncio.sleep(max(0.0, 1 - (time.perf_counter() - start)))


async def bomber(
    port: int, number: int, until: float, bodies: list[bytes], statuses: Counter[Any], seconds: list[float]
) -> None:
    connection = Connection(port)
    while time.time() < until:
        try:
            status, _ = await connection.request("POST", "/v1/search", bodies[number % len(bodies)])
            statuses[status] += 1
        except (OSError, asyncio.IncompleteReadError) as error:
            statuses[type(error).__name__] += 1
        number += 1


async def slow_reader(
    port: int, number: int, until: float, bodies: list[bytes], statuses: Counter[Any], seconds: list[float]
) -> None:
    while time.time() < until:
        with socket.socket() as connection, contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(connection, ("127.0.0.1", port))
            await loop.sock_sendall(connection, b"GET /v1/items/61/image HTTP/1.1\r\nhost: localhost\r\n\r\n")
            while time.time() < until and await loop.sock_recv(connection, 4096):
                await asyncio.sleep(1)
        await asyncio.sleep(1)


async def silent(
    port: int, number: int, until: float, bodies: list[bytes], statuses: Counter[Any], seconds: list[float]
) -> None:
    while time.time() < until:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HT")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(), until - time.time() + 1)
            writer.close()
        await asyncio.sleep(1)


def stop_under_drips(server: subprocess.Popen[str], port: int, count: int) -> float:
    """Searches by URLs of a server that drips headers, sends SIGTERM, and returns the seconds until the end."""
    dripping = threading.Semaphore(0)

    def drip(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.sendall(b"HTTP/1.1 200 OK\r\n")
            dripping.release()
            while True:
                client.sendall(b"X: y\r\n")
                time.sleep(0.1)

    def accept(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=drip, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        body = json.dumps({"url": f"http://127.0.0.1:{listener.getsockname()[1]}/"}).encode()
        head = "POST /v1/search HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        head += f"content-length: {len(body)}"
        for _ in range(count):
            searching = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            searching.sendall(head.encode() + b"\r\n\r\n" + body)
        for _ in range(count):
            dripping.acquire(timeout=10)
        start = time.perf_counter()
        server.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(60)
        return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
