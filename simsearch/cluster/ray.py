"""Building an index with the machines of a Ray cluster: `build --on ray`.

This process, the driver, lists the images as in any build and writes the list as chunks (`simsearch.cluster.work`).
Each node of the cluster runs one worker for each GPU, or a single one without GPUs, which loads the model once and
computes chunks; the results of a chunk are a file. The driver takes the chunks in order and commits them as a local
build commits its batches, so ids, features and failures are the same. If a worker is lost, another one computes its
chunk. If the driver is lost, the next build finds the committed chunks in the index and the results of others as files.

Sources and index must be at the same paths on all nodes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from simsearch.cluster import work as cluster_work
from simsearch.cluster.work import WorkFolder, WorkInfo, WorkItem
from simsearch.errors import MissingExtraError, ModelMismatchError, SimsearchError, UnavailableError, UsageError
from simsearch.images.sources import resolve
from simsearch.indexing.extract import Task, extract, usual_batch
from simsearch.indexing.load import LoadedImage, reading
from simsearch.models import load, registry
from simsearch.storage import components
from simsearch.storage.derived import WORK_FOLDER
from simsearch.storage.folder import Folder
from simsearch.storage.meta import Meta

if TYPE_CHECKING:
    from collections.abc import Container

    from simsearch.images.sources.base import Entry, Source
    from simsearch.indexing.plan import Plan
    from simsearch.storage.index import Index
    from simsearch.storage.model import IndexModel
    from simsearch.storage.reader import Item

Key = tuple["Plan", "Entry", "Item | None"]
Run = Callable[[WorkFolder, Sequence[int]], Iterator[int]]
"""Computes chunks and yields their numbers in the given order, each when its results are written."""

WAIT = 0.5
"""Seconds between polls of the cluster."""

PATIENCE = 60.0
"""Seconds without a working worker before the build is given up."""

ATTEMPTS = 5
"""Workers that may be lost over one chunk before the build is given up."""

CONNECT = 5.0
"""Seconds to wait for the cluster's address to answer."""


class RayWorker:
    """Computes chunks in a process of its own, with the model loaded once."""

    def __init__(self, folder: str, device: str, threads: int | None) -> None:
        self.folder, self.device, self.threads = folder, device, threads
        self.sources: dict[int, Source] = {}

    def ready(self) -> str:
        """Loads the model and returns the name of the machine. Raises UsageError, ModelMismatchError."""
        self.work = cluster_work.open_on_worker(self.folder)
        info = self.work.info
        self.items = self.work.items()
        model = load.load_model(info.model, self.device, images=info.total, threads=True, precision=info.precision)
        same = info.weights_sha256 in (model.weights_sha256, registry.sha256_before_ranges(info.model))
        if not same:
            raise ModelMismatchError(
                f"{os.uname().nodename} has weights {model.weights_sha256} as {info.model},"
                f" but the index was made by {info.weights_sha256}"
            )
        self.model = model
        if info.descriptor:
            index = Folder.at(self.work.folder.parent.parent)
            self.model = components.apply(model, index, Meta.read(index))
        return os.uname().nodename

    def compute(self, chunk: int) -> int:
        """Computes a chunk, unless its results exist, and returns the number of images that failed."""
        results = self.work.read(chunk)
        if results is None:
            tasks = [Task(self._reading(item), None) for item in self.work.chunk_items(self.items, chunk)]
            size = self.work.info.batch_size or usual_batch(self.model)
            groups = extract(self.model, tasks, batch_size=size, workers=self.threads)
            results = [result for group in groups for _, result in group]
            self.work.write(chunk, results)
        return sum(result.problem is not None for result in results)

    def _reading(self, item: WorkItem) -> Callable[[], bytes | IO[bytes]]:
        if item.source not in self.sources:
            self.sources[item.source] = resolve.reopen(*self.work.info.sources[item.source])
        return reading(self.sources[item.source], item.path, item.size)


