#!/usr/bin/env python3
"""A build from a bucket of S3 beside the build of the same pictures on disk; a build that is killed and goes on.

    scripts/bench/remote.py [SOURCE] [--count 600] [--runs 3] [--delay 0.05] [--model NAME|FILE] [--work DIR]

SOURCE is a folder or an archive, by default COUNT drawn pictures. The bucket is moto's server in this process, which
answers after DELAY seconds; each build is a process of its own, and the builds take turns. Reads are counted by the
server. `--whole` takes all pictures of SOURCE.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]
    from in_venv import reexecute

    reexecute()

import simsearch
from simsearch.engine import Engine
from simsearch.images.samples import generate
from simsearch.images.sources import resolve
from tests.helpers import s3_server
from tests.helpers.s3_server import BUCKET, S3Server

PREFIX = "pictures"


def upload(server: S3Server, source: str, folder: Path, count: int | None) -> int:
    """Copies pictures of a source into a folder and the bucket; returns their number."""
    opened, client = resolve.resolve(source), s3_server.client(server)
    client.create_bucket(Bucket=BUCKET)
    entries = opened.listing().entries
    step = 1 if count is None else max(1, len(entries) // count)
    chosen = entries[::step][:count]
    for entry in chosen:
        data = opened.read(entry.path)
        path = folder / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        client.put_object(Bucket=BUCKET, Key=f"{PREFIX}/{entry.path}", Body=data)
    return len(chosen)


def command(source: str, index: Path, model: str) -> list[str]:
    return [sys.executable, "-m", "simsearch", "build", source, "-i", str(index), "--model", model]


def build(source: str, index: Path, model: str) -> float:
    """Builds in a process of its own; returns the seconds from its start to its end."""
    start = time.monotonic()
    done = subprocess.run(command(source, index, model), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.monotonic() - start


def interrupted(server: S3Server, source: str, index: Path, model: str, total: int) -> None:
    """Kills a build after half of the pictures, lets another one go on, and counts the reads of both."""
    server.forget()
    with subprocess.Popen(command(source, index, model), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        while sum(server.gets.values()) < total // 2:
            time.sleep(0.005)
        first.send_signal(signal.SIGKILL)
    time.sleep(1)
    before = dict(server.gets)
    with Engine(index) as engine:
        committed = {f"{PREFIX}/{item.relative}" for item in engine.items()}
    server.forget()
    build(source, index, model)
    again = sum(key in before for key in server.gets)
    print(
        f"killed after {len(before):,} reads, {len(committed):,} items committed; the next build read"
        f" {sum(server.gets.values()):,}, each {max(server.gets.values())} time(s):"
        f" {len(committed & set(server.gets)):,} of those committed, {again:,} of those read but not committed"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?")
    parser.add_argument("--count", type=int, default=600, metavar="N")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--runs", type=int, default=3, metavar="N")
    parser.add_argument("--delay", type=float, default=0.05, metavar="S")
    parser.add_argument("--model", default="alexnet")
    parser.add_argument("--work", metavar="DIR", help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    server = S3Server()
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        os.environ |= {
            "AWS_ENDPOINT_URL": server.url,
            "AWS_ACCESS_KEY_ID": "reader",
            "AWS_SECRET_ACCESS_KEY": "reader",
            "AWS_DEFAULT_REGION": "us-east-1",
            "SIMSEARCH_CACHE": str(Path(work) / "cache"),
        }
        folder, place = Path(work) / "pictures", f"s3://{BUCKET}/{PREFIX}"
        source = options.source
        if source is None:
            source = str(Path(work) / "drawn")
            generate.generate(Path(source), options.count)
        total = upload(server, source, folder, None if options.whole else options.count)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(
            f"simsearch {simsearch.__version__}, Python {platform.python_version()},"
            f" {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores, shared with the server,"
            f" load {os.getloadavg()[0]:.1f}; {total:,} pictures, {size / total / 1024:.0f} KiB each;"
            f" median of {options.runs}, the start of the process included"
        )
        times: dict[str, list[float]] = {}
        served: dict[str, list[float]] = {}
        for run in range(options.runs):
            for name, delay, where in (
                ("folder", 0.0, str(folder)),
                ("bucket", 0.0, place),
                (f"bucket, {1000 * options.delay:.0f} ms a request", options.delay, place),
            ):
                server.delay = delay
                server.forget()
                index = Path(work) / f"{name}-{run}"
                before = time.process_time()
                times.setdefault(name, []).append(build(where, index, options.model))
                served.setdefault(name, []).append(time.process_time() - before)
                if where == place:
                    assert sum(server.gets.values()) == len(server.gets) == total, "an object was read twice"
                    most = server.most_at_once
        for name, seconds in times.items():
            median = statistics.median(seconds)
            cpu = statistics.median(served[name])
            print(f"{name}: {total / median:.0f} images/s ({median:.1f} s; CPU time of the server in it: {cpu:.1f} s)")
        print(f"each of the {total:,} objects was read once; at most {most} requests at once")
        server.delay = 0.0
        server.forget()
        again = build(place, Path(work) / "bucket-0", options.model)
        print(
            f"the same build again: {again:.1f} s, {server.listings} listings, {sum(server.gets.values())} objects read"
        )
        server.delay = options.delay
        interrupted(server, place, Path(work) / "killed", options.model, total)
    server.stop()


if __name__ == "__main__":
    main()
