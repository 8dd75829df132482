"""The command `doctor`: do exits pay here, which policy, or which fixed step?"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import typer

from ponder._utils.columns import EXITS_REPORT
from ponder._utils.files import read_json
from ponder.analysis.diagnosing import diagnose
from ponder.analysis.diagnosis import Diagnosis
from ponder.calibration import AgreementCurve, agreement_curves
from ponder.calibration.reference import full_depth
from ponder.cli.telling import BATCH, quiet, say_left_out, short, tell
from ponder.cli.texts import read_texts_for
from ponder.errors import ArgumentError
from ponder.integrations.transformers import FinetunedClassifier
from ponder.integrations.transformers.exits import are_known, distinct
from ponder.integrations.transformers.tokenizing import load_tokenizer, max_positions, tokenize
from ponder.trajectory import Trajectory

__all__ = ["run"]

_LEVEL = 0.01


def run(folder: Path, texts: Path, columns: Sequence[str], labels: str | None, *, as_json: bool) -> None:
    """Say what `ponder.diagnose` finds on texts that the folder's heads did not learn from.

    Args:
        folder: What `ponder exits` wrote.
        texts: The file of texts.
        columns: Names of the columns with the texts; found in the file where empty.
        labels: The column with labels, where there is one; without, answers are held against full depth.
        as_json: Print JSON instead of a page.
    """
    quiet()
    made, tokenizer = FinetunedClassifier.from_pretrained(folder), load_tokenizer(str(folder))
    found = read_texts_for(folder, texts, columns, labels)
    kept = found.without_empty()
    encoded = tokenize(tokenizer, kept.rows, max_positions(made))
    say_left_out(found, encoded, left_out=True)
    rows, known = unseen(made, kept.labelled(encoded.rows, made.config.id2label))
    with torch.no_grad():
        seen = made.record(rows, batch_size=BATCH, progress=sys.stderr.isatty())
    if labels is None:
        diagnosis = replace(diagnose(_against_full_depth(seen)), metric="agreement with full depth")
    else:
        diagnosis = diagnose(seen)
    curves = agreement_curves(seen, own_full_depth=True)
    fixed = next(curve for curve in curves if curve.policy == "fixed step")
    step = _earliest(fixed)
    card = {
        **diagnosis.to_dict(),
        "rows": len(rows),
        "left_out_as_learned_from": known,
        "score_is": "accuracy" if labels is not None else "agreement with full depth",
        "fixed_step": step,
        "policy": repr(made.policy),
    }
    against = "Accuracy by the labels." if labels is not None else "Scores are agreement with full depth (no labels)."
    lines = [diagnosis.verdict, "", f"{against} {len(rows)} texts, {known} more, which heads may know, left out.", ""]
    steps = [*_steps(diagnosis if labels is not None else None, fixed, step, made), *_seconds(folder)]
    tell(card, [*lines, *_gains(diagnosis), ""], steps, as_json=as_json)


def unseen(made: FinetunedClassifier, rows: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], int]:
    """The distinct rows that the heads did not learn from, and how many they did.

    Raises:
        ArgumentError: They learned from all of them.
    """
    once = distinct(rows, made.split)
    known = are_known(made, once).tolist()
    kept = [row for row, seen in zip(once, known, strict=True) if not seen]
    if not kept:
        raise ArgumentError(
            "texts", expected="some that the heads did not learn from", got="none", remedy="Pass more texts."
        )
    return kept, sum(known)


def _against_full_depth(seen: Trajectory) -> Trajectory:
    """The run with its own answers at full depth as labels; texts without one, NaN, are left out, and counted."""
    answered = seen.answered()[:, -1]
    if nothing := int((~answered).sum()):
        typer.echo(f"{nothing} texts have no answer at full depth (NaN): scores leave them out.", err=True)
        seen = seen.map(lambda t: t[answered])
    return replace(seen, labels=full_depth(seen))


def _earliest(fixed: AgreementCurve) -> int:
    """The earliest step at which all rows could leave with a promise of 1%."""
    return min(
        int(v)
        for v, promise in zip(fixed.values, fixed.promise, strict=True)
        if promise <= _LEVEL or v == max(fixed.values)
    )


def _gains(diagnosis: Diagnosis) -> list[str]:
    """Policy against leaving blindly, in 80 columns."""
    lines = [f"{'in steps':<9}{'best policy':<32}{'score':<7}{'blind':<7}gain [95% interval]"]
    for gain in diagnosis.gains:
        interval = f"{gain.gain:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
        policy = gain.policy if len(gain.policy) < 32 else f"{gain.policy[:30]}…"
        lines.append(f"×{gain.speedup:<8g}{policy:<32}{gain.score:<7.4f}{gain.blind:<7.4f}{interval}")
    return lines


def _seconds(folder: Path) -> list[tuple[str, str]]:
    """What `ponder exits` timed: speed-ups in steps leave out what the exits themselves take."""
    report = folder / EXITS_REPORT
    told = read_json(report).get("speed_up_in_seconds") if report.is_file() else None
    return [] if told is None else [("in seconds", f"×{told:.2f} where its exits were fitted")]


def _steps(
    labelled: Diagnosis | None, fixed: AgreementCurve, step: int, made: FinetunedClassifier
) -> list[tuple[str, str]]:
    lines = []
    for step_of_all, share in sorted(zip(fixed.values, fixed.disagreement, strict=True)):
        score = "" if labelled is None else f"score {labelled.scores[int(step_of_all) - 1]:.4f}, "
        lines.append((f"step {step_of_all:g}", f"{score}other answers than full depth {100 * share:.2f}%"))
    return [
        *lines,
        ("fixed step", f"{step}: the earliest for all texts at ≤ {100 * _LEVEL:g}% other answers (95% confidence)"),
        ("now", short(getattr(made.policy, "policy", made.policy))),
    ]
