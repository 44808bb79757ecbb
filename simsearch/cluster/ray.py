"""Building an index with the machines of a Ray cluster: `build --on ray`.

What is to be read is found here, as in any build, and frozen (`simsearch.cluster.work`). Every node of the cluster
runs a
worker for each of its GPUs, or one, that loads the model once and computes shares; a share's results are a file. This
process takes the shares in order and puts them into the index as a local build does with its batches, so ids, features
and failures are the same. A lost worker's share goes to another one; after a lost driver the next build finds what was
committed, and the files of the shares that were not.

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
from simsearch.storage.folder import Folder
from simsearch.storage.index import WORK_FOLDER
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
"""Computes shares and gives their numbers in the given order, each when its file is there."""

WAIT = 0.5
"""Seconds between looks at the cluster while nothing happens."""

PATIENCE = 60.0
"""Seconds without a single worker after which the cluster counts as away."""

ATTEMPTS = 5
"""Workers that a share may take down before it is given up."""

CONNECT = 5.0
"""Seconds for the cluster's address to answer."""


class RayWorker:
    """Computes shares; lives in a process of its own, with the model loaded once."""

    def __init__(self, folder: str, device: str, threads: int | None) -> None:
        self.folder, self.device, self.threads = folder, device, threads
        self.sources: dict[int, Source] = {}

    def ready(self) -> str:
        """Loads the model and returns the name of the machine. Raises UsageError, ModelMismatchError."""
        self.work = cluster_work.checked(self.folder)
        facts = self.work.facts
        self.jobs = self.work.jobs()
        model = load.load_model(facts.model, self.device, images=facts.total, threads=True, precision=facts.precision)
        same = facts.weights_sha256 in (model.weights_sha256, registry.sha256_before_ranges(facts.model))
        if not same:
            raise ModelMismatchError(
                f"{os.uname().nodename} has weights {model.weights_sha256} as {facts.model},"
                f" but the index was made by {facts.weights_sha256}"
            )
        self.model = model
        if facts.descriptor:
            index = Folder.at(self.work.folder.parent.parent)
            self.model = components.apply(model, index, Meta.read(index))
        return os.uname().nodename

    def compute(self, share: int) -> int:
        """Computes a share, unless that is done, and returns the number of images that failed."""
        results = self.work.read(share)
        if results is None:
            tasks = [Task(self._reading(job), None) for job in self.work.cut(self.jobs, share)]
            size = self.work.facts.batch_size or usual_batch(self.model)
            groups = extract(self.model, tasks, batch_size=size, workers=self.threads)
            results = [result for group in groups for _, result in group]
            self.work.write(share, results)
        return sum(result.problem is not None for result in results)

    def _reading(self, job: WorkItem) -> Callable[[], bytes | IO[bytes]]:
        if job.source not in self.sources:
            self.sources[job.source] = resolve.reopen(*self.work.facts.sources[job.source])
        return reading(self.sources[job.source], job.path, job.size)


