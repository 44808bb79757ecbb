"""The HTTP handlers that tell the state of the service: its indexes, readiness and metrics."""

from __future__ import annotations

import contextlib
import functools
import os
from typing import Any

import numpy as np
from fastapi.responses import Response

from simsearch.errors import SimsearchError
from simsearch.search import similarity
from simsearch.server.errors import draining, reply
from simsearch.server.middleware import ApiError
from simsearch.server.reloading import ReloadableIndex
from simsearch.server.service import SearchService
from simsearch.server.settings import Settings


class Status:
    """The HTTP handlers that tell the state of the service."""

    def __init__(self, service: SearchService) -> None:
        self.service = service

    async def listing(self) -> Response:
        """Answers with the indexes, the permissions of clients and the limits of requests."""

        def facts() -> list[dict[str, Any]]:
            found = []
            for name, served in self.service.indexes.items():
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

        settings = self.service.settings
        return reply(
            {
                "indexes": await self.service.in_thread(facts),
                "writable": settings.writable,
                "cleanup": settings.cleanup,
                "move_to": _shown(settings),
                "urls": settings.allow_urls,
                "max_body": settings.max_body,
                "max_k": settings.max_k,
            }
        )

    async def ready(self) -> Response:
        """Answers that the service is ready. Raises ApiError if the service stops, or if a search in an index fails."""
        if self.service.draining:
            raise draining()
        try:
            for served in self.service.indexes.values():
                await self.service.in_thread(functools.partial(_check_search, served))
        except SimsearchError as error:
            raise ApiError(503, "not_ready", "searches do not work at the moment") from error
        return reply({"status": "ready"})

    async def prometheus(self) -> Response:
        """Answers with the metrics, in the text format of Prometheus."""

        def text() -> bytes:
            for name, served in self.service.indexes.items():
                with contextlib.suppress(SimsearchError):
                    items, generation = served.facts()
                    self.service.metrics.items.labels(name).set(items)
                    self.service.metrics.generation.labels(name).set(generation)
            return self.service.metrics.text()

        return Response(await self.service.in_thread(text), media_type="text/plain; version=0.0.4; charset=utf-8")


def _shown(settings: Settings) -> str | None:
    """Returns the folder that duplicates are moved to, or only its name if the service shows no absolute paths."""
    if settings.move_to is None or not settings.relative:
        return settings.move_to
    return os.path.basename(settings.move_to)


def _check_search(served: ReloadableIndex) -> None:
    """Computes the features of an image and runs a search. Raises SimsearchError."""
    served.run(lambda engine: engine.features([np.zeros((64, 64, 3), np.uint8)]))
    served.check()
