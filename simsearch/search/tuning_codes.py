"""Learns binary codes for approximate search from a sample of the rows, and measures the recall and the time.

`simsearch.indexing.tune_codes` records the result.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from simsearch.common.intervals import mean_interval
from simsearch.common.lazy import LazyModule
from simsearch.common.progress import Progress
from simsearch.search import measuring
from simsearch.search.ann import AnnSettings, K
from simsearch.search.binary_codes import BinaryCodeIndex
from simsearch.search.exact import FlatIndex
from simsearch.search.measuring import Benchmark
from simsearch.search.tuning import BLOCK, Choice

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.models.hashing import autoencoder
else:
    autoencoder = LazyModule("simsearch.models.hashing.autoencoder")

CANDIDATES = (200, 400, 800, 1600)
"""Numbers of candidates to try, fewest first."""


def learn(
    flat: FlatIndex, rows: NDArray[np.int64], config: autoencoder.HashConfig, recall: float, progress: Progress
) -> tuple[BinaryCodeIndex, Choice]:
    """Trains an encoder on a sample of the rows and encodes all rows.

    Returns the approximate search and its measurements.
    flat: the exact search. rows: (n,) the rows to encode, ascending.
    config, recall, progress: as for `indexing.tune_codes`.
    """
    setting = AnnSettings("codes", config.bits, CANDIDATES[0], 0)
    held_out, entries, sample = measuring.hold_out(flat, rows)
    codes = autoencoder.train(sample, config, lambda done, total: progress(done, total + len(entries)))
    trained = autoencoder.images(config, len(sample))
    encoded = np.empty((len(entries), config.bits // 8), np.uint8)
    for start in range(0, len(entries), BLOCK):
        encoded[start : start + BLOCK] = codes(flat.read(entries[start : start + BLOCK]))
        progress(trained + min(start + BLOCK, len(entries)), trained + len(entries))
    queries = flat.read(held_out).astype(np.float32)
    benchmark = Benchmark.of(flat, entries, queries)
    made = BinaryCodeIndex(setting, codes, encoded, entries, flat.rows, flat.shards.compactions)
    choice = _measure(made, benchmark, recall)
    whole = BinaryCodeIndex(
        made.setting,
        codes,
        np.concatenate([encoded, codes(queries)]),
        np.concatenate([entries, held_out]),
        flat.rows,
        flat.shards.compactions,
    )
    return whole, replace(choice, memory=made.setting.bytes_for(len(rows)))


def _measure(made: BinaryCodeIndex, benchmark: Benchmark, recall: float) -> Choice:
    """Chooses the smallest number of candidates with which the first half of the queries reaches the recall.

    Sets `made.setting` to this choice, or to the largest number of candidates if no number reaches the recall. Measures
    the recall with the second half of the queries.
    """
    flat, queries, rows = benchmark.flat, benchmark.queries, benchmark.rows
    half = len(queries) // 2
    exact_seconds, _ = measuring.time_queries(lambda query: flat.search(query, K, rows), queries)
    for candidates in CANDIDATES:
        made.setting = replace(made.setting, candidates=candidates)
        if benchmark.recalls(made.search(flat, queries[:half], K, rows), slice(0, half)).mean() >= recall:
            break
    recalls = benchmark.recalls(made.search(flat, queries[half:], K, rows), slice(half, None))
    seconds, _ = measuring.time_queries(lambda query: made.search(flat, query, K, rows), queries)
    low, high = mean_interval(recalls)
    return Choice("codes", float(recalls.mean()), low, high, len(recalls), seconds, exact_seconds, 0, {})
