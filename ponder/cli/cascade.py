"""The command `cascade`: a student in front of a classifier, with a promise."""

from __future__ import annotations

from pathlib import Path

from ponder._utils.rows import Text
from ponder.calibration.cascades import CascadeReport
from ponder.cascade.teaching import Taught, teach
from ponder.cli.outcome import Outcome, usage_of
from ponder.cli.output import Options, new_folder, probe_folder
from ponder.cli.report import changed_texts, policy_figure, student_figure
from ponder.cli.show import keep, show
from ponder.cli.texts import read_texts
from ponder.deploy.folders import remember
from ponder.deploy.used import Used
from ponder.statistics.certificate import count

__all__ = ["facts_of", "rows_of", "run"]

_FACTS = ("met", "observed", "speed_up", "chosen_on", "certified_on", "shares", "seconds")


def run(
    model: Path,
    texts: Path,
    more: Path | None,
    out: Path,
    reading: Options,
    options: Options,
    *,
    as_json: bool,
) -> None:
    """Teach a student the answers of a model, certify the cascade, and write it.

    Args:
        model: The folder of the model.
        texts: The file of texts.
        more: A file of texts that only teach.
        out: The folder to write.
        reading: Arguments of `read_texts`.
        options: Arguments of `ponder.cascade.teaching.teach`.
        as_json: Whether to print JSON.
    """
    probe_folder(out, "cascade", model)
    found = read_texts(texts, **reading).without_empty()
    only_teach: list[Text] = []
    if more is not None:
        only_teach = read_texts(more, **reading).without_empty().texts
    before = Used.read(model)
    must_teach = before.have_taught(found.texts)
    made = teach(model, found.texts, only_teach, must_teach=must_teach, **options)
    report = made.report
    level = options["level"] if report.met else None
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
    show(outcome, as_json=as_json)


def facts_of(report: CascadeReport) -> dict[str, object]:
    """Return the results of certifying a cascade, as plain values."""
    return {name: getattr(report, name) for name in _FACTS}


def rows_of(report: CascadeReport) -> list[tuple[str, str]]:
    """Return the results of certifying a cascade, as rows of the table."""
    observed = f"{100 * report.observed:.2f}% of {report.certified_on} texts that chose nothing"
    return [
        ("policy", report.policy.words()),
        ("student answers", f"{100 * report.shares[0]:.1f}%"),
        ("other answers", observed),
        ("seconds", f"×{report.speed_up:.2f}, as measured while certifying"),
    ]


def _remarks(made: Taught) -> list[str]:
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
