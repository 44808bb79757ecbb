"""The handlers of the routes: searches, items, and the state of the service.

A search is read from the body, decoded in a thread, answered with its batch (network and scan), and returned as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import IO, Any, TypeVar
from urllib.parse import quote

import numpy as np
from fastapi import Request
from fastapi.responses import Response

from simsearch.engine import Engine
from simsearch.errors import ImageError, ImageTooLargeError, ItemNotFoundError, SimsearchError
from simsearch.images import urls
from simsearch.images.urls import fetch
from simsearch.search import similarity
from simsearch.search.queries import OutdatedQueryError, PreparedQuery
from simsearch.search.results import Matches, QueryResult
from simsearch.server import thumbnails
from simsearch.server.batcher import Batcher, SearchJob
from simsearch.server.browse import Browser, ListRequest
from simsearch.server.decoding import Lane, Lanes, LargePictureError
from simsearch.server.errors import reply
from simsearch.server.files import FileResponse, file_size
from simsearch.server.middleware import ApiError, ReceivedBytes
from simsearch.server.prometheus import PrometheusMetrics
from simsearch.server.reloading import ReloadableIndex
from simsearch.server.request_body import read_search, read_upload
from simsearch.server.schemas import SearchRequest, search_request, unknown
from simsearch.server.settings import Settings
from simsearch.server.uploads import Uploads
from simsearch.storage.reader import modified

T = TypeVar("T")

ATTEMPTS = 3
"""How often a search is tried when its index is replaced meanwhile."""

FETCHES = 32
"""Images fetched by URL at once; others get status 429. They wait for other servers, so they have own threads."""

FETCH_SECONDS = 10.0
"""For fetching an image by URL, from the look-up of its name to its last byte."""

READERS = 4
"""Threads that read the files that are being sent."""

LAST_SECONDS = 2.0
"""For the bodies that are being received when a stop is requested."""


class SearchService:
    """The state that the routes share. The first engine answers requests that do not name an index."""

    def __init__(self, engines: dict[str, Engine], settings: Settings) -> None:
        self.settings, self.metrics, self.search_request = settings, PrometheusMetrics(), search_request(settings)
        self.indexes = {
            name: ReloadableIndex(name, engine, self.metrics.reloads.labels(name).inc)
            for name, engine in engines.items()
        }
        self.batchers = {n: Batcher(i, settings.batch_size, self.metrics) for n, i in self.indexes.items()}
        self.browser = Browser()
        self.uploads, self.thumbnails = Uploads(), thumbnails.Thumbnails()
        self.received = ReceivedBytes(settings.bodies, self.metrics.rejected.inc)
        self.lanes = Lanes(settings.decoding)
        self.readers = ThreadPoolExecutor(READERS, "read")
        self.fetchers = ThreadPoolExecutor(FETCHES, "fetch")
        self.draining = False
        self._stop = urls.Stop()  # of the fetches
        self._searches = 0  # not answered yet
        self._fetches = 0

    def drain(self) -> None:
        """Prepares for a stop: ends fetches and slow bodies, and drops the large pictures that wait."""
        self.draining = True
        self._stop.set()
        self.received.hurry(LAST_SECONDS)
        self.lanes.large.pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Waits for the work that was started in threads."""
        self._stop.set()
        for pool in (self.fetchers, self.readers):
            pool.shutdown(wait=True, cancel_futures=True)
        self.lanes.close()

    def index(self, request: Request) -> ReloadableIndex:
        """Returns the index that the request names. Raises ApiError, also for a parameter that the route lacks."""
        known = [parameter.alias for parameter in request.scope["route"].dependant.query_params]
        for given in request.query_params:
            if given not in known:
                raise ApiError(422, "bad_argument", unknown(given, known))
        name = request.query_params.get("index") or next(iter(self.indexes))
        if name not in self.indexes:
            raise ApiError(404, "no_such_index", f"there is no index called {name[:80]!r}")
        return self.indexes[name]

    async def in_thread(self, call: Callable[[], T], pool: ThreadPoolExecutor | None = None) -> T:
        """Runs `call` in a thread and returns its result. Raises ApiError if that takes too long, or at a stop."""
        try:
            work = asyncio.get_running_loop().run_in_executor(pool or self.lanes.small.pool, call)
        except RuntimeError:  # the pool was shut down
            raise _draining() from None
        return await self._in_time(work)

    async def in_lane(self, call: Callable[[Lane], T], of_item: bool) -> T:
        """Runs a call that decodes a picture in the lane of small pictures, or else in that of large ones.

        of_item: True if the picture is an item's.
        """
        try:
            return await self.in_thread(lambda: call(self.lanes.small))
        except LargePictureError:
            large = self.lanes.large
            with large.admitted(of_item):
                return await self.in_thread(lambda: call(large), large.pool)

    async def _in_time(self, work: asyncio.Future[T]) -> T:
        try:
            return await asyncio.wait_for(work, self.settings.timeout)
        except TimeoutError:
            text = f"no answer within {self.settings.timeout:g} s"
            raise ApiError(503, "timeout", text, {"retry-after": "5"}) from None
        except asyncio.CancelledError:
            if self.draining and work.cancelled():
                raise _draining() from None
            raise

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Counts a search while it runs. Raises ApiError if there are too many."""
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

    # -- searching

    async def search(self, request: Request) -> Response:
        """Answers a search, from a multipart form or a JSON object."""
        start = time.perf_counter()
        served = self.index(request)
        # A search counts once its body is there: those who send slowly must not keep others out.
        body, name = await read_search(request, self.search_request, self.settings)
        self.metrics.phases.labels("body").observe(time.perf_counter() - start)
        if body.way == "url":
            body.image = await self._fetched(body.url)
        try:
            with self.admitted():
                job, matches = await self._matches(served, body)
        finally:
            if body.way == "url":
                self.received.add(-len(body.image))
        took = 1000 * (time.perf_counter() - start)
        relative = self.settings.relative
        shown = [replace(match, path=match.relative) for match in matches] if relative else matches
        answer = QueryResult(name, job.model, matches.exact, took, shown)
        request.scope["simsearch.log"] = {"index": served.name, "matches": len(matches)}
        values = answer.to_dict()
        for match in values["matches"]:
            match |= self._urls(request, served, match["id"])
        return reply(values)

    def _urls(self, request: Request, served: ReloadableIndex, number: int) -> dict[str, str]:
        """Returns the URLs of an item's image and thumbnail, from the root of this site."""
        start = f"{request.scope.get('root_path', '')}/v1/items/{number}"
        end = "" if served.name == next(iter(self.indexes)) else f"?index={quote(served.name, safe='')}"
        return {"image_url": f"{start}/image{end}", "thumbnail_url": f"{start}/thumbnail{end}"}

    async def _matches(self, served: ReloadableIndex, body: SearchRequest) -> tuple[SearchJob, Matches]:
        """Prepares a search and answers it from the same index. Raises SimsearchError, ApiError."""

        async def attempt() -> tuple[SearchJob, Matches]:
            job = await self.in_lane(lambda lane: self._job(served, body, lane), body.way == "id")
            return job, await self._in_time(asyncio.wrap_future(self.batchers[served.name].submit(job)))

        for _ in range(ATTEMPTS - 1):
            with contextlib.suppress(OutdatedQueryError):
                return await attempt()
        return await attempt()

    async def _fetched(self, url: str) -> bytes:
        """Fetches an image; its bytes count as a body's until the caller subtracts them. Raises SimsearchError."""
        if self._fetches >= FETCHES:
            self.metrics.rejected.inc()
            raise ApiError(429, "too_many_requests", "too many images are being fetched", {"retry-after": "2"})
        self._fetches += 1
        work = self.fetchers.submit(self._fetch, url)
        try:
            return await asyncio.wrap_future(work)
        finally:
            self._fetches -= 1

    def _fetch(self, url: str) -> bytes:
        start = time.perf_counter()
        counted = 0

        def received(size: int) -> None:
            nonlocal counted
            counted += size
            self.received.add(size)

        seconds = min(FETCH_SECONDS, self.settings.timeout)
        try:
            data = fetch(url, self.settings.max_body, seconds, public_only=True, stop=self._stop, received=received)
        except BaseException:
            self.received.add(-counted)
            if self._stop.is_set():
                raise _draining() from None
            raise
        self.metrics.phases.labels("fetch").observe(time.perf_counter() - start)
        return data

    def _job(self, served: ReloadableIndex, request: SearchRequest, lane: Lane) -> SearchJob:
        """Reads and decodes the query; in a thread. Raises SimsearchError."""
        start = time.perf_counter()
        query = served.run(lambda engine: self._prepare(engine, request, lane))
        self.metrics.phases.labels("decode").observe(time.perf_counter() - start)
        return SearchJob(query, request.matches, request.search_options())

    def _prepare(self, engine: Engine, request: SearchRequest, lane: Lane) -> PreparedQuery:
        options = request.query_options()
        pixels = self.settings.max_pixels
        with engine.query_resolver(serving=True, max_pixels=pixels, budget=lane) as resolver:
            if request.way == "vector":
                return resolver.prepare_vector(request.vector, **options)
            return resolver.prepare(request.id if request.way == "id" else request.image, **options)

    # -- items

    async def item(self, request: Request, number: int) -> Response:
        """Answers with an item."""
        served = self.index(request)
        return reply((await self.in_thread(lambda: self._item_values(served, [number])))[0])

    async def listed(self, request: Request, wanted: ListRequest) -> Response:
        """Answers with a page of the items that meet conditions, in order."""
        served = self.index(request)
        page = await self.in_thread(lambda: served.run(lambda engine: self.browser.page(engine, wanted)))
        found = await self.in_thread(lambda: self._item_values(served, page.ids, lenient=True))
        return reply({"items": found, "total": page.total, "next": page.next})

    async def some(self, request: Request, numbers: list[int]) -> Response:
        """Answers with the items of these ids, without those that do not exist."""
        served = self.index(request)
        found = await self.in_thread(lambda: self._item_values(served, numbers, lenient=True))
        return reply({"items": found, "total": len(found), "next": None})

    async def facets(self, request: Request) -> Response:
        """Answers with the labels, folders and fields of the items."""
        served = self.index(request)
        return reply(await self.in_thread(lambda: served.run(self.browser.facets)))

    async def items(self, request: Request, count: int) -> Response:
        """Answers with `count` items, spread evenly over the index."""
        served = self.index(request)
        found = await self.in_thread(lambda: self._item_values(served, thumbnails.spread(served, count)))
        return reply({"items": found, "total": (await self.in_thread(served.facts))[0], "next": None})

    def _item_values(self, served: ReloadableIndex, numbers: list[int], lenient: bool = False) -> list[dict[str, Any]]:
        def find(engine: Engine) -> list[dict[str, Any]]:
            items = []
            with engine.reading() as reader:
                for number in numbers:
                    with contextlib.suppress(*(ItemNotFoundError,) if lenient else ()):
                        items.append(reader.item(number))
            paths = [item.path for item in items] if self.settings.relative else engine.paths(items)
            return [
                {
                    "id": item.id,
                    "path": path,
                    "label": item.label,
                    "metadata": item.metadata,
                    "width": item.width,
                    "height": item.height,
                    "bytes": item.size,
                    "modified": date.strftime("%Y-%m-%dT%H:%M:%SZ") if (date := modified(item.stamp)) else None,
                }
                for item, path in zip(items, paths, strict=True)
            ]

        return served.run(find)

    async def image(self, request: Request, number: int) -> Response:
        """Answers with an item's file; it is an attachment if browsers cannot show it, and would guess its type."""
        served = self.index(request)
        with _image_gone_as_404():
            file, kind = await self.in_lane(lambda lane: thumbnails.file(served, number, lane), True)
        # A member of an archive was unpacked, into memory or a temporary file.
        held = file_size(file) if isinstance(file, io.BytesIO) or not isinstance(file.name, str) else 0
        try:
            self.received.add(held)
        except ApiError:
            self._release(file, held)
            raise
        headers = {"cache-control": "private, no-cache"}
        if kind is None:
            headers["content-disposition"] = "attachment"
        done = functools.partial(self._release, file, held)
        return FileResponse(file, kind or "application/octet-stream", headers, self.readers, done)

    def _release(self, file: IO[bytes], held: int) -> None:
        file.close()
        self.received.add(-held)

    async def thumbnail(self, request: Request, number: int, size: int) -> Response:
        """Answers with a small JPEG of an item."""
        served = self.index(request)
        digest = await self.in_thread(lambda: thumbnails.digest(served, number))
        tag = f'"{digest.hex()[:32]}-{size}"'
        headers = {"etag": tag, "cache-control": "private, no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        with _image_gone_as_404():
            data = await self.in_lane(lambda lane: self.thumbnails.get(served, number, digest, size, lane), True)
        return Response(data, media_type="image/jpeg", headers=headers)

    async def add(self, request: Request) -> Response:
        """Adds an image to the index."""
        self._check_writable("GET, HEAD")
        served = self.index(request)
        upload = (await read_upload(request)).model_dump(exclude_unset=True)
        largest = self.settings.max_pixels
        number, fresh = await self.in_lane(
            lambda lane: served.run_once(lambda engine: self.uploads.add(engine, upload, largest, lane)), False
        )
        response = await self.item(request, number)
        response.status_code = 201 if fresh else 200
        response.headers["location"] = f"items/{number}"
        return response

    async def remove(self, request: Request, number: int) -> Response:
        """Removes an item from the index."""
        self._check_writable("GET, HEAD")
        served = self.index(request)
        await self.in_thread(lambda: served.run_once(lambda engine: self.uploads.remove(engine, number)))
        return Response(status_code=204)

    def _check_writable(self, allowed: str) -> None:
        """Raises ApiError if the service may not change its indexes. allowed: the methods that it answers."""
        if not self.settings.writable:
            message = "this service is read-only; `simsearch serve --writable` is not"
            raise ApiError(405, "read_only", message, {"allow": allowed})

    # -- the service itself

    async def listing(self) -> Response:
        """Answers with the indexes and the limits of requests."""

        def facts() -> list[dict[str, Any]]:
            found = []
            for name, served in self.indexes.items():
                items, generation = served.facts()
                meta = served.run(lambda engine: engine.meta)
                found.append(
                    {
                        "name": name,
                        "items": items,
                        "generation": generation,
                        "model": meta.model,
                        "dimension": meta.dimension,
                        "median_distance": similarity.median(meta.distances),
                    }
                )
            return found

        settings = self.settings
        return reply(
            {
                "indexes": await self.in_thread(facts),
                "writable": settings.writable,
                "urls": settings.allow_urls,
                "max_body": settings.max_body,
                "max_k": settings.max_k,
            }
        )

    async def ready(self) -> Response:
        """Answers that the service is ready if a search works in each index. Raises ApiError."""
        if self.draining:
            raise _draining()
        try:
            for served in self.indexes.values():
                await self.in_thread(functools.partial(_check_search, served))
        except SimsearchError as error:
            raise ApiError(503, "not_ready", "searches do not work yet") from error
        return reply({"status": "ready"})

    async def prometheus(self) -> Response:
        """Answers with the metrics, in the text format of Prometheus."""

        def text() -> bytes:
            for name, served in self.indexes.items():
                with contextlib.suppress(SimsearchError):
                    items, generation = served.facts()
                    self.metrics.items.labels(name).set(items)
                    self.metrics.generation.labels(name).set(generation)
            return self.metrics.text()

        return Response(await self.in_thread(text), media_type="text/plain; version=0.0.4; charset=utf-8")


def _draining() -> ApiError:
    return ApiError(503, "draining", "the service is about to stop")


@contextlib.contextmanager
def _image_gone_as_404() -> Iterator[None]:
    """Turns an ImageError into an ApiError with status 404."""
    try:
        yield
    except ImageTooLargeError:
        raise
    except ImageError as error:
        raise ApiError(404, "image_gone", f"the item's image cannot be shown: {error}") from error


def _check_search(served: ReloadableIndex) -> None:
    """Computes the features of an image and runs a search. Raises SimsearchError."""
    served.run(lambda engine: engine.features([np.zeros((64, 64, 3), np.uint8)]))
    served.check()
