"""Shared by the search benchmarks: real features, realistic enlargements of them, indexes made of them, and gauges."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import faiss
import numpy as np

import simsearch
from simsearch.common import pca
from simsearch.common.float16 import to_float32
from simsearch.indexing import meta_update, sketches
from simsearch.storage.creation import create
from simsearch.storage.database import Changes
from simsearch.storage.lock import writer_lock
from simsearch.storage.reader import Item

BLOCK = 8192

NOISE = 0.08
"""Of mixtures: the share of their variance beyond the first 64 and 256 principal components is then about that of real
features, 0.16 and 0.08 (0.14 and 0.075 without noise; 0.27 and 0.21 with 0.25), as `bench/million` prints.
"""

SOURCES = (
    *(f"tiny-imagenet/train-{n}.zip" for n in range(4)),
    "tiny-imagenet/val.zip",
    "imagenette160/train.zip",
    "imagenette160/val.zip",
    "cifar10/train.zip",
    "cifar10/test.zip",
    "corel",
    "clothing",
)
"""Below the data folder: 140,194 pictures."""


def real(data: Path, index: Path) -> simsearch.Engine:
    """The index of all pictures in `data`: made on first use, in some 20 minutes on two cores, and resumed if cut."""
    marker = index / "complete"
    if not marker.exists():
        if not data.is_dir():
            raise SystemExit(f"error: no folder {data}: the pictures to take features of")
        began, shown = time.monotonic(), [0.0]

        def progress(done: int, total: int) -> None:
            if time.monotonic() - shown[0] > 10:
                shown[0] = time.monotonic()
                print(f"features: {done:,} of {total:,} after {time.monotonic() - began:.0f} s", flush=True)

        simsearch.build([str(data / name) for name in SOURCES], index=index, device="cpu", progress=progress)
        marker.touch()
    return simsearch.open(index, device="cpu")


def live_rows(engine: simsearch.Engine) -> np.ndarray:
    with engine.reading() as reader:
        return reader.rows()


def enlarged(engine: simsearch.Engine, left_out: np.ndarray, count: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Blocks of float16 features: those of an index but the rows left out, then mixtures of near ones, `count` in all.

    A mixture lies between a random real vector and one of its 10 nearest (by 64 principal components, approximately),
    at a share of 0.1 to 0.9 of the way. What is active in both stays active, what is active in one stays so with
    probability 1/2, so that the share of zeros is the parents' mean; each activation is then multiplied by a factor of
    mean 1 and deviation NOISE (factors and coins are stretches of 16 million drawn beforehand). No mixture is a copy,
    and none comes from a row left out.
    """
    random = np.random.default_rng(seed)
    rows = np.setdiff1d(live_rows(engine), left_out)
    for start in range(0, min(count, len(rows)), BLOCK):
        yield engine.shards.read(rows[start : min(start + BLOCK, count)])
    if count <= len(rows):
        return
    onto = pca.fit_pca(engine.shards.read(np.sort(random.choice(rows, min(8192, len(rows)), False))), 64)
    flat = np.concatenate([onto(engine.shards.read(rows[n : n + BLOCK])) for n in range(0, len(rows), BLOCK)])
    lists = faiss.index_factory(flat.shape[1], f"IVF{max(1, int(len(flat) ** 0.5))},Flat")
    lists.train(flat)
    lists.add(flat)
    lists.nprobe = 8
    near = np.concatenate([lists.search(flat[n : n + BLOCK], 11)[1][:, 1:] for n in range(0, len(flat), BLOCK)])
    del flat, lists
    noise = np.maximum(1 + NOISE * random.standard_normal(1 << 24, np.float32), 0)
    coins = random.integers(0, 2, 1 << 24, np.uint8).astype(bool)

    def drawn(pool: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        start = random.integers(0, len(pool) - shape[0] * shape[1])
        return pool[start : start + shape[0] * shape[1]].reshape(shape)

    for start in range(len(rows), count, BLOCK):
        n = min(BLOCK, count - start)
        first = random.integers(0, len(rows), n)
        second = near[first, random.integers(0, near.shape[1], n)]
        second = np.where(second < 0, first, second)
        block = np.empty((n, engine.meta.dimension), np.float16)
        for part in range(0, n, 1024):
            some = slice(part, min(part + 1024, n))
            a, b = to_float32(engine.shards.read(rows[first[some]])), to_float32(engine.shards.read(rows[second[some]]))
            kept = ((a > 0) & (b > 0)) | drawn(coins, a.shape)
            a += random.uniform(0.1, 0.9, (len(a), 1)).astype(np.float32) * (b - a)
            a *= drawn(noise, a.shape)
            a *= kept
            block[some] = a
        yield block


def beyond(features: np.ndarray, onto: pca.Projection, components: int) -> float:
    """The share of the variance of (n, D) features that the first principal components leave."""
    centred = to_float32(features) - onto.mean
    return 1 - float(np.square(centred @ onto.axes[:, :components]).sum() / np.square(centred).sum())


def fill(path: Path, like: simsearch.Engine, blocks: Iterable[np.ndarray], codes: bool = True) -> None:
    """Makes an index of features alone, committed block by block as `build` does; items have paths of no files.

    codes: with those of exact search.
    """
    meta = like.meta
    create(
        path,
        SimpleNamespace(
            name=meta.model,
            weights_sha256=meta.weights_sha256,
            recipe=like.recipe,
            dimension=meta.dimension,
            engine=meta.engine,
            distances=meta.distances,
        ),
    )
    with simsearch.open(path, device="cpu") as engine, writer_lock(path):
        source = engine.index.database.add_source("folder", "/nowhere", path, {}).id
        row = 0
        for block in blocks:
            items = [
                Item(
                    0,
                    source,
                    f"{n // 1000:04d}/{n:07d}.jpg",
                    f"{n // 1000:04d}",
                    {},
                    n.to_bytes(32, "big"),
                    50_000,
                    0,
                    500,
                    375,
                    n,
                )
                for n in range(row, row + len(block))
            ]
            checksum = engine.shards.write(row, block)
            engine.index.database.apply(Changes(inserted=items, blocks=[(row, len(block), checksum)]))
            row += len(block)
        meta_update.refresh_meta(engine.index)
        if codes:
            sketches.update(engine.index)


def memory() -> dict[str, float]:
    """This process's resident memory in MB: all, anonymous and mapped files' pages now, and the highest so far."""
    values = {}
    for name in ("smaps_rollup", "status"):
        for line in Path(f"/proc/self/{name}").read_text().splitlines():
            key, _, rest = line.partition(":")
            if key in {"Rss", "Anonymous", "VmHWM"}:
                values[key] = int(rest.split()[0]) / 1000
    anonymous = values["Anonymous"]
    return {"all": values["Rss"], "anonymous": anonymous, "file": values["Rss"] - anonymous, "peak": values["VmHWM"]}


def bandwidth(megabytes: int = 512) -> float:
    """The best of ten readings of an array by all cores, in GB/s."""
    parts = np.array_split(np.ones(megabytes << 17, np.uint64), os.cpu_count() or 1)
    best = 0.0
    with ThreadPoolExecutor(len(parts)) as pool:
        for _ in range(10):
            clock = time.perf_counter()
            list(pool.map(np.max, parts))
            best = max(best, (megabytes << 20) / (time.perf_counter() - clock) / 1e9)
    return best
