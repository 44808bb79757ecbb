#!/usr/bin/env python3
"""An index of a million items: how large it is, how soon it opens, how fast and in how much memory it is searched.

    scripts/bench/million.py --data DATA [--items 1000000] [--work indexes/bench] [--queries 200] [--keep]

The features are real ones and mixtures of them (`vectors.enlarged`, seeded). Half of the queries are mixtures as well,
half are real pictures that are neither in the index nor parents of a mixture. Each step runs in a process of its own,
whose resident memory (anonymous and file pages, as in /proc/self/smaps_rollup) is printed with its peak. The truth
comes from an exact scan. A million items take about 8.5 GB on disk, removed at the end unless --keep.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np
import vectors

import simsearch
from simsearch.common import pca

K = 10
STEPS = ("fill", "tune", "truth", "open", "search")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--data", type=Path, required=True, help="a folder of data sets")
    parser.add_argument("--work", type=Path, default=Path("indexes/bench"))
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--recall", type=float, default=0.99)
    parser.add_argument("--memory", type=float, help="megabytes that the structure may take", default=None)
    parser.add_argument("--keep", action="store_true", help="leave the index, for another run")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    index = options.work / f"enlarged-{options.items}"
    if options.step:
        globals()[options.step](options, index)
        return
    vectors.real(options.data, options.work / "real").close()
    if not (index / "meta.json").exists() or not (index.with_suffix(".queries.npy")).exists():
        shutil.rmtree(index, ignore_errors=True)
        _run("fill")
    for step in STEPS[1:]:
        _run(step)
    if not options.keep:
        shutil.rmtree(index)
        for path in options.work.glob(f"enlarged-{options.items}.*.npy"):
            path.unlink()


def _run(step: str) -> None:
    done = subprocess.run([sys.executable, sys.argv[0], *sys.argv[1:], "--step", step], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def _memory(what: str) -> None:
    now = vectors.memory()
    print(
        f"{what}: resident {now['all']:,.0f} MB ({now['anonymous']:,.0f} anonymous, {now['file']:,.0f} file pages), "
        f"peak {now['peak']:,.0f} MB",
        flush=True,
    )


def fill(options: argparse.Namespace, index: Path) -> None:
    half, spare = options.queries // 2, []

    def split(blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """All items; what comes after them goes to `spare`."""
        left = options.items
        for block in blocks:
            if left:
                yield block[:left]
            spare.append(block[left:])
            left = max(0, left - len(block))

    with simsearch.open(options.work / "real", device="cpu") as real:
        rows = vectors.live_rows(real)
        left_out = np.random.default_rng(3).choice(rows, options.queries - half, replace=False)
        clock = time.perf_counter()
        vectors.fill(index, real, split(vectors.enlarged(real, left_out, options.items + half)))
        seconds = time.perf_counter() - clock
        size = sum(path.stat().st_size for path in index.rglob("*") if path.is_file())
        own = min(options.items, len(rows) - len(left_out))
        print(f"{options.items:,} items, {own:,} of them real: {size / 1e9:.2f} GB, written in {seconds:.0f} s")
        _memory("writing")
        queries = np.concatenate([real.shards.read(left_out), *spare])
        np.save(index.with_suffix(".queries.npy"), queries.astype(np.float32))
        random = np.random.default_rng(4)
        onto = pca.fit_pca(real.shards.read(np.sort(random.choice(rows, min(8192, len(rows)), False))), 256)
        with simsearch.open(index, device="cpu") as engine:
            for name, first, last in (("real", 0, own), ("mixed", own, options.items)):
                if last - first >= 1000:
                    some = engine.shards.read(np.sort(random.choice(np.arange(first, last), 1000, False)))
                    left = [vectors.beyond(some, onto, components) for components in (64, 256)]
                    print(
                        f"{name}: zeros {np.mean(some == 0):.3f}, variance beyond 64 and 256 components "
                        f"{left[0]:.3f} and {left[1]:.3f}"
                    )


def tune(options: argparse.Namespace, index: Path) -> None:
    from simsearch.indexing import tune

    with simsearch.open(index, device="cpu") as engine:
        clock = time.perf_counter()
        memory = None if options.memory is None else int(1e6 * options.memory)
        choice = tune.tune(engine.index, options.recall, memory)
        print(
            f"tuned in {time.perf_counter() - clock:.0f} s on {os.cpu_count()} cores: {choice.kind}, recall@{K} "
            f"{choice.recall:.4f} ({choice.low:.4f} to {choice.high:.4f}) of {choice.queries} held-out items, "
            f"{choice.memory / 1e6:.0f} MB, {json.dumps(choice.parameters)}"
        )
        for facts in choice.tried:
            print("  in the race:", json.dumps(facts))
    _memory("tuning")


def truth(options: argparse.Namespace, index: Path) -> None:
    queries = np.load(index.with_suffix(".queries.npy"))
    with simsearch.open(index, device="cpu") as engine:
        clock = time.perf_counter()
        _, distances = engine.neighbours(queries, K, exact=True)
        seconds = time.perf_counter() - clock
        print(f"exact batch of {len(queries)}: {seconds:.1f} s, {len(queries) / seconds:.1f} queries/s")
        np.save(index.with_suffix(".truth.npy"), distances)
    _memory("exact batch")


def open(options: argparse.Namespace, index: Path) -> None:
    queries = np.load(index.with_suffix(".queries.npy"))
    _memory("before opening")
    clock = time.perf_counter()
    engine = simsearch.open(index, device="cpu")
    opened = time.perf_counter() - clock
    _memory(f"opened in {1000 * opened:.0f} ms")
    engine.search_by_vector(queries[0], K)
    _memory(f"opened and searched once in {time.perf_counter() - clock:.2f} s")
    clock = time.perf_counter()
    for query in queries[:5]:
        engine.search_by_vector(query, K, exact=True)
    took = (time.perf_counter() - clock) / 5
    size = len(engine) * 2 * engine.meta.dimension
    print(
        f"exact single query: {1000 * took:.0f} ms, {size / took / 1e9:.1f} GB/s; memory bandwidth, read by "
        f"{os.cpu_count()} threads: {vectors.bandwidth():.1f} GB/s"
    )
    _memory("after exact scans, which map all rows")


def search(options: argparse.Namespace, index: Path) -> None:
    queries, distances = (np.load(index.with_suffix(f".{name}.npy")) for name in ("queries", "truth"))
    with simsearch.open(index, device="cpu") as engine:
        for query in queries[:20]:
            engine.search_by_vector(query, K)
        took, hits = [], []
        for query, limits in zip(queries, distances, strict=True):
            clock = time.perf_counter()
            found = engine.search_by_vector(query, K)
            took.append(time.perf_counter() - clock)
            hits.append(sum(match.distance <= limits[-1] * (1 + 1e-6) for match in found))
        shares = 1000 * np.quantile(took, [0.5, 0.95, 0.99])
        print(f"single query, warm: p50 {shares[0]:.2f} ms, p95 {shares[1]:.2f} ms, p99 {shares[2]:.2f} ms")
        half = len(queries) - len(queries) // 2
        for name, part in (("real pictures not in the index", hits[:half]), ("mixtures not in it", hits[half:])):
            print(f"recall@{K} of {len(part)} {name}: {np.mean(part) / K:.4f}")
        clock = time.perf_counter()
        engine.neighbours(queries, K)
        print(f"batch of {len(queries)}: {len(queries) / (time.perf_counter() - clock):.0f} queries/s")
        _memory("searching")


if __name__ == "__main__":
    main()
