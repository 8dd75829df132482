"""The command `predict`: answers beside the columns of a file, written as they come, and gone on with after a stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ponder.calibration.statement import count
from ponder.cli.answers import answer_file
from ponder.cli.outcome import Outcome
from ponder.cli.output import probe_file, progress, say
from ponder.cli.rerank import read_pools
from ponder.cli.show import show
from ponder.cli.texts import Texts, read_texts
from ponder.deploy.folders import Opened, OpenedRanker, open
from ponder.errors import ArgumentError

__all__ = ["UNANSWERED", "run"]

UNANSWERED = 1
"""The exit code if a row has no answer."""
_ANSWERS = ("label", "probability", "exit_step")
_CHUNK = 512  # texts that are written at once
_STDOUT = "-"


def run(
    folder: Path, texts: Path, out: Path, reading: Mapping[str, Any], *, resume: bool, as_json: bool
) -> int:
    """Write the answers to texts, each at its exit, or the orders of a ranker; return the exit code."""
    to_file = str(out) != _STDOUT
    if to_file:
        probe_file(out, [texts, folder])
        _check_new(out, resume=resume)
    opened = open(folder)
    if isinstance(opened, OpenedRanker):
        return _rank(opened, texts, out, as_json=as_json)
    found = read_texts(texts, **reading, known=opened.columns)
    given = list(found.rows[0])
    named = {name: f"predicted_{name}" if name in given else name for name in _ANSWERS}
    file = answer_file(out, [*given, *named.values()])
    kept = file.resume(found.rows) if to_file and out.exists() else 0
    if to_file:
        out.parent.mkdir(parents=True, exist_ok=True)
    steps = list[int]()
    reasons = dict[str, int]()
    with progress() as advance:
        if not kept:
            file.append([], begins=True)
        for start in range(kept, len(found), _CHUNK):
            part = found.take(range(start, min(start + _CHUNK, len(found))))
            rows = _answered(opened, part, named, reasons)
            file.append(rows, begins=False)
            steps += [row[named["exit_step"]] for row in rows]
            advance("answer", kept + len(steps), len(found))
        file.finish()
    unanswered = sum(reasons.values())
    mean = sum(steps) / max(len(steps), 1)
    facts = {
        "answers": len(steps) - unanswered,
        "kept": kept,
        "without_answer": unanswered,
        "reasons": reasons,
        "out": str(out),
        "mean_exit_step": mean,
        "num_steps": opened.num_steps,
    }
    said = (
        f"{count(len(steps), 'answer')} in {out}; mean exit step {mean:.2f} of {opened.num_steps}."
    )
    remarks = [f"{count(kept, 'answer')} more from an earlier run."] if kept else []
    show(Outcome(facts, [said, *remarks]), as_json=as_json, to_stderr=not to_file)
    for reason, number in reasons.items():
        say(f"{count(number, 'text')} without an answer: {reason}. The label is empty.")
    return UNANSWERED if unanswered else 0


def _check_new(out: Path, *, resume: bool) -> None:
    if out.exists() and not resume:
        expected = "a file that is not there yet"
        remedy = "Pass --resume to go on with it, or name another."
        raise ArgumentError("--out", expected=expected, got=str(out), remedy=remedy)


def _answered(
    opened: Opened, found: Texts, named: Mapping[str, str], reasons: dict[str, int]
) -> list[dict[str, Any]]:
    """Return rows with their answers, and count why rows have none."""
    answers = opened.answer(found.texts)
    errors: Mapping[int, Exception] = getattr(answers, "errors", {})
    columns: Sequence[Any] = (answers.labels, answers.probabilities, answers.exit_step)
    rows = []
    for place, (row, label, share, step) in enumerate(zip(found.rows, *columns, strict=True)):
        there = share == share  # NaN is no answer
        cells = (
            label if there else None,
            round(float(share), 4) if there else None,
            int(step),
        )
        rows.append({**row, **dict(zip(named.values(), cells, strict=True))})
        if not there:
            reason = _reason(errors.get(place))
            reasons[reason] = reasons.get(reason, 0) + 1
    return rows


def _reason(error: Exception | None) -> str:
    if error is None:
        return "the model answered NaN"
    return f"{type(error).__name__}: {error}"


def _rank(opened: OpenedRanker, queries: Path, out: Path, *, as_json: bool) -> int:
    """Write the order of each query's candidates as JSON lines."""
    pools = read_pools(queries)
    file = answer_file(out, ["query", "ranking"])
    rankings = opened.predict(pools)
    rows = [
        {"query": pool.query, "ranking": ranking}
        for pool, ranking in zip(pools, rankings, strict=True)
    ]
    file.append(rows, begins=True)
    file.finish()
    said = f"{count(len(pools), 'ranking')} in {out}."
    outcome = Outcome({"queries": len(pools), "out": str(out)}, [said])
    show(outcome, as_json=as_json, to_stderr=str(out) == _STDOUT)
    return 0
