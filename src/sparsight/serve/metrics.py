"""`/metrics`, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from .engine import Engine
from .readings import Readings

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Figures of a server, read when they are asked for.

    Parameters
    ----------
    engine : Engine
    readings : Readings
    """

    def __init__(self, engine: Engine, readings: Readings) -> None:
        self._engine, self._readings = engine, readings
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """All of it as it is sent."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """As prometheus-client asks."""
        tally = self._engine.tally
        running, waiting = self._engine.load
        read, held = self._engine.budget_in_use
        yield _gauge("tokens_per_second", "New tokens a second, over the last 10 seconds.", tally.rate())
        yield _gauge("requests_running", "Requests that are decoded.", running)
        yield _gauge("requests_waiting", "Requests in the queue.", waiting)
        yield _gauge("budget_tokens", "Cached tokens that a KV head reads in a step, of all running requests.", read)
        yield _gauge("cached_tokens", "Cached tokens of all running requests.", held)
        yield _gauge("reading_bytes", "Memory of what answers read, kept for the page.", self._readings.nbytes)
        yield _counter("prompt_tokens", "Tokens of prompts read.", tally.prompt_tokens)
        yield _counter("new_tokens", "Tokens of answers made.", tally.new_tokens)
        yield _counter("prefill_seconds", "Time spent on prompts.", tally.prefill_seconds)
        yield _counter("decode_seconds", "Time spent on decode steps.", tally.decode_seconds)
        requests = CounterMetricFamily("sparsight_requests", "Requests by how they ended.", labels=["outcome"])
        for outcome in ("finished", "cancelled", "failed"):
            requests.add_metric([outcome], getattr(tally, outcome))
        yield requests


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(f"sparsight_{name}", what, value=value)


def _counter(name: str, what: str, value: float) -> Metric:
    return CounterMetricFamily(f"sparsight_{name}", what, value=value)
