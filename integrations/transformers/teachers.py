"""A fine-tuned model of Transformers as the frozen teacher of a model that exits."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ponder.engine.teaching import check_no_shared_weights, check_same_task
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.integrations.transformers.head_kinds import PROBLEMS, head_of
from ponder.integrations.transformers.heads import EncoderWrapper
from ponder.parts.tasks import Classification, Task, as_task
from ponder.policies import LastStep

__all__ = ["as_teacher"]


def as_teacher(teacher: object, student: PreTrainedModel, task: Task | None) -> nn.Module:
    """The answers of a fine-tuned model at full depth, to be attached to the wrapper of `student`.

    Args:
        teacher: What a user gives as a teacher.
        student: The model that is to learn from it.
        task: What the student's answers mean.

    Raises:
        ArgumentTypeError: It is no model of Transformers.
        ArgumentError: It is the student, shares weights with it, has other labels, another problem, or another
            vocabulary.
    """
    if not isinstance(teacher, PreTrainedModel):
        raise ArgumentTypeError(
            "teacher",
            expected="a classifier of Transformers",
            got=type(teacher).__name__,
            remedy="Attach any other callable to the wrapper: model.ponder.attach_teacher(…).",
        )
    check_no_shared_weights(student, teacher)
    own, theirs = (dict(model.config.id2label or {}) for model in (student, teacher))
    if own != theirs:
        raise ArgumentError(
            "teacher",
            expected=f"the student's {len(own)} labels, in the same order",
            got=f"{len(theirs)} labels, {_first_difference(own, theirs)}",
            remedy="Fine-tune the teacher on the student's labels, or give both the same id2label.",
        )
    check_same_task(task, _task_of(teacher))
    known, read = (_vocabulary(model) for model in (student, teacher))
    if known is not None and read is not None and known != read:
        raise ArgumentError(
            "teacher",
            expected=f"one that reads the student's tokens, of which there are {known}",
            got=f"one with a vocabulary of {read}",
            remedy="Pass a teacher with the student's tokenizer. One whose table is merely padded is attached as a "
            "function: model.ponder.attach_teacher(lambda inputs, **context: teacher(inputs, **context).logits).",
        )
    return _Answers(teacher)


class _Answers(nn.Module):
    """A model of Transformers as a teacher: its logits at full depth; of a span, those of its start and its end."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        head = head_of(model)
        self.read = attrgetter("logits") if head is None else head.read

    def forward(self, inputs: Tensor, **context: Any) -> Tensor:
        if _own(self.model) is not None:
            context["policy"] = LastStep()
        named = {self.model.main_input_name: inputs, **{k: v for k, v in context.items() if v is not None}}
        answers: Tensor = self.read(self.model(**named))
        return answers


def _task_of(teacher: PreTrainedModel) -> Task | None:
    """What a teacher's answers mean; None where its class does not tell."""
    if (own := _own(teacher)) is not None:
        return own.task
    head = head_of(teacher)
    if head is None or not isinstance(head.task, Classification):  # a `problem_type` may be left of a model before it
        return None if head is None else head.task
    return as_task(PROBLEMS.get(str(teacher.config.problem_type)))


def _vocabulary(model: PreTrainedModel) -> int | None:
    """How many tokens a model of text knows; None where its configuration does not tell, or it reads something else."""
    if model.main_input_name != "input_ids":
        return None
    read: Any = model if _own(model) is None else model.encoder
    size: int | None = getattr(read.config, "vocab_size", None)
    return size


def _own(model: PreTrainedModel) -> EncoderWrapper | None:
    """The wrapper in a model of this library; None in any other."""
    wrapper = getattr(model, "ponder", None)
    return wrapper if isinstance(wrapper, EncoderWrapper) else None


def _first_difference(own: Mapping[Any, str], theirs: Mapping[Any, str]) -> str:
    place = next(i for i in sorted({*own, *theirs}) if own.get(i) != theirs.get(i))
    return f"the first that differs {theirs.get(place)!r} in place of {own.get(place)!r}"
