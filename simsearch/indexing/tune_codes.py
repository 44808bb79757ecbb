"""Binary codes learned from the features of an index: trained, measured and recorded as its way to search."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from simsearch.common.intervals import mean_interval
from simsearch.common.lazy import LazyModule
from simsearch.common.progress import Progress, no_progress
from simsearch.errors import UsageError
from simsearch.indexing import measure, tune
from simsearch.indexing.measure import Benchmark
from simsearch.indexing.tune import Choice
from simsearch.search.ann import AnnSettings, K
from simsearch.search.binary_codes import BinaryCodeIndex

if TYPE_CHECKING:
    from simsearch.models.hashing import autoencoder
    from simsearch.storage.index import Index
else:
    autoencoder = LazyModule("simsearch.models.hashing.autoencoder")

CANDIDATES = (200, 400, 800, 1600)
"""Numbers of candidates to try, fewest first."""

RECALL = 0.95
"""Default recall."""


def tune_codes(
    index: Index,
    config: autoencoder.HashConfig,
    recall: float = RECALL,
    memory: int | None = None,
    progress: Progress = no_progress,
) -> Choice:
    """Trains binary codes on the features of an index and records them as its way to search, even if another is faster.

    A search ranks the nearest items by Hamming distance exactly: 200 of them, or more if the recall needs it. The
    recall is measured on held-out items, which neither train the codes nor are among the entries.

    config: the autoencoder's settings.
    recall: the share of the 10 true neighbours that should be found, above 0 and at most 1.
    memory: size limit of the codes in bytes; None for no limit.
    progress: called with the number of images processed and their total.
    Raises UsageError for an invalid recall, a small index or too little memory, and IndexLockedError if another
    process is writing.
    """
    if not 0 < recall <= 1:
        raise UsageError(f"the recall {recall} is not between 0 and 1")
    with index.writing(tune.LOCK_SECONDS):  # fail now if the index is locked, not after minutes of training
        pass
    flat, rows = measure.open_flat(index)
    setting = AnnSettings("codes", config.bits, CANDIDATES[0], 0)
    _check_size(index, len(rows), setting, memory)
    held_out, entries, sample = measure.hold_out(flat, rows)
    codes = autoencoder.train(sample, config, lambda done, total: progress(done, total + len(entries)))
    trained = autoencoder.images(config, len(sample))
    encoded = np.empty((len(entries), config.bits // 8), np.uint8)
    for start in range(0, len(entries), tune.BLOCK):
        encoded[start : start + tune.BLOCK] = codes(flat.read(entries[start : start + tune.BLOCK]))
        progress(trained + min(start + tune.BLOCK, len(entries)), trained + len(entries))
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
    return tune.record_choice(index, whole, replace(choice, memory=made.setting.bytes_for(len(rows))), recall)


def _check_size(index: Index, items: int, setting: AnnSettings, memory: int | None) -> None:
    """Raises UsageError if the index is too small to learn from, or the codes exceed the memory limit."""
    if items < tune.LEAST:
        raise UsageError(
            f"{index.path} has {items:,} items, too few to learn codes from",
            hint=f"at least {tune.LEAST:,} are needed",
        )
    needed = setting.bytes_for(items)
    if memory is not None and needed > memory:
        raise UsageError(f"codes of {setting.dimensions} bits take {needed:,} bytes, more than {memory:,}")


def _measure(made: BinaryCodeIndex, benchmark: Benchmark, recall: float) -> Choice:
    """Chooses the number of candidates with the first half of the queries and measures it with the second half.

    Changes `made.setting` to the chosen one: the most candidates of all if the recall is not reached.
    """
    flat, queries, rows = benchmark.flat, benchmark.queries, benchmark.rows
    half = len(queries) // 2
    exact_seconds, _ = measure.time_queries(lambda query: flat.search(query, K, rows), queries)
    for candidates in CANDIDATES:
        made.setting = replace(made.setting, candidates=candidates)
        if benchmark.recalls(made.search(flat, queries[:half], K, rows), slice(0, half)).mean() >= recall:
            break
    recalls = benchmark.recalls(made.search(flat, queries[half:], K, rows), slice(half, None))
    low, high = mean_interval(recalls)
    seconds, _ = measure.time_queries(lambda query: made.search(flat, query, K, rows), queries)
    return Choice("codes", float(recalls.mean()), low, high, len(recalls), seconds, exact_seconds, 0, {})
