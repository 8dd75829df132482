"""The command `check`: is the promise of a folder kept on fresh rows?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from ponder.calibration import diagnose
from ponder.calibration.statement import count, in_words
from ponder.cli.outcome import Outcome
from ponder.cli.rerank import read_pools
from ponder.cli.show import show
from ponder.cli.texts import read_texts
from ponder.deploy.checking import Checked, check
from ponder.deploy.folders import Opened, OpenedRanker, open
from ponder.errors import ArgumentError

__all__ = ["run"]


def run(
    folder: Path,
    texts: Path,
    reading: Mapping[str, Any],
    *,
    level: float | None,
    reference: str | None,
    diagnosed: bool,
    as_json: bool,
) -> int:
    """Judge the promise of a folder on rows that made nothing of it, and return the exit code."""
    opened = open(folder)
    if isinstance(opened, OpenedRanker):
        checked = check(opened, read_pools(texts), level=level)
        return _show(opened, checked, [], [], as_json=as_json)
    found = read_texts(texts, **reading, known=opened.columns).without_empty()
    labels = found.numbered(opened.labels)
    model = _reference(opened, reference)
    checked = check(opened, found.texts, labels, reference=model, level=level)
    other = f"{100 * checked.other_answers:.2f}%"
    mean = f"{checked.mean_exit_step:.2f} of {opened.num_steps}"
    rows = [("policy", in_words(opened.policy)), ("other answers", f"{other}, at mean step {mean}")]
    remarks = []
    if diagnosed:
        diagnosis = diagnose(checked.record)
        if labels is None:
            diagnosis = replace(diagnosis, metric="agreement with full depth")
        remarks.append(diagnosis.verdict)
        for step, share in enumerate(checked.by_step.tolist(), 1):
            score = ""
            if checked.accuracy is not None:
                score = f", accuracy {100 * checked.accuracy[step - 1]:.2f}%"
            rows.append((f"step {step}", f"{100 * share:.2f}% other answers{score}"))
    elif checked.accuracy is not None:
        rows.append(("accuracy", f"{100 * checked.accuracy[-1]:.2f}% at full depth"))
    return _show(opened, checked, rows, remarks, as_json=as_json)


def _show(
    opened: Opened | OpenedRanker,
    checked: Checked,
    rows: list[tuple[str, str]],
    remarks: list[str],
    *,
    as_json: bool,
) -> int:
    verdict = checked.verdict
    if verdict is None:
        expected = "a level to judge by, since nothing is promised here"
        raise ArgumentError(
            "--disagreement", expected=expected, got="none", remedy="Pass --disagreement 0.02, say."
        )
    used = ""
    if checked.left_out:
        used = f"; {checked.left_out} that taught, chose or certified are left out"
    unit = "text" if isinstance(opened, Opened) else "query"
    table = [("promise", opened.statement), ("judged by", count(checked.rows, unit) + used), *rows]
    facts = {
        **vars(verdict),
        "code": verdict.code,
        "verdict": verdict.name,
        "other_answers": checked.other_answers,
        "mean_exit_step": checked.mean_exit_step,
        "rows": checked.rows,
        "left_out": checked.left_out,
        "by_step": checked.by_step.tolist(),
        "accuracy": None if checked.accuracy is None else checked.accuracy.tolist(),
        "remarks": remarks,
    }
    show(Outcome(facts, [verdict.sentence, *remarks], table), as_json=as_json)
    return verdict.code


def _reference(opened: Opened, named: str | None) -> Any:
    """Return the model whose answers are to be kept; None if the folder itself knows it."""
    remembered = opened.card.get("reference") or {}
    if named is None:
        hub = opened.needs_reference and remembered.get("hub")
        named = remembered["path"] if hub else None
    if named is None or Path(named).is_dir():
        return named
    reading = import_module("ponder.integrations.transformers.reading")
    return reading.read_stage(named)  # by its name on the hub
