"""Hugging Face Transformers: models with exits for each task and family, and a trainer.

The trainer and the fitting of exits are loaded when they are first used (PEP 562): Transformers'
own trainer takes longer than all the rest.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ponder.integrations.transformers.config import PonderConfig
from ponder.integrations.transformers.heads import (
    PonderForAudioClassification,
    PonderForImageClassification,
    PonderForQuestionAnswering,
    PonderForSequenceClassification,
    PonderForTokenClassification,
    PonderModel,
)
from ponder.integrations.transformers.modeling import PonderPreTrainedModel

if TYPE_CHECKING:
    from ponder.integrations.transformers.exits import ExitReport, fit_exits
    from ponder.integrations.transformers.trainer import PonderTrainer

__all__ = [
    "ExitReport",
    "PonderConfig",
    "PonderForAudioClassification",
    "PonderForImageClassification",
    "PonderForQuestionAnswering",
    "PonderForSequenceClassification",
    "PonderForTokenClassification",
    "PonderModel",
    "PonderPreTrainedModel",
    "PonderTrainer",
    "fit_exits",
]

_LATE = {"ExitReport": "exits", "PonderTrainer": "trainer", "fit_exits": "exits"}

if not TYPE_CHECKING:  # a type checker would take any name for one of the package

    def __getattr__(name: str) -> Any:
        if name not in _LATE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
        globals()[name] = value
        return value
