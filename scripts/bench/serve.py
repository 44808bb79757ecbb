#!/usr/bin/env python3
"""A bounded load on the HTTP service, on this machine only: with micro-batching against without, in one run.

    scripts/bench/serve.py IMAGES -i INDEX [--connections 64] [--seconds 60] [-k 6]

IMAGES is a folder of pictures that are sent slightly changed, so that none is known to the index. For each of
--batch-size 1 and 32 a server process is started, loaded from this process over connections that are kept, and stopped
by SIGTERM under load. Printed: what became of the requests, throughput and latencies, the server's memory over time,
the mean size of its batches, and its exit code. An answer is wrong if it is not the one that the same picture had
alone, before the load. Exit code 1 if a request failed, was lost, or answered wrongly.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import os
import platform
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()


Counter = collections.Counter[str]


class RefusedError(Exception):
    """The server takes no connections any more."""


class Client:
    """One kept connection; as little work as possible, since it shares the processors with the server."""

    def __init__(self, port: int, k: int) -> None:
        self.port, self.k = port, k
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def search(self, picture: bytes) -> tuple[int, list[float]]:
        """Status and distances. Raises RefusedError, OSError, IncompleteReadError."""
        body = (
            b'--b\r\nContent-Disposition: form-data; name="k"\r\n\r\n%d\r\n--b\r\nContent-Disposition: form-data;'
            b' name="image"; filename="q.jpg"\r\n\r\n%s\r\n--b--\r\n' % (self.k, picture)
        )
        if self.streams is None:
            try:
                self.streams = await asyncio.open_connection("127.0.0.1", self.port)
            except ConnectionRefusedError as error:
                raise RefusedError from error
        reader, writer = self.streams
        writer.write(
            b"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
        text = await reader.readexactly(length)
        if b"connection: close" in head.lower():
            writer.close()
            self.streams = None
        matches = json.loads(text).get("matches", [])
        return int(head.split(None, 2)[1]), [match["distance"] for match in matches]


def memory(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) >> 10  # type: ignore[index]


async def load(port: int, pictures: list[bytes], options: argparse.Namespace, pid: int) -> tuple[float, Counter]:
    """Searches a second, and what became of the requests."""
    alone = Client(port, options.k)
    right = [(await alone.search(picture))[1] for picture in pictures]
    seen: Counter = collections.Counter()
    times: list[float] = []
    stopped = asyncio.Event()
    chance = random.Random(0)

    async def one() -> None:
        client = Client(port, options.k)
        while True:
            number = chance.randrange(len(pictures))
            picture = pictures[number] + chance.randbytes(8)  # after the end of a JPEG: another hash, the same pixels
            start = time.monotonic()
            try:
                status, distances = await client.search(picture)
            except RefusedError:
                seen["not accepted" if stopped.is_set() else "connection refused"] += 1
                return
            except (OSError, asyncio.IncompleteReadError) as error:
                seen[f"LOST ({type(error).__name__})"] += 1
                return
            same = len(distances) == len(right[number]) and all(
                abs(d - r) < 1e-3 * max(1, r) for d, r in zip(distances, right[number], strict=True)
            )
            seen["ok" if status == 200 and same else "WRONG" if status == 200 else f"status {status}"] += 1
            if not stopped.is_set():
                times.append(time.monotonic() - start)

    begin = time.monotonic()
    tasks = [asyncio.create_task(one()) for _ in range(options.connections)]
    sizes = []
    for share in (0.1, 0.4, 0.7, 1.0):
        await asyncio.sleep(max(0.0, begin + share * options.seconds - time.monotonic()))
        sizes.append(memory(pid))
    seconds = time.monotonic() - begin
    batch = await mean_batch(port)
    stopped.set()
    os.kill(pid, signal.SIGTERM)
    await asyncio.gather(*tasks)
    cuts = statistics.quantiles(times, n=100)
    print(
        f"  {len(times) / seconds:.1f} searches/s, p50 {cuts[49] * 1000:.0f} ms, p99 {cuts[98] * 1000:.0f} ms,"
        f" {batch:.1f} searches a batch; memory {', '.join(map(str, sizes))} MiB after 10, 40, 70 and 100 % of the time"
    )
    print(f"  {dict(seen)}", flush=True)
    return len(times) / seconds, seen


async def mean_batch(port: int) -> float:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    total, count = (
        float(re.search(rf"simsearch_batch_size_{name} (\S+)", text)[1])  # type: ignore[index]
        for name in ("sum", "count")
    )
    return total / count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("-i", "--index", default="indexes/default")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("-k", type=int, default=6)
    options = parser.parse_args()
    files = sorted(p for p in options.images.rglob("*") if p.suffix.lower() in {".jpg", ".jpeg"})
    pictures = [path.read_bytes() for path in random.Random(1).sample(files, min(50, len(files)))]
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f},"
        f" {options.connections} connections, {options.seconds:g} s each"
    )
    rates, failed = [], False
    for size in (1, 32):
        command = [
            sys.executable,
            "-m",
            "simsearch",
            "serve",
            "-i",
            options.index,
            "--port",
            "0",
            "--batch-size",
            str(size),
        ]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr is not None
            line = server.stderr.readline()
            url = re.search(r"http://\S+", line)
            if url is None:
                sys.exit(line)
            drain = subprocess.Popen(["cat"], stdin=server.stderr, stdout=subprocess.DEVNULL)
            print(f"batches of at most {size}:", flush=True)
            rate, seen = asyncio.run(load(urlsplit(url[0]).port or 80, pictures, options, server.pid))
            code = server.wait(60)
            print(f"  exit code after SIGTERM: {code}")
            rates.append(rate)
            failed = failed or bool(code) or bool(seen.keys() - {"ok", "not accepted"})
            drain.kill()
            drain.wait()
    print(f"throughput with micro-batches: {rates[1] / rates[0]:.2f} times that without")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
