"""The command `check`: is the promise of a folder, or of a threshold, kept on fresh rows?"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from ponder._utils.seals import read_sealed
from ponder.calibration import Stopper, diagnosing
from ponder.cli.answer_rows import AnswerRows
from ponder.cli.options import Columns, Json, Labels, NoHeader, Promised
from ponder.cli.outcome import Outcome
from ponder.cli.queries import read_pools
from ponder.cli.show import show
from ponder.cli.texts import read_rows, read_texts
from ponder.deploy.checking import Checked, check
from ponder.deploy.folders import Opened, OpenedRanker, open
from ponder.errors import ArgumentError
from ponder.statistics.answers import THRESHOLD, CertifiedAnswers
from ponder.statistics.certificate import count
from ponder.statistics.used import Used

__all__ = ["run"]


def run(
    folder: Annotated[
        Path,
        typer.Argument(
            help="A folder of another command, or the file that `ponder certify` wrote."
        ),
    ],
    answers: Annotated[
        Path | None, typer.Argument(help="Fresh answers, to check a file of `ponder certify`.")
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option("--texts", help="Fresh texts, to check a folder; fresh queries for a ranker."),
    ] = None,
    column: Columns = None,
    labels: Labels = None,
    no_header: NoHeader = False,
    disagreement: Promised = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="The model whose answers were promised: a folder or a hub name. "
            "Needed only if the model has moved."
        ),
    ] = None,
    diagnose: Annotated[
        bool, typer.Option("--diagnose", help="Compare also with exits at fixed steps.")
    ] = False,
    json: Json = False,
) -> None:
    """Check the promise of FOLDER on fresh texts.

    Exit code 0: kept, 1: broken, 3: not refuted, 2: a wrong call.

    Example: `ponder check exits --texts fresh.csv`
    """
    if answers is not None:
        judge = _check_threshold
        if isinstance(open(folder), Stopper):
            judge = _check_steps
        raise typer.Exit(judge(folder, answers, as_json=json))
    if texts is None:
        raise ArgumentError(
            "--texts",
            expected="fresh texts for a folder, or fresh answers behind a file of `certify`",
            got="neither",
            remedy="Name a file: --texts new.csv.",
        )
    opened = open(folder)
    if isinstance(opened, OpenedRanker):
        checked = check(opened, read_pools(texts), level=disagreement)
        raise typer.Exit(_show(opened, checked, [], [], as_json=json))
    fresh = read_texts(
        texts, column, labels, header=not no_header, known=opened.columns
    ).without_empty()
    numbers = fresh.numbered(opened.labels)
    model = _reference(opened, reference)
    checked = check(opened, fresh.texts, numbers, reference=model, level=disagreement)
    other = f"{100 * checked.other_answers:.2f}%"
    mean = f"{checked.mean_exit_step:.2f} of {opened.num_steps}"
    rows = [("policy", opened.policy.words()), ("other answers", f"{other}, at mean step {mean}")]
    remarks = []
    if diagnose:
        diagnosis = diagnosing.diagnose(checked.record)
        if numbers is None:
            diagnosis = replace(diagnosis, metric="agreement with full depth")
        remarks.append(diagnosis.verdict)
        rows += _rows_of_steps(checked)
    elif checked.accuracy is not None:
        rows.append(("accuracy", f"{100 * checked.accuracy[-1]:.2f}% at full depth"))
    raise typer.Exit(_show(opened, checked, rows, remarks, as_json=json))


def _check_threshold(file: Path, answers: Path, *, as_json: bool) -> int:
    """Judge the promise of a file of `ponder certify` on fresh rows, and return the exit code.

    The file of fresh rows has the same columns.
    """
    certified = CertifiedAnswers.load(file)
    card = read_sealed(file, THRESHOLD, "threshold").settings
    rows = AnswerRows.read(answers, card["columns"])
    fresh = rows.take(np.flatnonzero(Used.from_dict(card["used"]).fresh(rows.keys)).tolist())
    verdict = certified.check(fresh.answers, fresh.confidences, fresh.references)
    taken = float(certified.takes(fresh.confidences).mean())
    facts = {**vars(verdict), "code": verdict.code, "taken": taken}
    table = [("taken", f"{100 * taken:.1f}% of {len(fresh)} rows")]
    if len(fresh) < len(rows):
        table.append(("left out", f"{count(len(rows) - len(fresh), 'row')} that certified"))
    show(Outcome(facts, [verdict.sentence], table), as_json=as_json)
    return verdict.code


def _check_steps(file: Path, answers: Path, *, as_json: bool) -> int:
    """Judge the promise of a file of `ponder certify --steps`, and return the exit code.

    The file of fresh items has the same columns, and the whole budget of each item.
    """
    stopper = Stopper.load(file)
    verdict = stopper.check(read_rows(answers, "ANSWERS"))
    table = [("promise", stopper.statement), ("stop at", stopper.policy.words())]
    facts = {**vars(verdict), "code": verdict.code}
    show(Outcome(facts, [verdict.sentence], table), as_json=as_json)
    return verdict.code


def _rows_of_steps(checked: Checked) -> list[tuple[str, str]]:
    """Return a row of the table for each step: other answers, and accuracies if known."""
    rows = []
    for step, share in enumerate(checked.by_step.tolist(), 1):
        words = f"{100 * share:.2f}% other answers"
        if checked.accuracy is not None:
            words += f", accuracy {100 * checked.accuracy[step - 1]:.2f}%"
        rows.append((f"step {step}", words))
    return rows


def _show(
    opened: Opened | OpenedRanker,
    checked: Checked,
    rows: list[tuple[str, str]],
    remarks: list[str],
    *,
    as_json: bool,
) -> int:
    """Print the verdict, and return its exit code."""
    verdict = checked.verdict
    if verdict is None:
        raise ArgumentError(
            "--disagreement",
            expected="a level to judge by, since nothing is promised here",
            got="none",
            remedy="Pass --disagreement 0.02, say.",
        )
    unit = "text" if isinstance(opened, Opened) else "query"
    accuracy = None
    if checked.accuracy is not None:
        accuracy = checked.accuracy.tolist()
    judged_by = count(checked.rows, unit)
    if checked.left_out:
        judged_by += f"; {checked.left_out} that taught, chose or certified are left out"
    table = [("promise", opened.statement), ("judged by", judged_by), *rows]
    facts = {
        **vars(verdict),
        "code": verdict.code,
        "verdict": verdict.name,
        "other_answers": checked.other_answers,
        "mean_exit_step": checked.mean_exit_step,
        "rows": checked.rows,
        "left_out": checked.left_out,
        "by_step": checked.by_step.tolist(),
        "accuracy": accuracy,
        "remarks": remarks,
    }
    show(Outcome(facts, [verdict.sentence, *remarks], table), as_json=as_json)
    return verdict.code


def _reference(opened: Opened, named: str | None) -> object:
    """Return the model whose answers were promised; None if `check` finds it by the folder.

    Args:
        opened: The folder.
        named: A folder or a hub name; None if the caller named none.
    """
    if named is None:
        recorded = opened.card.get("reference") or {}
        if opened.needs_reference and recorded.get("hub"):
            named = recorded["path"]
    if named is None or Path(named).is_dir():
        return named
    # Models on the hub are read by Transformers, which exports do without.
    reading = import_module("ponder.integrations.transformers.reading")
    return reading.read_stage(named)
