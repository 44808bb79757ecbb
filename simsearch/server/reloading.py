"""An index that is served: opened anew when another takes its place on disk, without a failed or mixed answer.

What another process commits into an index is seen by the engine itself. Here is the other case: the folder is replaced
(renamed over, or a link turned to another one). An engine goes on answering from the index that it opened, so an answer
counts only if that one was at the path before and after; else it is computed again on the one that is there now.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from simsearch.engine import Engine
from simsearch.errors import IndexDamagedError, IndexNotFoundError, SimsearchError

T = TypeVar("T")
Identity = tuple[int, ...] | None

PATIENCE = 5.0
"""Seconds that a request waits while there is no whole index at the path."""

log = logging.getLogger("simsearch.serve")


class _Lease:
    """An engine and the number of calls that use it. own: whether it was opened here, to be closed when replaced."""

    def __init__(self, engine: Engine, identity: Identity, own: bool) -> None:
        self.engine, self.identity, self.own, self.users, self.retired = engine, identity, own, 0, False


class ReloadableIndex:
    """A name and the engine that answers for it now. reloaded: called after each replacement."""

    def __init__(self, name: str, engine: Engine, reloaded: Callable[[], None] = lambda: None) -> None:
        self.name, self.path, self.reloaded = name, engine.path, reloaded
        self._identity = engine.identity_now
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._lease = _Lease(engine, engine.identity, own=False)

    def use(self, call: Callable[[Engine], T]) -> T:
        """What `call` makes of the index at the path, all of it from one index."""
        deadline = time.monotonic() + PATIENCE
        while True:
            lease = self._take(deadline)
            try:
                result = call(lease.engine)
            except (SimsearchError, OSError, ValueError):
                if self._identity() == lease.identity or time.monotonic() > deadline:
                    raise
                continue  # the index was taken away meanwhile
            finally:
                self._give(lease)
            if self._identity() in (lease.identity, None) or time.monotonic() > deadline:
                if self._identity() is not None or lease.identity is None:
                    return result
                self._wait(deadline)
                if self._identity() == lease.identity:
                    return result

    def once(self, call: Callable[[Engine], T]) -> T:
        """What `call` makes of the index at the path now; for what must not be done again on another."""
        lease = self._take(time.monotonic() + PATIENCE)
        try:
            return call(lease.engine)
        finally:
            self._give(lease)

    def _take(self, deadline: float) -> _Lease:
        identity = self._identity()
        while identity != self._lease.identity:
            try:
                if identity is None:
                    raise IndexNotFoundError(f"there is no index at {self.path} at the moment")
                self._reopen(identity)
            except (SimsearchError, OSError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            identity = self._identity()
        with self._lock:
            self._lease.users += 1
            return self._lease

    def _give(self, lease: _Lease) -> None:
        with self._lock:
            lease.users -= 1
            done = lease.retired and lease.own and not lease.users
        if done:
            lease.engine.close()

    def _wait(self, deadline: float) -> None:
        while self._identity() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if self._identity() is None:
            raise IndexNotFoundError(f"there is no index at {self.path} any more")

    def _reopen(self, identity: Identity) -> None:
        with self._opening:
            old = self._lease
            if old.identity == identity:
                return
            engine = self._open(old.engine)
            if engine.identity != identity:
                engine.close()
                return
            with self._lock:
                self._lease = _Lease(engine, identity, own=True)
                old.retired = True
                done = old.own and not old.users
            if done:
                old.engine.close()
        log.info("index %s was replaced and opened anew", self.name)
        self.reloaded()

    def _open(self, old: Engine) -> Engine:
        """The index at the path, with the model in memory if it was made by the same weights."""
        engine = Engine(self.path, device=old.device, roots=old.roots)
        try:
            if engine.meta.weights_sha256 == old.meta.weights_sha256:
                roots, device = old.roots, old.device
                engine.close()
                engine = Engine(self.path, model=old.load_model(), device=device, roots=roots)
            engine.load_model()
            return engine
        except BaseException:
            engine.close()
            raise

    def check(self) -> int:
        """Answers one real query and returns the number of items. Raises SimsearchError where that fails."""
        import numpy as np

        def query(engine: Engine) -> int:
            engine.search_by_vector(np.zeros(engine.meta.dimension, np.float32), 1)
            return len(engine)

        return self.use(query)

    def facts(self) -> tuple[int, int]:
        """The number of items and the generation."""

        def read(engine: Engine) -> tuple[int, int]:
            with engine.store.reading() as reader:
                return reader.count(), reader.state("generation")

        try:
            return self.use(read)
        except IndexDamagedError:
            return 0, -1
