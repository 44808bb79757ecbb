#!/usr/bin/env python3
"""The claim: `kill -9` at any moment of a build loses nothing that was committed.

    scripts/bench/kill.py [--images 2000 | --source DIR] [--model NAME|FILE] [--times 50] [--seed 0]

One build is left alone and timed. Then, each time with a new index: a build is killed by SIGKILL after a random time
within that duration (from the start of its process; the moments follow from the seed), and

- `simsearch verify` must find the index in order, or there must be none yet;
- the same build, run again, must index every image exactly once, with the contents of the undisturbed build;
- what was committed before the kill must keep its id and its row, and none of it may be computed again;
- `verify` must find the result in order.

SIGKILL ends the process, not the machine: what the kernel holds in its page cache survives, so this says nothing about
a power failure. Exits 1 if anything was not as claimed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import simsearch
from simsearch.images.samples import generate

SIMSEARCH = [sys.executable, "-m", "simsearch"]


class Held(NamedTuple):
    """What an index holds of one image."""

    id: int
    digest: str
    row: int


@dataclass(frozen=True)
class Round:
    """What came of one kill. committed, computed: images; problems: what was not as claimed."""

    seconds: float
    outcome: str
    committed: int
    computed: int
    problems: list[str]


def held(index: Path) -> dict[str, Held]:
    """The items of an index by path, read without simsearch."""
    connection = sqlite3.connect(index / "items.sqlite")
    try:
        rows = connection.execute("SELECT path, id, hex(digest), row FROM items").fetchall()
    finally:
        connection.close()
    found = {os.fsdecode(path): Held(*values) for path, *values in rows}
    if len(found) != len(rows):
        raise SystemExit(f"{index}: a path is indexed twice")
    return found


def simsearch_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SIMSEARCH, *arguments], capture_output=True, text=True, check=False)


def build(command: list[str], index: Path) -> dict[str, Any]:
    """One whole build; returns its summary."""
    done = simsearch_run(*command, "-i", str(index), "--format", "json")
    if done.returncode:
        raise SystemExit(f"the build failed with exit code {done.returncode}: {done.stderr.strip()}")
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def kill_once(command: list[str], index: Path, whole: dict[str, Held], seconds: float) -> Round:
    """Kills a new build after so many seconds and checks what is left, and what the next build makes of it."""
    problems = []
    with subprocess.Popen(
        [*SIMSEARCH, *command, "-i", str(index)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        time.sleep(seconds)
        process.kill()
    outcome = "killed" if process.returncode < 0 else "was done"
    before: dict[str, Held] = {}
    if (index / "meta.json").exists():
        verdict = simsearch_run("verify", "-i", str(index))
        if verdict.returncode:
            problems.append(f"verify after the kill: exit {verdict.returncode}, {verdict.stderr.strip()}")
        else:
            before = held(index)
    else:
        outcome = "before the index existed"
    summary = build(command, index)
    after = held(index)
    if {path: item.digest for path, item in after.items()} != {path: item.digest for path, item in whole.items()}:
        problems.append(f"{len(after)} images are indexed, not the {len(whole)} of an undisturbed build")
    lost = sum(after.get(path) != item for path, item in before.items())
    if lost:
        problems.append(f"{lost} committed items have another id, row or content")
    contents = {item.digest for item in before.values()}
    missing = [item.digest for item in whole.values() if item.digest not in contents]
    if not len(set(missing)) <= summary["computed"] <= len(missing):
        problems.append(f"{summary['computed']} images were computed where {len(set(missing))} were missing")
    verdict = simsearch_run("verify", "-i", str(index))
    if verdict.returncode:
        problems.append(f"verify at the end: exit {verdict.returncode}, {verdict.stderr.strip()}")
    return Round(seconds, outcome, len(before), summary["computed"], problems)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000, metavar="N", help="pictures to draw (default: 2000)")
    parser.add_argument("--source", metavar="DIR", help="index these images instead of drawn ones")
    parser.add_argument("--model", default="alexnet", help="a model's name or weights file (default: alexnet)")
    parser.add_argument("--features", default="fc7", help="of the index; see build --features (default: fc7)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--times", type=int, default=50, metavar="N", help="kills (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (default: 0)")
    options = parser.parse_args()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="simsearch-kill-") as folder:
        source, index = Path(options.source or Path(folder) / "source"), Path(folder) / "index"
        if not options.source:
            print(f"drawing {options.images:,} pictures", file=sys.stderr)
            generate.generate(source, options.images)
        command = [
            "build",
            str(source),
            "--model",
            options.model,
            "--features",
            options.features,
            "--device",
            options.device,
        ]
        build(command, Path(folder) / "warm")  # the weights, unpacked, are in the cache from here on
        start = time.perf_counter()
        build(command, index)
        duration = time.perf_counter() - start
        whole = held(index)
        print(
            f"simsearch {simsearch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores,"
            f" load {os.getloadavg()[0]:.1f}, {platform.system()} {platform.release()}"
        )
        print(
            f"model {options.model}, features {options.features}, {len(whole):,} images; undisturbed,"
            f" a build takes {duration:.2f} s"
            f" ({len(whole) / duration:,.0f} images/s, start included); seed {options.seed}\n"
        )
        print(f"{'kill':>4}  {'after':>8}  {'committed':>9}  {'computed then':>13}  ")
        rounds = []
        for number in range(1, options.times + 1):
            shutil.rmtree(index)
            done = kill_once(command, index, whole, moments.uniform(0, duration))
            rounds.append(done)
            verdict = "; ".join(done.problems) or "ok"
            print(
                f"{number:4}  {done.seconds:6.2f} s  {done.committed:9,}  {done.computed:13,}  {verdict}"
                f"{'' if done.outcome == 'killed' else ' (' + done.outcome + ')'}",
                flush=True,
            )
    early = sum(done.outcome == "before the index existed" for done in rounds)
    late = sum(done.outcome == "was done" for done in rounds)
    partly = sum(0 < done.committed < len(whole) for done in rounds)
    wrong = sum(bool(done.problems) for done in rounds)
    print(
        f"\n{len(rounds)} kills: {early} before the index existed, {late} after the build was done;"
        f" {partly} left a part of the images committed; {wrong} not as claimed"
    )
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
