"""The command `cascade`: a student in front of a classifier, with a promise; and the export of such a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ponder._utils.files import replace_text
from ponder._utils.rows import content_ids, split
from ponder._utils.seeds import uniform
from ponder.calibration.records import Record
from ponder.cascade import Cascade, CascadeReport, Embeddings, Student
from ponder.cascade.stages import Stage, read_stage, stage_of
from ponder.cli.folders import heads_saw, open_folder
from ponder.cli.output import CARD, probe_folder, short, show
from ponder.cli.report import write_report
from ponder.cli.texts import count, read_texts
from ponder.deploy.export import OnnxModel, onnx, quantized
from ponder.policies.base import LastStep
from ponder.policies.combine import Certified

__all__ = ["export", "run"]

_CERTIFY = 0.4  # of the texts, to choose and certify; the others teach the student
_RANGES = 256  # texts, by which int8 fixes the ranges of activations


def run(
    model: Path,
    texts: Path,
    out: Path,
    reading: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    teach: Path | None = None,
    as_json: bool,
) -> None:
    """Teach a student the model's answers on texts, and on those of `teach`; certify and write the cascade."""
    probe_folder(out, "cascade", model)
    found, stage = read_texts(texts, **reading).without_empty(), read_stage(model)
    more = [] if teach is None else list(dict.fromkeys(read_texts(teach, **reading).without_empty().texts))
    given = list(dict.fromkeys(found.texts))
    taught, rest, below = _sides(stage, given)
    taught = list(dict.fromkeys([*taught, *more]))
    rest = [text for text in rest if text not in set(more)]
    classes = stage.classes or ()
    answers = [classes[n] for n in stage.probabilities(taught, classes, _full(stage)).argmax(1)]
    embeddings = _embeddings(stage.model)
    student = Student.fit(taught, answers, embeddings=embeddings)
    cascade = Cascade([student, stage])
    record = cascade.record(rest)
    report = cascade.certify(record, **options)
    cascade.save(out)
    differ = len(set(answers[::2])) > 1
    fewer = Student.fit(taught[::2], answers[::2], embeddings=embeddings) if differ else student
    said = _of_more_texts(report, _with_student(cascade, record, fewer, rest, options), len(taught))
    facts = _facts(report) | {"taught_below": below, "taught_by_half": said}
    card = {"command": "cascade", "columns": list(found.columns), **facts}
    replace_text(out / CARD, json.dumps(card, indent=1) + "\n")
    sides = f"teach {len(taught)}, choose {report.chosen_on}, certify {report.certified_on}"
    rows = [("texts", f"{count(len(taught) + len(rest), 'text')}: {sides}"), *_rows(report)]
    sentences, title = [report.statement, said], f"A student in front of {model.name}"
    level = report.policy.level if isinstance(report.policy, Certified) else None
    write_report(
        out / "report.html",
        title,
        sentences,
        rows,
        record,
        report.policy,
        rest,
        cascade.classes,
        level=level,
        step="stage",
    )
    show(card, sentences, [*rows, ("written to", f"{out} (report.html)")], as_json=as_json)


def export(
    folder: Path, out: Path, texts: Path | None, reading: Mapping[str, Any], level: float | None, confidence: float
) -> tuple[dict[str, Any], str, list[tuple[str, str]]]:
    """Write a cascade whose models are ONNX graphs, so that it runs without PyTorch.

    Where `texts` are given, the last stage is in int8, and certified anew on them; `level` is what the folder promises
    where None. Returns facts for the card, a sentence, and rows of the table.
    """
    made = open_folder(folder)
    cascade: Cascade = made.model
    with TemporaryDirectory() as scratch:
        stages = [_graphs(stage, Path(scratch) / str(n)) for n, stage in enumerate(cascade.stages)]
        small = Cascade(stages, cascade.costs, policy=cascade.policy, classes=cascade.classes)
        said, facts, rows = "Answers are those of the folder, within 1e-4.", dict[str, Any](), list[tuple[str, str]]()
        if texts is not None:
            fresh = made.fresh(read_texts(texts, **reading, known=made.columns).without_empty(), 50).texts
            ranges = [fresh[n] for n in split(fresh, (1 / 3, 2 / 3))[0][:_RANGES]]  # of those that choose
            last = OnnxModel(quantized(stages[-1].folder or folder, Path(scratch) / "int8", calibration=ranges))
            small = Cascade([*stages[:-1], last], classes=cascade.classes)
            promised = made.policy.level if isinstance(made.policy, Certified) else 0.02
            whole = cascade.stages[-1]
            report = small.certify(
                fresh,
                level=level or promised,
                confidence=confidence,
                reference=lambda asked: whole.probabilities(asked, cascade.classes, _full(whole)),
            )
            said, facts, rows = report.statement, _facts(report), _rows(report)
        small.save(out)
    return facts | {"taught_below": getattr(made, "taught_below", -1.0)}, said, rows


