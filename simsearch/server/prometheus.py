"""The metrics of a service for Prometheus; each app has a registry of its own."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class PrometheusMetrics:
    """The metrics of one app. Safe for several threads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: Any = {"registry": self.registry}
        ProcessCollector(registry=self.registry)
        self.requests = Counter("simsearch_requests", "Requests answered.", ["route", "method", "status"], **own)
        self.seconds = Histogram(
            "simsearch_request_seconds",
            "Seconds from the head of a request to the end of its response.",
            ["route"],
            buckets=SECONDS,
            **own,
        )
        self.phases = Histogram(
            "simsearch_phase_seconds",
            "Parts of a search: body, decode, compute, search ...",
            ["phase"],
            buckets=SECONDS,
            **own,
        )
        self.batch = Histogram("simsearch_batch_size", "Searches answered at once.", buckets=SIZES, **own)
        self.queue = Gauge("simsearch_queue", "Searches that wait for a batch.", ["index"], **own)
        self.in_flight = Gauge("simsearch_in_flight", "Searches accepted and not yet answered.", **own)
        self.rejected = Counter("simsearch_rejected", "Requests refused because there were too many.", **own)
        self.items = Gauge("simsearch_index_items", "Items of an index.", ["index"], **own)
        self.generation = Gauge("simsearch_index_generation", "Changes that an index has seen.", ["index"], **own)
        self.reloads = Counter("simsearch_reloads", "Times an index was replaced and opened again.", ["index"], **own)

    def text(self) -> bytes:
        """Returns the metrics in the text format of Prometheus, version 0.0.4."""
        return generate_latest(self.registry)
