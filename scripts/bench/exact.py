#!/usr/bin/env python3
"""Is exact search exact, and how fast is it? Compares it with a float64 scan and with other exact searches.

    scripts/bench/exact.py -i INDEX [--pictures SOURCE] [--queries 1000] [-k 10] [--timed 100] [--batch 200]

--pictures: the queries are pictures of this source, which should not be in the index; without it, items of the index
and, in turn, items disturbed by noise.

Each query's ids must be those of a scan in float64, ties by id, and the distances agree to a relative 1e-9; the script
exits with 1 if they do not. Then the median and the 95th percentile of single queries and the time of a batch are
measured, in turn, for: the index's own exact search; the same without its sketch; FAISS's IndexFlatL2; and FAISS's
IndexFlatL2Panorama, with 16 levels, over features rotated onto their principal components. FAISS's indexes hold 16 KB
an item in memory.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import faiss
import numpy as np
import vectors

import simsearch
from simsearch.common.float16 import to_float32
from simsearch.images.sources.resolve import resolve
from simsearch.installation import __version__

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--index", default="indexes/default")
    parser.add_argument("--pictures")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--timed", type=int, default=100)
    parser.add_argument("--batch", type=int, default=200)
    options = parser.parse_args()
    with simsearch.open(options.index, device="cpu") as engine:
        queries = drawn(engine, options.pictures, options.queries)
        facts = engine.info()
        print(f"simsearch {__version__}, FAISS {faiss.__version__}, {os.cpu_count()} cores, {platform.machine()}")
        print(
            f"{options.index}: {facts['items']:,} items, D {facts['dimension']}, weights {facts['weights_sha256'][:12]}"
        )
        print(f"queries: {len(queries)} of {options.pictures or 'the index, half of them disturbed'}; k {options.k}")
        print(f"exact search: {facts['search']['exact']}")
        began = time.perf_counter()
        wrong, ties, error = compared(engine, queries, options.k)
        print(f"queries with other ids than a float64 scan: {wrong} of {len(queries)}; with ties: {ties}")
        print(f"largest relative error of a distance: {error:.1e} ({time.perf_counter() - began:.0f} s)", flush=True)
        if options.timed:
            timed(engine, queries, options.k, options.timed, options.batch)
    sys.exit(1 if wrong or error > 1e-9 else 0)


def drawn(engine: simsearch.Engine, pictures: str | None, count: int) -> NDArray[np.float32]:
    """Returns the queries, (nq, D)."""
    random = np.random.default_rng(0)
    if pictures is not None:
        source = resolve(pictures)
        entries = source.listing().entries
        chosen = random.choice(len(entries), min(count, len(entries)), replace=False)
        return engine.features([source.read(entries[number].path) for number in np.sort(chosen)])
    rows = random.choice(vectors.live_rows(engine), count)
    queries = to_float32(engine.shards.read(rows))
    queries[1::2] += random.normal(0, 0.1 * queries.std(), queries[1::2].shape).astype(np.float32)
    return queries


def compared(engine: simsearch.Engine, queries: NDArray[np.float32], k: int) -> tuple[int, int, float]:
    """Returns the queries with other ids than a float64 scan, those with ties, and the largest relative error."""
    with engine.reading() as reader:
        ids, rows = reader.ids_and_rows()
    order = np.argsort(rows)
    ids, rows = ids[order], rows[order]
    exact = queries.astype(np.float64)
    own = np.einsum("nd,nd->n", exact, exact)
    best: list[tuple[NDArray[Any], NDArray[Any]]] = [(np.zeros(0), np.zeros(0, np.int64)) for _ in queries]
    for start in range(0, len(rows), BLOCK):
        x = engine.shards.read(rows[start : start + BLOCK]).astype(np.float64)
        squared = own[:, None] - 2 * exact @ x.T + np.einsum("nd,nd->n", x, x)  # (nq, n), to find candidates
        for number, row in enumerate(squared):
            # Those within the rounding of the k-th best are measured directly, so that ties are ties.
            distances, found = best[number]
            reach = np.partition(row, k)[k] if len(row) > k else np.inf
            if len(distances) >= k:
                reach = min(reach, distances[k - 1] ** 2)
            near = np.flatnonzero(row <= reach * (1 + 1e-9) + 1e-9 * own[number])
            direct = np.sqrt(((x[near] - exact[number]) ** 2).sum(1))
            distances, found = np.concatenate([distances, direct]), np.concatenate([found, ids[start + near]])
            first = np.lexsort((found, distances))[: k + 1]
            best[number] = distances[first], found[first]
    wrong = ties = 0
    error = 0.0
    parts = [slice(start, start + 50) for start in range(0, len(queries) // 2, 50)]
    results = [engine.neighbours(queries[part], k, exact=True) for part in parts]  # half in batches, half singly
    results += [engine.neighbours(query[None], k, exact=True) for query in queries[sum(len(i) for i, _ in results) :]]
    every = zip(*(np.concatenate([result[n] for result in results]) for n in range(2)), strict=True)
    for (found, distances), (true, expected) in zip(every, [(d, i) for d, i in best], strict=True):
        wrong += found.tolist() != expected[:k].tolist()
        ties += len(np.unique(true)) < len(true)
        error = max(error, float((np.abs(distances - true[:k]) / np.maximum(true[:k], 1e-9)).max()))
    return wrong, ties, error


def timed(engine: simsearch.Engine, queries: NDArray[np.float32], k: int, count: int, batch: int) -> None:
    """Prints percentiles over single queries, and the batch, for each search."""
    with engine.reading() as reader:
        flat, live = engine.snapshot(reader).flat, engine.snapshot(reader).live
        rows = vectors.live_rows(engine)
        searches: dict[str, Callable[[NDArray[np.float32]], Any]] = {
            "simsearch": lambda q: engine.neighbours(q, k, exact=True),
            "simsearch, scan": lambda q: flat.scan(q, k, live),  # type: ignore[attr-defined]
        }
        measure(searches, queries, count, batch)
        for name, peer, rotation in peers(engine, rows):
            rotated = queries if rotation is None else np.ascontiguousarray((queries - rotation[0]) @ rotation[1])
            peer.search(rotated[:1], k)
            measure({name: lambda q, peer=peer: peer.search(q, k)}, rotated, count, batch)  # type: ignore[misc]


def peers(engine: simsearch.Engine, rows: NDArray[np.int64]) -> Any:
    """Yields FAISS's exact indexes over the rows: name, index, and what to rotate queries by, one at a time."""
    dimension = engine.meta.dimension
    peer = faiss.IndexFlatL2(dimension)
    for start in range(0, len(rows), BLOCK):
        peer.add(to_float32(engine.shards.read(rows[start : start + BLOCK])))
    yield "IndexFlatL2", peer, None
    del peer
    if hasattr(faiss, "IndexFlatL2Panorama"):
        some = engine.shards.read(np.sort(np.random.default_rng(0).choice(rows, min(8192, len(rows)), replace=False)))
        x = to_float32(some)
        mean = x.mean(0)
        axes = np.ascontiguousarray(np.linalg.eigh(np.cov(x.T.astype(np.float32)))[1][:, ::-1], np.float32)
        panorama = faiss.IndexFlatL2Panorama(dimension, 16)
        for start in range(0, len(rows), BLOCK):
            panorama.add(
                np.ascontiguousarray((to_float32(engine.shards.read(rows[start : start + BLOCK])) - mean) @ axes)
            )
        yield "Panorama, 16 levels", panorama, (mean, axes)


def measure(
    searches: dict[str, Callable[[NDArray[np.float32]], Any]], queries: NDArray[np.float32], count: int, batch: int
) -> None:
    took: dict[str, list[float]] = {name: [] for name in searches}
    for number in range(-3, count):  # the first rounds warm up
        for name, search in searches.items():
            clock = time.perf_counter()
            search(queries[max(number, 0)][None])
            if number >= 0:
                took[name].append(1000 * (time.perf_counter() - clock))
    for name, search in searches.items():
        clock = time.perf_counter()
        search(queries[:batch])
        each = 1000 * (time.perf_counter() - clock) / batch
        p50, p95 = np.percentile(took[name], [50, 95])
        print(
            f"{name:20} single p50 {p50:8.2f} ms, p95 {p95:8.2f} ms; {batch} at once: {each:7.2f} ms each", flush=True
        )


if __name__ == "__main__":
    main()
