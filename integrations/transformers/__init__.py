"""Hugging Face Transformers: encoders of any family, a model for each task, and a trainer.

The trainer, the pipelines and the fitting of exits are loaded when they are first used (PEP 562): Transformers' own
trainer and pipelines, which these are made of, load pandas, datasets and peft where they are installed, and take longer
than all the rest.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from ponder.integrations.transformers.adapter import Adapter, EncoderAdapter, LayerStep, StackAdapter
from ponder.integrations.transformers.adapter import registry as adapters
from ponder.integrations.transformers.albert import AlbertAdapter
from ponder.integrations.transformers.audio_classification import PonderForAudioClassification
from ponder.integrations.transformers.bert import BertAdapter
from ponder.integrations.transformers.captured import CapturedAdapter
from ponder.integrations.transformers.configuration import PonderConfig
from ponder.integrations.transformers.encoders import adapter_for, encoder_of
from ponder.integrations.transformers.features import PonderModel, PonderModelOutput
from ponder.integrations.transformers.finetuned import FinetunedClassifier
from ponder.integrations.transformers.image_classification import PonderForImageClassification
from ponder.integrations.transformers.modeling import PonderPreTrainedModel
from ponder.integrations.transformers.mpnet import MPNetAdapter
from ponder.integrations.transformers.question_answering import (
    PonderForQuestionAnswering,
    PonderQuestionAnsweringOutput,
)
from ponder.integrations.transformers.sequence_classification import (
    PonderForSequenceClassification,
    PonderSequenceClassifierOutput,
)
from ponder.integrations.transformers.token_classification import (
    PonderForTokenClassification,
    PonderTokenClassifierOutput,
)

if TYPE_CHECKING:
    from ponder.integrations.transformers.exits import ExitReport, fit_exits
    from ponder.integrations.transformers.pipelines import pipeline
    from ponder.integrations.transformers.trainer import PonderTrainer

__all__ = [
    "Adapter",
    "AlbertAdapter",
    "BertAdapter",
    "CapturedAdapter",
    "EncoderAdapter",
    "ExitReport",
    "FinetunedClassifier",
    "LayerStep",
    "MPNetAdapter",
    "PonderConfig",
    "PonderForAudioClassification",
    "PonderForImageClassification",
    "PonderForQuestionAnswering",
    "PonderForSequenceClassification",
    "PonderForTokenClassification",
    "PonderModel",
    "PonderModelOutput",
    "PonderPreTrainedModel",
    "PonderQuestionAnsweringOutput",
    "PonderSequenceClassifierOutput",
    "PonderTokenClassifierOutput",
    "PonderTrainer",
    "StackAdapter",
    "adapter_for",
    "adapters",
    "encoder_of",
    "fit_exits",
    "pipeline",
]

AutoConfig.register(PonderConfig.model_type, PonderConfig, exist_ok=True)
AutoModel.register(PonderConfig, PonderModel, exist_ok=True)
AutoModelForSequenceClassification.register(PonderConfig, PonderForSequenceClassification, exist_ok=True)
AutoModelForTokenClassification.register(PonderConfig, PonderForTokenClassification, exist_ok=True)
AutoModelForImageClassification.register(PonderConfig, PonderForImageClassification, exist_ok=True)
AutoModelForAudioClassification.register(PonderConfig, PonderForAudioClassification, exist_ok=True)
AutoModelForQuestionAnswering.register(PonderConfig, PonderForQuestionAnswering, exist_ok=True)

_LATE = {"ExitReport": "exits", "PonderTrainer": "trainer", "fit_exits": "exits", "pipeline": "pipelines"}

if not TYPE_CHECKING:  # which would take any name for one of the package

    def __getattr__(name: str) -> Any:
        if name not in _LATE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
        globals()[name] = value
        return value
