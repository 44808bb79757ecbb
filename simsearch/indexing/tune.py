"""Choosing how to search, by measurement: the fastest structure that reaches a recall within a memory limit.

Some items are held out, so that no structure contains the queries it is measured with. Half of them choose the
settings; the other half measure the recall that is recorded. The kinds race on a part of the index. The winner is then
built from the whole index, the held-out items are added to it, and it replaces its predecessor in one step. Nothing
changes before that step. For binary codes, see `simsearch.indexing.tune_codes`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common import pca
from simsearch.common.float16 import to_float32
from simsearch.common.intervals import mean_interval
from simsearch.common.progress import Progress, no_progress
from simsearch.errors import UsageError
from simsearch.indexing import measure, sync
from simsearch.indexing.measure import Benchmark
from simsearch.search import ann
from simsearch.search.ann import AnnIndex, AnnSettings, K
from simsearch.search.exact import FlatIndex
from simsearch.storage import derived
from simsearch.storage.database import Changes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.storage.index import Index

RACE, BLOCK, ADDED = 32_768, 1024, 8192
"""Rows to race on, rows projected at a time, rows added at a time."""

SCANNED = 65_536
"""Rows that are scanned exactly to time an exact search: 512 MiB at D = 4096."""

REACH, LARGEST = 2.0**13, float(np.finfo(np.float16).max)
"""Upper bound of the projected sample's values after scaling, and of all projected values."""

DIMENSIONS = 256
"""Maximum number of principal components."""

LOCK_SECONDS, RECORD_LOCK_SECONDS = 1.0, 60.0
"""Seconds to wait for another writer: before measuring, and when a result is ready that would otherwise be lost."""

LEAST = 2_000
"""Minimum number of items: with fewer, an exact scan takes only a few milliseconds."""

KINDS = (
    ("hnsw", 128),
    ("hnsw", 256),
    ("pq", 128),
    ("pq", 256),
    ("ivf", 128),
    ("sq8", 128),
    ("rabitq", 256),
)
"""Kinds of structures and their numbers of components, in the order in which they are tried."""

SCANS = ("sq8", "rabitq")
"""Kinds that scan every entry; tried only if no other kind reaches the recall within the memory limit."""

FEW = 40
"""A kind that reaches the recall with at most this many candidates is not tried with more components."""

CLOSE = 1.2
"""Kinds whose times differ by at most about this factor count as equally fast."""

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
    recall, low, high: recall of the 10 nearest neighbours and its 95 % confidence interval, over `queries` queries.
    seconds, exact_seconds: median time of one query, and of one exact search.
    memory: size of the structure in bytes.
    parameters: the settings and the folder of the structure, as in `meta.json`.
    tried: one entry for each kind in the race, with its results.
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


def tune(index: Index, recall: float, memory: int | None = None, progress: Progress = no_progress) -> Choice:
    """Chooses, builds and records the fastest structure with at least `recall` and at most `memory` bytes.

    Chooses exact search if no structure is faster, if the index is small, or if the recall is 1.

    recall: the share of the 10 true neighbours that must be found, above 0 and at most 1.
    memory: the structure's size limit in bytes; None for no limit.
    progress: called with the number of rows processed and their total.
    Raises UsageError for an invalid recall or memory, and IndexLockedError if another process is writing.
    """
    if not 0 < recall <= 1:
        raise UsageError(f"the recall {recall} is not between 0 and 1")
    if memory is not None and memory < 1:
        raise UsageError(f"the memory is {memory} bytes, but must be at least 1")
    with index.writing(LOCK_SECONDS):  # fail now if the index is locked, not after minutes of measuring
        pass
    flat, rows = measure.open_flat(index)
    if len(rows) < LEAST or recall == 1:
        return record_choice(index, None, _exact(0.0))
    held_out, entries, sample = measure.hold_out(flat, rows)
    queries = to_float32(flat.read(held_out))
    projection = _scale_to_float16(pca.fit_pca(sample, DIMENSIONS), sample)
    projected = _project(flat, entries, projection, progress)
    seconds = _exact_seconds(flat, entries, queries)
    tried, ranking = _race(flat, entries, projected, projection, queries, recall, memory)
    whole = Benchmark.of(flat, entries, queries)
    for setting in ranking:
        made = _build(setting, projection, projected, entries, flat.rows, progress)
        choice = _measure(made, whole, recall)
        if choice is None or choice.seconds >= seconds:
            continue
        made.setting = AnnSettings(**{name: choice.parameters[name] for name in AnnSettings.__dataclass_fields__})
        made.index.add(np.ascontiguousarray(projection(queries)[:, : setting.dimensions]))
        made.rows = np.concatenate([made.rows, held_out])
        made = AnnIndex(made.setting, projection, made.index, made.rows, made.covered, flat.shards.compactions)
        choice = replace(choice, exact_seconds=seconds, tried=tuple(tried), memory=made.setting.bytes_for(len(rows)))
        return record_choice(index, made, choice, recall)
    return record_choice(index, None, replace(_exact(seconds), tried=tuple(tried)))


def _exact(seconds: float) -> Choice:
    return Choice("exact", 1.0, 1.0, 1.0, 0, seconds, seconds, 0, {})


def _exact_seconds(flat: FlatIndex, entries: NDArray[np.int64], queries: NDArray[np.float32]) -> float:
    """Returns the estimated seconds of one exact search, from scans of the first `SCANNED` entries.

    A scan of all entries would map the whole of the feature files into memory.
    """
    within = entries[:SCANNED]
    part = FlatIndex(flat.shards, int(within[-1]) + 1)
    seconds, _ = measure.time_queries(lambda query: part.search(query, K, within), queries)
    return seconds * len(entries) / len(within)


