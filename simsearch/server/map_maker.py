"""Finds the map of an index for the web page: the one stored with it, or one drawn in a thread of its own.

Drawing takes seconds to minutes. So a request starts it and is told how far it has come; searches go on beside it,
before which the thread gives way. A service that may write stores what it has drawn; others keep it in memory.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal

from simsearch.common.progress import Progress
from simsearch.curation import cluster_names, layout
from simsearch.curation import map as maps
from simsearch.engine import Engine
from simsearch.errors import IndexDamagedError, MissingExtraError, UsageError
from simsearch.server.background import BackgroundWork, Key
from simsearch.server.middleware import ApiError
from simsearch.server.reloading import ReloadableIndex
from simsearch.storage import stored_map
from simsearch.storage.stored_map import StoredMap

KEPT = 4
"""Maps kept in memory, of all indexes together; 28 bytes an item."""

WAITING = 3
"""Maps that may be drawn or wait for it; further requests get status 429."""

SECONDS = 3600.0
"""The longest time for one map."""

ITEM_BYTES = 5000
"""Memory that drawing takes for each item: 90 neighbours, their distances and affinities."""

NAMED_PIXELS = 16_000_000
"""The largest picture that is looked at to name a cluster."""

PATIENCE = 10
"""While items are being added, a map is drawn again only after this many times the seconds that it took."""

Step = Literal["neighbours", "layout", "names"]


@dataclass(frozen=True)
class Known:
    """A map that is there. token: changes with the map. until: the monotonic time from which it may be drawn again."""

    drawn: StoredMap
    token: Key
    until: float = 0.0


@dataclass
class MapJob:
    """A map that is being drawn. done, total: items, iterations or clusters of a step."""

    step: Step = "neighbours"
    done: int = 0
    total: int = 0
    result: Future[Known] = field(default_factory=Future)


class MapMaker:
    """Finds maps; safe for several threads.

    memory: bytes for drawing one. keeps: True to store them with the index. busy: returns True while searches are being
    answered, before which it gives way.
    """

    def __init__(self, memory: int, keeps: bool, busy: Callable[[], bool] = lambda: False) -> None:
        self._memory, self._keeps = memory, keeps
        self._work: BackgroundWork[MapJob, Known] = BackgroundWork("map", KEPT, busy)
        self.stop, self.close = self._work.stop, self._work.close

    def find(self, served: ReloadableIndex, again: bool = False) -> Known | MapJob:
        """Returns the map if there is one, else the job that draws it.

        again: True to draw another one if the index has changed since. Raises ApiError if there is none and this
        service cannot draw it, or if too much is asked for at once.
        """
        key, known, stale, refusal = served.run(self._look_up)
        if known is not None and not (again and stale and refusal is None and time.monotonic() >= known.until):
            return known
        if refusal is not None:
            raise refusal
        return self._work.start(
            key,
            MapJob(),
            lambda job: served.run(lambda engine: self._draw(engine, key, job)),
            WAITING,
            "maps of other indexes are being drawn already",
        )

    def redraws(self, engine: Engine) -> bool:
        """Returns True if this service can draw a map of an index."""
        with engine.reading() as reader:
            return self._refusal(engine, reader.count()) is None

    def _look_up(self, engine: Engine) -> tuple[Key, Known | None, bool, ApiError | None]:
        """Returns the index's key, its map, if the index has changed since, and why none can be drawn."""
        key = engine.opened_index.identity, str(engine.path)
        with engine.reading() as reader:
            generation, count = reader.state("generation"), reader.count()
        known = self._newest(engine, key)
        stale = known is not None and known.drawn.generation != generation
        return key, known, stale, self._refusal(engine, count)

    def _newest(self, engine: Engine, key: Key) -> Known | None:
        """Returns the map in memory, or the stored one if that is newer or the only one."""
        kept = self._work.known(key)
        folder = engine.opened_index.folder
        stamp = None if folder is None else stored_map.stamp(folder)
        if folder is None or stamp is None or (kept is not None and kept.token == (key, stamp)):
            return kept
        try:
            known = Known(stored_map.read(folder), (key, stamp))
        except IndexDamagedError:  # `verify` tells of it; the next map replaces it
            return kept
        if kept is not None and kept.drawn.generation > known.drawn.generation:
            return kept
        self._work.keep(key, known)
        return known

    def _refusal(self, engine: Engine, count: int) -> ApiError | None:
        """Returns the error of a map that this service cannot draw; None if it can."""
        command = f"simsearch map -i {engine.path.name}"
        try:
            layout.check_installed()
            maps.check_size(count)
        except MissingExtraError as error:
            text = f"this index has no map; `{command}` draws one, which needs the [map] extra: {error.hint}"
            return ApiError(404, "no_map", text)
        except UsageError as error:
            return ApiError(404, "no_map", str(error))
        if count * ITEM_BYTES > self._memory:
            text = f"a map of {count:,} items needs more memory than this service has; `{command}` draws it"
            return ApiError(404, "no_map", text)
        return None

    def _draw(self, engine: Engine, key: Key, job: MapJob) -> Known:
        began = time.monotonic()
        near = maps.read_neighbours(engine.snapshots, progress=self._progress(job, "neighbours", began))
        drawn = maps.draw_map(near, progress=self._progress(job, "layout", began))
        drawn = cluster_names.name_clusters(
            drawn, "auto", engine.load_model, self._progress(job, "names", began), largest=NAMED_PIXELS
        )
        stored = drawn.stored(drawn.facts(0))
        token: Key = key, began
        folder = engine.opened_index.folder
        if self._keeps and folder is not None:
            with contextlib.suppress(OSError):  # a full disk: the map stays in memory
                maps.keep(engine.opened_index, drawn)
                token = key, stored_map.stamp(folder)
        end = time.monotonic()
        return Known(stored, token, end + PATIENCE * (end - began))

    def _progress(self, job: MapJob, step: Step, began: float) -> Progress:
        """Returns what is called with the progress of a step. It raises at a stop, and after `SECONDS`."""

        def report(done: int, total: int) -> None:
            job.step, job.done, job.total = step, done, total
            text = f"drawing took more than {SECONDS:.0f} s; `simsearch map` has no such limit"
            self._work.step(began, SECONDS, text)

        return report
