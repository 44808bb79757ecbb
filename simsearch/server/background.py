"""Runs long work in a thread that pauses briefly while searches are being answered.

One request starts the work, and later requests ask for the progress. The last few results are kept in memory.
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
    """Long work that waits or runs. result: set when the work has ended."""

    result: Future[R]


J = TypeVar("J", bound=Job[Any])


class BackgroundWork(Generic[J, R]):
    """Runs one job at a time in a thread, and keeps each of the last results under its key; safe for several threads.

    name: name of the thread. kept: the largest number of results to keep in memory. busy: returns True while searches
    are being answered.
    """

    def __init__(self, name: str, kept: int, busy: Callable[[], bool]) -> None:
        self._most, self._busy = kept, busy
        self._pool = ThreadPoolExecutor(1, name, initializer=lower_priority, initargs=(NICENESS,))
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, R] = OrderedDict()
        self._jobs: dict[Key, J] = {}
        self._stopped = False

    def stop(self) -> None:
        """Ends the running job at its next call of `step`. A job that starts later ends at its first call of `step`."""
        self._stopped = True

    def close(self) -> None:
        """Ends the running job at its next call of `step`, drops the waiting jobs, and waits for the thread to end."""
        self.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def known(self, key: Key) -> R | None:
        """Returns the result that is kept for a key; None if there is none."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def keep(self, key: Key, result: R) -> None:
        """Keeps a result in memory, and drops the least recently used results beyond the limit."""
        with self._lock:
            self._kept[key] = result
            self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)

    def drop(self, chosen: Callable[[Key], bool]) -> None:
        """Drops the results of all keys for which `chosen` returns True."""
        with self._lock:
            for key in filter(chosen, list(self._kept)):
                del self._kept[key]

    def start(self, key: Key, job: J, work: Callable[[J], R], waiting: int, refusal: str) -> J:
        """Returns the job that waits or runs for a key. If there is none, queues `work(job)` and returns `job`.

        waiting: the largest number of jobs that may wait or run at once. If there are that many already, raises
        ApiError with the message `refusal`. Also raises ApiError if the service stops.
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
        """Pauses briefly while searches are being answered; long work calls this between its steps.

        began: the monotonic time at which the work began. Raises ApiError if the work has been stopped. Raises it with
        the message `refusal` if the work has taken more than `seconds`.
        """
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
        with self._lock:  # before the result is set, so that a client that sees an error can try again
            del self._jobs[key]
        if result is not None and problem is None:
            job.result.set_result(result)
        else:
            job.result.set_exception(problem or draining())
