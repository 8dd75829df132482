"""The command `check`: is the promise of a folder kept on fresh rows?"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

from ponder.calibration import diagnose
from ponder.cli.outcome import Outcome
from ponder.cli.output import Options
from ponder.cli.rerank import read_pools
from ponder.cli.show import show
from ponder.cli.texts import read_texts
from ponder.deploy.checking import Checked, check
from ponder.deploy.folders import Opened, OpenedRanker, open
from ponder.errors import ArgumentError
from ponder.statistics.certificate import count

__all__ = ["run"]


def run(
    folder: Path,
    texts: Path,
    reading: Options,
    *,
    level: float | None,
    reference: str | None,
    diagnosed: bool,
    as_json: bool,
) -> int:
    """Judge the promise of a folder on rows that neither taught, chose nor certified.

    Args:
        folder: The folder.
        texts: The file of fresh texts, or of fresh queries for a ranker.
        reading: Arguments of `read_texts`.
        level: The level to judge; by default the one that is promised.
        reference: The model whose answers were promised; by default the one that the folder names.
        diagnosed: Whether to compare with blind choices too.
        as_json: Whether to print JSON.

    Returns:
        The exit code of the verdict.
    """
    opened = open(folder)
    if isinstance(opened, OpenedRanker):
        checked = check(opened, read_pools(texts), level=level)
        return _show(opened, checked, [], [], as_json=as_json)
    fresh = read_texts(texts, **reading, known=opened.columns).without_empty()
    labels = fresh.numbered(opened.labels)
    model = _reference(opened, reference)
    checked = check(opened, fresh.texts, labels, reference=model, level=level)
    other = f"{100 * checked.other_answers:.2f}%"
    mean = f"{checked.mean_exit_step:.2f} of {opened.num_steps}"
    rows = [("policy", opened.policy.words()), ("other answers", f"{other}, at mean step {mean}")]
    remarks = []
    if diagnosed:
        diagnosis = diagnose(checked.record)
        if labels is None:
            diagnosis = replace(diagnosis, metric="agreement with full depth")
        remarks.append(diagnosis.verdict)
        rows += _rows_of_steps(checked)
    elif checked.accuracy is not None:
        rows.append(("accuracy", f"{100 * checked.accuracy[-1]:.2f}% at full depth"))
    return _show(opened, checked, rows, remarks, as_json=as_json)


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
