"""The command `export`: a folder as ONNX graphs, whose policy is chosen and certified again after int8."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ponder._utils.rounding import rounded_down, rounded_up
from ponder._utils.rows import class_numbers, content_ids, split
from ponder.advice.race import in_int8
from ponder.calibration import RiskControl, certify
from ponder.calibration.agreement import most_failures
from ponder.calibration.bounds import upper_bound
from ponder.calibration.cost import wall_clock
from ponder.calibration.records import Record
from ponder.calibration.risks import OtherAnswers
from ponder.cascade import Cascade
from ponder.cli.cascade import export as export_cascade
from ponder.cli.folders import Folder, open_folder
from ponder.cli.output import probe_folder, progress, short, show
from ponder.cli.rerank import export_ranker, is_ranker
from ponder.cli.texts import read_texts
from ponder.deploy.export import onnx
from ponder.deploy.runtime import OnnxModel
from ponder.errors import ArgumentError
from ponder.policies.base import LastStep

__all__ = ["run"]

_TIMED = _RANGES = 256  # texts, at most
_FEWEST = 50
_PRODUCTS = {"some": "in int8, but for those that narrow", "all": "in int8"}


def run(
    folder: Path,
    out: Path,
    texts: Path | None,
    reading: Mapping[str, Any],
    *,
    int8: bool,
    disagreement: float | None,
    confidence: float,
    as_json: bool,
) -> None:
    """Write an export; in int8, with a policy that is chosen and certified against the folder's full depth."""
    if int8 == (texts is None):
        expected = "a file of texts with --int8, which moves answers, so that the policy is chosen again; else none"
        remedy = "Pass --int8 --texts FILE, or neither."
        raise ArgumentError("--texts", expected=expected, got=str(texts), remedy=remedy)
    probe_folder(out, "export", folder)
    if is_ranker(folder):
        export_ranker(folder, out, texts, as_json=as_json)
        return
    made, fresh = open_folder(folder), None
    if isinstance(made.model, OnnxModel):
        remedy = "Export the folder that it was made of."
        raise ArgumentError(
            "FOLDER", expected="a folder that `ponder exits` wrote", got="an export", remedy=remedy
        )
    if texts is not None:
        fresh = made.fresh(
            read_texts(texts, **reading, known=made.columns).without_empty(), _FEWEST
        ).texts
    of_cascade = isinstance(made.model, Cascade)
    usual = 0.02 if of_cascade else 0.01
    level = disagreement or (usual if made.promise is None else made.promise.level)
    said, rows, facts = (export_cascade if of_cascade else _export)(
        made, out, fresh, level, confidence
    )
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    card = {
        "command": "export",
        "int8": int8,
        "columns": made.columns,
        "statement": said,
        "megabytes": size,
    }
    rows = [("int8", "yes" if int8 else "no"), *rows, ("size", f"{size:.1f} MB")]
    show(card | {"num_steps": made.num_steps} | facts, [said], rows, as_json=as_json, out=out)


def _export(
    made: Folder, out: Path, texts: list[Any] | None, level: float, confidence: float
) -> tuple[str, list[tuple[str, str]], dict[str, Any]]:
    """Write a model with exits, and return its promise, rows of the table, and facts for the card."""
    if texts is None:
        onnx(made.model, out)
        return (
            "Exits and answers are those of the folder, within 1e-4.",
            [],
            {"policy": repr(made.policy)},
        )
    seed = (made.model.config.exits or {}).get(
        "seed", 0
    )  # the split of the heads goes on: who chose, chooses
    places = split(content_ids(texts), (1 / 3, 2 / 3), seed)
    full = np.array(class_numbers(made.answer(texts, LastStep()).labels, made.labels))
    most = 0.5 * max(most_failures(len(places[1]), level, confidence), 0) / len(places[1])
    with TemporaryDirectory() as scratch, progress() as advance:
        advance("quantise", 0, 2)
        given = [texts[n] for n in places[0]]
        model = in_int8(
            onnx(made.model, Path(scratch) / "fp32"), given[:_RANGES], given, full[places[0]], most
        )
        advance("quantise", 1, 2)
        choosing, certifying = (
            model.record([texts[n] for n in side], labels=full[side]) for side in places
        )
        found = certify(
            choosing, certifying, risk=OtherAnswers(), level=level, confidence=confidence
        )
        model.policy = found.policy
        model.save(out)
    some, products = texts[:_TIMED], _PRODUCTS[model.folder.name]
    model = OnnxModel(out)
    clock = wall_clock(lambda: made.answer(some, LastStep()), lambda: model.predict(some))
    moved = 1.0 - float(choosing.correct()[:, -1].mean())
    rows = [
        ("products", products),
        ("texts", f"{len(choosing)} choose, {len(certifying)} certify"),
        ("policy", short(found.policy)),
        ("other answers", f"{100 * found.observed:.2f}%, at full depth {100 * moved:.2f}%"),
        ("steps", f"{found.mean_exit_step:.2f} of {model.num_steps}"),
        (
            "seconds",
            f"×{clock.median:.2f} ({clock.low:.2f}–{clock.high:.2f}) over PyTorch at full depth",
        ),
    ]
    card: dict[str, Any] = {
        "met": found.met,
        "level": level if found.met else None,
        "confidence": confidence,
    }
    card |= {
        "other_answers": found.observed,
        "moved": moved,
        "mean_exit_step": found.mean_exit_step,
    }
    card |= {
        "speed_up_in_seconds": [clock.low, clock.median, clock.high],
        "policy": repr(found.policy),
    }
    return _promise(certifying, found), rows, card


def _promise(certifying: Record, found: RiskControl) -> str:
    """Return the promise in words."""
    level, confidence, rows = found.policy.level, found.policy.confidence or 0.0, len(certifying)
    if found.met:
        return (
            f"Answers as the folder does at full depth on all but {rounded_up(100 * level, 3)}% of texts like these, "
            f"with {rounded_down(100 * confidence)}% confidence (certified on {rows} texts that chose nothing)."
        )
    differ = int((~certifying.correct()[:, -1]).sum())
    return (
        f"No promise of {rounded_up(100 * level, 3)}%, so every row runs to the last step: int8 alone answers {differ} "
        f"of {rows} texts otherwise. --disagreement {rounded_up(upper_bound(differ, rows, confidence), 2)} is the "
        "least that it could keep."
    )
