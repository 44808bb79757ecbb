#!/usr/bin/env python3
"""The needs of larger collections: machines, memory, time and money, from rates measured on this machine.

    scripts/bench/scale.py [-i INDEX] [--items 10e6 1e9] [--recall 0.95] [--rate 100] [--set NAME=VALUE ...]

Everything that goes in is printed with where it comes from: `measured` here and now (network, decoding, float32 scan
and graph search; on the features of INDEX, else on synthetic ones), or `assumed`, each with its reason. --set changes
any of them; the results are arithmetic on them, and two simulations: a build in which machines are lost, and the wait
for the slowest of many machines. They are as good as the assumptions, and no measurement of a large collection.
"""

from __future__ import annotations

import argparse
import heapq
import io
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np
from PIL import Image

import simsearch
from simsearch.images import decode
from simsearch.models import load, registry

D = 4096


@dataclass(frozen=True)
class Fact:
    """A number that goes in, and where it comes from."""

    value: float
    unit: str
    source: str


ASSUMED = {
    "machine_cores": Fact(32, "cores", "a common size; the CPU machine that embeds and serves"),
    "machine_memory": Fact(256, "GB", "8 GB a core, the usual offer"),
    "machine_price": Fact(1.60, "$/h", "list price of such a machine by the hour, early 2026, without discounts"),
    "gpu_rate": Fact(4000, "images/s", "AlexNet on a data-centre GPU, held back by decoding on 16 cores"),
    "gpu_price": Fact(1.20, "$/h", "list price of a machine with one inference GPU"),
    "scaling": Fact(0.9, "", "share of n machines' rate that is left: shared storage, stragglers"),
    "memory_use": Fact(0.75, "", "share of the memory that features may fill; the rest loads and compacts"),
    "replicas": Fact(2, "", "copies of all that is served, so that one machine may be lost"),
    "graph_links": Fact(32, "", "links of an item at HNSW's lowest level (M = 16), of 4 bytes each"),
    "segment_items": Fact(131072, "items", "a sealed segment of Milvus: 2 GiB of float32 rows of 4096"),
    "graph_growth": Fact(0.1, "", "share of nodes that a search visits more for each doubling of a graph"),
    "rerank_rows": Fact(100, "rows", "rows fetched from flash for a query that is re-ranked"),
    "flash_reads": Fact(400_000, "reads/s", "random 8 KiB reads of one NVMe drive, half of its data sheet"),
    "lost_per_hour": Fact(0.01, "", "machines lost in an hour, of one: spot machines lose about 1 to 5 % a day"),
    "slow": Fact(0.35, "", "log-normal spread of a share's time, and of one machine's answer"),
}
STORED = {  # bytes an item in memory; whether rows are re-ranked from flash
    "float32, HNSW": (4 * D, False),
    "float16, HNSW": (2 * D, False),
    "PCA to 256, float16, HNSW, re-ranked": (2 * 256, True),
    "codes of 1 bit a dimension, re-ranked": (D // 8, True),
    "codes of PCA to 256, 8 bit, re-ranked": (256, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--index")
    parser.add_argument("--items", type=float, nargs="+", default=[10e6, 1e9])
    parser.add_argument("--recall", type=float, default=0.95, help="recall@10 that serving is to reach")
    parser.add_argument("--rate", type=float, default=100, help="queries a second")
    parser.add_argument("--hours", type=float, default=24, help="time for the build")
    parser.add_argument("--rows", type=int, default=10_000, help="features that are searched here")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    assumed = {name: replace(fact, source=f"assumed: {fact.source}") for name, fact in ASSUMED.items()}
    facts = {**measured(options), **assumed}
    for change in options.set:
        name, _, value = change.partition("=")
        if name not in facts:
            parser.error(f"--set {name}: not one of {', '.join(facts)}")
        facts[name] = replace(facts[name], value=float(value), source="given by --set")
    print(f"\n{'what goes in':16} {'':>12}")
    for name, fact in facts.items():
        print(f"{name:16} {fact.value:12,.6g} {fact.unit:10} {fact.source}")
    values = {name: fact.value for name, fact in facts.items()}
    for items in options.items:
        extraction(items, options.hours, values)
        serving(items, options, values)


def measured(options: argparse.Namespace) -> dict[str, Fact]:
    """The rates of this machine, per core or per query."""
    cores = os.cpu_count() or 1
    model = load.load_model(registry.DEFAULT, "cpu", precision="auto")
    side = model.recipe.crop
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (32, side, side, 3), np.uint8)
    model.features(pixels)
    network = timed(lambda: model.features(pixels)) / len(pixels) * cores
    picture = Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8)).resize(
        (500, 375), Image.Resampling.BICUBIC
    )
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    data = buffer.getvalue()
    decoding = timed(lambda: model.recipe.pixels(decode.decode_image(data, model.recipe.resize).image))
    found = {
        "network": Fact(1 / network, "images/s", f"measured: {model.name}, a core's share of {cores}"),
        "decoding": Fact(1 / decoding, "images/s", f"measured: a JPEG of 500 x 375, {len(data) >> 10} KiB, one core"),
    }
    return {**found, **searching(options, features(options, random), random)}


