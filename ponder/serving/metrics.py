"""What a service counts, in Prometheus's format; each service has a registry of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

__all__ = ["CONTENT_TYPE", "Metrics", "Outcome"]

CONTENT_TYPE = CONTENT_TYPE_LATEST

Outcome = Literal[
    "answered",
    "overloaded",
    "stopping",
    "broken",
    "timed_out",
    "cancelled",
    "failed",
    "invalid",
    "too_large",
    "too_slow",
]
"""How a request ended: 200, 429, 503, 503, 504, its client gone, 500, another 4xx, 413, 408."""

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_AUDIT = {
    "stage": "Number of the policy that answers, from 0; each step back adds 1.",
    "audits": "Audits in this stage.",
    "disagreements": "Of them, those that differ from full depth.",
    "low": "Lowest disagreement that the audits of this stage leave possible.",
    "high": "Highest disagreement that the audits of this stage leave possible.",
    "wealth": "Capital of the bet against the promise; at 1 / (1 - confidence) the stage ends.",
}


class Metrics:
    """Counters, histograms and gauges of one service.

    Args:
        num_steps: N, for the buckets of the exit steps.
        waiting: Texts that were accepted and are not answered.
        folder_changed: Whether the model's folder has changed since it was read.
        audit: The state of the audits; None without audits.
    """

    def __init__(
        self,
        num_steps: int,
        waiting: Callable[[], int],
        folder_changed: Callable[[], bool],
        audit: Callable[[], Mapping[str, Any]] | None,
    ) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter("ponder_requests", "Requests, by how they ended.", ["outcome"], registry=self.registry)
        for outcome in get_args(Outcome):
            self._requests.labels(outcome)
        self._texts = Counter("ponder_texts", "Texts that were answered.", registry=self.registry)
        self._truncated = Counter("ponder_texts_truncated", "Of them, those that were cut.", registry=self.registry)
        self._overdue = Counter(
            "ponder_texts_overdue", "Of them, those answered by their deadline.", registry=self.registry
        )
        self._steps = Histogram(
            "ponder_exit_step", "Steps at which texts left.", buckets=range(1, num_steps + 1), registry=self.registry
        )
        self._latency = Histogram(
            "ponder_latency_seconds", "Arrival to answer of a request.", buckets=_SECONDS, registry=self.registry
        )
        self._gauge("ponder_waiting_texts", "Texts that were accepted and are not answered.", waiting)
        self._gauge("ponder_folder_changed", "1 where the model's folder has changed since.", folder_changed)
        if audit is not None:
            for name, told in _AUDIT.items():
                self._gauge(f"ponder_audit_{name}", told, partial(_value, audit, name))
            self.registry.register(_SkippedAudits(audit))

    def ended(self, outcome: Outcome) -> None:
        """A request ended."""
        self._requests.labels(outcome).inc()

    def answered(self, seconds: float, steps: list[int], *, truncated: int, overdue: int) -> None:
        """A request was answered."""
        self.ended("answered")
        self._texts.inc(len(steps))
        self._truncated.inc(truncated)
        self._overdue.inc(overdue)
        self._latency.observe(seconds)
        for step in steps:
            self._steps.observe(step)

    def outcomes(self) -> dict[str, int]:
        """How many requests ended how, so far."""
        (family,) = self._requests.collect()
        counts = {
            sample.labels["outcome"]: int(sample.value) for sample in family.samples if sample.name.endswith("_total")
        }
        return {outcome: counts[outcome] for outcome in get_args(Outcome)}

    def page(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, told: str, read: Callable[[], float]) -> None:
        Gauge(name, told, registry=self.registry).set_function(read)


@dataclass(frozen=True)
class _SkippedAudits(Collector):
    """The one counter that is kept elsewhere, with the audits."""

    state: Callable[[], Mapping[str, Any]]

    def collect(self) -> Iterator[CounterMetricFamily]:
        told = "Answers that were drawn for an audit when too much else was running, and were not audited."
        yield CounterMetricFamily("ponder_audit_skipped", told, value=_value(self.state, "skipped"))


def _value(state: Callable[[], Mapping[str, Any]], name: str) -> float:
    return float(state()[name])
