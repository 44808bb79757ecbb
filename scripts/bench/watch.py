#!/usr/bin/env python3
"""`simsearch build --watch`: what it costs while nothing changes, and how soon a new file can be found.

    scripts/bench/watch.py [--idle 60] [--files 50] [--many 10000] [--model NAME|FILE] [--work DIR]

One process follows a folder of 1,000 drawn pictures. CPU time of the process over IDLE seconds without a change; the
time from the end of writing a new file until the index has it, for FILES files one after the other (median, 95 %); and
the same for MANY files that are written at once.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np
from PIL import Image

import simsearch
from simsearch import api
from simsearch.engine import Engine
from simsearch.images.samples import generate


def cpu_seconds(process: int) -> float:
    """User and system time of a process, from /proc."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_for(engine: Engine, count: int, seconds: float = 3600) -> float:
    """Waits until the index has `count` items; the time."""
    end = time.monotonic() + seconds
    while len(engine) < count:
        if time.monotonic() > end:
            raise SystemExit(f"the index has {len(engine)} items, not {count}")
        time.sleep(0.005)
    return time.monotonic()


def draw(path: Path, seed: int) -> None:
    """A picture of 16 x 16 fields of random colours, unlike any other."""
    fields = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(fields).resize((160, 160)).save(path, quality=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idle", type=float, default=60, metavar="S")
    parser.add_argument("--files", type=int, default=50, metavar="N")
    parser.add_argument("--many", type=int, default=10_000, metavar="N")
    parser.add_argument("--model", default="alexnet")
    parser.add_argument("--work", metavar="DIR", help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        photos, index, waiting = Path(work) / "photos", Path(work) / "index", Path(work) / "waiting"
        generate.generate(photos, 1000)
        (photos / "new").mkdir()
        waiting.mkdir()
        for number in range(options.many):
            draw(waiting / f"{number}.jpg", number)
        api.build(photos, index, options.model).close()
        command = [sys.executable, "-m", "simsearch", "build", str(photos), "-i", str(index), "--watch"]
        with (
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process,
            api.open(index) as engine,
        ):
            try:
                draw(photos / "new" / "first.jpg", options.many)
                wait_for(engine, 1001)
                time.sleep(5)
                print(
                    f"simsearch {simsearch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores,"
                    f" load {os.getloadavg()[0]:.1f}; a folder of 1,000 pictures"
                )
                before = cpu_seconds(process.pid)
                time.sleep(options.idle)
                used = cpu_seconds(process.pid) - before
                print(f"idle: {used:.2f} s of CPU time in {options.idle:.0f} s ({used / options.idle:.2%} of a core)")
                delays = []
                for number in range(options.files):
                    draw(photos / "new" / f"one-{number}.jpg", options.many + 1 + number)
                    written = time.monotonic()
                    delays.append(wait_for(engine, 1002 + number) - written)
                    time.sleep(0.3)
                median, late = np.quantile(delays, [0.5, 0.95])
                print(f"one new file: found after {median:.2f} s in the median, {late:.2f} s at 95 %")
                start = time.monotonic()
                shutil.move(waiting, photos / "many")
                done = wait_for(engine, 1001 + options.files + options.many) - start
                print(f"{options.many:,} new files: all found after {done:.1f} s ({options.many / done:,.0f} a second)")
            finally:
                process.terminate()


if __name__ == "__main__":
    main()
