"""Fetches the images that searches name by URL, a limited number at once."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from simsearch.images.connections import Stop
from simsearch.images.urls import fetch
from simsearch.server.body_limit import ReceivedBytes
from simsearch.server.errors import draining
from simsearch.server.middleware import ApiError
from simsearch.server.prometheus import PrometheusMetrics
from simsearch.server.settings import Settings

FETCHES = 32
"""The most images fetched by URL at once, each in a thread of its own; further requests get status 429."""

FETCH_SECONDS = 10.0
"""The most seconds for fetching an image by URL, from the DNS look-up to the last byte."""


class Fetcher:
    """Fetches images from URLs, in threads of its own.

    received: counts the bytes that the service has received and holds in memory. Fetched images count too.
    """

    def __init__(self, settings: Settings, metrics: PrometheusMetrics, received: ReceivedBytes) -> None:
        self._settings, self._metrics, self._received = settings, metrics, received
        self._pool = ThreadPoolExecutor(FETCHES, "fetch")
        self._stop = Stop()
        self._running = 0

    def stop(self) -> None:
        """Makes the fetches under way, and all later fetches, fail with an ApiError."""
        self._stop.set()

    def close(self) -> None:
        """Ends the fetches under way and waits for their threads."""
        self.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def fetch(self, url: str) -> bytes:
        """Returns the bytes of the image at a URL. They count in `received` until the caller subtracts them.

        Raises SimsearchError if the image cannot be fetched, ApiError if too many are being fetched or the service
        stops.
        """
        if self._running >= FETCHES:
            self._metrics.rejected.inc()
            raise ApiError(429, "too_many_requests", "too many images are being fetched", {"retry-after": "2"})
        self._running += 1
        work = self._pool.submit(self._fetch, url)
        try:
            return await asyncio.wrap_future(work)
        finally:
            self._running -= 1

    def _fetch(self, url: str) -> bytes:
        start = time.perf_counter()
        counted = 0

        def received(size: int) -> None:
            nonlocal counted
            counted += size
            self._received.add(size)

        seconds = min(FETCH_SECONDS, self._settings.timeout)
        try:
            data = fetch(url, self._settings.max_body, seconds, public_only=True, stop=self._stop, received=received)
        except BaseException:
            self._received.add(-counted)
            if self._stop.is_set():
                raise draining() from None
            raise
        self._metrics.phases.labels("fetch").observe(time.perf_counter() - start)
        return data
