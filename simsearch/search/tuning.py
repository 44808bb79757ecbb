"""Chooses an approximate search by measurement: the fastest that reaches a recall within a memory limit.

An approximate search is also called a structure. The kinds of structures are timed on a part of the rows, and the
fastest one is built from all rows. It is used only if it is faster than exact search, which takes a few milliseconds
with short codes of the rows (`simsearch.search.sketch`). `simsearch.indexing.tune` records the choice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common import pca
from simsearch.common.float16 import to_float32
from simsearch.common.intervals import mean_interval
from simsearch.common.progress import Progress, no_progress
from simsearch.search import ann, measuring
from simsearch.search.ann import AnnIndex, AnnSettings, K
from simsearch.search.exact import FlatIndex
from simsearch.search.measuring import Benchmark

if TYPE_CHECKING:
    from numpy.typing import NDArray

RACE, BLOCK, ADDED = 32_768, 1024, 8192
"""Number of rows for comparing the kinds; number of rows projected at once; number of rows added at once."""

SCANNED = 65_536
"""Number of rows that are scanned to time an exact search: 512 MiB at D = 4096."""

REACH, LARGEST = 2.0**13, float(np.finfo(np.float16).max)
"""Upper bound of the sample's projected values after scaling, and limit to which all projected values are clipped."""

DIMENSIONS = 256
"""Maximum number of principal components."""

LEAST = 2_000
"""Smallest number of items for an approximate search; with fewer, an exact search takes only a few milliseconds."""

KINDS = (
    ("hnsw", 128),
    ("hnsw", 256),
    ("pq", 128),
    ("pq", 256),
    ("ivf", 128),
    ("sq8", 128),
    ("rabitq", 256),
)
"""The kinds of approximate search and their numbers of components, in the order in which they are tried."""

SCANS = ("sq8", "rabitq")
"""The kinds that compare every row. They are only tried if no other kind reaches the recall within the memory limit."""

FEW = 40
"""A kind that reaches the recall with at most this many candidates is not tried with more components."""

CLOSE = 1.2
"""Settings whose times differ by at most about this factor count as equally fast."""

CANDIDATES = (12, 16, 20, 30, 40, 80, 160, 320)
"""Numbers of candidates to try."""

EFFORTS = {
    "hnsw": (20, 40, 60, 80, 120, 160, 320, 640),
    "pq": (8, 16, 32, 64, 128, 256),
    "ivf": (4, 8, 16, 32, 64, 128, 256),
    "sq8": (0,),
    "rabitq": (0,),
}
"""Search efforts to try for each kind (see `AnnSettings.effort`)."""


@dataclass(frozen=True)
class Choice:
    """The chosen way to search, with its measurements.

    kind: "exact", "hnsw", "ivf", "pq", "sq8", "rabitq" or "codes".
    recall: the mean recall of the 10 nearest neighbours, over `queries` queries.
    low, high: the 95 % confidence interval of the recall.
    seconds, exact_seconds: the median time of one query by the chosen search, and by an exact search.
    memory: the size of the approximate search in bytes.
    parameters: the settings and the folder of the approximate search, as in `meta.json`.
    tried: the results of each kind that was measured.
    proved: True if exact search uses a sketch, which proves that the rows it skips are not among the nearest.
    """

    kind: str
    recall: float
    low: float
    high: float
    queries: int
    seconds: float
    exact_seconds: float
    memory: int
    parameters: dict[str, Any]
    tried: tuple[dict[str, Any], ...] = ()
    proved: bool = False


def choose(
    flat: FlatIndex, rows: NDArray[np.int64], recall: float, memory: int | None, progress: Progress
) -> tuple[AnnIndex | None, Choice]:
    """Chooses and builds the fastest approximate search, for `indexing.tune`; returns it and its measurements.

    rows: (n,) the rows to search, ascending.
    recall: the recall to reach.
    memory: the largest size in bytes; None for no limit.
    If no approximate search within the memory limit reaches the recall and is faster than exact search, returns None
    and the measurements of exact search.
    """
    held_out, entries, sample = measuring.hold_out(flat, rows)
    queries = to_float32(flat.read(held_out))
    projection = _scale_to_float16(pca.fit_pca(sample, DIMENSIONS), sample)
    projected = project(flat, entries, projection, progress)
    seconds = _exact_seconds(flat, entries, queries)
    tried, ranking = _race(flat, entries, projected, projection, queries, recall, memory)
    whole, mixed = (Benchmark.of(flat, entries, each) for each in (queries, measuring.mixtures(queries)))
    for setting in ranking:
        made = build(setting, projection, projected, entries, flat.rows, progress)
        choice = _measure(made, whole, mixed, recall)
        if choice is None or choice.seconds >= seconds:
            continue
        made.setting = AnnSettings(**{name: choice.parameters[name] for name in AnnSettings.__dataclass_fields__})
        made.index.add(np.ascontiguousarray(projection(queries)[:, : setting.dimensions]))
        made.rows = np.concatenate([made.rows, held_out])
        made = AnnIndex(made.setting, projection, made.index, made.rows, made.covered, flat.shards.compactions)
        choice = replace(choice, exact_seconds=seconds, tried=tuple(tried), memory=made.setting.bytes_for(len(rows)))
        return made, choice
    return None, replace(exact(seconds, flat.proved), tried=tuple(tried))


