"""The record of a cascade: every stage answers every input, and its seconds are measured.

Stages are tried on five rows first, so that a broken one fails before the others cost anything.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ponder._utils.rows import content_ids
from ponder.calibration.records import Floats, Ints, Record
from ponder.cascade.source import log_failures
from ponder.cascade.stages import CascadeStage, Input, StageAnswers
from ponder.errors import ArgumentError
from ponder.policies.base import ExitPolicy

__all__ = ["RecordedStages", "Referred", "ids_of_inputs", "record_stages", "refer"]

_TRIED = 5
"""Rows on which a stage is tried before the others are paid for."""


@dataclass(frozen=True, eq=False)
class RecordedStages:
    """A record of all stages, and the seconds of each for one row, `(stages,)`."""

    record: Record
    seconds: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Referred:
    """The inputs that a reference answers, and its answers."""

    inputs: list[Input]
    labels: list[str]


@dataclass(frozen=True, eq=False)
class _Timed:
    """Answers of a stage to some rows, and the seconds that they took."""

    answers: StageAnswers
    seconds: float


def record_stages(
    stages: Sequence[CascadeStage],
    inputs: list[Input],
    classes: Sequence[str],
    labels: Ints | None,
    *,
    steps_of_last: bool,
) -> RecordedStages:
    """Ask all stages about all inputs.

    Args:
        stages: The stages.
        inputs: The inputs.
        classes: Names of the classes.
        labels: Numbers of the right classes, `(rows,)`, or None.
        steps_of_last: Whether the steps of the last stage are recorded too.
    """
    with_steps = [False] * (len(stages) - 1) + [steps_of_last]
    trials = [
        _try(stage, inputs, classes, f"stage {number}", steps=steps)
        for number, (stage, steps) in enumerate(zip(stages, with_steps, strict=True), 1)
    ]
    columns: list[Floats] = []
    seconds: list[float] = []
    for number, (stage, trial, steps) in enumerate(zip(stages, trials, with_steps, strict=True), 1):
        timed = _answer_others(stage, trial, inputs, classes, steps=steps)
        outputs = timed.answers.outputs
        if outputs.ndim == 2:  # a stage of one step
            outputs = outputs[:, None]
        columns.append(outputs)
        seconds.append(timed.seconds)
        log_failures(number, len(inputs), timed.answers.errors)
    record = Record(
        np.concatenate(columns, axis=1),
        None,
        ids_of_inputs(inputs),
        labels=labels,
        task="classification",
        content_ids=True,
    )
    return RecordedStages(record, tuple(seconds))


def refer(reference: CascadeStage, inputs: list[Input], classes: Sequence[str]) -> Referred:
    """Return the inputs that a reference answers at full depth, and its answers."""
    policy = reference.full_depth
    trial = _try(reference, inputs, classes, "the reference", policy=policy)
    others = reference.answer(inputs[_TRIED:], classes, policy)
    outputs = np.concatenate([trial.answers.outputs, others.outputs])
    answered = np.flatnonzero(~np.isnan(outputs).any(axis=-1))
    numbers = outputs[answered].argmax(axis=1)
    return Referred([inputs[row] for row in answered], [classes[number] for number in numbers])


def ids_of_inputs(inputs: Sequence[Input]) -> Ints:
    """Return ids of inputs by their content, `(rows,)`."""
    return content_ids([str(each) for each in inputs])


def _try(
    stage: CascadeStage,
    inputs: list[Input],
    classes: Sequence[str],
    name: str,
    *,
    policy: ExitPolicy | None = None,
    steps: bool = False,
) -> _Timed:
    """Return the answers to the first few inputs; raise if the stage fails on all of them."""
    first = inputs[:_TRIED]
    start = time.perf_counter()
    answers = stage.answer(first, classes, policy, steps=steps)
    if first and len(answers.errors) == len(first):
        error = answers.errors[0]
        if isinstance(error, ArgumentError):
            raise error
        raise ArgumentError(
            "stages",
            expected=f"{name} to answer some of the first {len(first)} inputs, on which it is "
            "tried",
            got=f"{type(error).__name__}: {error}",
            remedy="Call it on a few inputs: it must return names, or (rows, classes).",
        ) from error
    return _Timed(answers, time.perf_counter() - start)


def _answer_others(
    stage: CascadeStage,
    trial: _Timed,
    inputs: list[Input],
    classes: Sequence[str],
    *,
    steps: bool,
) -> _Timed:
    """Return the answers of a stage to all inputs, and its seconds for one of them.

    Args:
        stage: The stage.
        trial: Its answers to the first few.
        inputs: The inputs.
        classes: Names of the classes.
        steps: Whether its steps are recorded.
    """
    start = time.perf_counter()
    others = stage.answer(inputs[_TRIED:], classes, steps=steps)
    seconds = time.perf_counter() - start
    count = len(inputs) - _TRIED
    if count > 0:
        seconds_of_row = seconds / count  # without the first call, which warms up
    else:
        seconds_of_row = trial.seconds / max(len(inputs), 1)
    errors = dict(trial.answers.errors)
    errors |= {row + _TRIED: error for row, error in others.errors.items()}
    outputs = np.concatenate([trial.answers.outputs, others.outputs])
    return _Timed(StageAnswers(outputs, errors), seconds_of_row)