def features(options: argparse.Namespace, random: np.random.Generator) -> np.ndarray:
    if not options.index:
        latent = random.normal(size=(options.rows, 64)) @ random.normal(size=(64, D))
        return np.maximum(latent, 0).astype(np.float32)
    with simsearch.open(options.index, device="cpu") as engine, engine.reading() as reader:
        rows = reader.rows()[: options.rows]
        return engine.shards.read(rows).astype(np.float32)


def searching(options: argparse.Namespace, x: np.ndarray, random: np.random.Generator) -> dict[str, Fact]:
    """HNSW over 256 principal components, the effort raised until its re-ranked matches reach the recall."""
    import faiss

    faiss.omp_set_num_threads(1)
    own = f"{len(x):,} features of {options.index}" if options.index else f"{len(x):,} synthetic features"
    queries = np.maximum(x[random.choice(len(x), 100, replace=False)] + random.normal(0, 0.1 * x.std(), (100, D)), 0)
    queries = queries.astype(np.float32)
    flat = faiss.IndexFlatL2(D)
    flat.add(x)
    scan = timed(lambda: flat.search(queries[:1], 10), 3)
    truth = flat.search(queries, 10)[1]
    centre = x.mean(0)
    _, _, axes = np.linalg.svd(x[:2000] - centre, full_matrices=False)
    axes = axes[:256].T
    graph = faiss.IndexHNSWFlat(axes.shape[1], 16)
    graph.hnsw.efConstruction = 100
    graph.add(np.ascontiguousarray((x - centre) @ axes))
    small = np.ascontiguousarray((queries - centre) @ axes)
    for effort in (16, 32, 64, 128, 256, 512, 1024):
        graph.hnsw.efSearch = effort
        candidates = graph.search(small, min(100, len(x)))[1]
        hits = 0
        for query, near, best in zip(queries, candidates, truth, strict=True):
            near = near[near >= 0]
            order = near[np.argsort(((x[near] - query) ** 2).sum(1))[:10]]
            hits += len(set(order.tolist()) & set(best.tolist()))
        if hits / truth.size >= options.recall:
            break
    visit = timed(lambda: graph.search(small, 100), 3) / len(small)
    reached = f"recall@10 {hits / truth.size:.3f} at ef {effort}"
    return {
        "scan": Fact(x.nbytes / scan / 1e9, "GB/s", f"measured: FAISS Flat, one core, {own}"),
        "graph_query": Fact(1000 * visit, "ms", f"measured: PCA 256 + HNSW, one core, {reached}, {own}"),
        "graph_items": Fact(len(x), "items", "of that graph"),
    }


def timed(call: Callable[[], object], times: int = 5) -> float:
    best = math.inf
    for _ in range(times):
        clock = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - clock)
    return best


