"""The state that the handlers share: indexes, batchers, threads, metrics, and limits on concurrent work."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fastapi import Request

from simsearch.engine import Engine
from simsearch.errors import SimsearchError
from simsearch.search.second_look import VIEW_BYTES, VIEWS, Allowance
from simsearch.server import thumbnails
from simsearch.server.batcher import Batcher
from simsearch.server.body_limit import ReceivedBytes
from simsearch.server.browse import Browser
from simsearch.server.clean_ups import CleanUps
from simsearch.server.decoding import EitherLane, Lane, Lanes, LargePictureError
from simsearch.server.errors import draining
from simsearch.server.fetching import Fetcher
from simsearch.server.map_maker import MapMaker
from simsearch.server.middleware import ApiError
from simsearch.server.near_groups import GroupFinder
from simsearch.server.prometheus import PrometheusMetrics
from simsearch.server.reloading import ReloadableIndex
from simsearch.server.schemas import search_request, unknown
from simsearch.server.settings import Settings
from simsearch.server.uploads import Uploads
from simsearch.storage.filters import Condition

T = TypeVar("T")

VIEWS_SHARE = 16
"""While duplicates are searched, small versions of pictures take at most 1/VIEWS_SHARE of the setting `memory`."""

READERS = 4
"""Number of threads that read the image files sent to clients."""

LAST_SECONDS = 2.0
"""When the service stops, bodies that are still being received have this many seconds to arrive."""


LISTS = frozenset({"id", "filter"})
"""The parameters of a URL that may be given several times."""


class SearchService:
    """The state that the handlers share. The first engine answers requests that do not name an index."""

    def __init__(self, engines: dict[str, Engine], settings: Settings) -> None:
        self._searches = 0  # not answered yet
        self.settings, self.metrics, self.search_request = settings, PrometheusMetrics(), search_request(settings)
        self.indexes = {
            name: ReloadableIndex(name, engine, self.metrics.reloads.labels(name).inc)
            for name, engine in engines.items()
        }
        self.batchers = {n: Batcher(i, settings.batch_size, self.metrics) for n, i in self.indexes.items()}
        self.browser = Browser()
        self.lanes = Lanes(settings.decoding)
        views = min(VIEWS, settings.memory // VIEWS_SHARE // VIEW_BYTES)
        allowance = Allowance(EitherLane(self.lanes), settings.max_pixels, views)
        self.finder = GroupFinder(settings.memory, self._searching, allowance)
        self.clean_ups = CleanUps(settings)
        self.map_maker = MapMaker(settings.memory, settings.writable, self._searching)
        for engine in engines.values():
            self.clean_ups.prepare(engine)
        self.uploads, self.thumbnails = Uploads(), thumbnails.Thumbnails()
        self.received = ReceivedBytes(settings.bodies, self.metrics.rejected.inc, settings.max_body)
        self.readers = ThreadPoolExecutor(READERS, "read")
        self.fetcher = Fetcher(settings, self.metrics, self.received)
        self.draining = False

    def drain(self) -> None:
        """Prepares for a stop: ends fetches, long work and slow bodies, and drops the large pictures that wait."""
        self.draining = True
        self.fetcher.stop()
        self.finder.stop()
        self.map_maker.stop()
        self.clean_ups.stop()
        self.received.hurry(LAST_SECONDS)
        self.lanes.large.pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Ends the work in threads, and waits until it has ended."""
        self.fetcher.close()
        self.finder.close()
        self.map_maker.close()
        self.clean_ups.close()
        self.readers.shutdown(wait=True, cancel_futures=True)
        self.lanes.close()

    def index(self, request: Request) -> ReloadableIndex:
        """Returns the index that the request names, or the first index if the request names none.

        Raises ApiError for an unknown index or parameter. Also raises it for a parameter that is given several times,
        because a proxy could use one of the values, and this service another. Only parameters in `LISTS` may be given
        several times.
        """
        known = [parameter.alias for parameter in request.scope["route"].dependant.query_params]
        for given in request.query_params:
            if given not in known:
                raise ApiError(422, "bad_argument", unknown(given, known))
            if given not in LISTS and len(request.query_params.getlist(given)) > 1:
                raise ApiError(422, "bad_argument", f"{given} is given more than once")
        name = request.query_params.get("index") or next(iter(self.indexes))
        if name not in self.indexes:
            raise ApiError(404, "no_such_index", f"there is no index called {name[:80]!r}")
        return self.indexes[name]

    async def notes(self, served: ReloadableIndex, wanted: list[Condition]) -> dict[str, list[str]]:
        """Returns {"notes": sentences}, one about each condition that no item meets; {} if there is none."""
        with contextlib.suppress(SimsearchError, ApiError):
            found = await self.in_thread(lambda: served.run(lambda engine: self.browser.unmet(engine, wanted)))
            return {"notes": found} if found else {}
        return {}

    async def in_thread(self, call: Callable[[], T], pool: ThreadPoolExecutor | None = None) -> T:
        """Runs `call` in a thread and returns its result. Raises ApiError if it takes too long or the service stops.

        pool: the threads to use; None for the threads that also decode small pictures.
        """
        try:
            work = asyncio.get_running_loop().run_in_executor(pool or self.lanes.small.pool, call)
        except RuntimeError:  # the pool was shut down
            raise draining() from None
        return await self.in_time(work)

    async def in_lane(self, call: Callable[[Lane], T], of_item: bool) -> T:
        """Returns the result of `call`, which decodes a picture in the lane for small or the lane for large pictures.

        The lane for large pictures is used if the other one raises LargePictureError; see `decoding.Lanes`.
        of_item: True for the picture of an item, False for a picture that comes from the request.
        """
        try:
            return await self.in_thread(lambda: call(self.lanes.small))
        except LargePictureError:
            large = self.lanes.large
            with large.admitted(of_item):
                return await self.in_thread(lambda: call(large), large.pool)

    async def in_time(self, work: asyncio.Future[T]) -> T:
        """Waits for a result and returns it. Raises ApiError if it takes too long or the service stops."""
        try:
            return await asyncio.wait_for(work, self.settings.timeout)
        except TimeoutError:
            text = f"no answer within {self.settings.timeout:g} s"
            raise ApiError(503, "timeout", text, {"retry-after": "5"}) from None
        except asyncio.CancelledError:
            if self.draining and work.cancelled():
                raise draining() from None
            raise

    def _searching(self) -> bool:
        return self._searches > 0

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Counts a search while it runs. Raises ApiError if too many searches run."""
        if self._searches >= self.settings.in_flight:
            self.metrics.rejected.inc()
            raise ApiError(429, "too_many_requests", "too many searches at once", {"retry-after": "1"})
        self._searches += 1
        self.metrics.in_flight.set(self._searches)
        try:
            yield
        finally:
            self._searches -= 1
            self.metrics.in_flight.set(self._searches)
