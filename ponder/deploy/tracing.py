"""Events on the current OpenTelemetry span; without its API package, nothing happens."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

__all__ = ["add_event"]

_INSTALLED = find_spec("opentelemetry") is not None


def add_event(name: str, **attributes: float) -> None:
    """Add an event, ``"ponder.exit"`` say, to the current span of the caller's instrumentation."""
    if _INSTALLED:
        span = import_module("opentelemetry.trace").get_current_span()
        span.add_event(f"ponder.{name}", attributes)
