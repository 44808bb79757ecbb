#!/usr/bin/env python3
"""How true and how fast the map of `simsearch map` is, beside UMAP and PaCMAP, and what each library weighs.

    scripts/bench/map.py -i INDEX [--sampled 2000] [--out FOLDER] [--keep DIR] [--only NAME…]
    scripts/bench/map.py --synthetic N [--dimension 64]

All start from the same exact neighbours (of INDEX, or of points in clusters drawn at random) and run on as many cores
as the process may use. UMAP also runs once as most use it, searching for its neighbours itself.

trustworthiness: that of Venna and Kaski (2001), with 15 neighbours as ranked by the features; 1 is best. It is a mean
over items: --sampled says over how many, chosen at random. kept: the share of an item's 15 nearest that are among its
15 nearest on the map. clusters: how many simsearch finds there; ARI: their adjusted Rand index with the labels.
seconds: without searching for neighbours, but with the compilation that numba does at the first call.
weight: MB of installed files of a library and what it requires, without what simsearch requires itself.

umap-learn and pacmap are optional: without them their lines are missing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np

import simsearch
from simsearch.common.pca import fit_pca
from simsearch.curation import graph, hills, layout

K = 15

PART = 2048
"""Items whose neighbours are kept in one file."""


def trustworthiness(features: np.ndarray, positions: np.ndarray, chosen: np.ndarray, k: int = K) -> tuple[float, float]:
    """Trustworthiness (Venna and Kaski 2001, equation 1) and the share of neighbours kept, over the chosen items."""
    n = len(features)
    norms, flat_norms = (features**2).sum(1), (positions**2).sum(1)
    penalty, kept = 0.0, 0
    for start in range(0, len(chosen), 256):
        part = chosen[start : start + 256]
        high = norms - 2 * features[part] @ features.T
        low = flat_norms - 2 * positions[part] @ positions.T
        at = np.arange(len(part))
        high[at, part] = low[at, part] = -np.inf  # itself comes first
        ranks = np.empty(high.shape, np.int64)
        ranks[at[:, None], np.argsort(high, 1)] = np.arange(n)
        near = np.argpartition(low, k, 1)[:, : k + 1]
        found = np.take_along_axis(ranks, near, 1)
        penalty += np.maximum(found - k, 0).sum()
        kept += ((found >= 1) & (found <= k)).sum()
    most = k * (2 * n - 3 * k - 1) / 2
    return 1 - penalty / (len(chosen) * most), kept / (len(chosen) * k)


def rand_index(first: np.ndarray, second: np.ndarray) -> float:
    """The adjusted Rand index of two partitions (Hubert and Arabie 1985, equation 5)."""

    def pairs(counts: np.ndarray) -> float:
        return float((counts.astype(np.float64) * (counts - 1) / 2).sum())

    together = np.unique(np.stack([first, second]), axis=1, return_counts=True)[1]
    one, other = (np.unique(each, return_counts=True)[1] for each in (first, second))
    expected = pairs(one) * pairs(other) / pairs(np.array([len(first)]))
    return (pairs(together) - expected) / ((pairs(one) + pairs(other)) / 2 - expected)


def required(name: str, seen: set[str]) -> set[str]:
    """A distribution and all that it requires here."""
    name = re.sub(r"[-_.]+", "-", name).lower()
    try:
        needs = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return seen
    if name not in seen:
        seen.add(name)
        for need in needs:
            if "extra ==" not in need:
                required(re.match(r"[\w.-]+", need)[0], seen)
    return seen


def weight(name: str) -> str:
    """MB of a distribution and of all that it adds to simsearch, and their names."""
    added = required(name, set()) - required("simsearch", set())
    size = {}
    for name in added:
        files = importlib.metadata.files(name) or []
        size[name] = sum(os.path.getsize(path) for path in (each.locate() for each in files) if os.path.isfile(path))
    parts = ", ".join(f"{each} {size[each] / 1e6:.0f}" for each in sorted(size, key=size.get, reverse=True))
    return f"{sum(size.values()) / 1e6:.0f} MB ({parts})"


def synthetic(n: int, dimension: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points in 100 clusters of unequal size and width, and their clusters."""
    random = np.random.default_rng(seed)
    centres, widths = random.normal(0, 1, (100, dimension)), random.uniform(0.3, 1.2, 100)
    kinds = random.choice(100, n, p=random.dirichlet(np.full(100, 2.0)))
    points = centres[kinds] + random.normal(0, 1, (n, dimension)) * widths[kinds, None]
    return points.astype(np.float32), kinds