def exact(seconds: float, proved: bool = False) -> Choice:
    """Returns the `Choice` for exact search. seconds: the time of one search.

    proved: True if the search uses a sketch to skip rows, and proves that none of them is among the nearest.
    """
    return Choice("exact", 1.0, 1.0, 1.0, 0, seconds, seconds, 0, {}, (), proved)


def _exact_seconds(flat: FlatIndex, entries: NDArray[np.int64], queries: NDArray[np.float32]) -> float:
    """Returns the seconds that one exact search takes. entries: (n,) the rows to search in.

    Without a sketch, scans only the first `SCANNED` entries, and estimates the time for all entries in proportion. A
    scan of all entries would map the whole of the feature files into memory.
    """
    if flat.proved:
        return measuring.time_queries(lambda query: flat.search(query, K, entries), queries)[0]
    within = entries[:SCANNED]
    part = FlatIndex(flat.shards, int(within[-1]) + 1)
    seconds, _ = measuring.time_queries(lambda query: part.search(query, K, within), queries)
    return seconds * len(entries) / len(within)


def _scale_to_float16(projection: pca.Projection, sample: NDArray[np.float16]) -> pca.Projection:
    """Returns the projection, scaled by a power of two so that the projected (n, D) sample fits into float16."""
    farthest = max(float(np.abs(projection(sample[n : n + BLOCK])).max()) for n in range(0, len(sample), BLOCK))
    factor = REACH / 2 ** np.ceil(np.log2(farthest)) if farthest else 1.0
    return pca.Projection(projection.mean, projection.axes * np.float32(factor))


def project(
    flat: FlatIndex, rows: NDArray[np.int64], projection: pca.Projection, progress: Progress
) -> NDArray[np.float16]:
    """Returns the projections of the rows, (n, d) float16.

    This precision is enough, since approximate searches keep at most eight bits of a value.
    """
    projected = np.empty((len(rows), projection.axes.shape[1]), np.float16)
    for start in range(0, len(rows), BLOCK):
        block = projection(flat.read(rows[start : start + BLOCK]))
        projected[start : start + BLOCK] = np.clip(block, -LARGEST, LARGEST)
        progress(min(start + BLOCK, len(rows)), 2 * len(rows))
    return projected


def build(
    setting: AnnSettings,
    projection: pca.Projection,
    projected: NDArray[np.floating],
    rows: NDArray[np.int64],
    covered: int,
    progress: Progress = no_progress,
) -> AnnIndex:
    """Builds an approximate search over `rows`.

    projected: the projections of the (n,) rows, with at least `setting.dimensions` columns; the others are ignored.
    covered: the number of all rows in the feature files now. Rows that are added later are searched exactly.
    """
    index = ann.new_faiss_index(setting, len(rows))
    some = np.random.default_rng(1).choice(len(rows), min(4 * measuring.SAMPLE, len(rows)), replace=False)
    index.train(to_float32(projected[np.sort(some), : setting.dimensions]))
    for start in range(0, len(rows), ADDED):
        index.add(to_float32(projected[start : start + ADDED, : setting.dimensions]))
        progress(len(rows) + min(start + ADDED, len(rows)), 2 * len(rows))
    return AnnIndex(setting, projection, index, rows, covered)


