#!/usr/bin/env python3
"""Are the search's answers exact, and how fast is it? Compares them with a float64 scan over the exported features.

    scripts/bench/exact.py -i INDEX [--queries 200] [-k 10] [--timed 20]

For random items, and for random items disturbed by noise so that they are no rows of the index: the ids must be those
of the scan (ties by id), and the distances agree to a relative 1e-3. Exits 1 if they do not.

--timed: so many queries are then timed, one by one, in turn with FAISS's IndexFlatL2 over the same features as float32
(16 KB an item, which must fit into memory), and a batch of as many; the memory's bandwidth is measured in between.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
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
from simsearch.storage.export import export_npy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--index", default="indexes/default")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--timed", type=int, default=0)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    wrong, error, ties = 0, 0.0, 0
    with simsearch.open(options.index, device="cpu") as engine, tempfile.TemporaryDirectory() as folder:
        export_npy(engine.opened_index, Path(folder))
        features = np.load(Path(folder) / "features.npy").astype(np.float64)
        lines = (Path(folder) / "items.jsonl").read_text().splitlines()
        ids = np.array([json.loads(line)["id"] for line in lines])
        for number in range(options.queries):
            vector = features[random.integers(len(features))].astype(np.float32)
            if number % 2:
                vector += random.normal(0, 0.1 * vector.std(), vector.shape).astype(np.float32)
            distances = np.sqrt(((features - vector.astype(np.float64)) ** 2).sum(1))
            order = np.lexsort((ids, distances))[: options.k]
            found = engine.search_by_vector(vector, options.k, exact=True)
            wrong += [match.id for match in found] != ids[order].tolist()
            ties += len(np.unique(distances[order])) < len(order)
            for match, distance in zip(found, distances[order], strict=True):
                error = max(error, abs(match.distance - distance) / max(distance, 1e-9))
    print(f"{options.index}: {len(ids):,} items, D {features.shape[1]}, {options.queries} queries, k {options.k}")
    print(
        f"queries with other ids: {wrong}; queries with ties: {ties}; largest relative error of a distance: {error:.1e}"
    )
    if options.timed:
        timed(options.index, options.timed, options.k)
    sys.exit(1 if wrong or error > 1e-3 else 0)


def timed(path: str, count: int, k: int) -> None:
    """Prints medians over single queries, and the batch."""
    import faiss

    with simsearch.open(path, device="cpu") as engine:
        rows = vectors.live_rows(engine)
        peer = faiss.IndexFlatL2(engine.meta.dimension)
        for start in range(0, len(rows), 8192):
            peer.add(to_float32(engine.shards.read(rows[start : start + 8192])))
        random = np.random.default_rng(1)
        queries = to_float32(engine.shards.read(random.choice(rows, count)))
        queries = np.maximum(queries + random.normal(0, 0.05 * queries.std(), queries.shape).astype(np.float32), 0)
        searches = {
            "simsearch, exact": lambda q: engine.neighbours(q, k, exact=True),
            "IndexFlatL2": lambda q: peer.search(q, k),
        }
        took: dict[str, list[float]] = {name: [] for name in searches}
        rates = []
        for number in range(-1, count):  # the first round warms up
            rates.append(vectors.bandwidth(256))
            for name, search in searches.items():
                clock = time.perf_counter()
                search(queries[max(number, 0)][None])
                if number >= 0:
                    took[name].append(time.perf_counter() - clock)
        bandwidth = float(np.median(rates))
        print(f"memory, read by {os.cpu_count()} threads: {bandwidth:.1f} GB/s (median of {len(rates)})")
        for name, search in searches.items():
            median = float(np.median(took[name]))
            rate = len(rows) * engine.meta.dimension * (4 if name == "IndexFlatL2" else 2) / median / 1e9
            clock = time.perf_counter()
            search(queries)
            batch = count / (time.perf_counter() - clock)
            share = 100 * rate / bandwidth
            print(
                f"{name:17} {1000 * median:8.2f} ms a query, {rate:5.1f} GB/s ({share:.0f} % of it); "
                f"batch of {count}: {batch:.1f} queries/s"
            )
        ratio = np.median(took["IndexFlatL2"]) / np.median(took["simsearch, exact"])
        print(f"{ratio:.1f} times as fast as IndexFlatL2, one query at a time")


if __name__ == "__main__":
    main()
