"""Hugging Face Transformers: encoders by family, the sequence-classification model, and a trainer."""

from transformers import AutoConfig, AutoModelForSequenceClassification

from ponder.integrations.transformers.adapter import Adapter, EncoderAdapter, LayerStep, StackAdapter
from ponder.integrations.transformers.adapter import registry as adapters
from ponder.integrations.transformers.albert import AlbertAdapter
from ponder.integrations.transformers.bert import BertAdapter
from ponder.integrations.transformers.captured import CapturedAdapter
from ponder.integrations.transformers.configuration import PonderConfig
from ponder.integrations.transformers.encoders import adapter_for, encoder_of
from ponder.integrations.transformers.exits import ExitReport, fit_exits
from ponder.integrations.transformers.finetuned import FinetunedClassifier
from ponder.integrations.transformers.modeling import PonderForSequenceClassification, PonderSequenceClassifierOutput
from ponder.integrations.transformers.mpnet import MPNetAdapter
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
    "PonderForSequenceClassification",
    "PonderSequenceClassifierOutput",
    "PonderTrainer",
    "StackAdapter",
    "adapter_for",
    "adapters",
    "encoder_of",
    "fit_exits",
]

AutoConfig.register(PonderConfig.model_type, PonderConfig, exist_ok=True)
AutoModelForSequenceClassification.register(PonderConfig, PonderForSequenceClassification, exist_ok=True)
