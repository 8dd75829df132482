"""The command `cascade`: a student in front of a classifier, with a promise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ponder._utils.rows import Text
from ponder.cascade import teaching
from ponder.cli.cascade_report import facts_of, rows_of
from ponder.cli.options import Columns, Confidence, Json, Level, NoHeader, Out, TextsFile
from ponder.cli.outcome import Outcome, usage_of
from ponder.cli.output import new_folder, probe_folder
from ponder.cli.report import changed_texts, policy_figure, student_figure
from ponder.cli.show import keep, show
from ponder.cli.texts import read_texts
from ponder.deploy.folders import remember
from ponder.statistics.certificate import CONFIDENCE, LEVEL, count
from ponder.statistics.used import Used

__all__ = ["run"]


def run(
    model: Annotated[
        Path,
        typer.Argument(
            help="The folder of a classifier, of exits or of an export.", metavar="MODEL"
        ),
    ],
    texts: TextsFile,
    out: Out,
    teach: Annotated[
        Path | None,
        typer.Option(
            help="A file of texts that only train the student, for example MODEL's training texts."
        ),
    ] = None,
    column: Columns = None,
    no_header: NoHeader = False,
    disagreement: Level = LEVEL,
    confidence: Confidence = CONFIDENCE,
    json: Json = False,
) -> None:
    """Train a cheap student on MODEL's answers, and let it answer the texts of which it is certain.

    Its threshold is certified.

    Example: `ponder cascade my-model --texts traffic.csv --out cascade`
    """
    probe_folder(out, "cascade", model)
    found = read_texts(texts, column, header=not no_header).without_empty()
    more: list[Text] = []
    if teach is not None:
        more = read_texts(teach, column, header=not no_header).without_empty().texts
    before = Used.read(model)
    must_teach = before.have_taught(found.texts)
    made = teaching.teach(
        model,
        found.texts,
        more,
        must_teach=must_teach,
        level=disagreement,
        confidence=confidence,
    )
    report = made.report
    level = disagreement if report.met else None
    sides = f"teach {len(made.taught)}, choose {report.chosen_on}, certify {report.certified_on}"
    rows = [("texts", f"{count(len(found), 'text')}: {sides}"), *rows_of(report)]
    draw = policy_figure
    if made.record.num_steps == 2:  # the student, and the model as one step
        draw = student_figure
    facts = {
        "command": "cascade",
        "columns": list(found.columns),
        "statement": made.statement,
        "share_by_half": made.by_half,
        "reference": remember(model, out),
        **facts_of(report),
    }
    outcome = Outcome(
        facts,
        [made.statement, *_remarks(made)],
        rows,
        figure=draw(made.record, report.policy, level),
        tables=[
            changed_texts(made.record, report.policy, made.rest, made.cascade.classes, "stage")
        ],
        title=f"A student in front of {model.name}",
        usage=usage_of(out),
    )
    with new_folder(out) as new:
        made.cascade.save(new)
        (before | Used.of([*made.taught, *made.rest], taught=made.taught)).write(new)
        outcome = keep(outcome, new, out)
    show(outcome, as_json=json)


def _remarks(made: teaching.Taught) -> list[str]:
    """Return the gain of more texts, or that the student replaces the model.

    The gain is judged by what the second half of the texts has brought.
    """
    by_all = 100 * made.report.shares[0]
    if by_all >= 100.0:
        return ["The student answers every text: you no longer need the model."]
    by_half = by_all
    if made.by_half is not None:
        by_half = 100 * made.by_half
    more = "more" if by_all > by_half + 1 else "little more"
    texts = len(made.taught)
    return [
        f"By {texts // 2} of the texts the student would learn to answer {by_half:.0f}%, "
        f"by {texts} it answers {by_all:.0f}%: texts that you add would bring {more}."
    ]
