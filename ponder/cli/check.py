"""The command `check`: does the promise of a folder hold on fresh texts, and do exits pay there?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ponder._utils.arrays import namespace
from ponder._utils.rounding import rounded_up
from ponder._utils.rows import class_numbers
from ponder.calibration import diagnose
from ponder.calibration.bounds import binomial_cdf, rows_needed, upper_bound
from ponder.cli.folders import Folder, open_folder
from ponder.cli.output import short, show
from ponder.cli.texts import count, read_texts
from ponder.policies.base import LastStep

__all__ = ["BROKEN", "HOLDS", "TOO_FEW", "Verdict", "judge", "run"]

HOLDS, BROKEN, TOO_FEW = 0, 1, 3
_DIAGNOSED = 20  # texts, at least


class Verdict(NamedTuple):
    """A promise, judged on fresh rows: the exit code, `HOLDS`, `BROKEN` or `TOO_FEW` to say, and the same in words."""

    code: int
    sentence: str


def judge(differ: int, rows: int, level: float, confidence: float) -> Verdict:
    """Judge the promise that at most `level` of the answers differ, by the exact binomial test.

    It is broken where so many differences have a probability of at most 1 − `confidence` while it holds. It is said to
    hold where no more differ than was promised, and there are as many rows as could have certified it.

    Example:
        >>> judge(9, 300, 0.01, 0.95).code, judge(2, 300, 0.01, 0.95).code, judge(0, 20, 0.01, 0.95).code
        (1, 0, 3)
    """
    promised = f"promised: at most {rounded_up(100 * level, 3)}%"
    seen = (
        f"{differ} of {count(rows, 'fresh text')} answered otherwise ({100 * differ / rows:.2f}%)"
    )
    if differ and 1.0 - float(binomial_cdf(rows, level)[differ - 1]) <= 1.0 - confidence:
        return Verdict(BROKEN, f"The promise is broken: {seen}; {promised}.")
    needed = rows_needed(level, confidence)
    if rows < needed or differ > level * rows:
        return Verdict(
            TOO_FEW,
            f"Too few texts to say: {seen}; {promised}. Pass at least {max(needed, 2 * rows)}.",
        )
    most = f"at most {rounded_up(100 * upper_bound(differ, rows, confidence), 3)}%"
    return Verdict(
        HOLDS,
        f"The promise holds: {seen}, with {100 * confidence:g}% confidence {most}; {promised}.",
    )


def run(
    folder: Path,
    texts: Path,
    reading: Mapping[str, Any],
    *,
    level: float | None,
    reference: Path | None,
    as_json: bool,
) -> int:
    """Judge the promise of a folder on texts that taught it nothing, diagnose its exits, and return the exit code."""
    made = open_folder(folder)
    found = read_texts(texts, **reading, known=made.columns).without_empty()
    fresh = made.fresh(found, 1)
    seen, labels = made.model.record(fresh.texts), fresh.numbered(made.labels)
    answers, steps = np.asarray(seen.outputs).argmax(-1), seen.exit_steps(made.policy)
    full, other = answers[:, -1], ~seen.agreement()
    if reference is not None:
        given = open_folder(reference).answer(fresh.texts, LastStep()).labels
        full = np.array(class_numbers(given, made.labels, "--reference"))
        other = answers != full[:, None]
    differs = other[np.arange(len(seen)), steps - 1]
    verdict = _verdict(made, int(differs.sum()), len(seen), level, referred=reference is not None)
    facts = {
        "other_answers": float(differs.mean()),
        "mean_exit_step": float(steps.mean()),
        "texts": len(seen),
    }
    card, said = {"code": verdict.code, "verdict": verdict.sentence, **facts}, [verdict.sentence]
    right = np.array(full if labels is None else labels)
    seen = replace(seen, labels=namespace(seen.outputs).asarray(right))
    if len(seen) >= _DIAGNOSED:
        diagnosis = diagnose(seen)
        if labels is None:
            diagnosis = replace(diagnosis, metric="agreement with full depth")
        said, card = [*said, diagnosis.verdict], {**card, "diagnosis": diagnosis.to_dict()}
    rows = [
        (
            "texts",
            f"{len(seen)} distinct ones, of {len(found)}; those that may have taught the exits are left out",
        ),
        ("policy", short(made.policy)),
        (
            "other answers",
            f"{100 * differs.mean():.2f}%, at mean exit step {steps.mean():.2f} of {made.num_steps}",
        ),
    ]
    scores = [""] * made.num_steps
    if labels is not None:
        scores = [f", accuracy {100 * share:.2f}%" for share in seen.correct().mean(0)]
    for step, (share, score) in enumerate(zip(other.mean(0), scores, strict=True), 1):
        rows.append((f"step {step}", f"{100 * share:.2f}% other answers{score}"))
    show(card, said, rows, as_json=as_json)
    return verdict.code


def _verdict(
    made: Folder, differ: int, rows: int, level: float | None, *, referred: bool
) -> Verdict:
    promise = made.promise
    if promise is None:
        said = "Nothing is promised here: pass --disagreement 0.01, say, to judge it by."
        return Verdict(TOO_FEW, said) if level is None else judge(differ, rows, level, 0.95)
    if promise.risk != "disagreement" and not referred:
        return Verdict(
            TOO_FEW,
            "Its promise is about the answers of the folder before int8: pass --reference FOLDER.",
        )
    return judge(differ, rows, level or promise.level, promise.confidence or 0.95)