def _sides(stage: Stage, given: list[str]) -> tuple[list[str], list[str], float]:
    """Return texts that teach, texts that choose and certify, and the greatest number of those that teach.

    Texts that taught the early heads of the model teach, since they must not certify.
    """
    seen, numbers = heads_saw(stage.model, given), uniform(0, content_ids(given))
    below = float(np.quantile(numbers, max(1.0 - _CERTIFY / max(1.0 - seen.mean(), _CERTIFY), 0.0)))
    teaches = seen | (numbers <= below)
    sides = ([text for text, own in zip(given, teaches, strict=True) if own == side] for side in (True, False))
    teach, rest = sides
    return teach, rest, below


def _with_student(
    cascade: Cascade, record: Record, student: Student, texts: Sequence[str], options: Mapping[str, Any]
) -> CascadeReport:
    """Certify the cascade with another student, on the answers that the model has given."""
    other, outputs = Cascade([student, cascade.stages[-1]], cascade.costs), record.outputs.copy()
    outputs[:, 0] = np.log(np.maximum(other.stages[0].probabilities(texts, cascade.classes), 1e-12))
    return other.certify(replace(record, outputs=outputs), **options)


def _of_more_texts(report: CascadeReport, fewer: CascadeReport, taught: int) -> str:
    """Say what more texts would bring, by what twice as many have brought."""
    here, there = 100 * report.shares[0], 100 * fewer.shares[0]
    more = "more" if here > there + 1 else "little more"
    return (
        f"By {taught // 2} of the texts the student would learn to answer {there:.0f}%, by {taught} it answers "
        f"{here:.0f}%: texts that you add would bring {more}."
    )


def _graphs(stage: Stage, folder: Path) -> Stage:
    """Return a stage as graphs, if it is a model that can be exported; else itself."""
    if not hasattr(stage.model, "export_source"):
        return stage
    return stage_of(OnnxModel(onnx(stage.model, folder)))


def _full(stage: Stage) -> LastStep | None:
    return LastStep() if stage.num_steps > 1 else None


def _facts(report: CascadeReport) -> dict[str, Any]:
    names = ("statement", "met", "observed", "speed_up", "chosen_on", "certified_on")
    return {name: getattr(report, name) for name in names} | {
        "shares": list(report.shares),
        "seconds": list(report.seconds),
    }


def _rows(report: CascadeReport) -> list[tuple[str, str]]:
    return [
        ("policy", short(getattr(report.policy, "policy", report.policy))),
        ("student answers", f"{100 * report.shares[0]:.1f}%"),
        ("other answers", f"{100 * report.observed:.2f}% of {report.certified_on} texts that chose nothing"),
        ("seconds", f"×{report.speed_up:.2f}, as measured while certifying"),
    ]


def _embeddings(model: Any) -> Embeddings | None:
    """The input embeddings of a model of Transformers with a fast tokenizer."""
    fast = getattr(getattr(model, "tokenizer", None), "backend_tokenizer", None)
    if fast is None or not hasattr(model, "encoder"):
        return None
    weights = model.encoder.get_input_embeddings().weight.detach().float().numpy()
    return Embeddings(fast.to_str(), np.ascontiguousarray(weights))
