"""Concurrent searches answered together: one pass through the network and one scan for all that wait.

Nobody waits for a batch to fill: whoever finds the worker free is computed at once, and what arrives meanwhile makes
the next batch. So a lone request is as fast as without, and under load batches form by themselves.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.engine import Engine
from simsearch.errors import SimsearchError
from simsearch.search import Matches, SearchOptions, blend
from simsearch.served import ServedIndex
from simsearch.telemetry import Metrics

if TYPE_CHECKING:
    from numpy.typing import NDArray


class OutdatedError(SimsearchError):
    """Another index has taken the place of the one that a job was made for: it has to be made again."""


@dataclass
class Job:
    """One search: by pixels (S, S, 3) uint8, cut as the model with these weights wants them, a vector or an item's id.

    digest: SHA-256 of the file that the pixels come from; of an item's, as indexed. whole: whether they are all of it.
    mirrored: the pixels of the mirrored picture, if that counts as the same. number: also left out of the answer. plus,
    minus: ids of items to be like and unlike. model: what the answer comes from, known when it is done.
    """

    k: int
    options: SearchOptions
    pixels: NDArray[np.uint8] | None = None
    mirrored: NDArray[np.uint8] | None = None
    digest: bytes = b""
    whole: bool = True
    weights: str = ""
    number: int | None = None
    vector: NDArray[np.float32] | None = None
    plus: tuple[int, ...] = ()
    minus: tuple[int, ...] = ()
    model: str = ""
    born: float = field(default_factory=time.perf_counter)
    done: Future[Matches] = field(default_factory=Future)

    @property
    def key(self) -> tuple[int, bool, str]:
        """Jobs with the same key can be answered by one scan."""
        return self.k, self.mirrored is not None, repr(sorted(self.options.items(), key=lambda pair: pair[0]))

    @property
    def left_out(self) -> tuple[int, ...]:
        """What was searched by is no answer."""
        return self.plus if self.number is None else (self.number, *self.plus)


class Batcher:
    """One worker thread for an index, started with the first job. size: the most jobs at once."""

    def __init__(self, served: ServedIndex, size: int, metrics: Metrics) -> None:
        self.served, self.size, self.metrics = served, size, metrics
        self._waiting: deque[Job] = deque()
        self._ready = threading.Condition()
        self._thread: threading.Thread | None = None

    def submit(self, job: Job) -> Future[Matches]:
        """Puts a job in line. Its result may be any SimsearchError."""
        with self._ready:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name=f"search-{self.served.name}", daemon=True)
                self._thread.start()
            self._waiting.append(job)
            self.metrics.queue.labels(self.served.name).set(len(self._waiting))
            self._ready.notify()
        return job.done

    def _work(self) -> None:
        while True:
            with self._ready:
                while not self._waiting:
                    if not self._ready.wait(timeout=60) and not self._waiting:
                        self._thread = None  # started again by the next job
                        return
                jobs = [self._waiting.popleft() for _ in range(min(self.size, len(self._waiting)))]
                self.metrics.queue.labels(self.served.name).set(len(self._waiting))
            jobs = [job for job in jobs if job.done.set_running_or_notify_cancel()]
            if jobs:
                self._answer(jobs)

    def _answer(self, jobs: Sequence[Job]) -> None:
        now = time.perf_counter()
        for job in jobs:
            self.metrics.phases.labels("queue").observe(now - job.born)
        self.metrics.batch.observe(len(jobs))
        try:
            answers = self.served.use(lambda engine: self._answers(engine, jobs))
        except Exception as error:
            if len(jobs) > 1:  # whose fault it is, each finds out alone
                for job in jobs:
                    self._answer([job])
                return
            jobs[0].done.set_exception(error)
            return
        for job, answer in zip(jobs, answers, strict=True):
            if isinstance(answer, Exception):
                job.done.set_exception(answer)
            else:
                job.done.set_result(answer)

    def _answers(self, engine: Engine, jobs: Sequence[Job]) -> list[Matches | Exception]:
        start = time.perf_counter()
        found: list[list[Any]] = [[_known(engine, job)] for job in jobs]
        missing: list[tuple[int, NDArray[np.uint8]]] = []
        for place, (job, (vector,)) in enumerate(zip(jobs, found, strict=True)):
            if vector is None:
                found[place] = []
                missing.append((place, job.pixels))  # type: ignore[arg-type]
            if job.mirrored is not None and not isinstance(vector, Exception):
                missing.append((place, job.mirrored))
        if missing:
            rows = engine.features_of_pixels(np.stack([pixels for _, pixels in missing]))
            for (place, _), row in zip(missing, rows, strict=True):
                found[place].append(row)
        computed = time.perf_counter()
        results: list[Any] = [_fed_back(engine, *pair) for pair in zip(jobs, found, strict=True)]
        groups: dict[tuple[int, bool, str], list[int]] = {}
        for place, vector in enumerate(results):
            if not isinstance(vector, Exception):
                groups.setdefault(jobs[place].key, []).append(place)
        for places in groups.values():
            first = jobs[places[0]]
            vectors = np.stack([results[place] for place in places])
            without = [jobs[place].left_out for place in places]
            try:
                answers = engine.search_by_vectors(vectors, first.k, without=without, **first.options)
            except SimsearchError as error:
                answers = [error] * len(places)  # type: ignore[list-item]
            for place, answer in zip(places, answers, strict=True):
                results[place] = answer
        for job in jobs:
            job.model = engine.meta.model
        self.metrics.phases.labels("compute").observe(computed - start)
        self.metrics.phases.labels("search").observe(time.perf_counter() - computed)
        return results


def _known(engine: Engine, job: Job) -> NDArray[np.float32] | Exception | None:
    """The job's vector if it need not be computed; OutdatedError if what must be was read for another index."""
    try:
        if job.vector is not None:
            return job.vector
        if job.pixels is None:
            return engine.stored_features(job.number)  # type: ignore[arg-type]
        stored = None
        if job.number is not None and engine.item(job.number).digest != job.digest:
            return OutdatedError("the item is another one by now")
        if job.whole:
            stored = engine.stored_features(job.digest if job.number is None else job.number)
        if (stored is None or job.mirrored is not None) and job.weights != engine.meta.weights_sha256:
            return OutdatedError("the index was replaced by one of another model")
        return stored
    except SimsearchError as error:
        return error


def _fed_back(engine: Engine, job: Job, found: list[Any]) -> NDArray[np.float32] | Exception:
    """The (v, D) vectors to search by: a job's own, each moved towards `plus` and away from `minus`."""
    if isinstance(found[0], Exception):
        return found[0]
    if not (job.plus or job.minus):
        return np.stack(found)
    try:
        rows = [engine.stored_features(number) for number in (*job.plus, *job.minus)]
    except SimsearchError as error:
        return error
    vectors = np.stack(rows)  # type: ignore[arg-type]
    return np.stack([blend(vector, vectors[: len(job.plus)], vectors[len(job.plus) :]) for vector in found])
