"""Finds the map of an index for the web page: a stored map, or a map that is drawn in a thread of its own.

A map shows all items on a plane, similar ones side by side. Drawing it takes seconds to minutes. So a request starts
the drawing and is answered with the progress, and the thread pauses while searches are being answered. A service that
may write stores the finished map with the index; other services keep it in memory.
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
"""The most maps kept in memory, for all indexes together; a map takes 28 bytes per item."""

WAITING = 3
"""The most maps being drawn or waiting; further requests get status 429."""

SECONDS = 3600.0
"""The most seconds for drawing one map."""

ITEM_BYTES = 5000
"""Bytes of memory that drawing takes for each item: 90 neighbours, their distances and affinities."""

NAMED_PIXELS = 16_000_000
"""Only pictures with at most this many pixels are read to name the clusters."""

PATIENCE = 10
"""A map is kept for PATIENCE times the seconds that drawing it took, even if items are added meanwhile."""

Step = Literal["neighbours", "layout", "names"]


@dataclass(frozen=True)
class Known:
    """A finished map. token: differs for each map. until: the monotonic time from which a new map may be drawn."""

    drawn: StoredMap
    token: Key
    until: float = 0.0


@dataclass
class MapJob:
    """A map that waits or is being drawn. step: the present step of drawing.

    done, total: the progress of this step, in items for "neighbours", iterations for "layout", clusters for "names".
    """

    step: Step = "neighbours"
    done: int = 0
    total: int = 0
    result: Future[Known] = field(default_factory=Future)


class MapMaker:
    """Finds maps; safe for several threads.

    memory: bytes for drawing a map. keeps: True to store maps with their index. busy: returns True while searches are
    being answered; drawing then pauses.
    """

    def __init__(self, memory: int, keeps: bool, busy: Callable[[], bool] = lambda: False) -> None:
        self._memory, self._keeps = memory, keeps
        self._work: BackgroundWork[MapJob, Known] = BackgroundWork("map", KEPT, busy)
        self.stop, self.close = self._work.stop, self._work.close

    def find(self, served: ReloadableIndex, again: bool = False) -> Known | MapJob:
        """Returns the map if there is one, else the job that draws it.

        again: True to draw a new map if the index has changed since the last one was drawn. Even then, the last map is
        returned if the time `Known.until` has not come yet, or if this service cannot draw maps of the index.
        Raises ApiError if there is no map and this service cannot draw one, or if too many maps are being drawn.
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
        """Returns an index's key, its map (None if there is none), True if the map is out of date, and an error.

        The error says why this service cannot draw a map of the index; it is None if the service can.
        """
        key = engine.opened_index.identity, str(engine.path)
        with engine.reading() as reader:
            generation, count = reader.state("generation"), reader.count()
        known = self._newest(engine, key)
        stale = known is not None and known.drawn.generation != generation
        return key, known, stale, self._refusal(engine, count)

    def _newest(self, engine: Engine, key: Key) -> Known | None:
        """Returns the newer one of the map in memory and the stored map; None if there is neither."""
        kept = self._work.known(key)
        folder = engine.opened_index.folder
        stamp = None if folder is None else stored_map.stamp(folder)
        if folder is None or stamp is None or (kept is not None and kept.token == (key, stamp)):
            return kept
        try:
            known = Known(stored_map.read(folder), (key, stamp))
        except IndexDamagedError:  # `simsearch verify` reports this; the next map replaces the file
            return kept
        if kept is not None and kept.drawn.generation > known.drawn.generation:
            return kept
        self._work.keep(key, known)
        return known

    def _refusal(self, engine: Engine, count: int) -> ApiError | None:
        """Returns the error if this service cannot draw a map of `count` items; None if it can."""
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
        """Returns the progress callback for a step; it raises ApiError if the service stops, or after `SECONDS`."""

        def report(done: int, total: int) -> None:
            job.step, job.done, job.total = step, done, total
            text = f"drawing took more than {SECONDS:.0f} s; `simsearch map` has no such limit"
            self._work.step(began, SECONDS, text)

        return report
