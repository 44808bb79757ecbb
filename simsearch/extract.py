"""From images to features: read, hash, decode in threads; compute in batches; results in the order of the tasks."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from simsearch import images
from simsearch.errors import ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.models import Model
    from simsearch.recipe import Recipe

T = TypeVar("T")


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
    """An image to read, and whatever the caller wants back with the result."""

    read: Callable[[], bytes]
    key: T


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
    with the results: of images alike, within a batch too, only the first is computed, and the others have no features.
    At most `workers` images are decoded at once and about two batches of cropped pixels wait for the model, so the
    memory needed does not depend on how many images there are.
    """
    workers = workers or os.cpu_count() or 1
    recipe = model.recipe
    waiting: deque[tuple[T, Future[Extracted]]] = deque()
    batch: list[tuple[T, Extracted]] = []
    full, seen = 0, set[bytes]()
    stream = iter(tasks)
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            while True:
                while len(waiting) < batch_size + 2 * workers:
                    task = next(stream, None)
                    if task is None:
                        break
                    waiting.append((task.key, pool.submit(load, task.read, recipe, known)))
                if not waiting:
                    break
                key, future = waiting.popleft()
                result = future.result()
                if result.pixels is not None and (result.digest in known or result.digest in seen):
                    result = replace(result, pixels=None)
                full += result.pixels is not None
                seen.add(result.digest)
                batch.append((key, result))
                if full == batch_size or len(batch) == 8 * batch_size:
                    yield _computed(model, batch)
                    batch, full, seen = [], 0, set()
            if batch:
                yield _computed(model, batch)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def load(read: Callable[[], bytes], recipe: Recipe, known: Container[bytes] = ()) -> Extracted:
    """Reads, hashes and decodes one image; a failure is a result, not an exception."""
    try:
        data = read()
    except ImageError as error:
        return Extracted(problem=str(error))
    digest = hashlib.sha256(data).digest()
    if digest in known:
        return Extracted(digest, len(data))
    try:
        decoded = images.decode(data, recipe.resize)
        pixels = recipe.pixels(decoded.image)
    except ImageError as error:
        return Extracted(digest, len(data), problem=str(error))
    except MemoryError:
        return Extracted(digest, len(data), problem="too large for the memory at hand")
    return Extracted(digest, len(data), decoded.width, decoded.height, pixels=pixels)


def stored(features: NDArray[np.float32]) -> NDArray[np.float16]:
    """Features as an index keeps them. What float16 cannot hold becomes its largest value, never infinity."""
    return np.clip(features, -65504, 65504).astype(np.float16)


def _computed(model: Model, batch: list[tuple[T, Extracted]]) -> list[tuple[T, Extracted]]:
    pixels = [result.pixels for _, result in batch if result.pixels is not None]
    if not pixels:
        return batch
    rows = iter(stored(model.features(np.stack(pixels))))
    return [
        (key, replace(result, features=next(rows), pixels=None) if result.pixels is not None else result)
        for key, result in batch
    ]
