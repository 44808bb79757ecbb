#!/usr/bin/env python3
"""Recall@10 against queries/s of simsearch and its peers on the same real features, in the manner of ann-benchmarks.

    scripts/bench/search.py --data DATA | --index INDEX [--work indexes/bench] [--items N] [--queries 500]
                            [--pictures SOURCE] [--methods NAME ...] [--limit 900] [--plot search.png]

The vectors are the features of all pictures in the data folder, or of an index, but the queries, which are in no index.
With --pictures, the queries are pictures of that source, which should be of other kinds. Each method
builds in one process and searches in another, which loads what was built. Only the query is timed; distances are
computed again outside, and an answer counts if it is as near as the tenth true neighbour. Results are kept in the work
folder by method and size, and not measured again: delete them to repeat. Peers: see `peers.py`; they are optional
(pip install '.[bench]'; autofaiss without its dependencies, which replace FAISS), and missing ones are named.

resident: what the searching process holds when it is done, beyond what it held with its libraries and the queries
before loading. simsearch reads the rows that it ranks from files, through the system's cache, which is in nobody's
resident memory: its bytes on disk include them. peak: the building process's, all in all.
"""

from __future__ import annotations

import argparse
import json
import os
import re
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
import peers
import vectors

import simsearch
from simsearch.common.float16 import to_float32
from simsearch.images.sources.resolve import resolve

K = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of data sets")
    parser.add_argument("--index", type=Path, help="an index to take the features of, instead of --data")
    parser.add_argument("--pictures", help="where the queries come from, instead of the index")
    parser.add_argument("--batch", type=int, default=200, help="queries at once")
    parser.add_argument("--work", type=Path, default=Path("indexes/bench"))
    parser.add_argument("--items", type=int, help="largest number of items, instead of all")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--methods", nargs="+", choices=list(peers.METHODS), default=list(peers.METHODS))
    parser.add_argument("--limit", type=float, default=900, help="seconds to build, at most")
    parser.add_argument("--recall", type=float, default=0.99, help="that the second table compares at")
    parser.add_argument("--plot", type=Path, help="a .png of recall against queries/s")
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        step, method, folder = options.step
        if step == "build":
            build(peers.METHODS[method], Path(folder).resolve(), options.work)
        else:
            search(peers.METHODS[method], Path(folder).resolve(), options.work, options.batch)
        return
    if options.data is None and options.index is None:
        parser.error("--data DATA or --index INDEX is needed")
    options.work = prepare(options)
    results = {}
    for name in options.methods:
        path = options.work / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.json"
        if (reason := peers.absent(peers.METHODS[name])) is not None:
            print(f"{name}: absent ({reason})")
            continue
        if not path.exists():
            path.write_text(json.dumps(measured(name, options)))
        results[name] = json.loads(path.read_text())
    report(results, options)


def prepare(options: argparse.Namespace) -> Path:
    """The folder of an index without the queries, the same vectors as float32, the queries, and the truth."""
    known = options.index is not None
    with simsearch.open(options.index) if known else vectors.real(options.data, options.work / "real") as real:
        rows = vectors.live_rows(real)
        random = np.random.default_rng(5)
        shuffled = random.permutation(rows)
        outside = options.pictures is not None
        held = shuffled[: 0 if outside else options.queries]
        kept = np.sort(shuffled[len(held) :][: options.items])
        folder = options.work / f"search-{len(kept)}"
        if not (folder / "truth.npy").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            blocks = (real.shards.read(kept[n : n + vectors.BLOCK]) for n in range(0, len(kept), vectors.BLOCK))
            vectors.fill(folder / "index", real, blocks)
            shape = (len(kept), real.meta.dimension)
            base = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float32, shape)
            for start in range(0, len(kept), vectors.BLOCK):
                base[start : start + vectors.BLOCK] = to_float32(real.shards.read(kept[start : start + vectors.BLOCK]))
            base.flush()
            queries = pictures(real, options) if outside else to_float32(real.shards.read(held))
            np.save(folder / "queries.npy", queries)
            with simsearch.open(folder / "index", device="cpu") as engine:
                np.save(folder / "truth.npy", engine.neighbours(queries, K, exact=True)[1][:, -1])
    return folder


def pictures(engine: simsearch.Engine, options: argparse.Namespace) -> np.ndarray:
    """The features of some pictures of a source, drawn at random, (nq, D)."""
    source = resolve(options.pictures)
    entries = source.listing().entries
    chosen = np.random.default_rng(5).choice(len(entries), min(options.queries, len(entries)), replace=False)
    return engine.features([source.read(entries[number].path) for number in np.sort(chosen)])


