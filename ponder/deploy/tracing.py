"""Events on the current OpenTelemetry span, if its API package is installed; nothing otherwise."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

__all__ = ["add_event"]

_INSTALLED = find_spec("opentelemetry") is not None


def add_event(name: str, **attributes: float) -> None:
    """Add an event, ``"ponder.exit"`` say, to the span that the caller's instrumentation has begun."""
    if _INSTALLED:
        span = import_module("opentelemetry.trace").get_current_span()
        span.add_event(f"ponder.{name}", attributes)
