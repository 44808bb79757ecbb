#!/usr/bin/env python3
"""How long searches take while the service compares all pictures for duplicates, or draws a map, beside idle times.

    scripts/bench/beside.py -i INDEX [--seconds 20] [--work duplicates] [--distance D]

A server process is started. One client searches by random items and, in turn, by pictures of the index that are sent
with bytes after their end, so that they have to be decoded and computed; one search at a time. First for --seconds
alone, then while another client has asked for the work and polls, as the page does, until it is done or --limit
seconds are over. Printed: median and 95th percentile of both kinds of searches, their ratios to the idle ones, and the
seconds that the work took beside the searches. Run it on as many cores as a service would have.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

Times = dict[str, list[float]]


class Client:
    """One kept connection."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def ask(self, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> tuple[int, bytes]:
        """Status and body of an answer."""
        self.connection.request(method, path, body, {"Content-Type": kind} if body else {})
        answer = self.connection.getresponse()
        return answer.status, answer.read()


def search(client: Client, number: int, picture: bytes | None, k: int) -> None:
    """Searches by an item, or by a picture. Raises SystemExit if that fails."""
    if picture is None:
        status, text = client.ask("POST", "/v1/search", json.dumps({"id": number, "k": k}).encode())
    else:
        form = (
            b'--b\r\nContent-Disposition: form-data; name="k"\r\n\r\n%d\r\n--b\r\nContent-Disposition: form-data;'
            b' name="image"; filename="q.jpg"\r\n\r\n%s\r\n--b--\r\n' % (k, picture + os.urandom(8))
        )
        status, text = client.ask("POST", "/v1/search", form, "multipart/form-data; boundary=b")
    if status != 200:
        raise SystemExit(f"a search was answered with {status}: {text[:200]!r}")


def measure(port: int, numbers: list[int], pictures: list[bytes], k: int, done: threading.Event) -> Times:
    """Searches one after the other until `done`; the seconds of each, by kind."""
    client, chance = Client(port), random.Random(0)
    times: Times = {"by id": [], "by picture": []}
    for kind in itertools.cycle(times):
        picture = chance.choice(pictures) if kind == "by picture" else None
        number = chance.choice(numbers)
        start = time.perf_counter()
        search(client, number, picture, k)
        times[kind].append(time.perf_counter() - start)
        if done.is_set():
            return times
    raise AssertionError


def work(port: int, path: str, done: threading.Event, limit: float) -> str:
    """Asks for the work and polls until it is done; says how it ended."""
    client, start = Client(port), time.perf_counter()
    text = b""
    try:
        while time.perf_counter() - start < limit:
            status, text = client.ask("GET", path)
            if status != 202:
                return f"answered with {status} after {time.perf_counter() - start:.1f} s"
            time.sleep(0.7)
        return f"not done after {limit:.0f} s: {text.decode()}"
    finally:
        done.set()


def cuts(times: list[float]) -> tuple[float, float]:
    """Median and 95th percentile in ms."""
    ordered = sorted(times)
    return 1000 * statistics.median(ordered), 1000 * ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--index", default="indexes/default")
    parser.add_argument("--seconds", type=float, default=20, help="idle (default: 20)")
    parser.add_argument("--limit", type=float, default=120, help="longest time for the work (default: 120)")
    parser.add_argument("--work", choices=("duplicates", "map"), default="duplicates")
    parser.add_argument("--distance", type=float, help="largest distance of duplicates (default: measured)")
    parser.add_argument("-k", type=int, default=6)
    options = parser.parse_args()
    path = "/v1/map?again=true" if options.work == "map" else "/v1/duplicates"
    path += f"?max_distance={options.distance}" if options.distance is not None else ""
    command = [sys.executable, "-m", "simsearch", "serve", "-i", options.index, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        line = server.stderr.readline()
        if (url := re.search(r"http://\S+", line)) is None:
            sys.exit(line)
        drain = subprocess.Popen(["cat"], stdin=server.stderr, stdout=subprocess.DEVNULL)
        try:
            port = urlsplit(url[0]).port or 80
            client = Client(port)
            items = json.loads(client.ask("GET", "/v1/items?count=50")[1])
            numbers = [item["id"] for item in items["items"]]
            pictures = [client.ask("GET", f"/v1/items/{number}/image")[1] for number in numbers]
            print(
                f"Python {platform.python_version()}, {len(os.sched_getaffinity(0))} cores,"
                f" load {os.getloadavg()[0]:.1f}; {items['total']:,} items, searches one at a time"
            )
            for number, picture in zip(numbers[:5], pictures, strict=False):  # warm
                search(client, number, picture, options.k)
            done = threading.Event()
            threading.Timer(options.seconds, done.set).start()
            idle = measure(port, numbers, pictures, options.k, done)
            done = threading.Event()
            ended: list[str] = []
            worker = threading.Thread(target=lambda: ended.append(work(port, path, done, options.limit)))
            worker.start()
            busy = measure(port, numbers, pictures, options.k, done)
            worker.join()
            for kind in idle:
                (p50, p95), (b50, b95) = cuts(idle[kind]), cuts(busy[kind])
                print(
                    f"{kind:11} idle p50 {p50:7.1f} p95 {p95:7.1f} ms ({len(idle[kind])});"
                    f" beside {options.work} p50 {b50:7.1f} p95 {b95:7.1f} ms ({len(busy[kind])}):"
                    f" {b50 / p50:.2f} and {b95 / p95:.2f} times"
                )
            print(f"{options.work}: {ended[0]}")
        finally:
            server.terminate()
            server.wait(60)
            drain.wait()


if __name__ == "__main__":
    main()
