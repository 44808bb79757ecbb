"""From images to features: read, hash, decode and compute in threads; results in the order of the tasks.

Decoding and, on the CPU, inference share the same threads, each of which computes on one core: whatever is ready is
done next, so no core waits while there is work, and none is fought over. A thread of its own keeps them supplied; the
caller, who writes what has been computed, holds up nobody. A GPU that decodes JPEGs is handed those files as they are.
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
"""Memory for images in the middle of being decoded: the largest that is not refused, or many ordinary ones."""

AHEAD = 4
"""Batches whose images may be decoded, or wait to be, before their turn."""

PATIENCE = 1.0
"""Seconds after which a batch that is not full is computed, where images are slow to decode."""

WAITING_BYTES = 256 << 20
"""Of files that wait for a GPU to decode them; a batch is computed when its own are a quarter of that."""

FINISHED = 16
"""Batches that may wait for the caller."""


@dataclass(frozen=True)
class Task(Generic[T]):
    """An image to read, whole or (better for a large file) as a stream, and what the caller wants with the result."""

    read: Callable[[], bytes | IO[bytes]]
    key: T


def usual_batch(model: Model) -> int:
    """Images computed at once; fewer where several batches are computed at once, so that they do not add up."""
    return 256 if "cuda" in model.engine else max(16, 64 // max(2, getattr(model, "lanes", 1)))


def extract(
    model: Model,
    tasks: Iterable[Task[T]],
    *,
    known: Container[bytes] = (),
    batch_size: int = 32,
    workers: int | None = None,
) -> Iterator[list[tuple[T, LoadedImage]]]:
    """Yields the results of all tasks in order, some at a time.

    known: digests whose features the caller has; those images are read and hashed but not computed. It may grow
    with the results: of images alike only the first is computed, and the others have no features.
    workers: threads; as many as there are cores by default. At most `DECODING_BYTES` are spent on images being
    decoded, and a few batches of cropped pixels and of features wait, so the memory needed depends neither on how
    many images there are nor on how large they are. Features depend on none of these numbers.
    """
    run = _ExtractionPipeline(model, tasks, known, batch_size, workers or available_cores())
    try:
        yield from run.results()
    finally:
        run.stop()


class _ExtractionPipeline(Generic[T]):
    """One run of `extract`: the threads, and what is under way."""

    def __init__(
        self, model: Model, tasks: Iterable[Task[T]], known: Container[bytes], batch_size: int, workers: int
    ) -> None:
        self.model, self.tasks, self.known, self.batch_size = model, iter(tasks), known, batch_size
        self.decoder: JpegDecoder | None = getattr(model, "decoder", None)
        self.room = _InFlight(2 * workers)
        self.ahead = max(AHEAD * batch_size, 2 * workers)
        self.lanes = getattr(model, "lanes", 1)
        self.budget = MemoryBudget(DECODING_BYTES)
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        # A GPU, and a model that is not meant for several threads, compute beside the decoding.
        shared = self.lanes > 1 and "cuda" not in model.engine
        self.computing: Executor = self.pool if shared else ThreadPoolExecutor(self.lanes, thread_name_prefix="compute")
        self.under_way: deque[Future[list[tuple[T, LoadedImage]]]] = deque()
        self.under_way_digests: set[bytes] = set()
        self.refused: dict[bytes, str] = {}
        self.finished: queue.Queue[Future[list[tuple[T, LoadedImage]]] | None] = queue.Queue(FINISHED)
        self.stopped = False
        self.feeder = threading.Thread(target=self._feed, name="feed", daemon=True)
        self.feeder.start()

    def results(self) -> Iterator[list[tuple[T, LoadedImage]]]:
        """The batches, in order, as they are computed. An exception of the model is raised in its place."""
        while (future := self.finished.get()) is not None:
            batch = [(key, self._alike(result)) for key, result in future.result()]
            yield batch
            self.under_way_digests.difference_update([result.digest for _, result in batch])

    def _alike(self, result: LoadedImage) -> LoadedImage:
        """With the problem of the image that it is like, where that was found out by the model's device only."""
        if result.problem is not None:
            if result.digest in self.under_way_digests:
                self.refused[result.digest] = result.problem
        elif result.features is None and result.digest in self.refused:
            return replace(result, problem=self.refused[result.digest])
        return result

    def stop(self) -> None:
        """Ends the threads; what has not begun is dropped."""
        self.stopped = True
        self.feeder.join()
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.computing.shutdown(wait=True, cancel_futures=True)

    def _feed(self) -> None:
        try:
            self._feed_batches()
        except BaseException as error:  # of the tasks' iterator, say: it belongs to the caller
            failed: Future[list[tuple[T, LoadedImage]]] = Future()
            failed.set_exception(error)
            self._hand_over(failed)
        self._hand_over(None)

    def _feed_batches(self) -> None:
        waiting: deque[tuple[T, Future[LoadedImage]]] = deque()
        batch: list[tuple[T, LoadedImage]] = []
        full, held, begun = 0, 0, 0.0
        while not self.stopped:
            while (
                len(waiting) < self.ahead
                and (not waiting or self.decoder is None or self.room)
                and (task := next(self.tasks, None)) is not None
            ):
                waiting.append((task.key, self.room.submit(self.pool, self._load, task)))
            if not waiting:
                break
            key, future = waiting[0]
            if batch and not future.done():
                wait([future], max(0.0, begun + PATIENCE - time.monotonic()))
            if not batch or future.done():
                waiting.popleft()
                begun = begun if batch else time.monotonic()
                batch.append((key, self._once(future.result())))
                full += batch[-1][1].pending
                held += batch[-1][1].waiting
                if full < self.batch_size and len(batch) < self.ahead and held < WAITING_BYTES // 4:
                    continue
            self._compute(batch)
            batch, full, held = [], 0, 0
        if batch and not self.stopped:
            self._compute(batch)

    def _load(self, task: Task[T]) -> LoadedImage:
        return load_image(task.read, self.model.recipe, self.known, self.budget, self.decoder)

    def _once(self, result: LoadedImage) -> LoadedImage:
        """Without pixels if the caller has the features of that digest by now, or will have."""
        if not result.pending:
            return result
        # In this order: a digest leaves those under way only after the caller knows it.
        if result.digest in self.under_way_digests or result.digest in self.known:
            self.room.let_go([result])
            return replace(result, pixels=None, file=None)
        self.under_way_digests.add(result.digest)
        return result

    def _compute(self, batch: list[tuple[T, LoadedImage]]) -> None:
        """Sends a batch to be computed, one more than are computed at once, and hands its result over in its turn."""
        while self.under_way and (len(self.under_way) > self.lanes or self.under_way[0].done()):
            wait([self.under_way.popleft()])
        future = self.computing.submit(_computed, self.model, batch, self.budget)
        future.add_done_callback(lambda _, loaded=[result for _, result in batch]: self.room.let_go(loaded))  # type: ignore[misc]
        self.under_way.append(future)
        self._hand_over(future)

    def _hand_over(self, future: Future[list[tuple[T, LoadedImage]]] | None) -> None:
        while not self.stopped:
            with contextlib.suppress(queue.Full):
                self.finished.put(future, timeout=0.1)
                return


class _InFlight:
    """Counts the images that are being read, and the bytes of files that wait for a GPU to decode them.

    True while there is room for more of both.
    """

    def __init__(self, most: int) -> None:
        self.most, self.reading, self.bytes = most, 0, 0
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return self.reading < self.most and self.bytes < WAITING_BYTES

    def submit(self, pool: Executor, loading: Callable[[Task[T]], LoadedImage], task: Task[T]) -> Future[LoadedImage]:
        """Has an image loaded, which counts as being read until it is."""
        self._count(1, 0)
        future = pool.submit(loading, task)
        future.add_done_callback(self._loaded)
        return future

    def let_go(self, loaded: Iterable[LoadedImage]) -> None:
        """Files wait no more."""
        self._count(0, -sum(result.waiting for result in loaded))

    def _loaded(self, future: Future[LoadedImage]) -> None:
        done = not future.cancelled() and future.exception() is None
        self._count(-1, future.result().waiting if done else 0)

    def _count(self, reading: int, size: int) -> None:
        with self._lock:
            self.reading += reading
            self.bytes += size


def _computed(model: Model, batch: list[tuple[T, LoadedImage]], budget: MemoryBudget) -> list[tuple[T, LoadedImage]]:
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
