"""The heads that a fine-tuned model may have: what their answers mean, and who loads them.

A head belongs to a kind by the name of its class, as Transformers names it: `…ForSequenceClassification`, say.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from ponder.errors import ArgumentError, CheckpointError
from ponder.integrations.transformers.loading import load_whole
from ponder.integrations.transformers.readable import check_made_again
from ponder.parts.tasks import Classification, Span, Task, TaskName, TokenClassification

__all__ = ["PROBLEMS", "HeadKind", "check_readable", "head_of", "kind_of", "load_finetuned", "saved_head"]

PROBLEMS: dict[str, TaskName] = {
    "single_label_classification": "classification",
    "regression": "regression",
    "multi_label_classification": "multilabel",
}
"""What an answer means, by the `problem_type` of a configuration of Transformers."""


@dataclass(frozen=True)
class HeadKind:
    """A kind of head.

    Args:
        ending: How the names of its classes end.
        task: What its answers mean.
        loaders: The Auto classes of Transformers that know such models; the first that knows one loads it.
        read: A function from a model's output to the answers that early heads give too.
    """

    ending: str
    task: Task
    loaders: tuple[Any, ...]
    read: Callable[[Any], Any]


def _logits(output: Any) -> Any:
    return output["logits"]


def _start_and_end(output: Any) -> Any:
    start, end = output["start_logits"], output["end_logits"]
    return torch.stack((start, end), -1) if isinstance(start, torch.Tensor) else (start, end)


_KINDS = (
    HeadKind(
        "ForSequenceClassification",
        Classification(),
        (AutoModelForSequenceClassification, AutoModelForAudioClassification),
        _logits,
    ),
    HeadKind("ForImageClassification", Classification(), (AutoModelForImageClassification,), _logits),
    HeadKind("ForAudioClassification", Classification(), (AutoModelForAudioClassification,), _logits),
    HeadKind("ForTokenClassification", TokenClassification(), (AutoModelForTokenClassification,), _logits),
    HeadKind("ForQuestionAnswering", Span(), (AutoModelForQuestionAnswering,), _start_and_end),
    HeadKind("ForQuestionAnsweringSimple", Span(), (AutoModelForQuestionAnswering,), _start_and_end),  # of XLNet, XLM
)


def kind_of(model: PreTrainedModel) -> HeadKind:
    """The kind of a model's head.

    Raises:
        ArgumentError: It has no head of these kinds, or its answer is not one of several.
    """
    kind = _named(type(model).__name__)
    if kind is None:
        raise ArgumentError(
            "model",
            expected=f"a sequence classifier of Transformers, or another {', '.join(k.ending for k in _KINDS[1:])}",
            got=type(model).__name__,
            remedy="Pass the fine-tuned model, head included; a bare encoder is for from_encoder.",
        )
    labels, problem = int(model.config.num_labels or 0), getattr(model.config, "problem_type", None)
    if labels < 2 or problem not in (None, "single_label_classification"):
        raise ArgumentError(
            "model",
            expected="a classifier whose answer is one of two or more classes, which early answers can agree with",
            got=f"num_labels={labels}, problem_type={problem!r}",
            remedy="For regression and several labels at once, train exits with from_encoder.",
        )
    return kind


def head_of(model: PreTrainedModel) -> HeadKind | None:
    """The kind of a model's head, whatever its answers are; None where its class is named as none of these."""
    return _named(type(model).__name__)


def saved_head(config: PretrainedConfig) -> tuple[str, HeadKind] | None:
    """The class of a fine-tuned model that a configuration was saved with, and its kind; None where it names none."""
    name = str(next(iter(getattr(config, "architectures", None) or ()), ""))
    kind = _named(name)
    return None if kind is None else (name, kind)


def load_finetuned(
    source: str | PathLike[str], dtype: torch.dtype | Literal["auto"] = torch.float32
) -> PreTrainedModel:
    """A whole fine-tuned model; nothing of it may be random.

    Args:
        source: A folder, or a name on the hub.
        dtype: The type of its weights; ``"auto"`` is that in which it was saved.

    Raises:
        CheckpointError: The folder or the hub holds no such model, or only a part of it.
    """
    remedy = "Pass the folder of a fine-tuned sequence classifier, say, as save_pretrained writes it."

    def read(place: Any, **named: Any) -> Any:
        config = named.get("config") or AutoConfig.from_pretrained(place, trust_remote_code=False)
        return _loader(config).from_pretrained(place, **named)

    model, info = load_whole(
        read,
        str(source),
        "model",
        remedy,
        AutoConfig.for_model,
        lambda config: _loader(config).from_config(config, trust_remote_code=False),
        exact=False,
        trust_remote_code=False,
        dtype=dtype,
    )
    if info["missing_keys"]:  # a pooler, without which an encoder is whole, and a classifier is not
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise CheckpointError(f"model: expected a whole classifier; {source} lacks {missing}. {remedy}")
    loaded: PreTrainedModel = model
    return loaded


def check_readable(model: PreTrainedModel) -> None:
    """Refuse to save a model that its configuration does not make again: what is read would be another, or nothing.

    Raises:
        ArgumentError: Its class is none of Transformers, or it has other weights or modules; see `check_made_again`.
    """
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    check_made_again(
        "model",
        model,
        lambda: _loader(config).from_config(config, trust_remote_code=False),
        "It runs here, and cannot be saved with exits: put the change into the configuration, or fine-tune a class of "
        "Transformers.",
    )


def _named(name: str) -> HeadKind | None:
    return next((kind for kind in _KINDS if name.endswith(kind.ending)), None)


def _loader(config: PretrainedConfig) -> Any:
    """The Auto class that loads what a configuration says; that of sequence classifiers where it does not say."""
    head = saved_head(config)
    kind = _KINDS[0] if head is None else head[1]
    known = (loader for loader in kind.loaders if type(config) in loader._model_mapping)
    return next(known, kind.loaders[0])
