"""What the service counts, in the format that Prometheus reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

__all__ = ["CONTENT_TYPE", "ServingMetrics"]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class ServingMetrics:
    """Metrics of one service, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("cemg_requests", "Answered HTTP requests", ["route", "status"], registry=self.registry)
        self.request_seconds = Histogram(
            "cemg_request_seconds", "Seconds from a request's arrival to its answer", ["route"], buckets=SECONDS, registry=self.registry
        )
        self.batch_size = Histogram("cemg_batch_size", "Histories in one pass of the model", buckets=SIZES, registry=self.registry)
        self.queue_seconds = Histogram("cemg_queue_seconds", "Seconds a history waited", buckets=SECONDS, registry=self.registry)
        self.model_seconds = Histogram("cemg_model_seconds", "Seconds of one pass of the model", buckets=SECONDS, registry=self.registry)
        self.changes = Counter(
            "cemg_catalogue_changes", "Changes of the catalogue: add, remove or reload", ["kind", "outcome"], registry=self.registry
        )
        self._queue_length = Gauge("cemg_queue_length", "Histories that wait for the model", registry=self.registry)
        self._catalogue_items = Gauge("cemg_catalogue_items", "Items of the catalogue", registry=self.registry)

    def watch(self, queue_length: Callable[[], int], catalogue_items: Callable[[], int]) -> None:
        """Where the gauges are read whenever somebody asks."""
        self._queue_length.set_function(queue_length)
        self._catalogue_items.set_function(catalogue_items)

    def batch(self, waited: Sequence[float], seconds: float) -> None:
        """Count one pass of the model over as many histories as `waited` holds seconds."""
        self.batch_size.observe(len(waited))
        self.model_seconds.observe(seconds)
        for value in waited:
            self.queue_seconds.observe(value)

    @contextmanager
    def change(self, kind: str) -> Iterator[None]:
        """Count a change of the catalogue, or its failure."""
        outcome = "failed"
        try:
            yield
            outcome = "done"
        finally:
            self.changes.labels(kind, outcome).inc()

    def exposition(self) -> bytes:
        """All metrics as text."""
        return generate_latest(self.registry)