def extraction(items: float, hours: float, v: dict[str, float]) -> None:
    core = 1 / (1 / v["network"] + 1 / v["decoding"])  # an image takes a core for both, one after the other
    print(f"\n{items:,.0f} images\nextraction within {hours:g} h")
    rows = (("CPU", core * v["machine_cores"], v["machine_price"]), ("GPU", v["gpu_rate"], v["gpu_price"]))
    for name, rate, price in rows:
        machines = math.ceil(items / (rate * v["scaling"] * 3600 * hours))
        ideal = items / (rate * v["scaling"] * machines) / 3600
        real, lost = build(items, machines, rate * v["scaling"], v)
        print(
            f"  {name}: {rate:,.0f} images/s a machine; {machines:,} machines, {ideal:.1f} h; simulated with losses"
            f" {real:.1f} h, {lost} machines lost; ${real * machines * price:,.0f}"
        )


def build(items: float, machines: int, rate: float, v: dict[str, float]) -> tuple[float, int]:
    """Hours that a build takes, when shares vary in time and machines are lost and come back after five minutes."""
    random = np.random.default_rng(0)
    shares = min(200_000, max(machines * 50, int(items // 8192) or 1))
    mean = items / shares / rate / 3600
    free = [(0.0, n) for n in range(machines)]
    heapq.heapify(free)
    left, lost, end = shares, 0, 0.0
    while left:
        now, machine = heapq.heappop(free)
        took = mean * random.lognormal(-(v["slow"] ** 2) / 2, v["slow"])
        if random.random() < 1 - math.exp(-v["lost_per_hour"] * took):  # this share goes to whoever is free next
            lost += 1
            heapq.heappush(free, (now + took * random.random() + 1 / 12, machine))
            continue
        left -= 1
        end = max(end, now + took)
        heapq.heappush(free, (now + took, machine))
    return end, lost


def serving(items: float, options: argparse.Namespace, v: dict[str, float]) -> None:
    print(f"serving {options.rate:g} queries/s at recall@10 of {options.recall:g}, {v['replicas']:g} replicas")
    columns = ("GB of RAM", "machines", "core ms", "p50 ms", "p99 ms", "$/month")
    print(f"  {'stored as':40}" + "".join(f"{name:>11}" for name in columns))
    for name, (size, rerank) in STORED.items():
        links = 0 if name.startswith("codes") else 4 * v["graph_links"]
        memory = items * (size + links) / 1e9
        holding = math.ceil(memory / (v["machine_memory"] * v["memory_use"]))
        if name.startswith("codes"):  # all codes are scanned
            each = 1000 * items / holding * size / (v["scan"] * 1e9)
        else:  # a graph for each segment; time grows with the length of a row, and with the logarithm of the items
            growth = 1 + v["graph_growth"] * max(0.0, math.log2(v["segment_items"] / v["graph_items"]))
            each = v["graph_query"] * growth * max(1.0, items / holding / v["segment_items"]) * size / (4 * 256)
        flash = 1000 * v["rerank_rows"] / v["flash_reads"] / holding if rerank else 0.0
        capacity = 1000 * v["machine_cores"] / each  # queries a second of one replica: every machine answers each
        copies = max(v["replicas"], math.ceil(options.rate / (0.7 * capacity)))
        waits = each / v["machine_cores"] * fan_out(holding, v) + flash  # a query is shared among a machine's cores
        p50, p99 = np.quantile(waits, [0.5, 0.99])
        price = holding * copies * v["machine_price"] * 730
        print(f"  {name:40}{memory:11,.0f}{holding * copies:11,.0f}{each:11,.1f}{p50:11,.1f}{p99:11,.1f}{price:11,.0f}")


def fan_out(machines: int, v: dict[str, float]) -> np.ndarray:
    """Samples the time of the slowest of `machines` answers, in multiples of the median time: (2000,)."""
    random = np.random.default_rng(1)
    answers = random.lognormal(0, v["slow"], (2000, min(machines, 2000)))
    return answers.max(1)


if __name__ == "__main__":
    main()