def neighbours_of(features: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The exact k nearest others of each point, by FAISS."""
    import faiss

    flat = faiss.IndexFlatL2(features.shape[1])
    flat.add(features)
    squared, places = flat.search(features, k + 1)
    return places[:, 1:].astype(np.int64), np.sqrt(np.maximum(squared[:, 1:], 0)).astype(np.float64)


def methods(
    features: np.ndarray, places: np.ndarray, distances: np.ndarray, start: np.ndarray, seed: int
) -> dict[str, Callable[[], np.ndarray]]:
    """What is compared, by name."""
    n = len(features)

    def tsne(k: int = layout.NEIGHBOURS, exaggeration: float = 1.0) -> np.ndarray:
        return layout.lay_out(places[:, :k], distances[:, :k], start, seed, exaggeration=exaggeration)

    def umap(known: bool) -> np.ndarray:
        import umap

        itself = np.arange(n)[:, None]
        near = np.concatenate([itself, places[:, : K - 1]], 1).astype(np.int32)
        away = np.concatenate([np.zeros((n, 1)), distances[:, : K - 1]], 1).astype(np.float32)
        given = {"precomputed_knn": (near, away)} if known else {}
        return umap.UMAP(n_neighbors=K, random_state=seed, n_jobs=1, **given).fit_transform(features)

    def pacmap() -> np.ndarray:
        import pacmap

        pairs = np.stack([np.arange(n).repeat(10), places[:, :10].reshape(-1)], 1).astype(np.int32)
        return pacmap.PaCMAP(pair_neighbors=pairs, random_state=seed).fit_transform(features)

    return {
        "principal components": lambda: start,
        "openTSNE": tsne,
        "openTSNE, 45 neighbours": lambda: tsne(45),
        "openTSNE, exaggeration 1.5": lambda: tsne(exaggeration=1.5),
        "openTSNE, exaggeration 2": lambda: tsne(exaggeration=2),
        "UMAP, our neighbours": lambda: umap(True),
        "UMAP, defaults": lambda: umap(False),
        "PaCMAP, our neighbours": pacmap,
    }


def searched(collection: graph.Collection, keep: Path | None) -> tuple[np.ndarray, np.ndarray, float]:
    """Neighbours of all items and the seconds that they took; `keep` holds what earlier calls have found."""
    n, k = len(collection.items), min(layout.NEIGHBOURS, len(collection.items) - 1)
    places, distances, seconds = np.empty((n, k), np.int64), np.empty((n, k)), 0.0
    for first in range(0, n, PART):
        last = min(first + PART, n)
        file = keep / f"neighbours-{first}.npz" if keep else None
        if file is None or not file.exists():
            began = time.perf_counter()
            for start in range(first, last, graph.BLOCK):
                stop = min(start + graph.BLOCK, last)
                found = collection.search(collection.features(start, stop), k, range(start, stop))
                places[start:stop], distances[start:stop] = found
            took = time.perf_counter() - began
            if file:
                np.savez(file.with_suffix(".part.npz"), p=places[first:last], d=distances[first:last], s=took)
                file.with_suffix(".part.npz").rename(file)
        else:
            with np.load(file) as known:
                places[first:last], distances[first:last], took = known["p"], known["d"], float(known["s"])
        seconds += took
    return places, distances, seconds


def read(path: str, keep: Path | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features, labels, neighbours and start of the items of an index."""
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
    with simsearch.open(path) as engine, engine.reading() as reader:
        collection = graph.Collection.read(engine.snapshots, reader)
        n = len(collection.items)
        places, distances, seconds = searched(collection, keep)
        print(f"{n:,} items of {engine.meta.model}, {layout.NEIGHBOURS} exact neighbours of each in {seconds:.1f} s")
        features, start = collection.features(0, n), layout.start_positions(collection)
        labels = np.unique([item.label or "" for item in collection.items], return_inverse=True)[1]
        return features, labels, places, distances, start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--index")
    parser.add_argument("--synthetic", type=int, metavar="N")
    parser.add_argument("--dimension", type=int, default=64)
    parser.add_argument("--sampled", type=int, default=2000)
    parser.add_argument("--grid", action="store_true", help="repulsion by the grid, whatever the number of items")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the positions, as .npy files")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="where neighbours are kept, also of a run that was ended"
    )
    parser.add_argument("--only", nargs="*", metavar="NAME", help="methods to measure")
    options = parser.parse_args()
    if bool(options.index) == bool(options.synthetic):
        parser.error("give an index or --synthetic N")
    if options.grid:
        layout.FEW = 0
    cores = len(os.sched_getaffinity(0))
    print(
        f"Python {platform.python_version()}, numpy {np.__version__}, {platform.processor() or platform.machine()},"
        f" {cores} cores"
    )
    for name in ("openTSNE", "umap-learn", "pacmap"):
        try:
            print(f"{name} {importlib.metadata.version(name)}: {weight(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{name} is not installed")
    if options.index:
        features, labels, places, distances, start = read(options.index, options.keep)
    else:
        features, labels = synthetic(options.synthetic, options.dimension, options.seed)
        began = time.perf_counter()
        places, distances = neighbours_of(features, layout.NEIGHBOURS)
        print(
            f"{len(features):,} points in {features.shape[1]} dimensions,"
            f" neighbours in {time.perf_counter() - began:.1f} s"
        )
        start = fit_pca(features, 2)(features).astype(np.float64)
        start *= 1e-4 / start[:, 0].std()
    random = np.random.default_rng(options.seed)
    chosen = random.permutation(len(features))[: options.sampled]
    print(f"trustworthiness over {len(chosen):,} items, {K} neighbours")
    for name, compute in methods(features, places, distances, start, options.seed).items():
        if options.only and name not in options.only:
            continue
        began = time.perf_counter()
        try:
            positions = np.asarray(compute(), np.float64)
        except ImportError:
            continue
        seconds = time.perf_counter() - began
        trust, kept = trustworthiness(features, positions, chosen)
        found = hills.find_hills(positions.astype(np.float32))
        agreed = f"  ARI {rand_index(labels, found):.3f}" if len(set(labels.tolist())) > 1 else ""
        print(
            f"{name:30} {seconds:8.1f} s  trustworthiness {trust:.4f}  kept {kept:.3f}"
            f"  clusters {found.max() + 1:3}{agreed}",
            flush=True,
        )
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            np.save(options.out / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.npy", positions)
            np.save(options.out / "labels.npy", labels)


if __name__ == "__main__":
    main()
