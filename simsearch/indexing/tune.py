"""Choosing how to search: the fastest structure that reaches a recall within a memory, by measurement.

Items are held out, so that no structure holds the queries it is measured with. Half of them choose; the other half
measure what is recorded. Kinds race on a part of the index; the winner is made from all of it, the held-out items are
added, and it replaces its predecessor in one step. Until then nothing is changed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common import pca
from simsearch.common.float16 import to_float32
from simsearch.common.intervals import mean_interval
from simsearch.errors import UsageError
from simsearch.indexing import sync
from simsearch.search import ann
from simsearch.search.ann import AnnIndex, AnnSettings, K
from simsearch.search.binary_codes import BinaryCodeIndex
from simsearch.search.exact import FlatIndex
from simsearch.storage.database import Changes
from simsearch.storage.index import WORK_FOLDER

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.models.hashing.autoencoder import HashConfig
    from simsearch.search.exact import Neighbours
    from simsearch.storage.index import Index
from simsearch.common.progress import Progress

QUERIES = 400

"""Items held out; half of them choose, half measure."""

TIMED = 25

"""Queries that are timed, one by one."""

SAMPLE, RACE, BLOCK, ADDED = 16_384, 32_768, 1024, 8192

"""Rows to learn from, rows to race on, rows projected at once, rows added at once."""

SCANNED = 65_536

"""Rows that are scanned exactly to see how long that takes: 512 MiB at D = 4096."""

REACH, LARGEST = 2.0**13, float(np.finfo(np.float16).max)

"""How far projections of the sample reach at most, and others."""

DIMENSIONS = 256

"""Principal components at most."""

BEFORE, AFTER = 1.0, 60.0

"""Seconds that another writer is waited for: before anything is measured, and with what would else be lost."""

LEAST = 2_000

"""Below so many items an exact scan takes a few milliseconds, and nothing is worth choosing."""

RERANKED, RERANKED_RECALL = (200, 400, 800, 1600), 0.95

"""Candidates that binary codes may name, the fewer the better, and the recall that is enough for them."""

KINDS = (
    ("hnsw", 128),
    ("hnsw", 256),
    ("pq", 128),
    ("pq", 256),
    ("ivf", 128),
    ("sq8", 128),
    ("rabitq", 256),
)

SCANS = ("sq8", "rabitq")

"""Kinds that look at every entry: for when no other has the recall within the memory."""

FEW = 40

"""A kind that needs no more candidates than these has components enough, and is not tried with more."""

CLOSE = 1.2

"""Kinds whose times differ by no more than this factor count as equally fast."""

CANDIDATES = (12, 16, 20, 30, 40, 80, 160, 320)

EFFORTS = {
    "hnsw": (20, 40, 60, 80, 120, 160, 320, 640),
    "pq": (8, 16, 32, 64, 128, 256),
    "ivf": (4, 8, 16, 32, 64, 128, 256),
    "sq8": (0,),
    "rabitq": (0,),
}


@dataclass(frozen=True)
class Choice:
    """What was chosen. recall, low, high: of 10 neighbours, with its 95 % confidence interval, on `queries` items.

    seconds: of one query. memory: bytes of the structure. tried: what each kind reached in the race.
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


@dataclass(frozen=True)
class _Benchmark:
    """What candidates are measured on. queries: (nq, D); truth: the distance of each one's K-th true neighbour."""

    flat: FlatIndex
    rows: NDArray[np.int64]
    queries: NDArray[np.float32]
    truth: NDArray[np.float64]

    @classmethod
    def of(cls, flat: FlatIndex, rows: NDArray[np.int64], queries: NDArray[np.float32]) -> _Benchmark:
        found = flat.search(queries, K, rows)
        return cls(flat, rows, queries, np.array([each.distances[K - 1] for each in found]))

    def recalls(self, found: list[Neighbours], part: slice) -> NDArray[np.float64]:
        """Of each query the share of its K that are as near as the true K-th; ties count either way."""
        return ann.recalls(found, self.truth[part])


