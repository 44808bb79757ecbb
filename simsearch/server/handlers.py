"""What the routes do: searches, items, and what a service says of itself.

A search's way: body -> decode in threads -> batch (network, scan) -> JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from fastapi import Request
from fastapi.responses import Response

from simsearch.engine import Engine
from simsearch.errors import ImageError, SimsearchError
from simsearch.images.urls import fetch
from simsearch.search import similarity
from simsearch.search.queries import OutdatedQueryError, PreparedQuery
from simsearch.search.results import Matches, QueryResult
from simsearch.server import thumbnails
from simsearch.server.batcher import Batcher, SearchJob
from simsearch.server.errors import reply
from simsearch.server.middleware import ApiError
from simsearch.server.prometheus import PrometheusMetrics
from simsearch.server.reloading import ReloadableIndex
from simsearch.server.request_body import read_search, read_upload
from simsearch.server.schemas import SearchRequest, search_request
from simsearch.server.settings import Settings
from simsearch.server.uploads import Uploads

T = TypeVar("T")

ATTEMPTS = 3
"""How often a search is made anew for the index that has taken the place of another meanwhile."""

FETCHES = 8
"""Pictures fetched by URL at once: they wait for others, and must not keep what is here from being decoded."""


class SearchService:
    """What the routes share. The first of the engines answers where a request names no index."""

    def __init__(self, engines: dict[str, Engine], settings: Settings) -> None:
        self.settings, self.metrics, self.search_request = settings, PrometheusMetrics(), search_request(settings)
        self.indexes = {
            name: ReloadableIndex(name, engine, self.metrics.reloads.labels(name).inc)
            for name, engine in engines.items()
        }
        self.batchers = {n: Batcher(i, settings.batch_size, self.metrics) for n, i in self.indexes.items()}
        self.uploads, self.thumbnails = Uploads(), thumbnails.Thumbnails()
        self.decoders = ThreadPoolExecutor(max(2, os.cpu_count() or 1), "serve")
        self.fetchers = ThreadPoolExecutor(FETCHES, "fetch")
        self.draining = False
        self._taken = 0

    def close(self) -> None:
        """Waits for what was begun in threads."""
        self.fetchers.shutdown(wait=True)
        self.decoders.shutdown(wait=True)

    def index(self, request: Request) -> ReloadableIndex:
        """The index that the request names. Raises ApiError."""
        name = request.query_params.get("index") or next(iter(self.indexes))
        if name not in self.indexes:
            raise ApiError(404, "no_such_index", f"there is no index called {name[:80]!r}")
        return self.indexes[name]

    async def in_thread(self, call: Callable[[], T], pool: ThreadPoolExecutor | None = None) -> T:
        """What `call` returns; in a thread. Raises ApiError if that takes too long."""
        work = asyncio.get_running_loop().run_in_executor(pool or self.decoders, call)
        return await self._in_time(work)

    async def _in_time(self, work: asyncio.Future[T]) -> T:
        try:
            return await asyncio.wait_for(work, self.settings.timeout)
        except TimeoutError:
            text = f"no answer within {self.settings.timeout:g} s"
            raise ApiError(503, "timeout", text, {"retry-after": "5"}) from None

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Counts a search; one too many is turned away at once."""
        if self._taken >= self.settings.in_flight:
            self.metrics.rejected.inc()
            raise ApiError(429, "too_many_requests", "too many searches at once", {"retry-after": "1"})
        self._taken += 1
        self.metrics.in_flight.set(self._taken)
        try:
            yield
        finally:
            self._taken -= 1
            self.metrics.in_flight.set(self._taken)

    # -- searching

    async def search(self, request: Request) -> Response:
        """One search, from a multipart form or a JSON object."""
        start = time.perf_counter()
        served = self.index(request)
        with self.admitted():
            body, name = await read_search(request, self.search_request, self.settings)
            self.metrics.phases.labels("body").observe(time.perf_counter() - start)
            if body.way == "url":
                body.image = await self.in_thread(lambda: self._fetch(body.url), self.fetchers)
            job, matches = await self._matches(served, body)
        took = 1000 * (time.perf_counter() - start)
        relative = self.settings.relative
        shown = [replace(match, path=match.relative) for match in matches] if relative else matches
        answer = QueryResult(name, job.model, matches.exact, took, shown)
        request.scope["simsearch.log"] = {"index": served.name, "matches": len(matches)}
        return reply(answer.to_dict())

    async def _matches(self, served: ReloadableIndex, body: SearchRequest) -> tuple[SearchJob, Matches]:
        """Makes a job and has it answered, by one and the same index. Raises SimsearchError, ApiError."""

        async def once() -> tuple[SearchJob, Matches]:
            job = await self.in_thread(lambda: self._job(served, body))
            return job, await self._in_time(asyncio.wrap_future(self.batchers[served.name].submit(job)))

        for _ in range(ATTEMPTS - 1):
            with contextlib.suppress(OutdatedQueryError):
                return await once()
        return await once()

    def _fetch(self, url: str) -> bytes:
        start = time.perf_counter()
        data = fetch(url, self.settings.max_body, min(10.0, self.settings.timeout))
        self.metrics.phases.labels("fetch").observe(time.perf_counter() - start)
        return data

    def _job(self, served: ReloadableIndex, request: SearchRequest) -> SearchJob:
        """Reads and decodes what is searched by; in a thread. Raises SimsearchError."""
        start = time.perf_counter()
        query = served.use(lambda engine: self._prepare(engine, request))
        self.metrics.phases.labels("decode").observe(time.perf_counter() - start)
        return SearchJob(query, request.matches, request.search_options())

    def _prepare(self, engine: Engine, request: SearchRequest) -> PreparedQuery:
        options = request.query_options()
        with engine.query_resolver(serving=True, max_pixels=self.settings.max_pixels) as resolver:
            if request.way == "vector":
                return resolver.prepare_vector(request.vector, **options)
            return resolver.prepare(request.id if request.way == "id" else request.image, **options)

    # -- items

    async def item(self, request: Request, number: int) -> Response:
        """What is known of an item."""
        served = self.index(request)
        return reply((await self.in_thread(lambda: self._known(served, [number])))[0])

    async def items(self, request: Request, count: int) -> Response:
        """Some items, spread over the index."""
        served = self.index(request)
        found = await self.in_thread(lambda: self._known(served, thumbnails.spread(served, count)))
        return reply({"items": found})

    def _known(self, served: ReloadableIndex, numbers: list[int]) -> list[dict[str, Any]]:
        def find(engine: Engine) -> list[dict[str, Any]]:
            items = [engine.item(number) for number in numbers]
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
                }
                for item, path in zip(items, paths, strict=True)
            ]

        return served.use(find)

    async def image(self, request: Request, number: int) -> Response:
        """An item's file. What is no picture that browsers show is for saving, so that none guesses what it is."""
        served = self.index(request)
        with _still_there():
            data, kind = await self.in_thread(lambda: thumbnails.file(served, number))
        headers = {"cache-control": "private, no-cache"}
        if kind is None:
            headers["content-disposition"] = "attachment"
        return Response(data, media_type=kind or "application/octet-stream", headers=headers)

    async def thumbnail(self, request: Request, number: int, size: int) -> Response:
        """A small JPEG of an item."""
        served = self.index(request)
        digest = await self.in_thread(lambda: thumbnails.digest(served, number))
        tag = f'"{digest.hex()[:32]}-{size}"'
        headers = {"etag": tag, "cache-control": "private, no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        with _still_there():
            data = await self.in_thread(lambda: self.thumbnails.get(served, number, digest, size))
        return Response(data, media_type="image/jpeg", headers=headers)

    async def add(self, request: Request) -> Response:
        """Adds an image to the index."""
        self._must_write()
        served = self.index(request)
        upload = (await read_upload(request)).model_dump(exclude_unset=True)
        largest = self.settings.max_pixels
        number, fresh = await self.in_thread(
            lambda: served.once(lambda engine: self.uploads.add(engine, upload, largest))
        )
        response = await self.item(request, number)
        response.status_code = 201 if fresh else 200
        response.headers["location"] = f"items/{number}"
        return response

    async def remove(self, request: Request, number: int) -> Response:
        """Takes an item out of the index."""
        self._must_write()
        served = self.index(request)
        await self.in_thread(lambda: served.once(lambda engine: self.uploads.remove(engine, number)))
        return Response(status_code=204)

    def _must_write(self) -> None:
        if not self.settings.writable:
            raise ApiError(404, "read_only", "this service does not write; `simsearch serve --writable` would")

    # -- the service itself

    async def listing(self) -> Response:
        """The indexes, and what may be asked of them."""

        def facts() -> list[dict[str, Any]]:
            found = []
            for name, served in self.indexes.items():
                items, generation = served.facts()
                meta = served.use(lambda engine: engine.meta)
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
        """Whether a real query works in each index."""
        if self.draining:
            raise ApiError(503, "draining", "the service is about to stop")
        try:
            for served in self.indexes.values():
                await self.in_thread(functools.partial(_proves, served))
        except SimsearchError as error:
            raise ApiError(503, "not_ready", "a query does not work yet") from error
        return reply({"status": "ready"})

    async def prometheus(self) -> Response:
        """The figures, in Prometheus' text format."""

        def text() -> bytes:
            for name, served in self.indexes.items():
                with contextlib.suppress(SimsearchError):
                    items, generation = served.facts()
                    self.metrics.items.labels(name).set(items)
                    self.metrics.generation.labels(name).set(generation)
            return self.metrics.text()

        return Response(await self.in_thread(text), media_type="text/plain; version=0.0.4; charset=utf-8")


@contextlib.contextmanager
def _still_there() -> Iterator[None]:
    try:
        yield
    except ImageError as error:
        raise ApiError(404, "image_gone", "the item's image cannot be read any more") from error


def _proves(served: ReloadableIndex) -> None:
    """Computes and answers one real query. Raises SimsearchError."""
    served.use(lambda engine: engine.features([np.zeros((64, 64, 3), np.uint8)]))
    served.check()
