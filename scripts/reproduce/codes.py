#!/usr/bin/env python3
"""Binary codes at equal bits: the autoencoder of Krizhevsky & Hinton 2011 beside what FAISS and others have.

    scripts/reproduce/codes.py INDEX [--bits 64 128 256 512] [--cifar INDEX] [--work DIR] [--only NAME]

INDEX is a simsearch index of at least some thousand images. 1,000 of its items are queries: they are left out of the
data base and of everything that learns, which is done on --sample of the others. Truth are the 10 exact nearest
neighbours. Printed for each method and size: recall@10 after the 200 nearest codes have been ranked by their features,
and the precision of the codes alone (the share of their first 10 that are true neighbours).

    dbn          autoencoder, pre-trained as a deep belief network (simsearch/models/dbn.py), by Hamming distance
    random       the same from random weights, centred and scaled layer by layer, fine-tuned for as long as dbn
                 takes with its pre-training
    similar      dbn, with the second loss, which keeps the distances within a batch
    lsh          random hyperplanes through the mean (Charikar 2002)
    itq          rotated principal components (Gong & Lazebnik 2011), 50 iterations
    pq           product quantizer, 8 bits a part (Jegou et al. 2011), asymmetric distances
    rabitq       as many principal components as bits, one bit each (Gao & Long 2024); FAISS keeps 8 bytes more an item

--cifar INDEX, an index of CIFAR-10's training images labelled by class, adds the comparison of the 2012 paper's section
7: the share of the nearest 1, 10 and 100 that have the query's label, for 256-bit codes of the raw 32 x 32 pixels and
of the features, by Hamming distance alone, and for the Euclidean distances of both. Pixels are scaled to 0..1.

Nothing is chosen by these queries. What is done is kept in the work folder, so an interrupted run continues; --only
does one row. With four sizes and 10,000 images to learn from, it takes about a quarter of an hour on two quiet cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import faiss
import numpy as np
import torch

import simsearch
from simsearch.common.atomic_files import atomic_write
from simsearch.common.pca import fit_pca
from simsearch.engine import Engine
from simsearch.models.hashing import autoencoder
from simsearch.models.hashing.autoencoder import HashConfig

QUERIES, K, CANDIDATES = 1000, 10, 200
PLAIN = HashConfig()
ALL_EPOCHS = PLAIN.epochs + PLAIN.pretrain_epochs * (len(PLAIN.hidden) + 1)  # a step of either takes about as long
AUTOENCODERS = {"dbn": {}, "random": {"pretrain_epochs": 0, "epochs": ALL_EPOCHS}, "similar": {"similarity": 1.0}}
METHODS = (*AUTOENCODERS, "lsh", "itq", "pq", "rabitq")
Search = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Field:
    """base: (N, D) float32, sample: (n, D) of it, queries: (nq, D); truth: (nq, K) places of the nearest in base."""

    base: np.ndarray
    sample: np.ndarray
    queries: np.ndarray
    truth: np.ndarray


def signs(values: np.ndarray) -> np.ndarray:
    return np.packbits(values > 0, axis=1, bitorder="little")


def hamming(base: np.ndarray, encode: Callable[[np.ndarray], np.ndarray]) -> Search:
    codes = encode(base)
    index = faiss.IndexBinaryFlat(8 * codes.shape[1])
    index.add(codes)
    return lambda queries, k: index.search(encode(queries), k)[1]


def blocks(encode: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: np.concatenate([encode(x[start : start + 4096]) for start in range(0, len(x), 4096)])


def itq(sample: np.ndarray, bits: int, iterations: int = 50) -> Callable[[np.ndarray], np.ndarray]:
    """The rotation of principal components that loses least by taking signs."""
    onto = fit_pca(sample, bits)
    projected = onto(sample)
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((bits, bits)))[0].astype(np.float32)
    for _ in range(iterations):
        left, _, right = np.linalg.svd(np.sign(projected @ rotation).T @ projected)
        rotation = np.ascontiguousarray((left @ right).T, np.float32)
    return lambda x: signs(onto(x) @ rotation)


def fitted(name: str, bits: int, field: Field, config: HashConfig) -> tuple[Search, float]:
    """A search by codes of that size, and the seconds it took to learn them."""
    start = time.perf_counter()
    if name in AUTOENCODERS:
        codes = autoencoder.train(field.sample, replace(config, bits=bits, **AUTOENCODERS[name]))
        encode = codes.__call__
    elif name == "lsh":
        mean = field.sample.mean(0)
        planes = np.random.default_rng(0).standard_normal((field.base.shape[1], bits), np.float32)
        encode = blocks(lambda x: signs((x - mean) @ planes))
    elif name == "itq":
        encode = blocks(itq(field.sample, bits))
    elif name == "pq":
        index = faiss.IndexPQ(field.base.shape[1], bits // 8, 8)
        index.train(field.sample)
        took = time.perf_counter() - start
        index.add(field.base)
        return (lambda queries, k: index.search(queries, k)[1]), took
    else:
        onto = fit_pca(field.sample, bits)
        index = faiss.IndexRaBitQ(onto.axes.shape[1])
        project = blocks(onto)
        index.train(project(field.sample))
        took = time.perf_counter() - start
        index.add(project(field.base))
        parameters = faiss.RaBitQSearchParameters(qb=8, centered=False)
        return (lambda queries, k: index.search(project(queries), k, params=parameters)[1]), took
    took = time.perf_counter() - start
    return hamming(field.base, encode), took


def features_of(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, features (N, D) float32 and labels of an index's items."""
    with Engine(path, device="cpu") as engine, engine.reading() as reader:
        items = list(reader.items())
        features = reader.shards.read(np.array([item.row for item in items])).astype(np.float32)
    return np.array([item.id for item in items]), features, np.array([str(item.label) for item in items])


