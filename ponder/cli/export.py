"""The command `export`: a folder as ONNX graphs, and a new certificate after int8."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ponder._utils.rows import Text
from ponder.cascade import Cascade
from ponder.cascade.teaching import stages_statement
from ponder.cli.cascade import facts_of, rows_of
from ponder.cli.outcome import Outcome, usage_of
from ponder.cli.output import Options, new_folder, probe_folder, progress
from ponder.cli.rerank import export_ranker, is_ranker
from ponder.cli.show import keep, show
from ponder.cli.texts import read_texts
from ponder.deploy.export import onnx
from ponder.deploy.folders import Opened, open_folder, remember
from ponder.deploy.int8 import cascade_onnx, certified_int8
from ponder.deploy.runtime import OnnxModel
from ponder.deploy.used import Used
from ponder.errors import ArgumentError
from ponder.statistics.certificate import LEVEL

__all__ = ["run"]

_PRODUCTS = {"some": "in int8, but for those that narrow", "all": "in int8"}
_SAME = "Answers and exits are those of the folder, within rounding."


def run(
    folder: Path,
    out: Path,
    texts: Path | None,
    reading: Options,
    *,
    int8: bool,
    disagreement: float | None,
    confidence: float,
    as_json: bool,
) -> None:
    """Write an export of a folder; int8 needs texts, on which its policy is certified again."""
    if int8 == (texts is None):
        raise ArgumentError(
            "--texts",
            expected="a file of texts with --int8, which changes answers, so that the policy is "
            "chosen again; without --int8, no file",
            got=str(texts),
            remedy="Pass --int8 --texts FILE, or neither.",
        )
    probe_folder(out, "export", folder)
    if is_ranker(folder):
        export_ranker(folder, out, texts, as_json=as_json)
        return
    opened = open_folder(folder)
    if isinstance(opened.model, OnnxModel):
        expected = "a folder that is in PyTorch"
        remedy = "Export the folder from which it was made."
        raise ArgumentError("FOLDER", expected=expected, got="an export", remedy=remedy)
    rows: list[Text] | None = None
    used = opened.used
    if texts is not None:
        read = read_texts(texts, **reading, known=opened.columns).without_empty()
        taught = opened.used.have_taught(read.texts)
        rows = read.take(np.flatnonzero(~taught).tolist()).texts
        used = used | Used.of(read.texts)
    level = LEVEL
    if disagreement is not None:
        level = disagreement
    elif opened.promise is not None:
        level = opened.promise.level
    write = _write_cascade if isinstance(opened.model, Cascade) else _write_model
    with new_folder(out) as new:
        outcome = write(opened, new, rows, level, confidence)
        used.write(new)
        outcome = keep(_outcome(outcome, opened, new, out, int8=int8), new, out)
    show(outcome, as_json=as_json)


def _outcome(outcome: Outcome, opened: Opened, new: Path, out: Path, *, int8: bool) -> Outcome:
    """Return the outcome of an export with the facts of its folder."""
    size = sum(path.stat().st_size for path in new.rglob("*") if path.is_file()) / 1e6
    statement = opened.statement
    reference = opened.card.get("reference")
    if int8:
        statement = outcome.sentences[0]
        reference = remember(opened.folder, out)
    facts = {
        "command": "export",
        "int8": int8,
        "columns": list(opened.columns),
        "statement": statement,
        "megabytes": size,
        "num_steps": opened.num_steps,
        "reference": reference,
        **outcome.facts,
    }
    table = [("int8", "yes" if int8 else "no"), *outcome.rows, ("size", f"{size:.1f} MB")]
    title = f"{opened.folder.name} as ONNX graphs"
    usage = usage_of(out, torch=False)
    return Outcome(facts, outcome.sentences, table, title=title, usage=usage)


def _write_model(
    opened: Opened, out: Path, texts: list[Text] | None, level: float, confidence: float
) -> Outcome:
    """Write a model with exits."""
    if texts is None:
        onnx(opened.model, out)
        return Outcome({"policy": opened.policy.words()}, [_SAME])
    # Texts that chose for the folder choose for its export, too: the split has the same seed.
    seed = (opened.model.config.exits or {}).get("seed", 0)
    with progress() as advance:
        made = certified_int8(
            opened.model,
            out,
            texts,
            level=level,
            confidence=confidence,
            seed=seed,
            progress=advance,
        )
    found = made.found
    clock = made.clock
    speed = f"×{clock.median:.2f} ({clock.low:.2f}–{clock.high:.2f}) over PyTorch at full depth"
    rows = [
        ("products", _PRODUCTS[made.products]),
        ("texts", f"{made.chosen_on} choose, {made.certified_on} certify"),
        ("policy", found.policy.words()),
        ("other answers", f"{100 * found.observed:.2f}%, at full depth {100 * made.moved:.2f}%"),
        ("steps", f"{found.mean_exit_step:.2f} of {made.model.num_steps}"),
        ("seconds", speed),
    ]
    facts = {
        "met": found.met,
        "level": level if found.met else None,
        "confidence": confidence,
        "other_answers": found.observed,
        "moved": made.moved,
        "mean_exit_step": found.mean_exit_step,
        "speed_up_in_seconds": [clock.low, clock.median, clock.high],
        "policy": found.policy.words(),
    }
    return Outcome(facts, [made.statement], rows)


def _write_cascade(
    opened: Opened, out: Path, texts: list[Text] | None, level: float, confidence: float
) -> Outcome:
    """Write a cascade."""
    report = cascade_onnx(opened.model, out, texts, level=level, confidence=confidence)
    if report is None:
        return Outcome({}, [_SAME])
    statement = stages_statement(report, level, confidence, "the model before int8")
    return Outcome(facts_of(report), [statement], rows_of(report))
