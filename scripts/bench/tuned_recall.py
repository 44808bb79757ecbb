#!/usr/bin/env python3
"""Does a tuned search reach its recall for pictures from outside?

    scripts/bench/tuned_recall.py -i INDEX --pictures SOURCE [--recall 0.99 0.999] [--queries 500]

INDEX is tuned to each recall in turn, and stays tuned to the last. The queries are pictures of SOURCE, which should
not be in the index, and mixtures: the mean of the features of each picture and of the picture of SOURCE nearest to it.
For each recall, the recall@10 that `tune` measured is printed with its 95 % interval, and that of the queries. A
distance counts if it is as near as the tenth in a proved exact search. The script exits with 1 if the recall of the
queries is less than the target by more than half of its own interval.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np

import simsearch
from simsearch.common.intervals import mean_interval
from simsearch.images.sources.resolve import resolve
from simsearch.indexing import tune
from simsearch.installation import __version__

K = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--index", required=True)
    parser.add_argument("--pictures", required=True, help="where the queries come from")
    parser.add_argument("--recall", type=float, nargs="+", default=[0.99, 0.999])
    parser.add_argument("--queries", type=int, default=500)
    options = parser.parse_args()
    with simsearch.open(options.index, device="cpu") as engine:
        sets = queries_of(engine, options.pictures, options.queries)
        truth = {name: engine.neighbours(each, K, exact=True)[1][:, -1] for name, each in sets.items()}
        print(f"simsearch {__version__}, {os.cpu_count()} cores, {len(engine):,} items, {options.queries} queries")
    missed = 0
    for target in options.recall:
        with simsearch.open(options.index, device="cpu") as engine:
            clock = time.perf_counter()
            choice = tune.tune(engine.index, target)
            took = time.perf_counter() - clock
        print(f"target {target}: {choice.kind} {choice.parameters}, tuned in {took:.0f} s")
        print(f"  {'held-out items':16} {choice.recall:.4f}, 95 % {choice.low:.4f} to {choice.high:.4f}")
        with simsearch.open(options.index, device="cpu") as engine:
            for name, each in sets.items():
                took_each, found = [], []
                for query in each:
                    clock = time.perf_counter()
                    found.append(engine.neighbours(query[None], K)[1][0])
                    took_each.append(time.perf_counter() - clock)
                hits = np.array([(row <= far * (1 + 1e-9)).mean() for row, far in zip(found, truth[name], strict=True)])
                low, high = mean_interval(hits)
                short = hits.mean() < target - (high - low) / 2
                missed += int(short)
                print(
                    f"  {name:16} {hits.mean():.4f}, 95 % {low:.4f} to {high:.4f}, median "
                    f"{1e3 * np.median(took_each):.2f} ms{', BELOW THE TARGET' if short else ''}"
                )
    sys.exit(1 if missed else 0)


def queries_of(engine: simsearch.Engine, source: str, count: int) -> dict[str, np.ndarray]:
    """Returns the features of pictures of a source, drawn at random, and mixtures of them: (n, D) float32 each."""
    opened = resolve(source)
    entries = opened.listing().entries
    chosen = np.sort(np.random.default_rng(0).choice(len(entries), min(count, len(entries)), replace=False))
    pictures = engine.features([opened.read(entries[number].path) for number in chosen])
    squared = np.einsum("nd,nd->n", pictures, pictures)
    apart = squared[:, None] + squared - 2 * pictures @ pictures.T
    np.fill_diagonal(apart, np.inf)
    return {"pictures": pictures, "mixtures": (pictures + pictures[apart.argmin(1)]) / 2}


if __name__ == "__main__":
    main()