def nearest(base: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    return faiss.knn(queries, base, k)[1]


def split(features: np.ndarray, sample: int, k: int = K) -> tuple[Field, np.ndarray]:
    """Queries, data base and sample; and the places of all items, the queries first."""
    order = np.random.default_rng(0).permutation(len(features))
    base, queries = features[order[QUERIES:]], features[order[:QUERIES]]
    return Field(base, base[:sample], queries, nearest(base, queries, k)), order


def measured(name: str, bits: int, field: Field, config: HashConfig) -> dict[str, float]:
    search, took = fitted(name, bits, field, config)
    found = search(field.queries, CANDIDATES)
    recalls = [len(np.intersect1d(row, true)) / K for row, true in zip(found, field.truth, strict=True)]
    precisions = [len(np.intersect1d(row[:K], true)) / K for row, true in zip(found, field.truth, strict=True)]
    error = 1.96 * float(np.std(recalls)) / len(recalls) ** 0.5
    return {"recall": float(np.mean(recalls)), "error": error, "precision": float(np.mean(precisions)), "seconds": took}


def agreeing(found: np.ndarray, base: np.ndarray, asked: np.ndarray) -> dict[str, float]:
    """P@k by labels."""
    same = base[found] == asked[:, None]
    return {f"P@{k}": float(same[:, :k].mean()) for k in (1, 10, 100)}


def cifar(path: Path, sample: int, config: HashConfig, bits: int = 256) -> dict[str, dict[str, float]]:
    """The nearest by codes and by distances, of pixels and of features, judged by labels."""
    ids, features, labels = features_of(path)
    with Engine(path, device="cpu") as engine:
        images = [engine.thumbnail(int(number), 32) for number in ids]
    pixels = np.stack([np.asarray(image, np.float32).reshape(-1) / 255 for image in images if image is not None])
    if len(pixels) != len(ids):
        raise SystemExit(f"{len(ids) - len(pixels)} pictures of {path} cannot be read")
    found = {}
    for name, x in (("pixels", pixels), ("features", features)):
        field, order = split(x, sample, 100)
        base, asked = labels[order[QUERIES:]], labels[order[:QUERIES]]
        found[f"Euclidean distance of {name}"] = agreeing(field.truth, base, asked)
        codes = autoencoder.train(field.sample, replace(config, bits=bits))
        near = hamming(field.base, codes.__call__)(field.queries, 100)
        found[f"{bits}-bit codes of {name}"] = agreeing(near, base, asked)
    return found


def kept(file: Path, make: Callable[[], dict]) -> dict:
    """Returns the measurement in `file`; makes it and writes it there if it is missing."""
    if not file.exists():
        found = make()
        atomic_write(file, json.dumps(found).encode())
    return json.loads(file.read_text())


def table(name: str, rows: dict[str, dict[int, dict[str, float]]], sizes: list[int], key: str) -> None:
    print(f"\n{name}\n{'':10}" + "".join(f"{bits:>8}" for bits in sizes))
    for method, results in rows.items():
        print(
            f"{method:10}" + "".join(f"{results[bits][key]:8.3f}" if bits in results else f"{'':8}" for bits in sizes)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path, metavar="INDEX")
    parser.add_argument("--bits", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--sample", type=int, default=10_000, metavar="N", help="images to learn from (default: 10000)")
    parser.add_argument("--cifar", type=Path, metavar="INDEX", help="an index of CIFAR-10's training images")
    parser.add_argument("--work", type=Path, default=Path("indexes/codes"), metavar="DIR")
    parser.add_argument("--only", choices=[*METHODS, "cifar"], metavar="NAME", help="one row, or cifar")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    config = HashConfig()
    _, features, _ = features_of(options.index)
    print(
        f"simsearch {simsearch.__version__}, torch {torch.__version__}, faiss {faiss.__version__}, Python"
        f" {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    print(
        f"{options.index}: {len(features):,} x {features.shape[1]:,} features, {QUERIES:,} of them queries,"
        f" {min(options.sample, len(features) - QUERIES):,} to learn from; autoencoders {config}"
    )
    field, _ = split(features, options.sample)
    rows: dict[str, dict[int, dict[str, float]]] = {}
    for method in METHODS if options.only is None else [name for name in METHODS if name == options.only]:
        for bits in options.bits:
            file = options.work / f"{len(features)}-{options.sample}-{method}-{bits}.json"
            rows.setdefault(method, {})[bits] = kept(
                file, lambda method=method, bits=bits: measured(method, bits, field, config)
            )
    if rows:
        table(f"recall@{K} after ranking {CANDIDATES}, by bits", rows, options.bits, "recall")
        table("half the 95 % interval of it", rows, options.bits, "error")
        table(f"precision of the first {K} by codes alone", rows, options.bits, "precision")
        table("seconds to learn", rows, options.bits, "seconds")
    if options.cifar and options.only in {None, "cifar"}:
        file = options.work / f"cifar-{options.sample}.json"
        print(f"\n{options.cifar}: the share of the nearest that have the query's label, {QUERIES:,} queries")
        for name, values in kept(file, lambda: cifar(options.cifar, options.sample, config)).items():
            print(f"{name:32}" + "  ".join(f"{key} {value:.3f}" for key, value in values.items()))


if __name__ == "__main__":
    main()
