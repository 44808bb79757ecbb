"""Long work that a request starts and others ask about: in one thread, before which searches have priority.

The results of the last few are kept in memory.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

from simsearch.server.decoding import NICENESS, give_way, lower_priority
from simsearch.server.errors import draining
from simsearch.server.middleware import ApiError

Key = tuple[Any, ...]
R = TypeVar("R")


class Job(Protocol[R]):
    """Work that is being done."""

    result: Future[R]


J = TypeVar("J", bound=Job[Any])


class BackgroundWork(Generic[J, R]):
    """Does one work at a time in a thread, and keeps results by key; safe for several threads.

    name: of the thread. kept: the number of results in memory. busy: returns True while searches are being answered.
    """

    def __init__(self, name: str, kept: int, busy: Callable[[], bool]) -> None:
        self._most, self._busy = kept, busy
        self._pool = ThreadPoolExecutor(1, name, initializer=lower_priority, initargs=(NICENESS,))
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, R] = OrderedDict()
        self._jobs: dict[Key, J] = {}
        self._stopped = False

    def stop(self) -> None:
        """Ends what is being done, at its next step."""
        self._stopped = True

    def close(self) -> None:
        """Waits until nothing is done any more."""
        self.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def known(self, key: Key) -> R | None:
        """Returns the result of a key; None if none is kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def keep(self, key: Key, result: R) -> None:
        """Keeps a result, and drops the one that was not asked for the longest."""
        with self._lock:
            self._kept[key] = result
            self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)

    def drop(self, chosen: Callable[[Key], bool]) -> None:
        """Drops the results of the chosen keys."""
        with self._lock:
            for key in filter(chosen, list(self._kept)):
                del self._kept[key]

    def start(self, key: Key, job: J, work: Callable[[J], R], waiting: int, refusal: str) -> J:
        """Returns the job of a key, which is `job`, to be done by `work`, unless one is under way.

        waiting: the most jobs at once; beyond, raises ApiError with the text `refusal`.
        """
        with self._lock:
            if key in self._jobs:
                return self._jobs[key]
            if len(self._jobs) >= waiting:
                raise ApiError(429, "too_many_requests", refusal, {"retry-after": "5"})
            self._jobs[key] = job
            try:
                self._pool.submit(self._run, key, job, work)
            except RuntimeError:  # the pool was shut down
                del self._jobs[key]
                raise draining() from None
            return job

    def step(self, began: float, seconds: float, refusal: str) -> None:
        """Gives way to searches. Raises ApiError at a stop, and if it is longer than `seconds` since `began`."""
        if self._stopped:
            raise draining()
        if time.monotonic() - began > seconds:
            raise ApiError(503, "timeout", refusal, {"retry-after": "600"})
        give_way(self._busy)

    def _run(self, key: Key, job: J, work: Callable[[J], R]) -> None:
        result, problem = None, None
        try:
            result = work(job)
            self.keep(key, result)
        except BaseException as error:
            problem = error
        with self._lock:  # before the result is known, so that whoever has seen an error can try again
            del self._jobs[key]
        if result is not None and problem is None:
            job.result.set_result(result)
        else:
            job.result.set_exception(problem or draining())
