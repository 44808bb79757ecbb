"""Computes the features of images: reads, hashes, decodes and computes in threads, and yields the results in order.

On the CPU, a pool of single-core threads decodes images and computes features. Each thread takes the work that is ready
next, so that all cores are busy and no core has more than one thread. A separate thread feeds the pool, so that the
computation goes on while the caller writes results to disk. If the GPU can decode JPEGs, these files are passed to it
undecoded.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Generic, TypeVar

import numpy as np

from simsearch.common.float16 import to_float16
from simsearch.common.machine import MemoryBudget, available_cores
from simsearch.indexing.load import LoadedImage, decode_on_gpu, load_image

if TYPE_CHECKING:
    from simsearch.models.base import Model
    from simsearch.models.torch.jpeg_decoder import JpegDecoder

T = TypeVar("T")

DECODING_BYTES = 768 << 20
"""Memory limit in bytes for images being decoded: enough for the largest accepted image, or for many ordinary ones."""

AHEAD = 4
"""Maximum number of batches whose images are queued or decoded in advance."""

PATIENCE = 1.0
"""Seconds after which an incomplete batch is computed, if images are slow to decode."""

WAITING_BYTES = 256 << 20
"""Maximum total size, in bytes, of the files that wait for a GPU decoder.

A batch is computed when its files reach a quarter of this limit.
"""

FINISHED = 16
"""Maximum number of batches, computed or not, that wait for the caller."""


@dataclass(frozen=True)
class Task(Generic[T]):
    """An image whose features are to be computed.

    read: a function that returns the file as bytes or, better for a large file, as a stream.
    key: returned with the result, so that the caller can tell which image it belongs to.
    """

    read: Callable[[], bytes | IO[bytes]]
    key: T


def usual_batch(model: Model) -> int:
    """Returns the default batch size of a model; it is smaller if the model computes several batches in parallel."""
    return 256 if "cuda" in model.engine else max(16, 64 // max(2, getattr(model, "lanes", 1)))


def extract(
    model: Model,
    tasks: Iterable[Task[T]],
    *,
    known: Container[bytes] = (),
    batch_size: int = 32,
    workers: int | None = None,
) -> Iterator[list[tuple[T, LoadedImage]]]:
    """Computes the features of images; yields lists of (key, result), one pair for each task, in the order of `tasks`.

    Memory is bounded, whatever the number and size of the images: at most `DECODING_BYTES` for images being decoded,
    and a few batches of pixels and features. The features do not depend on the batch size or the number of workers.

    known: SHA-256 digests of files whose features the caller has. Images with these digests are read and hashed, but no
    features are computed. The caller can add digests during the extraction. If several images have the same content,
    only the result of the first one has features.
    batch_size: number of images whose features are computed at a time.
    workers: number of threads; by default, the number of available cores.
    Raises the exceptions of the iterator `tasks` and of the model. For an image that cannot be read, nothing is raised;
    the reason is the `problem` of its result.
    """
    run = _ExtractionPipeline(model, tasks, known, batch_size, workers or available_cores())
    try:
        yield from run.results()
    finally:
        run.stop()


class _ExtractionPipeline(Generic[T]):
    """One run of `extract`: its threads, and the images that have been taken from `tasks` but not yet yielded."""

    def __init__(
        self, model: Model, tasks: Iterable[Task[T]], known: Container[bytes], batch_size: int, workers: int
    ) -> None:
        self.model, self.tasks, self.known, self.batch_size = model, iter(tasks), known, batch_size
        self.decoder: JpegDecoder | None = getattr(model, "decoder", None)
        self.in_flight = _InFlight(2 * workers)
        self.ahead = max(AHEAD * batch_size, 2 * workers)
        self.lanes = getattr(model, "lanes", 1)
        self.budget = MemoryBudget(DECODING_BYTES)
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        # Only a CPU model that computes several batches in parallel shares the decoding threads.
        shared = self.lanes > 1 and "cuda" not in model.engine
        self.computing: Executor = self.pool if shared else ThreadPoolExecutor(self.lanes, thread_name_prefix="compute")
        self.computing_batches: deque[Future[list[tuple[T, LoadedImage]]]] = deque()
        self.computing_digests: set[bytes] = set()
        self.failures: dict[bytes, str] = {}
        self.finished: queue.Queue[Future[list[tuple[T, LoadedImage]]] | None] = queue.Queue(FINISHED)
        self.stopped = False
        self.feeder = threading.Thread(target=self._feed, name="feed", daemon=True)
        self.feeder.start()

    def results(self) -> Iterator[list[tuple[T, LoadedImage]]]:
        """Yields the computed batches in order. If the model fails on a batch, raises its exception."""
        while (future := self.finished.get()) is not None:
            batch = [(key, self._share_failure(result)) for key, result in future.result()]
            yield batch
            self.computing_digests.difference_update([result.digest for _, result in batch])

    def _share_failure(self, result: LoadedImage) -> LoadedImage:
        """Returns a result, with a failure added if the GPU decoder failed on an earlier image of the same content.

        Of several images with the same content, the decoder gets only the first. The later ones have no features; if
        the first one cannot be decoded, its `problem` is also the `problem` of the later ones.
        """
        if result.problem is not None:
            if result.digest in self.computing_digests:
                self.failures[result.digest] = result.problem
        elif result.features is None and result.digest in self.failures:
            return replace(result, problem=self.failures[result.digest])
        return result

    def stop(self) -> None:
        """Stops the threads and drops all work that has not started."""
        self.stopped = True
        self.feeder.join()
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.computing.shutdown(wait=True, cancel_futures=True)

    def _feed(self) -> None:
        try:
            self._feed_batches()
        except BaseException as error:  # passed on to the caller; the iterator `tasks` may raise anything
            failed: Future[list[tuple[T, LoadedImage]]] = Future()
            failed.set_exception(error)
            self._hand_over(failed)
        self._hand_over(None)

    def _feed_batches(self) -> None:
        waiting: deque[tuple[T, Future[LoadedImage]]] = deque()
        batch: list[tuple[T, LoadedImage]] = []
        pending, waiting_bytes, started = 0, 0, 0.0
        while not self.stopped:
            while (
                len(waiting) < self.ahead
                and (not waiting or self.decoder is None or self.in_flight)
                and (task := next(self.tasks, None)) is not None
            ):
                waiting.append((task.key, self.in_flight.submit(self.pool, self._load, task)))
            if not waiting:
                break
            key, future = waiting[0]
            if batch and not future.done():
                wait([future], max(0.0, started + PATIENCE - time.monotonic()))
            if not batch or future.done():
                waiting.popleft()
                started = started if batch else time.monotonic()
                batch.append((key, self._skip_known(future.result())))
                pending += batch[-1][1].pending
                waiting_bytes += batch[-1][1].waiting
                if pending < self.batch_size and len(batch) < self.ahead and waiting_bytes < WAITING_BYTES // 4:
                    continue
            self._compute(batch)
            batch, pending, waiting_bytes = [], 0, 0
        if batch and not self.stopped:
            self._compute(batch)

    def _load(self, task: Task[T]) -> LoadedImage:
        return load_image(task.read, self.model.recipe, self.known, self.budget, self.decoder)

    def _skip_known(self, result: LoadedImage) -> LoadedImage:
        """Returns a loaded image; drops its pixels if the features of its content are known or being computed."""
        if not result.pending:
            return result
        # In this order: a digest is removed from `computing_digests` only after the caller has added it to `known`.
        if result.digest in self.computing_digests or result.digest in self.known:
            self.in_flight.release([result])
            return replace(result, pixels=None, file=None)
        self.computing_digests.add(result.digest)
        return result

    def _compute(self, batch: list[tuple[T, LoadedImage]]) -> None:
        """Submits a batch to the model, and queues its future result for the caller.

        Before that, waits while more than `lanes` earlier batches are unfinished. `lanes` is the number of batches that
        the model computes at once.
        """
        while self.computing_batches and (len(self.computing_batches) > self.lanes or self.computing_batches[0].done()):
            wait([self.computing_batches.popleft()])
        future = self.computing.submit(_compute_batch, self.model, batch, self.budget)
        future.add_done_callback(lambda _, loaded=[result for _, result in batch]: self.in_flight.release(loaded))  # type: ignore[misc]
        self.computing_batches.append(future)
        self._hand_over(future)

    def _hand_over(self, future: Future[list[tuple[T, LoadedImage]]] | None) -> None:
        while not self.stopped:
            with contextlib.suppress(queue.Full):
                self.finished.put(future, timeout=0.1)
                return


class _InFlight:
    """Counts the images being read, and the bytes of the files that wait for a GPU decoder.

    `bool(self)` is True while more images may be read: both numbers are below their limits.
    limit: the limit for images being read. The limit for bytes is `WAITING_BYTES`.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.reading, self.bytes = limit, 0, 0
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return self.reading < self.limit and self.bytes < WAITING_BYTES

    def submit(self, pool: Executor, loading: Callable[[Task[T]], LoadedImage], task: Task[T]) -> Future[LoadedImage]:
        """Starts loading an image in the pool, and counts it as being read until it is loaded."""
        self._count(1, 0)
        future = pool.submit(loading, task)
        future.add_done_callback(self._loaded)
        return future

    def release(self, loaded: Iterable[LoadedImage]) -> None:
        """Subtracts the bytes of files that no longer wait for the GPU decoder."""
        self._count(0, -sum(result.waiting for result in loaded))

    def _loaded(self, future: Future[LoadedImage]) -> None:
        done = not future.cancelled() and future.exception() is None
        self._count(-1, future.result().waiting if done else 0)

    def _count(self, reading: int, size: int) -> None:
        with self._lock:
            self.reading += reading
            self.bytes += size


def _compute_batch(
    model: Model, batch: list[tuple[T, LoadedImage]], budget: MemoryBudget
) -> list[tuple[T, LoadedImage]]:
    """Returns a batch with features: decodes the files that wait for the GPU, then runs the model on all pixels."""
    decoder: JpegDecoder | None = getattr(model, "decoder", None)
    if decoder is not None:
        loaded = decode_on_gpu([result for _, result in batch], decoder, model.recipe, budget)
        batch = [(key, result) for (key, _), result in zip(batch, loaded, strict=True)]
    pixels = [result.pixels for _, result in batch if result.pixels is not None]
    if not pixels:
        return batch
    rows = iter(to_float16(model.features(np.stack(pixels))))
    return [
        (key, replace(result, features=next(rows), pixels=None) if result.pixels is not None else result)
        for key, result in batch
    ]
