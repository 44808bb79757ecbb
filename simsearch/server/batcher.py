"""Answers concurrent searches in batches: the queries of a batch take one pass through the network.

Searches of a batch that have the same options also share one scan of the features. No request waits for a batch to
fill: if the worker is free, it computes a request at once, and the requests that arrive meanwhile form the next batch.
So a single request is as fast as without batches, and under load batches form by themselves.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from simsearch.engine import Engine
from simsearch.errors import SimsearchError
from simsearch.search.options import SearchOptions
from simsearch.search.queries import PreparedQuery
from simsearch.search.results import Matches
from simsearch.server.prometheus import PrometheusMetrics
from simsearch.server.reloading import ReloadableIndex


@dataclass
class SearchJob:
    """A search that waits for its batch.

    model: the name of the index's model; set before `done` gets the matches. born: the time at which the job was made.
    done: the future of the matches.
    """

    query: PreparedQuery
    k: int
    options: SearchOptions
    model: str = ""
    born: float = field(default_factory=time.perf_counter)
    done: Future[Matches] = field(default_factory=Future)

    @property
    def key(self) -> tuple[int, int, str]:
        """A key for grouping: one scan can answer all jobs that have the same key."""
        return self.k, self.query.variants, repr(sorted(self.options.items(), key=lambda pair: pair[0]))


class Batcher:
    """Answers the searches of an index in a worker thread, started by the first job. size: the most jobs in a batch."""

    def __init__(self, served: ReloadableIndex, size: int, metrics: PrometheusMetrics) -> None:
        self.served, self.size, self.metrics = served, size, metrics
        self._waiting: deque[SearchJob] = deque()
        self._ready = threading.Condition()
        self._thread: threading.Thread | None = None

    def submit(self, job: SearchJob) -> Future[Matches]:
        """Adds a job to the queue and returns the future of its matches. The future may raise any SimsearchError."""
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

    def _answer(self, jobs: Sequence[SearchJob]) -> None:
        now = time.perf_counter()
        for job in jobs:
            self.metrics.phases.labels("queue").observe(now - job.born)
        self.metrics.batch.observe(len(jobs))
        try:
            answers = self.served.run(lambda engine: self._answers(engine, jobs))
        except Exception as error:
            if len(jobs) > 1:  # one by one, so that only the faulty job fails
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

    def _answers(self, engine: Engine, jobs: Sequence[SearchJob]) -> list[Matches | Exception]:
        start = time.perf_counter()
        with engine.query_resolver(serving=True) as resolver:
            resolved = resolver.resolve([job.query for job in jobs])
            results: list[Matches | Exception | None] = [r if isinstance(r, Exception) else None for r in resolved]
            left_out = [resolver.left_out(jobs[n].query) if r is None else [] for n, r in enumerate(results)]
        computed = time.perf_counter()
        groups: dict[tuple[int, int, str], list[int]] = {}
        for place, result in enumerate(results):
            if result is None:
                groups.setdefault(jobs[place].key, []).append(place)
        for places in groups.values():
            first = jobs[places[0]]
            vectors = np.array([resolved[place] for place in places], np.float32)
            without = [left_out[place] for place in places]
            try:
                answers: Sequence[Matches | Exception] = engine.search_by_vectors(
                    vectors, first.k, without=without, **first.options
                )
            except SimsearchError as error:
                answers = [error] * len(places)
            for place, answer in zip(places, answers, strict=True):
                results[place] = answer
        for job in jobs:
            job.model = engine.meta.model
        self.metrics.phases.labels("compute").observe(computed - start)
        self.metrics.phases.labels("search").observe(time.perf_counter() - computed)
        return [result for result in results if result is not None]