class RayCluster:
    """What `planning.Options.extractor` wants: computes the images of a build elsewhere.

    run: what computes the shares; `on_ray` makes one.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.folder: Path | None = None

    def groups(
        self, index: Index, model: IndexModel, keys: Sequence[Key], known: Container[bytes], batch_size: int
    ) -> Iterator[list[tuple[Key, LoadedImage]]]:
        """The results of all images in their order, a share at a time; see `extract.extract`."""
        index.check_in_place()  # workers find the work by its path
        self.folder = index.path.absolute() / "derived" / WORK_FOLDER
        wanted = {_place(plan, entry): (plan, entry, item) for plan, entry, item in keys}
        work = WorkFolder.open(self.folder)
        if work is not None and _belongs(work.facts, index):
            yield from self._take(work, wanted, known)
        if wanted:  # all of it, or what is new since that was frozen
            yield from self._take(self._freeze(index, model.name, wanted, batch_size), wanted, known)

    def finished(self) -> None:
        """Called when all of it is committed."""
        if self.folder is not None:
            cluster_work.discard(self.folder)

    def _freeze(
        self, index: Index, model: str, wanted: dict[tuple[str, str, str, int, int], Key], batch_size: int
    ) -> WorkFolder:
        numbers: dict[tuple[str, str], int] = {}
        jobs = [WorkItem(numbers.setdefault((kind, root), len(numbers)), *rest) for kind, root, *rest in wanted]  # type: ignore[arg-type]
        assert self.folder is not None
        meta = index.meta
        return WorkFolder.freeze(
            self.folder, model, meta.weights_sha256, list(numbers), jobs, batch_size, index.precision, meta.descriptor
        )

    def _take(
        self, work: WorkFolder, wanted: dict[tuple[str, str, str, int, int], Key], known: Container[bytes]
    ) -> Iterator[list[tuple[Key, LoadedImage]]]:
        """What the work has of the wanted images; these are then wanted no more."""
        jobs, sources = work.jobs(), work.facts.sources
        places = [(sources[job.source][0], sources[job.source][1], job.path, job.size, job.stamp) for job in jobs]
        needed = sorted({n // work.facts.share for n, place in enumerate(places) if place in wanted})
        for share in self.run(work, needed) if needed else ():
            results = work.read(share)
            if results is None:
                raise UnavailableError(
                    f"share {share} of the work was computed, but {work.path(share)} cannot be read",
                    hint="index and sources must be at the same paths on all nodes",
                )
            first, seen = share * work.facts.share, set[bytes]()
            group = []
            for place, result in zip(places[first : first + len(results)], results, strict=True):
                key = wanted.get(place)
                if key is None:
                    continue
                there = result.digest in known or result.digest in seen
                if result.features is None and result.problem is None and not there:
                    continue  # the picture that it is like has gone since: it is frozen anew
                del wanted[place]
                if there:  # as in a local build, the first one's count
                    result = replace(result, features=None)
                seen.add(result.digest)
                group.append((key, result))
            yield group


def _belongs(facts: WorkInfo, index: Index) -> bool:
    """Whether work that was left has the features that the index keeps."""
    meta = index.meta
    ours = meta.weights_sha256, index.precision, meta.descriptor
    return (facts.weights_sha256, facts.precision, facts.descriptor) == ours


def _place(plan: Plan, entry: Entry) -> tuple[str, str, str, int, int]:
    return plan.source.kind, plan.source.root, entry.path, entry.size, entry.stamp


def on_ray(
    where: str, *, device: str = "auto", threads: int | None = None, say: Callable[[str], None] = lambda text: None
) -> RayCluster:
    """A `RayCluster` of Ray.

    where: "ray" for the cluster that $RAY_ADDRESS names, or else this machine alone; "ray://HOST:PORT" for one that is
    reached through its client port. say: told of workers and failures.
    Raises UsageError, MissingExtraError, UnavailableError.
    """
    parts = urlsplit(where)
    try:
        port = parts.port
    except ValueError:
        port = None
    if where != "ray" and (parts.scheme != "ray" or not parts.hostname or port is None):
        raise UsageError(f"--on {where!r} names no cluster", hint="ray, or ray://HOST:PORT, where PORT is mostly 10001")
    return RayCluster(lambda work, shares: _RayDriver(*_connect(where), work, device, threads, say).run(shares))


def _connect(where: str) -> tuple[Any, bool]:
    """Ray, connected, and whether it was not before."""
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
    """Gives shares to workers, one for each slot: a node without GPUs, or a GPU."""

    def __init__(
        self, ray: Any, own: bool, work: WorkFolder, device: str, threads: int | None, say: Callable[[str], None]
    ) -> None:
        self.ray, self.own, self.work, self.device, self.threads, self.say = ray, own, work, device, threads, say
        self.workers: dict[tuple[str, int], Any] = {}
        self.busy: dict[Any, tuple[tuple[str, int], int | None]] = {}
        self.idle: list[tuple[str, int]] = []
        self.attempts: Counter[int] = Counter()
        self.failures = 0
        self.looked = 0.0

    def run(self, shares: Sequence[int]) -> Iterator[int]:
        """See `Run`."""
        todo, done = deque(shares), set[int]()
        order = iter(shares)
        following = next(order, None)
        seen = time.monotonic()
        try:
            while following is not None:
                self._grow()
                while todo and self.idle:
                    slot, share = self.idle.pop(), todo.popleft()
                    self.busy[self.workers[slot].compute.remote(share)] = slot, share
                done.update(self._settle(todo))
                while following is not None and following in done:
                    yield following
                    following = next(order, None)
                if any(share is not None for _, share in self.busy.values()):
                    seen = time.monotonic()
                elif time.monotonic() - seen > PATIENCE and following is not None:
                    raise UnavailableError(
                        f"no worker has started on the cluster for {PATIENCE:g} s",
                        hint="does it have free CPUs or GPUs? `ray status` tells",
                    )
        finally:
            for worker in self.workers.values():
                with contextlib.suppress(Exception):
                    self.ray.kill(worker)
            if self.own:
                self.ray.shutdown()

    def _grow(self) -> None:
        """Starts a worker in each slot that has none: at the beginning, when a node joins, and after a loss."""
        if time.monotonic() - self.looked < 2:
            return
        self.looked = time.monotonic()
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

    def _settle(self, todo: deque[int]) -> Iterator[int]:
        """Waits for something to happen; yields the shares that are done."""
        if not self.busy:
            time.sleep(WAIT)
            return
        ready, _ = self.ray.wait(list(self.busy), num_returns=1, timeout=WAIT)
        for reference in ready:
            slot, share = self.busy.pop(reference)
            try:
                outcome = self.ray.get(reference)
            except self.ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, SimsearchError) else error from None
            except self.ray.exceptions.RayError as error:
                self._lost(slot, share, error, todo)
                continue
            if share is None:
                self.say(f"a worker on {outcome} is ready")
            else:
                if outcome:
                    self.failures += outcome
                    self.say(f"{outcome:,} images of share {share} failed, {self.failures:,} so far")
                yield share
            self.idle.append(slot)

    def _lost(self, slot: tuple[str, int], share: int | None, error: Exception, todo: deque[int]) -> None:
        """A worker died, or its machine did."""
        reason = type(error).__name__
        with contextlib.suppress(Exception):  # one that is only out of reach must not keep its place
            self.ray.kill(self.workers.pop(slot))
        if share is None:
            return
        todo.appendleft(share)
        self.attempts[share] += 1
        self.say(f"a worker was lost ({reason}), its share {share} goes to another")
        if self.attempts[share] == ATTEMPTS:
            raise UnavailableError(
                f"share {share} took down {ATTEMPTS} workers: {reason}",
                hint="too little memory there? --batch-size makes batches smaller",
            )