def tune(
    index: Index, recall: float, memory: int | None = None, progress: Progress = lambda done, total: None
) -> Choice:
    """Chooses, makes and records the fastest structure of at least `recall` (of 10 neighbours) within `memory` bytes.

    Exact search stays, or comes back, where nothing is faster, where the index is small, or for a recall of 1.
    progress: rows dealt with and their number. Raises UsageError, IndexLockedError.
    """
    if not 0 < recall <= 1:
        raise UsageError(f"the recall {recall} is not between 0 and 1")
    if memory is not None and memory < 1:
        raise UsageError(f"the memory is {memory} bytes, but must be at least 1")
    with index.writing(BEFORE):  # who is refused is refused now, not after minutes
        pass
    flat, rows = _flat(index)
    if len(rows) < LEAST or recall == 1:
        return _record(index, None, _exact(0.0))
    random = np.random.default_rng(0)
    shuffled = random.permutation(rows)
    count = min(QUERIES, len(rows) // 10)
    held, entries = shuffled[:count], np.sort(shuffled[count:])
    queries = to_float32(flat.read(held))
    sample = flat.read(np.sort(random.choice(entries, min(SAMPLE, len(entries)), replace=False)))
    onto = _held(pca.fit_pca(sample, DIMENSIONS), sample)
    projected = _project(flat, entries, onto, progress)
    seconds = _exact_seconds(flat, entries, queries)
    tried, ranking = _race(flat, entries, projected, onto, queries, recall, memory)
    whole = _Benchmark.of(flat, entries, queries)
    for setting in ranking:
        made = _build(setting, onto, projected, entries, flat.rows, progress)
        choice = _measured(made, whole, recall)
        if choice is None or choice.seconds >= seconds:
            continue
        made.setting = AnnSettings(**{name: choice.parameters[name] for name in AnnSettings.__dataclass_fields__})
        made.index.add(np.ascontiguousarray(onto(queries)[:, : setting.dimensions]))
        made.rows = np.concatenate([made.rows, held])
        made = AnnIndex(made.setting, onto, made.index, made.rows, made.covered, flat.shards.epoch)
        choice = replace(choice, exact_seconds=seconds, tried=tuple(tried), memory=made.setting.bytes_for(len(rows)))
        return _record(index, made, choice, recall)
    return _record(index, None, replace(_exact(seconds), tried=tuple(tried)))


def _exact(seconds: float) -> Choice:
    return Choice("exact", 1.0, 1.0, 1.0, 0, seconds, seconds, 0, {})


def _exact_seconds(flat: FlatIndex, entries: NDArray[np.int64], queries: NDArray[np.float32]) -> float:
    """How long an exact scan takes for one query, from one of a part, since a scan maps all that it looks at."""
    within = entries[:SCANNED]
    part = FlatIndex(flat.shards, int(within[-1]) + 1)
    seconds, _ = _timed(lambda query: part.search(query, K, within), queries)
    return seconds * len(entries) / len(within)


def _held(onto: pca.Projection, sample: NDArray[np.float16]) -> pca.Projection:
    """The projection times a power of two, so that float16 holds what it makes of features like these (n, D)."""
    farthest = max(float(np.abs(onto(sample[n : n + BLOCK])).max()) for n in range(0, len(sample), BLOCK))
    factor = REACH / 2 ** np.ceil(np.log2(farthest)) if farthest else 1.0
    return pca.Projection(onto.mean, onto.axes * np.float32(factor))


def _project(flat: FlatIndex, rows: NDArray[np.int64], onto: pca.Projection, progress: Progress) -> NDArray[np.float16]:
    """(n, d) projected features; float16, since structures keep eight bits of a value or fewer."""
    projected = np.empty((len(rows), onto.axes.shape[1]), np.float16)
    for start in range(0, len(rows), BLOCK):
        block = onto(flat.read(rows[start : start + BLOCK]))
        projected[start : start + BLOCK] = np.clip(block, -LARGEST, LARGEST)
        progress(min(start + BLOCK, len(rows)), 2 * len(rows))
    return projected


def _build(
    setting: AnnSettings,
    onto: pca.Projection,
    projected: NDArray[np.floating],
    rows: NDArray[np.int64],
    covered: int,
    progress: Progress = lambda done, total: None,
) -> AnnIndex:
    """A structure over (n, d or more) projected features, which belong to `rows`."""
    index = ann.new_faiss_index(setting, len(rows))
    some = np.random.default_rng(1).choice(len(rows), min(4 * SAMPLE, len(rows)), replace=False)
    index.train(to_float32(projected[np.sort(some), : setting.dimensions]))
    for start in range(0, len(rows), ADDED):
        index.add(to_float32(projected[start : start + ADDED, : setting.dimensions]))
        progress(len(rows) + min(start + ADDED, len(rows)), 2 * len(rows))
    return AnnIndex(setting, onto, index, rows, covered)


def _race(
    flat: FlatIndex,
    entries: NDArray[np.int64],
    projected: NDArray[np.float16],
    onto: pca.Projection,
    queries: NDArray[np.float32],
    recall: float,
    memory: int | None,
) -> tuple[list[dict[str, Any]], list[AnnSettings]]:
    """What each kind reaches on a part of the index, and the settings that reach the recall, fastest first."""
    some = np.sort(np.random.default_rng(2).choice(len(entries), min(RACE, len(entries)), replace=False))
    part = _Benchmark.of(flat, entries[some], queries)
    share = len(entries) / len(some)
    growth = {
        "hnsw": np.log(len(entries)) / np.log(len(some)),
        "pq": share**0.5,
        "ivf": share**0.5,
        "sq8": share,
        "rabitq": share,
    }
    tried: list[dict[str, Any]] = []
    able: list[tuple[float, AnnSettings]] = []
    for kind, dimensions in KINDS:
        if (kind in SCANS and able) or any(s.kind == kind and s.candidates <= FEW for _, s in able):
            continue
        setting = AnnSettings(kind, min(dimensions, onto.axes.shape[1]), CANDIDATES[0], EFFORTS[kind][0])
        if memory is not None and setting.bytes_for(len(entries) + len(queries)) > memory:
            continue
        choice = _measured(_build(setting, onto, projected[some], part.rows, flat.rows), part, recall)
        facts: dict[str, Any] = {"kind": kind, "dimensions": setting.dimensions, "reached": choice is not None}
        if choice is not None:
            expected = choice.seconds * float(growth[kind])
            facts |= {"recall": choice.recall, "seconds": choice.seconds, "expected_seconds": expected}
            able.append(
                (
                    expected,
                    replace(setting, candidates=choice.parameters["candidates"], effort=choice.parameters["effort"]),
                )
            )
        tried.append(facts)

    def order(pair: tuple[float, AnnSettings]) -> tuple[int, int]:
        """By speed, and where that is about the same, by memory."""
        return round(np.log(pair[0]) / np.log(CLOSE)), pair[1].bytes_for(len(entries))

    return tried, [setting for _, setting in sorted(able, key=order)]


def _settings(start: AnnSettings) -> Iterator[AnnSettings]:
    """Ever more candidates and effort, the cheaper first: a candidate costs about what three steps of effort do."""
    pairs = [(c, e) for c in CANDIDATES for e in EFFORTS[start.kind] if c >= start.candidates and e >= start.effort]
    for candidates, effort in sorted(pairs, key=lambda pair: 3 * pair[0] + pair[1]):
        yield replace(start, candidates=candidates, effort=effort)


def _measured(made: AnnIndex, field: _Benchmark, recall: float) -> Choice | None:
    """The cheapest setting that reaches the recall with the choosing half, as the other half measures it; or None."""
    half = len(field.queries) // 2
    choosing, measuring = slice(0, half), slice(half, None)
    for setting in _settings(made.setting):
        found = made.search(field.flat, field.queries[choosing], K, field.rows, setting)
        if field.recalls(found, choosing).mean() < recall:
            continue
        found = made.search(field.flat, field.queries[measuring], K, field.rows, setting)
        shares = field.recalls(found, measuring)
        low, high = mean_interval(shares)
        if shares.mean() < recall:
            continue
        seconds, _ = _timed(lambda query, s=setting: made.search(field.flat, query, K, field.rows, s), field.queries)  # type: ignore[misc]
        parameters = {
            "dimensions": setting.dimensions,
            "candidates": setting.candidates,
            "effort": setting.effort,
            "kind": setting.kind,
        }
        return Choice(
            setting.kind,
            float(shares.mean()),
            low,
            high,
            len(shares),
            seconds,
            0.0,
            setting.bytes_for(len(made.rows)),
            parameters,
        )
    return None


def _timed(search: Callable[[NDArray[np.float32]], Any], queries: NDArray[np.float32]) -> tuple[float, int]:
    """The median seconds of one query, and how many were timed."""
    search(queries[:1])
    took = []
    for query in queries[:TIMED]:
        clock = time.perf_counter()
        search(query[None])
        took.append(time.perf_counter() - clock)
    return float(np.median(took)), len(took)


def _flat(index: Index) -> tuple[FlatIndex, NDArray[np.int64]]:
    """All rows of an index, and those of its items, ascending: (n,)."""
    with index.reading() as reader:
        return FlatIndex(reader.shards, reader.state("rows")), reader.rows()


def _record(index: Index, made: AnnIndex | None, choice: Choice, target: float | None = None) -> Choice:
    """Puts the new structure in the place of the old one; readers go on with what they hold.

    target: the recall that was asked for.
    """
    with index.writing(AFTER):
        if made is not None and made.epoch != index.feature_files.epoch:
            raise UsageError(f"{index.path} was compacted meanwhile", hint="tune it again")
        search: dict[str, Any] = {"kind": choice.kind, "recall": choice.recall, "parameters": {}}
        if made is not None:
            name, parameters = made.save(index.derived)
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
        index.database.apply(Changes())  # a new generation, which readers notice
        sync.refresh_meta(index)
        derived = index.folder.child("derived")
        for name in derived.names() if index.folder.exists("derived") else ():
            if name not in {search["parameters"].get("folder"), WORK_FOLDER}:
                with contextlib.suppress(OSError):
                    derived.remove(name)
    return replace(choice, parameters=search["parameters"])


def tune_codes(
    index: Index,
    config: HashConfig,
    recall: float = RERANKED_RECALL,
    memory: int | None = None,
    progress: Progress = lambda done, total: None,
) -> Choice:
    """Trains binary codes on the index's features and searches by them from now on, whatever else were faster.

    The nearest by Hamming distance are ranked exactly: 200 of them, or more where that is not enough for the recall,
    which is measured on items that neither trained the codes nor are held by them. Raises UsageError, IndexLockedError.
    """
    from simsearch.models.hashing import autoencoder

    if not 0 < recall <= 1:
        raise UsageError(f"the recall {recall} is not between 0 and 1")
    with index.writing(BEFORE):
        pass
    flat, rows = _flat(index)
    if len(rows) < LEAST:
        raise UsageError(
            f"{index.path} has {len(rows):,} items, too few to learn codes from", hint=f"at least {LEAST:,} are needed"
        )
    setting = AnnSettings("codes", config.bits, RERANKED[0], 0)
    if memory is not None and setting.bytes_for(len(rows)) > memory:
        raise UsageError(
            f"codes of {config.bits} bits take {setting.bytes_for(len(rows)):,} bytes, more than {memory:,}"
        )
    random = np.random.default_rng(0)
    shuffled = random.permutation(rows)
    count = min(QUERIES, len(rows) // 10)
    held, entries = shuffled[:count], np.sort(shuffled[count:])
    sample = flat.read(np.sort(random.choice(entries, min(SAMPLE, len(entries)), replace=False)))
    codes = autoencoder.train(sample, config, lambda done, total: progress(done, total + len(entries)))
    gone = autoencoder.images(config, len(sample))
    encoded = np.empty((len(entries), config.bits // 8), np.uint8)
    for start in range(0, len(entries), BLOCK):
        encoded[start : start + BLOCK] = codes(flat.read(entries[start : start + BLOCK]))
        progress(gone + min(start + BLOCK, len(entries)), gone + len(entries))
    queries = flat.read(held).astype(np.float32)
    seconds, _ = _timed(lambda query: flat.search(query, K, entries), queries)
    made = BinaryCodeIndex(setting, codes, encoded, entries, flat.rows, flat.shards.epoch)
    field = _Benchmark.of(flat, entries, queries)
    half = len(queries) // 2
    for candidates in RERANKED:
        made.setting = replace(setting, candidates=candidates)
        if field.recalls(made.search(flat, queries[:half], K, entries), slice(0, half)).mean() >= recall:
            break
    shares = field.recalls(made.search(flat, queries[half:], K, entries), slice(half, None))
    low, high = mean_interval(shares)
    took, _ = _timed(lambda query: made.search(flat, query, K, entries), queries)
    whole = BinaryCodeIndex(
        made.setting,
        codes,
        np.concatenate([encoded, codes(queries)]),
        np.concatenate([entries, held]),
        flat.rows,
        flat.shards.epoch,
    )
    choice = Choice(
        "codes", float(shares.mean()), low, high, len(shares), took, seconds, made.setting.bytes_for(len(rows)), {}
    )
    return _record(index, whole, choice, recall)
