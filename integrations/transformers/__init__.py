"""Hugging Face Transformers: models with exits for each task and family, and a trainer.

The trainer and the fitting of exits are loaded when they are first used (PEP 562): Transformers'
own trainer takes longer than all the rest.
"""

from typing import TYPE_CHECKING

from ponder._utils.lazy import lazy_names
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

if not TYPE_CHECKING:  # a type checker would take any name for one of the package
    __getattr__ = lazy_names(
        __name__, ("exits:ExitReport", "exits:fit_exits", "trainer:PonderTrainer")
    )
