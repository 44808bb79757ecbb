#!/usr/bin/env python3
"""How exact search grows: its time, its memory and what its codes take to make, from a thousand to a million items.

    scripts/bench/growth.py --index INDEX [--sizes 1000 10000 100000 1000000] [--work indexes/bench] [--plot FILE.png]

The features are those of INDEX, then mixtures of them (`vectors.enlarged`). Half of the queries are features of INDEX
that are left out of the others, half are these disturbed by noise. Each size is filled, gets its codes, and is searched
in a process of its own, with its features in the system's cache. Results are kept in the work folder and not measured
again; the indexes are removed unless --keep. A million items take 9 GB on disk.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np
import vectors

import simsearch
from simsearch.common.float16 import to_float32
from simsearch.indexing import sketches
from simsearch.storage.lock import writer_lock

K = 10
STEPS = ("fill", "codes", "search")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, required=True, help="the index to take the features of")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--work", type=Path, default=Path("indexes/bench"))
    parser.add_argument("--queries", type=int, default=60)
    parser.add_argument("--keep", action="store_true", help="leave the indexes")
    parser.add_argument("--plot", type=Path, help="a .png of the times against the number of items")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        name, size = options.step
        print(json.dumps(globals()[name](options, options.work / f"growth-{size}", int(size))))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    results = {size: measured(options, size) for size in options.sizes}
    print(
        f"{'items':>9} {'p50 ms':>8} {'p95 ms':>8} {'scan ms':>8} {'open s':>7} {'resident MB':>11} {'codes s':>8} MB"
    )
    for size, facts in results.items():
        if "p50" in facts:
            keys = ("p50", "p95", "scan", "open_s", "resident_mb", "codes_s", "disk_mb")
            print("  ".join([f"{size:11,}", *(f"{facts[key]:11.2f}" for key in keys)]))
    if options.plot:
        from simsearch.reports import charts

        lines = {
            name: [(np.log10(size), np.log10(facts[key])) for size, facts in results.items() if facts.get(key)]
            for name, key in (("exact search, ms", "p50"), ("scan, ms", "scan"), ("making the codes, s", "codes_s"))
        }
        title = "exact search by the number of items"
        options.plot.write_bytes(
            charts.png(charts.plot(lines, title, "log10 of the items", "log10 of the time", width=900, height=560))
        )


def measured(options: argparse.Namespace, size: int) -> dict[str, float]:
    """Runs the steps that have not been run."""
    path = options.work / f"growth-{size}.json"
    facts = json.loads(path.read_text()) if path.exists() else {}
    for step in options.steps:
        if step not in facts.get("steps", []):
            command = [sys.executable, sys.argv[0], "--index", str(options.index), "--work", str(options.work)]
            command += ["--queries", str(options.queries), "--step", step, str(size)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            facts |= json.loads(done.stdout.splitlines()[-1])
            facts["steps"] = [*facts.get("steps", []), step]
            path.write_text(json.dumps(facts))
    if not options.keep:
        shutil.rmtree(options.work / f"growth-{size}", ignore_errors=True)
    return facts


def asked(options: argparse.Namespace, engine: simsearch.Engine) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows left out and the queries, (nq, D)."""
    random = np.random.default_rng(3)
    rows = random.choice(vectors.live_rows(engine), options.queries, replace=False)
    queries = to_float32(engine.shards.read(rows))
    queries[1::2] += random.normal(0, 0.1 * queries.std(), queries[1::2].shape).astype(np.float32)
    return rows, queries


def fill(options: argparse.Namespace, path: Path, size: int) -> dict[str, float]:
    shutil.rmtree(path, ignore_errors=True)
    clock = time.perf_counter()
    with simsearch.open(options.index, device="cpu") as engine:
        left_out, _ = asked(options, engine)
        vectors.fill(path, engine, vectors.enlarged(engine, left_out, size), codes=False)
    return {"fill_s": time.perf_counter() - clock}


def codes(options: argparse.Namespace, path: Path, size: int) -> dict[str, float]:
    with simsearch.open(path, device="cpu") as engine, writer_lock(path):
        clock = time.perf_counter()
        sketches.update(engine.index)
        took = time.perf_counter() - clock
        made = bool(engine.info()["search"]["exact"]["proved"])
    return {"codes_s": took if made else 0.0, "codes_peak_mb": vectors.memory()["peak"]}


def warm(path: Path) -> None:
    """Reads all features, so that they are in the system's cache."""
    for file in sorted((path / "features").iterdir()):
        with file.open("rb") as stream:
            while stream.read(1 << 24):
                pass


def search(options: argparse.Namespace, path: Path, size: int) -> dict[str, float]:
    with simsearch.open(options.index, device="cpu") as engine:
        _, queries = asked(options, engine)
    warm(path)
    before = vectors.memory()["all"]
    clock = time.perf_counter()
    with simsearch.open(path, device="cpu") as engine:
        engine.neighbours(queries[:1], K, exact=True)
        opened = time.perf_counter() - clock
        took = []
        for number in range(-3, len(queries)):
            clock = time.perf_counter()
            engine.neighbours(queries[max(number, 0)][None], K, exact=True)
            took.append(1000 * (time.perf_counter() - clock))
        resident = vectors.memory()["all"] - before
        facts = engine.info()["search"]["exact"]
        with engine.reading() as reader:
            flat = engine.snapshot(reader).flat
            scans = []
            for query in queries[:8]:
                clock = time.perf_counter()
                flat.scan(query[None], K, None)  # type: ignore[attr-defined]
                scans.append(1000 * (time.perf_counter() - clock))
    p50, p95 = np.percentile(took[3:], [50, 95])
    disk = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6
    return {
        "p50": float(p50),
        "p95": float(p95),
        "scan": float(np.median(scans[2:])),
        "open_s": opened,
        "resident_mb": resident,
        "disk_mb": disk,
        "excluded": facts.get("excluded") or 0.0,
    }


if __name__ == "__main__":
    main()
