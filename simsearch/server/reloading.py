"""Serves the index at a path, and switches to another index that replaces it, without failed or mixed answers.

An engine sees by itself the changes that other processes commit to its index. This module handles the replacement of
the whole folder: another index is renamed to the path, or a symbolic link is changed. The engine then still answers
from the old index. So an answer is used only if the engine's index was at the path before and after the call; otherwise
the answer is computed again with the new index.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from simsearch.engine import Engine
from simsearch.errors import IndexDamagedError, IndexNotFoundError, SimsearchError

T = TypeVar("T")
Identity = tuple[int, ...] | None

PATIENCE = 5.0
"""Seconds that a request waits while there is no complete index at the path."""

log = logging.getLogger("simsearch.serve")


class _Lease:
    """An engine and the number of calls that use it. own: True if this module opened the engine and must close it."""

    def __init__(self, engine: Engine, identity: Identity, own: bool) -> None:
        self.engine, self.identity, self.own, self.users, self.retired = engine, identity, own, 0, False


class ReloadableIndex:
    """An index of the service. If another index is put at its path, that one is opened and used from then on.

    reloaded: called each time after another index has been opened.
    """

    def __init__(self, name: str, engine: Engine, reloaded: Callable[[], None] = lambda: None) -> None:
        self.name, self.path, self.reloaded = name, engine.path, reloaded
        self._identity = engine.opened_index.identity_now
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._lease = _Lease(engine, engine.opened_index.identity, own=False)

    def run(self, call: Callable[[Engine], T], *, may_be_outdated: bool = False) -> T:
        """Returns `call(engine)`. Calls it again, with a new engine, if the index is replaced meanwhile.

        may_be_outdated: True to accept the result even if the index was replaced meanwhile; the caller checks it later.
        Raises IndexNotFoundError if there is no index at the path for `PATIENCE` seconds, and the errors of `call`.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            lease = self._acquire(deadline)
            try:
                result = call(lease.engine)
            except (SimsearchError, OSError, ValueError):
                if self._identity() == lease.identity or time.monotonic() > deadline:
                    raise
                continue  # the index was replaced meanwhile
            finally:
                self._release(lease)
            if may_be_outdated:
                return result
            now = self._identity()
            if now in (lease.identity, None) or time.monotonic() > deadline:
                if now is not None or lease.identity is None:
                    return result
                self._wait(deadline)
                if self._identity() == lease.identity:
                    return result

    def run_once(self, call: Callable[[Engine], T]) -> T:
        """Returns `call(engine)`, called only once even if the index is replaced; for calls that change the index."""
        lease = self._acquire(time.monotonic() + PATIENCE)
        try:
            return call(lease.engine)
        finally:
            self._release(lease)

    def _acquire(self, deadline: float) -> _Lease:
        identity = self._identity()
        while identity != self._lease.identity:
            try:
                if identity is None:
                    raise IndexNotFoundError(f"there is no index at {self.path} now")
                self._reopen(identity)
            except (SimsearchError, OSError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            identity = self._identity()
        with self._lock:
            self._lease.users += 1
            return self._lease

    def _release(self, lease: _Lease) -> None:
        with self._lock:
            lease.users -= 1
            done = lease.retired and lease.own and not lease.users
        if done:
            lease.engine.close()

    def _wait(self, deadline: float) -> None:
        while self._identity() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if self._identity() is None:
            raise IndexNotFoundError(f"the index at {self.path} has been removed")

    def _reopen(self, identity: Identity) -> None:
        with self._opening:
            old = self._lease
            if old.identity == identity:
                return
            engine = self._open(old.engine)
            if engine.opened_index.identity != identity:
                engine.close()
                return
            with self._lock:
                self._lease = _Lease(engine, identity, own=True)
                old.retired = True
                done = old.own and not old.users
            if done:
                old.engine.close()
        log.info("index %s was replaced and opened again", self.name)
        self.reloaded()

    def _open(self, old: Engine) -> Engine:
        """Opens the index at the path; reuses the loaded model if its weights are the same."""
        engine = Engine(self.path, device=old.device, roots=old.opened_index.roots)
        try:
            if engine.meta.weights_sha256 == old.meta.weights_sha256:
                roots, device = old.opened_index.roots, old.device
                engine.close()
                engine = Engine(self.path, model=old.load_model(), device=device, roots=roots)
            engine.load_model()
            return engine
        except BaseException:
            engine.close()
            raise

    def check(self) -> int:
        """Runs one search and returns the number of items. Raises SimsearchError if the search fails."""

        def query(engine: Engine) -> int:
            engine.search_by_vector(np.zeros(engine.meta.dimension, np.float32), 1)
            return len(engine)

        return self.run(query)

    def facts(self) -> tuple[int, int]:
        """Returns the number of items and the number of changes so far (generation); (0, -1) for a damaged index."""

        def read(engine: Engine) -> tuple[int, int]:
            with engine.reading() as reader:
                return reader.count(), reader.state("generation")

        try:
            return self.run(read)
        except IndexDamagedError:
            return 0, -1
