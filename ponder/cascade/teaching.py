"""`teach`: a student in front of a model, whose answers it learns, with a promise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike

from ponder._utils.rows import content_ids, row_keys
from ponder._utils.seeds import uniform
from ponder.calibration.cascades import CascadeReport, stages_rule
from ponder.calibration.records import Record
from ponder.cascade.cascade import Cascade
from ponder.cascade.stages import CascadeStage, Input, stage_of
from ponder.cascade.student import Embeddings, Student
from ponder.statistics.certificate import CONFIDENCE, LEVEL
from ponder.statistics.repeats import fresh_rows

__all__ = ["Taught", "stages_statement", "teach"]

_CERTIFY = 0.4
"""The share of the texts that choose and certify; the others teach the student."""


@dataclass(frozen=True, eq=False)
class Taught:
    """A student in front of a model.

    Args:
        cascade: The cascade, with its policy.
        report: The promise and the costs.
        statement: The promise in one sentence, or why nothing could be promised.
        taught: The texts that taught the student, repeats included.
        rest: Texts that chose and certified.
        record: The answers of both stages to these.
        by_half: The share of texts that a student of half the texts would answer; None if it could
            not be taught.
    """

    cascade: Cascade
    report: CascadeReport
    statement: str
    taught: list[Input] = field(repr=False)
    rest: list[Input] = field(repr=False)
    record: Record = field(repr=False)
    by_half: float | None = None


def teach(
    model: object,
    texts: Sequence[Input],
    more: Sequence[Input] = (),
    *,
    must_teach: ArrayLike | None = None,
    level: float = LEVEL,
    confidence: float = CONFIDENCE,
) -> Taught:
    """Teach a student the answers of a model, and certify how often answers of the pair differ.

    Args:
        model: Anything that can be a stage of a cascade: a model, or the folder of one.
        texts: Texts like those to come. Some 60% teach, the others choose and certify; no labels
            are read.
        more: Texts that only teach, such as those that the model learned from.
        must_teach: Which texts must not certify, because they taught early heads of the model,
            `(texts,)` bool.
        level: The share of answers that may differ from the model's, in (0, 1).
        confidence: Probability with which the promise holds, in (0, 1).
    """
    stage = stage_of(model)
    sides = _sides(list(texts), list(more), must_teach)
    taught = sides.teaching
    classes = stage.classes or ()
    distinct = list(dict.fromkeys(taught))
    answers = [classes[n] for n in stage.full(distinct, classes).argmax(axis=1)]
    student = Student.fit(distinct, answers, embeddings=Embeddings.of(stage.model))
    cascade = Cascade([student, stage])
    record = cascade.record(sides.others)
    report = cascade.certify(record, level=level, confidence=confidence)
    half = _student_of_half(cascade, distinct, answers)
    by_half = None
    if half is not None:
        by_half = _share_of_student(cascade, half, sides.others, record, level, confidence)
    return Taught(
        cascade=cascade,
        report=report,
        statement=stages_statement(report, level, confidence),
        taught=taught,
        rest=sides.others,
        record=record,
        by_half=by_half,
    )


def stages_statement(
    report: CascadeReport, level: float, confidence: float, last: str = "the model"
) -> str:
    """Return the promise of a student and a model in one sentence, or why nothing is promised.

    Args:
        report: What `Cascade.certify` found.
        level: The level that was asked for.
        confidence: Probability with which the promise holds.
        last: What the model is called.
    """
    if not report.met:
        return report.statement
    num_stages = report.policy.certificate.num_steps or len(report.shares)
    rule = stages_rule(report.policy, num_stages, "student", "model")
    change = f"other answers than those of {last}"
    return replace(report.policy.certificate, rule=rule, change=change, unit="text").sentence


@dataclass(frozen=True, eq=False)
class _Sides:
    """The rows that teach, and those that choose and certify."""

    teaching: list[Input]
    others: list[Input]


def _sides(texts: list[Input], more: list[Input], must_teach: ArrayLike | None) -> _Sides:
    """Split texts at random into those that teach and the others.

    Each row is assigned independently: a text that occurs twice may teach and certify, as in the
    traffic to come. Rows that are also in `more`, which only teaches, teach, and are counted there.
    """
    ids = content_ids(texts)
    only_in_file = fresh_rows(ids, content_ids(more))
    in_both = np.ones(len(texts), dtype=bool)
    in_both[only_in_file] = False
    teaches = in_both.copy()
    if must_teach is not None:
        teaches |= np.asarray(must_teach)
    # Of the rows that are free, so many certify that they are the share of all rows, if possible.
    free = 1.0 - float(teaches.mean())
    certify = _CERTIFY / max(free, _CERTIFY)
    numbers = uniform(0, row_keys(ids))
    teaches |= numbers <= float(np.quantile(numbers, max(1.0 - certify, 0.0)))
    of_file = np.flatnonzero(teaches & ~in_both)
    teaching = [*more, *(texts[row] for row in of_file.tolist())]
    others = [texts[row] for row in np.flatnonzero(~teaches).tolist()]
    return _Sides(teaching, others)


def _student_of_half(
    cascade: Cascade, taught: list[Input], answers: list[str]
) -> CascadeStage | None:
    """Return a student of every other text; None if all answers to these are the same."""
    if len(set(answers[::2])) < 2:
        return None
    embeddings = Embeddings.of(cascade.stages[-1].model)
    return stage_of(Student.fit(taught[::2], answers[::2], embeddings=embeddings))


def _share_of_student(
    cascade: Cascade,
    student: CascadeStage,
    texts: list[Input],
    record: Record,
    level: float,
    confidence: float,
) -> float:
    """Certify with another student, and return the share of texts that it answers.

    Args:
        cascade: The cascade.
        student: The other student.
        texts: The texts that choose and certify.
        record: The answers of the cascade's stages to them.
        level: The level.
        confidence: The confidence.
    """
    outputs = record.outputs.copy()
    outputs[:, 0] = student.outputs(texts, cascade.classes)
    other = Cascade([student, cascade.stages[-1]], cascade.costs)
    report = other.certify(replace(record, outputs=outputs), level=level, confidence=confidence)
    return float(report.shares[0])
