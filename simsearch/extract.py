"""From images to features: read, hash, decode and compute in threads; results in the order of the tasks.

Decoding and, on the CPU, inference share the same threads, each of which computes on one core: whatever is ready is
done next, so no core waits while there is work, and none is fought over. A thread of its own keeps them supplied; the
caller, who writes what has been computed, holds up nobody.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Generic, TypeVar

import numpy as np

from simsearch import images
from simsearch.errors import ImageError
from simsearch.images import LARGE_BYTES
from simsearch.machine import Budget, cores, trim

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.models import Model
    from simsearch.recipe import Recipe
    from simsearch.sources import Source

T = TypeVar("T")

DECODING_BYTES = 768 << 20
"""Memory for images in the middle of being decoded: the largest that is not refused, or many ordinary ones."""

TRIMMED_BYTES = 32 << 20
"""After images that took more, freed memory is given back to the system."""

AHEAD = 4
"""Batches whose images may be decoded, or wait to be, before their turn."""

PATIENCE = 1.0
"""Seconds after which a batch that is not full is computed, where images are slow to decode."""

FINISHED = 16
"""Batches that may wait for the caller."""


@dataclass(frozen=True)
class Extracted:
    """What became of one image.

    digest: SHA-256 of the file (empty if it could not be read). features: (D,) float16, None where the digest was
    known already or the image failed. problem: why it failed. pixels: (S, S, 3) uint8, until the batch is computed.
    """

    digest: bytes = b""
    size: int = 0
    width: int = 0
    height: int = 0
    features: NDArray[np.float16] | None = None
    problem: str | None = None
    pixels: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Task(Generic[T]):
    """An image to read, whole or (better for a large file) as a stream, and what the caller wants with the result."""

    read: Callable[[], bytes | IO[bytes]]
    key: T


def usual_batch(model: Model) -> int:
    """Images computed at once; fewer where several batches are computed at once, so that they do not add up."""
    return 256 if "cuda" in model.engine else max(16, 64 // max(2, getattr(model, "lanes", 1)))


def reading(source: Source, path: str, size: int) -> Callable[[], bytes | IO[bytes]]:
    """How to read an image of a source: a large one is not held in memory as a whole."""
    return functools.partial(source.read if size <= LARGE_BYTES else source.stream, path)


def extract(
    model: Model,
    tasks: Iterable[Task[T]],
    *,
    known: Container[bytes] = (),
    batch_size: int = 32,
    workers: int | None = None,
) -> Iterator[list[tuple[T, Extracted]]]:
    """Yields the results of all tasks in order, some at a time.

    known: digests whose features the caller has; those images are read and hashed but not computed. It may grow
    with the results: of images alike only the first is computed, and the others have no features.
    workers: threads; as many as there are cores by default. At most `DECODING_BYTES` are spent on images being
    decoded, and a few batches of cropped pixels and of features wait, so the memory needed depends neither on how
    many images there are nor on how large they are. Features depend on none of these numbers.
    """
    run = _Extraction(model, tasks, known, batch_size, workers or cores())
    try:
        yield from run.results()
    finally:
        run.stop()


class _Extraction(Generic[T]):
    """One run of `extract`: the threads, and what is under way."""

    def __init__(
        self, model: Model, tasks: Iterable[Task[T]], known: Container[bytes], batch_size: int, workers: int
    ) -> None:
        self.model, self.tasks, self.known, self.batch_size = model, iter(tasks), known, batch_size
        self.ahead = max(AHEAD * batch_size, 2 * workers)
        self.lanes = getattr(model, "lanes", 1)
        self.budget = Budget(DECODING_BYTES)
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        # A GPU, and a model that is not meant for several threads, compute beside the decoding.
        shared = self.lanes > 1 and "cuda" not in model.engine
        self.computing: Executor = self.pool if shared else ThreadPoolExecutor(self.lanes, thread_name_prefix="compute")
        self.under_way: deque[Future[list[tuple[T, Extracted]]]] = deque()
        self.under_way_digests: set[bytes] = set()
        self.finished: queue.Queue[Future[list[tuple[T, Extracted]]] | None] = queue.Queue(FINISHED)
        self.stopped = False
        self.feeder = threading.Thread(target=self._feed, name="feed", daemon=True)
        self.feeder.start()

    def results(self) -> Iterator[list[tuple[T, Extracted]]]:
        """The batches, in order, as they are computed. An exception of the model is raised in its place."""
        while (future := self.finished.get()) is not None:
            batch = future.result()
            yield batch
            self.under_way_digests.difference_update([result.digest for _, result in batch])

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
            failed: Future[list[tuple[T, Extracted]]] = Future()
            failed.set_exception(error)
            self._hand_over(failed)
        self._hand_over(None)

    def _feed_batches(self) -> None:
        waiting: deque[tuple[T, Future[Extracted]]] = deque()
        batch: list[tuple[T, Extracted]] = []
        full, begun = 0, 0.0
        while not self.stopped:
            while len(waiting) < self.ahead and (task := next(self.tasks, None)) is not None:
                waiting.append(
                    (task.key, self.pool.submit(load, task.read, self.model.recipe, self.known, self.budget))
                )
            if not waiting:
                break
            key, future = waiting[0]
            if batch and not future.done():
                wait([future], max(0.0, begun + PATIENCE - time.monotonic()))
            if not batch or future.done():
                waiting.popleft()
                begun = begun if batch else time.monotonic()
                batch.append((key, self._once(future.result())))
                full += batch[-1][1].pixels is not None
                if full < self.batch_size and len(batch) < self.ahead:
                    continue
            self._compute(batch)
            batch, full = [], 0
        if batch and not self.stopped:
            self._compute(batch)

    def _once(self, result: Extracted) -> Extracted:
        """Without pixels if the caller has the features of that digest by now, or will have."""
        if result.pixels is None:
            return result
        # In this order: a digest leaves those under way only after the caller knows it.
        if result.digest in self.under_way_digests or result.digest in self.known:
            return replace(result, pixels=None)
        self.under_way_digests.add(result.digest)
        return result

    def _compute(self, batch: list[tuple[T, Extracted]]) -> None:
        """Sends a batch to be computed, one more than are computed at once, and hands its result over in its turn."""
        while self.under_way and (len(self.under_way) > self.lanes or self.under_way[0].done()):
            wait([self.under_way.popleft()])
        future = self.computing.submit(_computed, self.model, batch)
        self.under_way.append(future)
        self._hand_over(future)

    def _hand_over(self, future: Future[list[tuple[T, Extracted]]] | None) -> None:
        while not self.stopped:
            with contextlib.suppress(queue.Full):
                self.finished.put(future, timeout=0.1)
                return


def load(
    read: Callable[[], bytes | IO[bytes]],
    recipe: Recipe,
    known: Container[bytes] = (),
    budget: Budget | None = None,
) -> Extracted:
    """Reads, hashes and decodes one image; a failure is a result, not an exception."""
    digest, size = b"", 0
    try:
        data = read()
        with contextlib.nullcontext() if isinstance(data, bytes) else data:
            digest, size = _hashed(data)
            if digest in known:
                return Extracted(digest, size)
            needed = images.footprint(data, recipe.resize) if budget is not None else 0
            with budget.hold(needed) if budget is not None else contextlib.nullcontext():
                decoded = images.decode(data, recipe.resize)
                pixels = recipe.pixels(decoded.image)
                width, height = decoded.width, decoded.height
                del decoded
                if needed > TRIMMED_BYTES:
                    trim()
    except ImageError as error:
        return Extracted(digest, size, problem=str(error))
    except OSError as error:  # of a stream: bytes were read before
        return Extracted(digest, size, problem=error.strerror or str(error))
    except MemoryError:
        return Extracted(digest, size, problem="too large for the memory at hand")
    return Extracted(digest, size, width, height, pixels=pixels)


def stored(features: NDArray[np.float32]) -> NDArray[np.float16]:
    """Features as an index keeps them. What float16 cannot hold becomes its largest value, never infinity."""
    return np.clip(features, -65504, 65504).astype(np.float16)


def _hashed(data: bytes | IO[bytes]) -> tuple[bytes, int]:
    """SHA-256 and size in bytes; a stream is left at its start."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).digest(), len(data)
    digest, size = hashlib.sha256(), 0
    while block := data.read(1 << 20):
        digest.update(block)
        size += len(block)
    data.seek(0)
    return digest.digest(), size


def _computed(model: Model, batch: list[tuple[T, Extracted]]) -> list[tuple[T, Extracted]]:
    pixels = [result.pixels for _, result in batch if result.pixels is not None]
    if not pixels:
        return batch
    rows = iter(stored(model.features(np.stack(pixels))))
    return [
        (key, replace(result, features=next(rows), pixels=None) if result.pixels is not None else result)
        for key, result in batch
    ]
