"""The HTTP handler for searches.

It reads a search from the body, decodes the picture in a thread, gets the matches from a batcher, and answers in JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import Response

from simsearch.engine import Engine
from simsearch.search.queries import OutdatedQueryError, PreparedQuery
from simsearch.search.results import Matches, QueryResult
from simsearch.server.batcher import SearchJob
from simsearch.server.decoding import Lane
from simsearch.server.errors import reply
from simsearch.server.reloading import ReloadableIndex
from simsearch.server.request_body import read_search
from simsearch.server.schemas import SearchRequest
from simsearch.server.service import SearchService
from simsearch.storage.filters import conditions

ATTEMPTS = 3
"""The most attempts at a search whose index is replaced meanwhile."""


class Searches:
    """The HTTP handler for searches."""

    def __init__(self, service: SearchService) -> None:
        self.service = service

    async def search(self, request: Request) -> Response:
        """Answers a search that is given as a multipart form or as a JSON object."""
        start = time.perf_counter()
        served = self.service.index(request)
        # A search is counted only after its body has arrived, so that slow senders do not block other clients.
        body, name = await read_search(request, self.service.search_request, self.service.settings)
        self.service.metrics.phases.labels("body").observe(time.perf_counter() - start)
        if body.way == "url":
            body.image = await self.service.fetcher.fetch(body.url)
        try:
            with self.service.admitted():
                job, matches = await self._matches(served, body)
        finally:
            if body.way == "url":
                self.service.received.add(-len(body.image))
        took = 1000 * (time.perf_counter() - start)
        relative = self.service.settings.relative
        shown = [replace(match, path=match.relative) for match in matches] if relative else matches
        answer = QueryResult(name, job.model, matches.exact, took, shown)
        request.scope["simsearch.log"] = {"index": served.name, "matches": len(matches)}
        values = answer.to_dict()
        for match in values["matches"]:
            match |= self._urls(request, served, match["id"])
        if not matches and (where := body.search_options().get("where")):
            values |= await self.service.notes(served, conditions(where))
        return reply(values)

    def _urls(self, request: Request, served: ReloadableIndex, number: int) -> dict[str, str]:
        """Returns the URLs of the image and the thumbnail of the item `number`, without scheme and host."""
        start = f"{request.scope.get('root_path', '')}/v1/items/{number}"
        end = "" if served.name == next(iter(self.service.indexes)) else f"?index={quote(served.name, safe='')}"
        return {"image_url": f"{start}/image{end}", "thumbnail_url": f"{start}/thumbnail{end}"}

    async def _matches(self, served: ReloadableIndex, body: SearchRequest) -> tuple[SearchJob, Matches]:
        """Prepares a search and answers it; starts again if the index is replaced in between.

        Raises SimsearchError, ApiError.
        """

        async def attempt() -> tuple[SearchJob, Matches]:
            job = await self.service.in_lane(lambda lane: self._job(served, body, lane), body.way == "id")
            return job, await self.service.in_time(asyncio.wrap_future(self.service.batchers[served.name].submit(job)))

        for _ in range(ATTEMPTS - 1):
            with contextlib.suppress(OutdatedQueryError):
                return await attempt()
        return await attempt()

    def _job(self, served: ReloadableIndex, request: SearchRequest, lane: Lane) -> SearchJob:
        """Decodes the query's picture in a lane and returns the search as a job. Raises SimsearchError."""
        start = time.perf_counter()
        query = served.run(lambda engine: self._prepare(engine, request, lane), may_be_outdated=True)
        self.service.metrics.phases.labels("decode").observe(time.perf_counter() - start)
        return SearchJob(query, request.matches, request.search_options())

    def _prepare(self, engine: Engine, request: SearchRequest, lane: Lane) -> PreparedQuery:
        options = request.query_options()
        pixels = self.service.settings.max_pixels
        with engine.query_resolver(serving=True, max_pixels=pixels, budget=lane) as resolver:
            if request.way == "vector":
                return resolver.prepare_vector(request.vector, **options)
            return resolver.prepare(request.id if request.way == "id" else request.image, **options)
