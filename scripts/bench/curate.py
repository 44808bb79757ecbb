#!/usr/bin/env python3
"""How well `curate` finds what was planted (wrong labels, strangers, copies), and what `diverse` and `tags` reach.

    scripts/bench/curate.py -i INDEX [--strangers INDEX] [--seed 0] [--labels]

INDEX has labelled items, which count as clean: a wrong label that it has itself counts as a mistake where it is found,
so that the figures are lower bounds.

labels: one label in ten is replaced by another at random. `curate labels` beside cleanlab's `find_label_issues` on the
same probabilities, and on those of a logistic regression in five folds. Precision, recall, F1, average precision.
outliers: 50 items of another index (--strangers) are put among the items. `curate outliers` beside the plain distance
to the neighbours and scikit-learn's LocalOutlierFactor and IsolationForest: AUROC and precision at 50.
leaks: changed copies of 100 pictures (as `duplicates` knows them) against the index: recall within its own limit, and
the share of 500 other pictures of --strangers that are reported.
diverse: radius of 10 and 100 items beside the mean of 20 random choices, and the labels covered.
tags: accuracy of labels spread from 1, 5 and 20 items per label beside the nearest labelled item's.

cleanlab and scikit-learn are optional: without them their lines are missing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np

import simsearch
from simsearch import api
from simsearch.curation import diverse, graph, labels, outliers, tags
from simsearch.engine import Engine
from simsearch.images import perturb
from simsearch.images.sources import resolve
from simsearch.search.copy_threshold import copy_threshold

PLANTED, STRANGERS, COPIED = 0.1, 50, 100


@contextlib.contextmanager
def timed(name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    print(f"    ({name}: {time.perf_counter() - start:.1f} s)")


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """The mean precision at each planted item, by descending score."""
    hits = truth[np.argsort(-scores, kind="stable")]
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())


def auroc(scores: np.ndarray, truth: np.ndarray) -> float:
    ranks = np.argsort(np.argsort(scores))
    positive = truth.sum()
    return float((ranks[truth].sum() - positive * (positive - 1) / 2) / (positive * (~truth).sum()))


def measure_labels(near: graph.Graph, features: np.ndarray, seed: int) -> None:
    names, true = labels.label_numbers(np.array([item.label for item in near.collection.items], object))
    random = np.random.default_rng(seed)
    planted = random.random(len(true)) < PLANTED
    given = np.where(planted, (true + random.integers(1, len(names), len(true))) % len(names), true)
    print(f"labels: {planted.sum()} of {len(true):,} replaced, {len(names)} labels")

    def show(name: str, found: np.ndarray, scores: np.ndarray) -> None:
        precision, recall = (found & planted).sum() / max(1, found.sum()), (found & planted).sum() / planted.sum()
        f1 = 2 * precision * recall / max(1e-9, precision + recall)
        ap = average_precision(scores, planted)
        print(f"  {name:44} precision {precision:.3f}  recall {recall:.3f}  F1 {f1:.3f}  AP {ap:.3f}")

    with timed("simsearch, without the neighbours"):
        probable = labels.label_probabilities(near, given, len(names))
        suggested, margins = labels.find_issues(probable, given)
    own = probable[np.arange(len(given)), given]
    others = probable.copy()
    others[np.arange(len(given)), given] = -1
    show("simsearch", suggested >= 0, np.where(suggested >= 0, 2 + margins, others.max(1) - own))
    right = (suggested == true) & (suggested >= 0) & planted
    print(f"  the suggested label is the true one for {right.sum() / max(1, ((suggested >= 0) & planted).sum()):.3f}")
    with contextlib.suppress(ImportError):
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores

        def beside(name: str, probabilities: np.ndarray) -> None:
            found = find_label_issues(given, probabilities, n_jobs=1)
            show(name, found, 1 - get_label_quality_scores(given, probabilities))

        floor = np.where(probable.sum(1, keepdims=True) > 0, probable, 1 / len(names))
        with timed("cleanlab"):
            beside("cleanlab, the same probabilities", floor)
        from sklearn.decomposition import PCA
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import cross_val_predict

        with timed("logistic regression and cleanlab"):
            reduced = PCA(128, random_state=seed).fit_transform(features)
            reduced /= reduced.std()
            fitted = cross_val_predict(LogisticRegression(max_iter=300), reduced, given, cv=5, method="predict_proba")
            beside("cleanlab, logistic regression in 5 folds", fitted)


def join(near: graph.Graph, features: np.ndarray, strangers: np.ndarray, k: int) -> graph.Graph:
    """The neighbours of all items and strangers together."""
    both = np.concatenate([features, strangers])
    norms = (both.astype(np.float64) ** 2).sum(1)
    places, distances = np.empty((len(both), k), np.int64), np.empty((len(both), k))
    for start in range(0, len(both), 512):
        stop = min(start + 512, len(both))
        squared = norms[start:stop, None] + norms - 2 * (both[start:stop] @ both.T)
        squared[np.arange(stop - start), np.arange(start, stop)] = np.inf
        nearest = np.argsort(squared, axis=1)[:, :k]
        places[start:stop] = nearest
        distances[start:stop] = np.sqrt(np.maximum(np.take_along_axis(squared, nearest, 1), 0))
    return replace(near, places=places, distances=distances)


def measure_outliers(near: graph.Graph, features: np.ndarray, strangers: np.ndarray) -> None:
    joined = join(near, features, strangers, outliers.NEIGHBOURS)
    truth = np.arange(len(joined.places)) >= len(features)
    print(f"outliers: {len(strangers)} strangers among {len(features):,} items")

    def show(name: str, scores: np.ndarray) -> None:
        first = truth[np.argsort(-scores, kind="stable")[: len(strangers)]].mean()
        print(f"  {name:44} AUROC {auroc(scores, truth):.3f}  P@{len(strangers)} {first:.3f}")

    scores, plain = outliers.outlier_scores(joined)
    show("simsearch", scores)
    show("mean distance to the neighbours", plain)
    with contextlib.suppress(ImportError):
        from sklearn.ensemble import IsolationForest
        from sklearn.neighbors import LocalOutlierFactor

        both = np.concatenate([features, strangers])
        show("LocalOutlierFactor, 20", -LocalOutlierFactor(20).fit(both).negative_outlier_factor_)
        show("IsolationForest", -IsolationForest(random_state=0).fit(both).score_samples(both))


def measure_leaks(engine: Engine, strangers: Engine | None, seed: int) -> None:
    limit = copy_threshold(engine.opened_index, engine.model)
    with engine.reading() as reader:
        ids, _ = reader.ids_and_rows()
    chosen = np.random.default_rng(seed + 1).choice(ids, min(COPIED, len(ids)), replace=False).tolist()
    pictures = [resolve.open_picture(engine.read(number), None).image for number in chosen]
    print(f"leaks: changed copies of {len(pictures)} pictures against {len(ids):,} items, limit {limit.distance:.4g}")
    for name, change in perturb.COPIES.items():
        found, away = engine.neighbours(engine.features([change(picture) for picture in pictures]), 1, exact=True)
        hit = (away[:, 0] <= limit.distance) & (found[:, 0] == chosen)
        wrong = (away[:, 0] <= limit.distance) & (found[:, 0] != chosen)
        print(f"  {name:44} found {hit.mean():.3f}  another one nearer {wrong.mean():.3f}")
    if strangers:
        with strangers.reading() as reader:
            rows = reader.ids_and_rows()[1][:500]
            features = reader.shards.read(rows).astype(np.float32)
        _, away = engine.neighbours(features, 1, exact=True)
        print(f"  {'strangers reported':44} {(away[:, 0] <= limit.distance).mean():.3f}")


def measure_diverse(engine: Engine, features: np.ndarray, seed: int) -> None:
    random = np.random.default_rng(seed)
    norms = (features.astype(np.float64) ** 2).sum(1)

    def radius(places: np.ndarray) -> float:
        squared = norms[:, None] + norms[places] - 2 * (features @ features[places].T)
        return float(np.sqrt(np.maximum(squared.min(1), 0).max()))

    print("diverse:")
    for count in (10, 100):
        with timed("simsearch"):
            chosen = diverse.diverse(engine.snapshots, count)
        covered = len({finding.member.item.label for finding in chosen})
        others = np.mean([radius(random.choice(len(features), count, replace=False)) for _ in range(20)])
        reached = chosen[-1].facts["radius"]
        print(f"  {count} items: radius {reached:.4g}, {covered} labels; of random choices {others:.4g}")


def measure_tags(engine: Engine, near: graph.Graph, seed: int) -> None:
    items = near.collection.items
    names = sorted({item.label for item in items if item.label is not None})
    random = np.random.default_rng(seed)
    print(f"tags: {len(names)} labels")
    for each in (1, 5, 20):
        seeds: dict[int, str] = {}
        for name in names:
            own = [item.id for item in items if item.label == name]
            seeds |= dict.fromkeys(random.choice(own, min(each, len(own) // 2), replace=False).tolist(), name)
        with timed("simsearch, neighbours included"):
            found = tags.spread_labels(engine.snapshots, seeds)
        right = np.mean([finding.facts["label"] == finding.member.item.label for finding in found])
        reached = len(found) / (len(items) - len(seeds))
        known = [place for place, item in enumerate(items) if item.id in seeds]
        centres = near.collection.snapshot.flat.read(near.collection.rows[known]).astype(np.float32)
        half = (centres.astype(np.float64) ** 2).sum(1) / 2
        hits = total = 0
        for start in range(0, len(items), 512):
            stop = min(start + 512, len(items))
            nearest = (half - near.collection.features(start, stop) @ centres.T).argmin(1)
            for place, which in zip(range(start, stop), nearest.tolist(), strict=True):
                if items[place].id not in seeds:
                    total += 1
                    hits += items[place].label == items[known[which]].label
        print(f"  from {each} of each: {right:.3f} right ({reached:.3f} reached); nearest labelled {hits / total:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--index", required=True)
    parser.add_argument("--strangers", metavar="INDEX", help="an index of quite other pictures, of the same model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--labels", action="store_true", help="measure wrong labels only")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(api.open(options.index, device="cpu"))
        other = stack.enter_context(api.open(options.strangers, device="cpu")) if options.strangers else None
        print(
            f"simsearch {simsearch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores;"
            f" {len(engine):,} items, seed {options.seed}"
        )
        with timed("the neighbours of all items"):
            near = stack.enter_context(graph.neighbour_graph(engine.snapshots, labels.NEIGHBOURS))
        features = near.collection.features(0, len(near.collection.items))
        steps: list[Callable[[], Any]] = [
            lambda: measure_labels(near, features, options.seed),
            lambda: measure_leaks(engine, other, options.seed),
            lambda: measure_diverse(engine, features, options.seed),
            lambda: measure_tags(engine, near, options.seed),
        ]
        if other:
            with other.reading() as reader:
                rows = np.random.default_rng(options.seed).permutation(reader.ids_and_rows()[1])[:STRANGERS]
                strangers = reader.shards.read(np.sort(rows)).astype(np.float32)
            steps.insert(1, lambda: measure_outliers(near, features, strangers))
        for step in steps[: 1 if options.labels else None]:
            step()


if __name__ == "__main__":
    main()
