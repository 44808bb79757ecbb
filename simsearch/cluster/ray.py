"""Building an index with the machines of a Ray cluster: `build --on ray`.

This process, the driver, lists the images as in any build, and writes the list to a file, divided into chunks
(`cluster.work`). Each node of the cluster runs one worker for each GPU, or a single worker if it has no GPU. A worker
loads the model once, computes chunks (`cluster.worker`) and writes the results of each chunk to a file. The driver
reads these files in order (`cluster.extractor`) and commits the results as a local build commits its batches, so ids,
features and failures are the same. If a worker is lost, another worker computes its chunk. If the driver is lost, the
next build finds the committed chunks in the index, and the results of the other finished chunks in their files.

Sources and index must be at the same paths on all nodes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from simsearch.cluster.extractor import ClusterExtractor
from simsearch.cluster.work import WorkFolder
from simsearch.cluster.worker import Worker
from simsearch.errors import MissingExtraError, SimsearchError, UnavailableError, UsageError

WAIT = 0.5
"""Seconds between polls of the cluster."""

PATIENCE = 60.0
"""Seconds without a working worker before the build is given up."""

ATTEMPTS = 5
"""The build is given up when this number of workers have been lost on the same chunk."""

CONNECT = 5.0
"""Seconds to wait for the cluster's address to answer."""


def on_ray(
    where: str, *, device: str = "auto", threads: int | None = None, say: Callable[[str], None] = lambda text: None
) -> ClusterExtractor:
    """Returns a `ClusterExtractor` whose workers run on Ray.

    where: "ray" for the cluster in $RAY_ADDRESS, or for this machine if $RAY_ADDRESS is not set; "ray://HOST:PORT" for
    the client port of a cluster. device: see `load.load_model`. threads: the number of threads of each worker; None for
    the default. say: called with messages about workers and failures.
    Raises UsageError, MissingExtraError, UnavailableError.
    """
    parts = urlsplit(where)
    try:
        port = parts.port
    except ValueError:
        port = None
    if where != "ray" and (parts.scheme != "ray" or not parts.hostname or port is None):
        raise UsageError(
            f"{where!r} names no cluster", hint="ray, or ray://HOST:PORT; the client port is usually 10001"
        )
    return ClusterExtractor(
        lambda work, chunks: _RayScheduler(*_connect(where), work, device, threads, say).run(chunks)
    )


def _connect(where: str) -> tuple[Any, bool]:
    """Connects to Ray; returns the module `ray`, and True if this call has made the connection.

    where: as for `on_ray`. Raises UnavailableError, MissingExtraError.
    """
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
        raise UnavailableError(f"Ray at {address or 'this machine'} cannot be used for this build: {text}") from error
    return ray, True


class _RayScheduler:
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
        """Computes chunks and yields their numbers in the given order; see `extractor.Run`."""
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
                        hint="does the cluster have free CPUs or GPUs? see `ray status`",
                    )
        finally:
            for worker in self.workers.values():
                with contextlib.suppress(Exception):
                    self.ray.kill(worker)
            if self.own:
                self.ray.shutdown()

    def _start_workers(self) -> None:
        """Starts a worker in each slot that has none: at the beginning, when a node joins, and after a loss."""
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
                actor = self.ray.remote(Worker).options(**options)
                worker = actor.remote(str(self.work.folder), self.device, self.threads)
                self.workers[node["NodeID"], slot] = worker
                self.busy[worker.ready.remote()] = (node["NodeID"], slot), None

    def _finished(self, todo: deque[int]) -> Iterator[int]:
        """Waits a moment for workers, and yields the chunks that they have finished.

        todo: the chunks that no worker has begun; the chunk of a lost worker is put back into it.
        """
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
        """Frees the slot of a lost worker and puts its chunk back into `todo`.

        chunk: None if the worker had none. Raises UnavailableError when `ATTEMPTS` workers were lost on the same chunk.
        """
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
                f"{ATTEMPTS} workers were lost while computing chunk {chunk}: {reason}",
                hint="do the workers have enough memory? batch_size=N makes batches smaller",
                shell_hint="do the workers have enough memory? --batch-size makes batches smaller",
            )
