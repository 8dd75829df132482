"""A promise that is watched while it is kept: audits of live answers, and steps back when it no longer holds."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ponder.monitor.audit import Audit, StepBack
from ponder.monitor.betting import audits_needed, confidence_sequence

if TYPE_CHECKING:
    from ponder.monitor.watched import Watched

__all__ = ["Audit", "StepBack", "Watched", "audits_needed", "confidence_sequence"]


def __getattr__(name: str) -> Any:
    if name != "Watched":  # the one name here that needs PyTorch
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.watched").Watched
