"""The command `export`: a folder of exits as ONNX graphs, whose policy is chosen and certified again after int8."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from ponder._utils.files import replace_text
from ponder._utils.rounding import rounded_down, rounded_up
from ponder._utils.rows import content_ids, split
from ponder.calibration import RiskControl, certify
from ponder.calibration.agreement import most_failures
from ponder.calibration.bounds import upper_bound
from ponder.calibration.cost import wall_clock
from ponder.calibration.risks import OtherAnswers
from ponder.cli.cascade import export as export_cascade
from ponder.cli.folders import CASCADE, Folder, open_folder
from ponder.cli.output import BATCH, CARD, Advance, card_of, probe_folder, progress, short, show
from ponder.cli.rerank import export_ranker, is_ranker
from ponder.cli.texts import read_texts
from ponder.deploy.export import onnx, quantized
from ponder.deploy.runtime import OnnxModel
from ponder.errors import ArgumentError
from ponder.policies.base import LastStep
from ponder.policies.combine import Certified

__all__ = ["run"]

_TIMED = _RANGES = 256  # texts, at most
_FEWEST = 50
_PRODUCTS: dict[Any, str] = {True: "in int8, but for those that narrow", "all": "in int8"}


@dataclass(frozen=True, eq=False)
class _Quantized:
    """An export in int8: its records of the texts that choose and of those that certify, and its promise."""

    model: OnnxModel
    products: Literal[True, "all"]
    choosing: Any
    certifying: Any

    @property
    def moved(self) -> float:
        """The share of the choosing texts that are answered otherwise at full depth."""
        return float(1.0 - self.choosing.correct()[:, -1].mean())


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
    if is_ranker(folder):
        export_ranker(folder, out, texts, int8=int8, as_json=as_json)
        return
    if int8 == (texts is None):
        expected = "a file of texts with --int8, which moves answers, so that the policy is chosen again; else none"
        raise ArgumentError(
            "--texts", expected=expected, got=str(texts), remedy="Pass --int8 --texts FILE, or neither."
        )
    probe_folder(out, "export", folder)
    card: dict[str, Any] = {"command": "export", "int8": int8, "columns": card_of(folder).get("columns", [])}
    rows = [("int8", "yes" if int8 else "no")]
    if (folder / CASCADE).is_file():
        facts, sentence, more = export_cascade(folder, out, texts, reading, disagreement, confidence)
        card, rows = {**card, **facts, "statement": sentence}, [*rows, *more, ("written to", str(out))]
        replace_text(out / CARD, json.dumps(card, indent=1) + "\n")
        show(card, [sentence], rows, as_json=as_json)
        return
    made = open_folder(folder, exits=True)
    said = "Exits and answers are those of the folder, within 1e-4."
    if texts is None:
        onnx(made.model, out)
    else:
        fresh = made.fresh(read_texts(texts, **reading, known=made.columns).without_empty(), _FEWEST).texts
        own = made.policy
        promised = own.level if isinstance(own, Certified) and own.threshold_value is not None else 0.01
        said, table, facts = _write_int8(made, out, fresh, disagreement or promised, confidence)
        rows, card = [*rows, *table.items()], {**card, **facts}
    model = OnnxModel(out)
    model.manifest = replace(model.manifest, columns=tuple(made.columns))
    model.save_policy()
    size = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    card |= {"megabytes": size, "num_steps": model.num_steps, "statement": said, "policy": repr(model.policy)}
    replace_text(out / CARD, json.dumps(card, indent=1) + "\n")
    show(card, [said], [*rows, ("size", f"{size:.1f} MB"), ("written to", str(out))], as_json=as_json)


def _write_int8(
    made: Folder, out: Path, texts: list[Any], level: float, confidence: float
) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Write an export in int8, and return its promise, rows of the table, and facts for the card."""
    with TemporaryDirectory() as scratch, progress() as advance:
        small = _quantized(made, Path(scratch), texts, level, confidence, advance)
        given = small.choosing, small.certifying
        found = certify(*given, risk=OtherAnswers(), level=level, confidence=confidence)
        small.model.policy = found.policy
        small.model.save_policy()
        shutil.copytree(small.model.folder, out, dirs_exist_ok=True)
    some, model = texts[:_TIMED], OnnxModel(out)
    clock = wall_clock(lambda: made.answer(some, LastStep()), lambda: model.predict(some, batch_size=BATCH))
    said, rows = _promise(small, found)
    rows["seconds"] = f"×{clock.median:.2f} ({clock.low:.2f}–{clock.high:.2f}) over PyTorch at full depth"
    card = {"met": found.met, "level": level if found.met else None, "confidence": confidence}
    card |= {"other_answers": found.observed, "moved": small.moved, "mean_exit_step": found.mean_exit_step}
    return said, rows, {**card, "speed_up_in_seconds": [clock.low, clock.median, clock.high]}


def _quantized(
    made: Folder, scratch: Path, texts: list[Any], level: float, confidence: float, advance: Advance
) -> _Quantized:
    """Quantise, and record what is answered, with the folder's answers at full depth as labels.

    All products are quantised, if on the choosing texts this takes at most half of the differences that the certifying
    ones could show and still promise; else what moves fewer answers.
    """
    fp32, tried = onnx(made.model, scratch / "fp32"), list[_Quantized]()
    seed = (made.model.config.exits or {}).get("seed", 0)  # the split of the heads goes on: who chose, chooses
    choose, check = split(content_ids(texts), (1 / 3, 2 / 3), seed)
    answers = {label: place for place, label in enumerate(made.labels)}
    full = np.array([answers[label] for label in made.answer(texts, LastStep()).labels])
    kinds: tuple[Literal[True, "all"], ...] = ("all", True)
    for number, kind in enumerate(kinds):
        ranges = [texts[place] for place in choose[:_RANGES]]
        model = OnnxModel(quantized(fp32, scratch / f"int8_{number}", kind, calibration=ranges))
        choosing, certifying = (model.record([texts[n] for n in side], labels=full[side]) for side in (choose, check))
        tried.append(_Quantized(model, kind, choosing, certifying))
        advance("quantise", number + 1, len(kinds))
        if 2 * tried[-1].moved * len(check) <= max(most_failures(len(check), level, confidence), 0):
            break
    return min(tried, key=lambda each: each.moved)


def _promise(small: _Quantized, found: RiskControl) -> tuple[str, dict[str, str]]:
    """Return the promise in words, and rows of the table."""
    policy, rows = found.policy, len(small.certifying)
    if found.met:
        said = (
            f"Answers as the folder does at full depth on all but {rounded_up(100 * policy.level, 3)}% of texts like "
            f"these, with {rounded_down(100 * (policy.confidence or 0.0))}% confidence (certified on {rows} texts that "
            "chose nothing)."
        )
    else:
        differ = int((~small.certifying.correct()[:, -1]).sum())
        least = rounded_up(upper_bound(differ, rows, policy.confidence or 0.0), 2)
        said = (
            f"No promise of {rounded_up(100 * policy.level, 3)}%, so every row runs to the last step: int8 alone "
            f"answers {differ} of {rows} texts otherwise. --disagreement {least} is the least that it could keep."
        )
    return said, {
        "products": _PRODUCTS[small.products],
        "texts": f"{len(small.choosing)} choose, {rows} certify",
        "policy": short(policy.policy),
        "other answers": f"{100 * found.observed:.2f}%, at full depth {100 * small.moved:.2f}%",
        "steps": f"{found.mean_exit_step:.2f} of {small.model.num_steps}",
    }