def _scale_to_float16(projection: pca.Projection, sample: NDArray[np.float16]) -> pca.Projection:
    """Scales a projection by a power of two, so that the projected (n, D) sample fits the range of float16."""
    farthest = max(float(np.abs(projection(sample[n : n + BLOCK])).max()) for n in range(0, len(sample), BLOCK))
    factor = REACH / 2 ** np.ceil(np.log2(farthest)) if farthest else 1.0
    return pca.Projection(projection.mean, projection.axes * np.float32(factor))


def _project(
    flat: FlatIndex, rows: NDArray[np.int64], projection: pca.Projection, progress: Progress
) -> NDArray[np.float16]:
    """Returns the (n, d) projected features; float16 is enough, as structures keep at most eight bits of a value."""
    projected = np.empty((len(rows), projection.axes.shape[1]), np.float16)
    for start in range(0, len(rows), BLOCK):
        block = projection(flat.read(rows[start : start + BLOCK]))
        projected[start : start + BLOCK] = np.clip(block, -LARGEST, LARGEST)
        progress(min(start + BLOCK, len(rows)), 2 * len(rows))
    return projected


def _build(
    setting: AnnSettings,
    projection: pca.Projection,
    projected: NDArray[np.floating],
    rows: NDArray[np.int64],
    covered: int,
    progress: Progress = no_progress,
) -> AnnIndex:
    """Builds a structure over the (n, d or more) projected features of `rows`; covered: the index's number of rows."""
    index = ann.new_faiss_index(setting, len(rows))
    some = np.random.default_rng(1).choice(len(rows), min(4 * measure.SAMPLE, len(rows)), replace=False)
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
    """Measures each kind on a part of the index.

    Returns the results of each kind, and the settings that reach the recall, fastest first.
    """
    some = np.sort(np.random.default_rng(2).choice(len(entries), min(RACE, len(entries)), replace=False))
    part = Benchmark.of(flat, entries[some], queries)
    ratio = len(entries) / len(some)
    # How the time of a query grows from the part to the whole index.
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
        choice = _measure(_build(setting, projection, projected[some], part.rows, flat.rows), part, recall)
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
        """Sorts by speed, and equally fast settings by memory."""
        return round(np.log(pair[0]) / np.log(CLOSE)), pair[1].bytes_for(len(entries))

    return tried, [setting for _, setting in sorted(reached, key=order)]


def _settings(start: AnnSettings) -> Iterator[AnnSettings]:
    """Yields settings from cheap to expensive; a candidate costs about as much as three units of effort."""
    pairs = [(c, e) for c in CANDIDATES for e in EFFORTS[start.kind] if c >= start.candidates and e >= start.effort]
    for candidates, effort in sorted(pairs, key=lambda pair: 3 * pair[0] + pair[1]):
        yield replace(start, candidates=candidates, effort=effort)


def _measure(made: AnnIndex, benchmark: Benchmark, recall: float) -> Choice | None:
    """Returns the cheapest setting that reaches the recall on both halves of the queries; None if there is none.

    The first half chooses it, and the second half gives the recall in the result.
    """
    flat, queries, rows = benchmark.flat, benchmark.queries, benchmark.rows
    half = len(queries) // 2
    choosing, measuring = slice(0, half), slice(half, None)
    for setting in _settings(made.setting):
        found = made.search(flat, queries[choosing], K, rows, setting)
        if benchmark.recalls(found, choosing).mean() < recall:
            continue
        found = made.search(flat, queries[measuring], K, rows, setting)
        recalls = benchmark.recalls(found, measuring)
        low, high = mean_interval(recalls)
        if recalls.mean() < recall:
            continue
        seconds, _ = measure.time_queries(lambda query, s=setting: made.search(flat, query, K, rows, s), queries)  # type: ignore[misc]
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


def record_choice(index: Index, made: AnnIndex | None, choice: Choice, target: float | None = None) -> Choice:
    """Replaces the index's structure by a new one, or by exact search; open readers keep the structure they have.

    made: the new structure; None for exact search. target: the requested recall.
    Raises UsageError if the index was compacted since the structure was built, and IndexLockedError.
    """
    with index.writing(RECORD_LOCK_SECONDS):
        if made is not None and made.compactions != index.feature_files.compactions:
            raise UsageError(f"{index.path} was compacted during tuning", hint="tune it again")
        search: dict[str, Any] = {"kind": choice.kind, "recall": choice.recall, "parameters": {}}
        if made is not None:
            name, parameters = made.save(index.folder.child(derived.FOLDER, create=True))
            search["parameters"] = {**parameters, "folder": name}
            search |= {
                "low": choice.low,
                "high": choice.high,
                "queries": choice.queries,
                "k": K,
                "memory": choice.memory,
                "target": target,
                "items": len(index),
            }
        index.refresh()
        index.write_meta(replace(index.meta, search=search))
        index.database.apply(Changes())  # a new generation, so that readers reload
        sync.refresh_meta(index)
        files = index.folder.child(derived.FOLDER)
        for name in files.names() if files.exists(".") else ():
            if name not in {search["parameters"].get("folder"), derived.WORK_FOLDER}:
                with contextlib.suppress(OSError):
                    files.remove(name)
    return replace(choice, parameters=search["parameters"])
