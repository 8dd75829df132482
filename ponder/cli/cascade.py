"""The command `cascade`: a student in front of a classifier, with a promise; and the export of such a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ponder._utils.rows import content_ids, split
from ponder._utils.seeds import uniform
from ponder.calibration.records import Record
from ponder.cascade import Cascade, CascadeReport, Embeddings, Student
from ponder.cascade.stages import Stage, stage_of
from ponder.cli.folders import Folder, heads_saw
from ponder.cli.output import probe_folder, short, show
from ponder.cli.report import write_report
from ponder.cli.texts import count, read_texts
from ponder.deploy.export import OnnxModel, onnx, quantized

__all__ = ["export", "run"]

_CERTIFY = 0.4  # of the texts, to choose and certify; the others teach the student
_RANGES = 256  # texts, by which int8 fixes the ranges of activations


def run(
    model: Path,
    texts: tuple[Path, Path | None],
    out: Path,
    reading: Mapping[str, Any],
    options: Any,
    *,
    as_json: bool,
) -> None:
    """Teach a student the model's answers on texts, and on others that only teach; certify and write the cascade."""
    probe_folder(out, "cascade", model)
    found, stage = read_texts(texts[0], **reading).without_empty(), stage_of(model)
    more = [] if texts[1] is None else read_texts(texts[1], **reading).without_empty().texts
    taught, rest, below = _sides(stage, found.texts, more)
    classes = stage.classes or ()
    answers = [classes[n] for n in stage.full(taught, classes).argmax(1)]
    student = Student.fit(taught, answers, embeddings=Embeddings.of(stage.model))
    cascade = Cascade([student, stage])
    record = cascade.record(rest)
    report = cascade.certify(record, **options)
    cascade.save(out)
    fewer = _by_half(cascade, record, rest, taught, answers, options)
    sentences, rows = [report.statement, _of_more_texts(report, fewer, len(taught))], _rows(report)
    sides = f"teach {len(taught)}, choose {report.chosen_on}, certify {report.certified_on}"
    rows = [("texts", f"{count(len(taught) + len(rest), 'text')}: {sides}"), *rows]
    level: Any = options["level"] if report.met else None
    given = (record, report.policy, rest, cascade.classes)
    title = f"A student in front of {model.name}"
    write_report(out / "report.html", title, sentences, rows, *given, level=level, step="stage")
    card = {"command": "cascade", "columns": list(found.columns), **_facts(report)}
    show(
        card | {"taught_below": below, "taught_by_half": sentences[1]},
        sentences,
        rows,
        as_json=as_json,
        out=out,
    )


def export(
    made: Folder, out: Path, texts: list[Any] | None, level: float, confidence: float
) -> tuple[str, list[tuple[str, str]], dict[str, Any]]:
    """Write a cascade whose models are ONNX graphs, so that it runs without PyTorch.

    Where `texts` are given, the last stage is in int8, and certified anew on them. Returns a sentence, rows of the
    table, and facts for the card.
    """
    cascade: Cascade = made.model
    said, rows, facts = (
        "Answers are those of the folder, within 1e-4.",
        list[tuple[str, str]](),
        dict[str, Any](),
    )
    with TemporaryDirectory() as scratch:
        stages = [_graphs(stage, Path(scratch) / str(n)) for n, stage in enumerate(cascade.stages)]
        small = Cascade(stages, cascade.costs, policy=cascade.policy, classes=cascade.classes)
        if texts is not None:
            ranges = [
                texts[n] for n in split(texts, (1 / 3, 2 / 3))[0][:_RANGES]
            ]  # of those that choose
            last = OnnxModel(
                quantized(stages[-1].model.folder, Path(scratch) / "int8", calibration=ranges)
            )
            small = Cascade([*stages[:-1], last], classes=cascade.classes)
            report = small.certify(
                texts, level=level, confidence=confidence, reference=cascade.stages[-1]
            )
            said, rows, facts = report.statement, _rows(report), _facts(report)
        small.save(out)
    return said, rows, facts | {"taught_below": made.taught_below}


def _sides(stage: Stage, texts: list[Any], more: list[Any]) -> tuple[list[Any], list[Any], float]:
    """Return texts that teach, texts that choose and certify, and the greatest number of those that teach.

    Texts that taught the early heads of the model teach, since they must not certify.
    """
    given = list(dict.fromkeys(texts))
    seen, numbers = heads_saw(stage.model, given), uniform(0, content_ids(given))
    below = float(np.quantile(numbers, max(1.0 - _CERTIFY / max(1.0 - seen.mean(), _CERTIFY), 0.0)))
    teaches = dict(zip(given, (seen | (numbers <= below)).tolist(), strict=True)) | dict.fromkeys(
        more, True
    )
    return (
        [t for t, own in teaches.items() if own],
        [t for t, own in teaches.items() if not own],
        below,
    )


def _by_half(
    cascade: Cascade,
    record: Record,
    rest: list[Any],
    taught: list[Any],
    answers: list[str],
    options: Mapping[str, Any],
) -> CascadeReport | None:
    """Certify with a student of half the texts, on the answers that the model has given; None for a single answer."""
    if len(set(answers[::2])) < 2:
        return None
    embeddings = Embeddings.of(cascade.stages[-1].model)
    student = stage_of(Student.fit(taught[::2], answers[::2], embeddings=embeddings))
    outputs = record.outputs.copy()
    outputs[:, 0] = student.outputs(rest, cascade.classes)
    other = Cascade([student, cascade.stages[-1]], cascade.costs)
    return other.certify(replace(record, outputs=outputs), **options)


def _of_more_texts(report: CascadeReport, fewer: CascadeReport | None, taught: int) -> str:
    """Say what more texts would bring, by what twice as many have brought."""
    here = 100 * report.shares[0]
    there = here if fewer is None else 100 * fewer.shares[0]
    more = "more" if here > there + 1 else "little more"
    return (
        f"By {taught // 2} of the texts the student would learn to answer {there:.0f}%, by {taught} it answers "
        f"{here:.0f}%: texts that you add would bring {more}."
    )


def _graphs(stage: Stage, folder: Path) -> Stage:
    """Return a stage as graphs, if it is a model that can be exported; else itself."""
    return (
        stage_of(OnnxModel(onnx(stage.model, folder)))
        if hasattr(stage.model, "export_source")
        else stage
    )


def _facts(report: CascadeReport) -> dict[str, Any]:
    names = (
        "statement",
        "met",
        "observed",
        "speed_up",
        "chosen_on",
        "certified_on",
        "shares",
        "seconds",
    )
    return {name: getattr(report, name) for name in names}


def _rows(report: CascadeReport) -> list[tuple[str, str]]:
    return [
        ("policy", short(report.policy)),
        ("student answers", f"{100 * report.shares[0]:.1f}%"),
        (
            "other answers",
            f"{100 * report.observed:.2f}% of {report.certified_on} texts that chose nothing",
        ),
        ("seconds", f"×{report.speed_up:.2f}, as measured while certifying"),
    ]