def measured(name: str, options: argparse.Namespace) -> dict:
    """Builds and searches, each in its own process."""
    own = isinstance(peers.METHODS[name], peers.Simsearch)
    folder = options.work / "index" if own else options.work / "peer"
    if not own:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    facts: dict = {}
    for step in ("build", "search"):
        if step == "build" and name == "simsearch, matches" and (folder / "derived").is_dir():
            continue  # the same structure
        command = [sys.executable, sys.argv[0], "--step", step, name, str(folder)]
        command += ["--work", str(options.work), "--batch", str(options.batch)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=options.limit)
        except subprocess.TimeoutExpired:
            facts["problem"] = f"{step}: not done after {options.limit:.0f} s"
            break
        if done.returncode:
            facts["problem"] = f"{step}: {(done.stderr.strip().splitlines() or [f'died ({done.returncode})'])[-1]}"
            break
        facts |= json.loads(done.stdout.splitlines()[-1])
    if not own:
        shutil.rmtree(folder)
    print(f"{name}: {facts.get('problem', 'measured')}", flush=True)
    return facts


def build(method: peers.Method, folder: Path, work: Path) -> None:
    base = np.load(work / "vectors.npy", mmap_mode="r")
    peers.absent(method)  # imports it
    clock = time.perf_counter()
    method.build(base, folder)
    print(json.dumps({"build_s": time.perf_counter() - clock, "peak_mb": vectors.memory()["peak"]}))


def search(method: peers.Method, folder: Path, work: Path, batch: int) -> None:
    base = np.load(work / "vectors.npy", mmap_mode="r")
    queries, truth = np.load(work / "queries.npy"), np.load(work / "truth.npy")
    peers.absent(method)
    before = vectors.memory()["all"]
    method.load(folder, base.shape[1])
    points = []
    for setting in method.settings:
        method.set(setting)
        found, best = [], np.inf
        for repeat in range(2 if len(queries) > 20 else 1):
            took, found = [], []
            for query in queries:
                clock = time.perf_counter()
                answer = method.query(query, K)
                took.append(time.perf_counter() - clock)
                found.append(np.asarray(answer)[:K])
            best = min(best, float(np.mean(took)))
            if best * len(queries) > 30 and not repeat:
                break
        clock = time.perf_counter()
        method.batch(queries[:batch], K)
        many = len(queries[:batch]) / (time.perf_counter() - clock)
        points.append(
            {
                "setting": setting,
                "found": found,
                "single": 1 / best,
                "p50_ms": 1000 * float(np.median(took)),
                "batch": many,
            }
        )
    resident = vectors.memory()["all"] - before
    for point in points:
        hits = 0
        for query, limit, places in zip(queries, truth, point.pop("found"), strict=True):
            again = np.linalg.norm(base[places[places >= 0]].astype(np.float64) - query, axis=1)
            hits += int((again <= limit * (1 + 1e-6)).sum())
        point["recall"] = hits / K / len(queries)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(json.dumps({"points": points, "resident_mb": resident, "bytes": size}))


def report(results: dict[str, dict], options: argparse.Namespace) -> None:
    base, queries = (np.load(options.work / f"{name}.npy", mmap_mode="r") for name in ("vectors", "queries"))
    print(f"\n{len(base):,} real feature vectors of {base.shape[1]}, {len(queries)} queries, {os.cpu_count()} cores")
    print(f"{'method':20} {'setting':>12} {'recall@10':>9} {'single/s':>9} {'p50 ms':>8} {'batch/s':>9}")
    for name, facts in results.items():
        for point in facts.get("points", ()):
            setting = "-" if point["setting"] is None else str(point["setting"])
            print(
                f"{name:20} {setting:>12} {point['recall']:9.4f} {point['single']:9.1f} {point['p50_ms']:8.2f} "
                f"{point['batch']:9.1f}"
            )
    print(f"\nat recall@10 >= {options.recall}, the fastest setting for single queries")
    print(
        f"{'method':20} {'recall@10':>9} {'single/s':>9} {'batch/s':>9} {'build s':>8} {'peak MB':>8} "
        f"{'resident MB':>11} {'disk MB':>8}"
    )
    for name, facts in results.items():
        able = [point for point in facts.get("points", ()) if point["recall"] >= options.recall]
        if not able:
            print(f"{name:20} {facts.get('problem', 'does not reach it')}")
            continue
        best = max(able, key=lambda point: point["single"])
        print(
            f"{name:20} {best['recall']:9.4f} {best['single']:9.1f} {best['batch']:9.1f} "
            f"{facts.get('build_s', 0):8.1f} {facts.get('peak_mb', 0):8.0f} {facts['resident_mb']:11.0f} "
            f"{facts['bytes'] / 1e6:8.0f}"
        )
    if options.plot:
        from simsearch.reports import charts

        series = {name: front(facts["points"]) for name, facts in results.items() if "points" in facts}
        image = charts.plot(
            {name: points for name, points in series.items() if points},
            f"{len(base):,} real features, one query at a time",
            "recall@10 in nines: 1 is 0.9, 2 is 0.99, 3 is 0.999, 4 is more",
            "log10 of queries/s",
            width=900,
            height=560,
        )
        options.plot.write_bytes(charts.png(image))


def front(points: list[dict]) -> list[tuple[float, float]]:
    """The settings that no other beats in both recall and speed, for the plot."""
    best: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: -point["single"]):
        nines = -np.log10(max(1 - point["recall"], 1e-4))
        if nines >= 1 and (not best or nines > best[-1][0]):
            best.append((float(nines), float(np.log10(point["single"]))))
    return best


if __name__ == "__main__":
    main()