def _race(
    flat: FlatIndex,
    entries: NDArray[np.int64],
    projected: NDArray[np.float16],
    projection: pca.Projection,
    queries: NDArray[np.float32],
    recall: float,
    memory: int | None,
) -> tuple[list[dict[str, Any]], list[AnnSettings]]:
    """Compares the kinds of approximate search on a random part of the rows.

    entries: (n,) the rows to search in. projected: (n, d) their projections.
    recall: the recall to reach. memory: kinds that need more bytes than this are skipped; None for no limit.
    Returns the results of the kinds that were tried, and the settings that reach the recall. The setting that is
    expected to be the fastest with all rows comes first.
    """
    some = np.sort(np.random.default_rng(2).choice(len(entries), min(RACE, len(entries)), replace=False))
    part, mixed = (Benchmark.of(flat, entries[some], each) for each in (queries, measuring.mixtures(queries)))
    ratio = len(entries) / len(some)
    # The factor by which a query takes longer in the whole index than in the part.
    growth = {
        "hnsw": np.log(len(entries)) / np.log(len(some)),
        "pq": ratio**0.5,
        "ivf": ratio**0.5,
        "sq8": ratio,
        "rabitq": ratio,
    }
    tried: list[dict[str, Any]] = []
    reached: list[tuple[float, AnnSettings]] = []
    for kind, dimensions in KINDS:
        if (kind in SCANS and reached) or any(s.kind == kind and s.candidates <= FEW for _, s in reached):
            continue
        setting = AnnSettings(kind, min(dimensions, projection.axes.shape[1]), CANDIDATES[0], EFFORTS[kind][0])
        if memory is not None and setting.bytes_for(len(entries) + len(queries)) > memory:
            continue
        choice = _measure(build(setting, projection, projected[some], part.rows, flat.rows), part, mixed, recall)
        facts: dict[str, Any] = {"kind": kind, "dimensions": setting.dimensions, "reached": choice is not None}
        if choice is not None:
            expected = choice.seconds * float(growth[kind])
            facts |= {"recall": choice.recall, "seconds": choice.seconds, "expected_seconds": expected}
            reached.append(
                (
                    expected,
                    replace(setting, candidates=choice.parameters["candidates"], effort=choice.parameters["effort"]),
                )
            )
        tried.append(facts)

    def order(pair: tuple[float, AnnSettings]) -> tuple[int, int]:
        """Returns a sort key: by speed, and for equally fast settings by memory."""
        return round(np.log(pair[0]) / np.log(CLOSE)), pair[1].bytes_for(len(entries))

    return tried, [setting for _, setting in sorted(reached, key=order)]


def _settings(start: AnnSettings) -> Iterator[AnnSettings]:
    """Yields settings whose `candidates` and `effort` are at least those of `start`, from cheap to expensive.

    Assumes that one more candidate takes as much time as an increase of `effort` by 3.
    """
    pairs = [(c, e) for c in CANDIDATES for e in EFFORTS[start.kind] if c >= start.candidates and e >= start.effort]
    for candidates, effort in sorted(pairs, key=lambda pair: 3 * pair[0] + pair[1]):
        yield replace(start, candidates=candidates, effort=effort)


def _measure(made: AnnIndex, benchmark: Benchmark, mixed: Benchmark, recall: float) -> Choice | None:
    """Returns the measurements of the cheapest setting that reaches the recall on both halves of the queries.

    Returns None if no setting does. A setting that reaches the recall on the first half is tried on the second half.
    The result contains the recall on the second half.
    mixed: the same benchmark with harder queries, from `measuring.mixtures`, on which the recall must be reached too.
    """
    flat, queries, rows = benchmark.flat, benchmark.queries, benchmark.rows
    half = len(queries) // 2
    first, second = slice(0, half), slice(half, None)
    for setting in _settings(made.setting):
        found = made.search(flat, queries[first], K, rows, setting)
        if benchmark.recalls(found, first).mean() < recall:
            continue
        found = made.search(flat, mixed.queries, K, rows, setting)
        if mixed.recalls(found, slice(None)).mean() < recall:
            continue
        found = made.search(flat, queries[second], K, rows, setting)
        recalls = benchmark.recalls(found, second)
        if recalls.mean() < recall:
            continue
        seconds, _ = measuring.time_queries(lambda query, s=setting: made.search(flat, query, K, rows, s), queries)  # type: ignore[misc]
        low, high = mean_interval(recalls)
        parameters = {
            "dimensions": setting.dimensions,
            "candidates": setting.candidates,
            "effort": setting.effort,
            "kind": setting.kind,
        }
        return Choice(
            setting.kind,
            float(recalls.mean()),
            low,
            high,
            len(recalls),
            seconds,
            0.0,
            setting.bytes_for(len(made.rows)),
            parameters,
        )
    return None