class RayCluster:
    """An `Extractor` for `BuildOptions`: computes the images of a build with other processes.

    run: computes the chunks; `on_ray` makes one for Ray.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.folder: Path | None = None

    def groups(
        self, index: Index, model: IndexModel, keys: Sequence[Key], known: Container[bytes], batch_size: int
    ) -> Iterator[list[tuple[Key, LoadedImage]]]:
        """Yields the results of all images in their order, one chunk at a time; see `Extractor.groups`."""
        index.check_in_place()  # workers find the work by its path
        self.folder = index.path.absolute() / "derived" / WORK_FOLDER
        wanted = {_place(plan, entry): (plan, entry, known_item) for plan, entry, known_item in keys}
        work = WorkFolder.open(self.folder)
        if work is not None and _belongs(work.info, index):
            yield from self._take(work, wanted, known)
        if wanted:  # all images, or those that are new since the work was written
            yield from self._take(self._freeze(index, model.name, wanted, batch_size), wanted, known)

    def finished(self) -> None:
        """Deletes the work; called when all results are committed."""
        if self.folder is not None:
            cluster_work.discard(self.folder)

    def _freeze(
        self, index: Index, model: str, wanted: dict[tuple[str, str, str, int, int], Key], batch_size: int
    ) -> WorkFolder:
        numbers: dict[tuple[str, str], int] = {}
        items = [WorkItem(numbers.setdefault((kind, root), len(numbers)), *rest) for kind, root, *rest in wanted]  # type: ignore[arg-type]
        assert self.folder is not None
        meta = index.meta
        return WorkFolder.freeze(
            self.folder, model, meta.weights_sha256, list(numbers), items, batch_size, index.precision, meta.descriptor
        )

    def _take(
        self, work: WorkFolder, wanted: dict[tuple[str, str, str, int, int], Key], known: Container[bytes]
    ) -> Iterator[list[tuple[Key, LoadedImage]]]:
        """Yields the results of the wanted images that the work has, and removes these images from `wanted`."""
        items, sources = work.items(), work.info.sources
        places = [
            (sources[item.source][0], sources[item.source][1], item.path, item.size, item.stamp) for item in items
        ]
        needed = sorted({n // work.info.chunk_size for n, place in enumerate(places) if place in wanted})
        for chunk in self.run(work, needed) if needed else ():
            results = work.read(chunk)
            if results is None:
                raise UnavailableError(
                    f"chunk {chunk} of the work was computed, but {work.path(chunk)} cannot be read",
                    hint="index and sources must be at the same paths on all nodes",
                )
            first, seen = chunk * work.info.chunk_size, set[bytes]()
            group = []
            for place, result in zip(places[first : first + len(results)], results, strict=True):
                key = wanted.get(place)
                if key is None:
                    continue
                known_content = result.digest in known or result.digest in seen
                if result.features is None and result.problem is None and not known_content:
                    continue  # the image with the same content is gone, so this one is computed with the next work
                del wanted[place]
                if known_content:  # as in a local build, the features of the first image with the content are kept
                    result = replace(result, features=None)
                seen.add(result.digest)
                group.append((key, result))
            yield group


def _belongs(info: WorkInfo, index: Index) -> bool:
    """Returns True if the work of an interrupted build has the features that the index keeps."""
    meta = index.meta
    ours = meta.weights_sha256, index.precision, meta.descriptor
    return (info.weights_sha256, info.precision, info.descriptor) == ours


def _place(plan: Plan, entry: Entry) -> tuple[str, str, str, int, int]:
    return plan.source.kind, plan.source.root, entry.path, entry.size, entry.stamp


def on_ray(
    where: str, *, device: str = "auto", threads: int | None = None, say: Callable[[str], None] = lambda text: None
) -> RayCluster:
    """Returns a `RayCluster` whose workers run on Ray.

    where: "ray" for the cluster in $RAY_ADDRESS, or for this machine if that is not set; "ray://HOST:PORT" for a
    cluster's client port. threads: of each worker. say: called with messages about workers and failures.
    Raises UsageError, MissingExtraError, UnavailableError.
    """
    parts = urlsplit(where)
    try:
        port = parts.port
    except ValueError:
        port = None
    if where != "ray" and (parts.scheme != "ray" or not parts.hostname or port is None):
        raise UsageError(
            f"--on {where!r} names no cluster", hint="ray, or ray://HOST:PORT; the client port is usually 10001"
        )
    return RayCluster(lambda work, chunks: _RayDriver(*_connect(where), work, device, threads, say).run(chunks))


def _connect(where: str) -> tuple[Any, bool]:
    """Connects to Ray; returns the module, and True if it was not connected before. Raises UnavailableError."""
    try:
        import ray
    except ImportError:
        raise MissingExtraError("a cluster of Ray", "cluster") from None
    if ray.is_initialized():
        return ray, False
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    address = where if where != "ray" else os.environ.get("RAY_ADDRESS", "")
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    if address and address not in {"auto", "local"} and parts.hostname and parts.port:
        try:
            socket.create_connection((parts.hostname, parts.port), CONNECT).close()
        except OSError as error:
            raise UnavailableError(
                f"no answer from Ray at {parts.hostname}:{parts.port}: {error.strerror or error}",
                hint="is the cluster up, and is this its port?",
            ) from error
    try:
        if where != "ray":
            ray.init(address=where, **quiet)
            return ray, True
        alone = not address or address == "local"
        ray.init(address=address or "local", **quiet, **({"include_dashboard": False} if alone else {}))
    except Exception as error:
        text = str(error).strip().partition("\n")[0]
        raise UnavailableError(f"Ray at {address or 'this machine'} does not take this build: {text}") from error
    return ray, True


class _RayDriver:
    """Hands chunks to workers. Each slot has one worker; a slot is a GPU, or a node without GPUs."""

    def __init__(
        self, ray: Any, own: bool, work: WorkFolder, device: str, threads: int | None, say: Callable[[str], None]
    ) -> None:
        self.ray, self.own, self.work, self.device, self.threads, self.say = ray, own, work, device, threads, say
        self.workers: dict[tuple[str, int], Any] = {}
        self.busy: dict[Any, tuple[tuple[str, int], int | None]] = {}
        self.idle: list[tuple[str, int]] = []
        self.attempts: Counter[int] = Counter()
        self.failures = 0
        self.last_look = 0.0

    def run(self, chunks: Sequence[int]) -> Iterator[int]:
        """Computes chunks and yields their numbers in the given order; see `Run`."""
        todo, done = deque(chunks), set[int]()
        order = iter(chunks)
        following = next(order, None)
        seen = time.monotonic()
        try:
            while following is not None:
                self._start_workers()
                while todo and self.idle:
                    slot, chunk = self.idle.pop(), todo.popleft()
                    self.busy[self.workers[slot].compute.remote(chunk)] = slot, chunk
                done.update(self._finished(todo))
                while following is not None and following in done:
                    yield following
                    following = next(order, None)
                if any(chunk is not None for _, chunk in self.busy.values()):
                    seen = time.monotonic()
                elif time.monotonic() - seen > PATIENCE and following is not None:
                    raise UnavailableError(
                        f"no worker has started on the cluster for {PATIENCE:g} s",
                        hint="does it have free CPUs or GPUs? see `ray status`",
                    )
        finally:
            for worker in self.workers.values():
                with contextlib.suppress(Exception):
                    self.ray.kill(worker)
            if self.own:
                self.ray.shutdown()

    def _start_workers(self) -> None:
        """Starts a worker in each slot without one: at the beginning, when a node joins, and after a loss."""
        if time.monotonic() - self.last_look < 2:
            return
        self.last_look = time.monotonic()
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        for node in self.ray.nodes():
            cpus, gpus = node["Resources"].get("CPU", 0), int(node["Resources"].get("GPU", 0))
            if not node["Alive"] or not cpus:
                continue
            slots = max(1, gpus if self.device != "cpu" else 0)
            for slot in range(slots):
                if (node["NodeID"], slot) in self.workers:
                    continue
                strategy = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
                options: dict[str, Any] = {
                    "num_cpus": max(1, int(cpus // slots)),
                    "scheduling_strategy": strategy,
                    "num_gpus": 1 if gpus and self.device != "cpu" else 0,
                }
                actor = self.ray.remote(RayWorker).options(**options)
                worker = actor.remote(str(self.work.folder), self.device, self.threads)
                self.workers[node["NodeID"], slot] = worker
                self.busy[worker.ready.remote()] = (node["NodeID"], slot), None

    def _finished(self, todo: deque[int]) -> Iterator[int]:
        """Waits a moment for workers, and yields the chunks that they have finished."""
        if not self.busy:
            time.sleep(WAIT)
            return
        ready, _ = self.ray.wait(list(self.busy), num_returns=1, timeout=WAIT)
        for reference in ready:
            slot, chunk = self.busy.pop(reference)
            try:
                outcome = self.ray.get(reference)
            except self.ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, SimsearchError) else error from None
            except self.ray.exceptions.RayError as error:
                self._replace_worker(slot, chunk, error, todo)
                continue
            if chunk is None:
                self.say(f"a worker on {outcome} is ready")
            else:
                if outcome:
                    self.failures += outcome
                    self.say(f"{outcome:,} images of chunk {chunk} failed, {self.failures:,} so far")
                yield chunk
            self.idle.append(slot)

    def _replace_worker(self, slot: tuple[str, int], chunk: int | None, error: Exception, todo: deque[int]) -> None:
        """Frees the slot of a lost worker and puts its chunk back. Raises UnavailableError after `ATTEMPTS` losses."""
        reason = type(error).__name__
        with contextlib.suppress(Exception):  # a worker that is only unreachable must not keep its slot
            self.ray.kill(self.workers.pop(slot))
        if chunk is None:
            return
        todo.appendleft(chunk)
        self.attempts[chunk] += 1
        self.say(f"a worker was lost ({reason}), its chunk {chunk} goes to another")
        if self.attempts[chunk] == ATTEMPTS:
            raise UnavailableError(
                f"{ATTEMPTS} workers were lost over chunk {chunk}: {reason}",
                hint="do they have enough memory? --batch-size makes batches smaller",
            )
