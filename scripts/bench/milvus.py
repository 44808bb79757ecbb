#!/usr/bin/env python3
"""Recall@6 and latency of Milvus beside the local engine, on the features of an index.

    simsearch build DATA/tiny-imagenet/val.zip DATA/cifar10/test.zip -i indexes/20k
    scripts/bench/milvus.py -i indexes/20k --at HOST:PORT [--lite] [--queries 200] [--kinds FLAT HNSW IVF_FLAT IVF_SQ8]

Queries are items disturbed by noise, so that none is a row of the index. One client asks one by one, through
`Engine.search_by_vector`: network, fields and exact ranking are in the times. An answer counts if it is as near as the
sixth true neighbour. Each kind is a collection of its own, dropped at the end. --start PYTHON starts a server by the
interpreter of an environment that has the package `milvus` (see scripts/test-cluster) and ends it.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np

import simsearch
from simsearch.cluster.milvus.push import PushOptions, push
from simsearch.engine import Engine

K = 6
EFFORTS = {"HNSW": (32, 128), "IVF_FLAT": (8, 32), "IVF_SQ8": (32,), "DISKANN": (64,)}
BUILD = {"IVF_FLAT": {"nlist": 256}, "IVF_SQ8": {"nlist": 256}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--index", default="indexes/default")
    parser.add_argument("--at", metavar="HOST:PORT")
    parser.add_argument("--start", metavar="PYTHON")
    parser.add_argument("--lite", action="store_true", help="Milvus Lite as well")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--kinds", nargs="+", default=["FLAT", "HNSW", "IVF_FLAT", "IVF_SQ8"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = None
        if options.start:
            sys.path.insert(0, str(Path(__file__).parent.parent.parent))
            from tests.helpers import milvus_server

            milvus_server.PYTHON = options.start
            server = milvus_server.Server(Path(folder))
            print(f"the server started in {server.start():.0f} s")
            options.at = f"127.0.0.1:{server.port}"
        try:
            measure(options, folder)
        finally:
            if server is not None:
                server.kill()


def measure(options: argparse.Namespace, folder: str) -> None:
    with simsearch.open(options.index, device="cpu") as local:
        with local.reading() as reader:
            rows = reader.rows()
        random = np.random.default_rng(7)
        queries = local.shards.read(random.choice(rows, options.queries)).astype(np.float32)
        queries = np.maximum(queries + random.normal(0, 0.05 * queries.std(), queries.shape).astype(np.float32), 0)
        truth = [local.search_by_vector(query, K, exact=True)[-1].distance for query in queries]
        print(
            f"{platform.platform()}; {len(local):,} items, D = {local.meta.dimension}, {len(queries)} queries, k = {K}"
        )
        print(f"{'engine':24} {'recall@6':>9} {'p50 ms':>8} {'p95 ms':>8} {'push s':>7}")
        line("local, exact", local, queries, truth, exact=True)
        if not local.exact:
            line(f"local, {local.meta.search['kind']}", local, queries, truth)
        if options.lite:
            one(local, f"milvus://{folder}/lite.db", "Lite FLAT", "FLAT", None, queries, truth)
        for kind in options.kinds if options.at else ():
            for number, effort in enumerate(EFFORTS.get(kind, (None,))):
                name = f"server {kind}" + (f", effort {effort}" if effort else "")
                one(
                    local,
                    f"milvus://{options.at}/bench_{kind.lower()}",
                    name,
                    kind,
                    effort,
                    queries,
                    truth,
                    last=number + 1 == len(EFFORTS.get(kind, (None,))),
                )


def one(
    local: Engine,
    address: str,
    name: str,
    kind: str,
    effort: int | None,
    queries: np.ndarray,
    truth: list[float],
    last: bool = True,
) -> None:
    clock = time.perf_counter()
    push(local.index, address, PushOptions(kind=kind, parameters=BUILD.get(kind, {})))
    took = time.perf_counter() - clock
    with simsearch.open(address + (f"?effort={effort}" if effort else ""), device="cpu") as engine:
        line(name, engine, queries, truth, took)
        if last:
            engine.rows.drop()


def line(
    name: str, engine: Engine, queries: np.ndarray, truth: list[float], took: float | None = None, **options: Any
) -> None:
    for query in queries[:5]:
        engine.search_by_vector(query, K, **options)
    times, hits = [], 0
    for query, limit in zip(queries, truth, strict=True):
        clock = time.perf_counter()
        found = engine.search_by_vector(query, K, **options)
        times.append(time.perf_counter() - clock)
        hits += sum(match.distance <= limit * (1 + 1e-9) for match in found)
    p50, p95 = 1000 * np.quantile(times, [0.5, 0.95])
    push_time = "" if took is None else f"{took:7.1f}"
    print(f"{name:24} {hits / K / len(queries):9.4f} {p50:8.1f} {p95:8.1f} {push_time}", flush=True)


if __name__ == "__main__":
    main()
