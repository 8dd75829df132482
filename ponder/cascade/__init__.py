"""Cascades: a cheap model answers if it is certain, else the next one, with a promise.

Nothing here imports PyTorch, unless a stage is a model of PyTorch. Names are loaded when they are
first used, so that `Live` is loaded without cascades and students.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ponder.calibration.cascades import CascadeReport
    from ponder.cascade.cascade import Cascade, CascadeAnswers
    from ponder.cascade.live import Live
    from ponder.cascade.student import Embeddings, Student

_HOMES = {
    "Cascade": "ponder.cascade.cascade",
    "CascadeAnswers": "ponder.cascade.cascade",
    "CascadeReport": "ponder.calibration.cascades",
    "Embeddings": "ponder.cascade.student",
    "Live": "ponder.cascade.live",
    "Student": "ponder.cascade.student",
}

__all__ = ["Cascade", "CascadeAnswers", "CascadeReport", "Embeddings", "Live", "Student"]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value
