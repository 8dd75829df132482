"""The command `export`: a folder of `ponder exits` as ONNX graphs that stop, with a promise made after quantisation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ponder._utils.files import write_text
from ponder.calibration import AgreementControl, control_agreement
from ponder.cli.doctor import unseen
from ponder.cli.measuring import batches_of, seconds
from ponder.cli.telling import BATCH, check_out, quiet, say_left_out, short, tell
from ponder.cli.texts import read_texts
from ponder.cost.speed import WallClock
from ponder.errors import ArgumentError
from ponder.export.certifying import to_trajectory
from ponder.export.manifest import FILE
from ponder.export.runtime import OnnxModel
from ponder.export.writing import onnx
from ponder.integrations.transformers import FinetunedClassifier
from ponder.integrations.transformers.exits import split_rows
from ponder.integrations.transformers.tokenizing import load_tokenizer, max_positions, tokenize
from ponder.policies import LastStep

__all__ = ["CARD", "run"]

CARD = "export-report.json"
_TIMED = 256  # texts, at most


def run(
    folder: Path,
    out: Path,
    texts: Path | None,
    columns: Sequence[str],
    *,
    int8: bool,
    disagreement: float,
    confidence: float,
    as_json: bool,
) -> None:
    """Write an export, and choose and certify its threshold again where it answers otherwise than the folder does.

    Args:
        folder: What `ponder exits` wrote.
        out: The folder to write.
        texts: The file of texts that choose and certify; needed with `int8`, since that moves answers.
        columns: Of the file; found where empty.
        int8: Quantise.
        disagreement: How often answers may differ from the fp32 model's at full depth.
        confidence: Of the promise.
        as_json: Print JSON instead of a table.
    """
    quiet()
    check_out(out, str(folder), FILE)
    if int8 and texts is None:
        raise ArgumentError(
            "texts",
            expected="a file of texts: int8 moves answers, so the threshold is chosen again after it",
            got="none",
            remedy="Pass --texts FILE, with texts like those to come.",
        )
    made, tokenizer = FinetunedClassifier.from_pretrained(folder), load_tokenizer(str(folder))
    longest = min(max_positions(made.config), int(tokenizer.model_max_length))
    rows: list[Mapping[str, Any]] = []
    if texts is not None:
        found = read_texts(texts, columns)
        encoded = tokenize(tokenizer, found.without_empty().rows, max_positions(made.config))
        say_left_out(found, encoded, left_out=True)
        rows, _ = unseen(made, encoded.rows)
    onnx(made, out, int8, tokenizer=tokenizer, max_length=longest if longest < 10**9 else None)
    model = OnnxModel(out, threads=torch.get_num_threads())
    card: dict[str, Any] = {"int8": int8, "bytes": sum(model.manifest.sizes.values()), "num_steps": model.num_steps}
    told = [("int8", "yes" if int8 else "no"), ("size", f"{card['bytes'] / 1e6:.1f} MB")]
    sentences = ["Exits and answers are those of the folder, within 1e-4."] if not rows else []
    if rows:
        done = _certify(made, model, rows, disagreement, confidence)
        model.policy = done.found.policy
        model.save_policy()
        clock = _seconds(made, model, rows[:_TIMED])
        sentences.append(done.statement("the fp32 model does at full depth"))
        card |= {
            "statement": sentences[-1],
            "met": done.found.met,
            "policy": repr(done.found.policy.policy),
            "certified_on": done.rows,
            "level": done.level if done.found.met else None,
            "confidence": confidence,
            "disagreement": done.disagreement,
            "moved": done.moved,
            "mean_exit_step": done.mean_exit_step,
            "speed_up_in_seconds": clock.median,
            "speed_up_in_seconds_range": [clock.low, clock.high],
        }
        told += [
            ("texts", f"{len(rows) - done.rows} choose, {done.rows} certify"),
            ("policy", short(card["policy"])),
            ("other answers", f"{100 * done.disagreement:.2f}%, at full depth {100 * done.moved:.2f}%"),
            ("steps", f"{done.mean_exit_step:.2f} of {model.num_steps}"),
            ("seconds", f"×{clock.median:.2f} ({clock.low:.2f}–{clock.high:.2f}) over PyTorch, batches of {BATCH}"),
        ]
    write_text(out / CARD, json.dumps(card, indent=2) + "\n")
    tell(card, sentences, [*told, ("written to", str(out))], as_json=as_json)


def _certify(
    made: FinetunedClassifier,
    model: OnnxModel,
    rows: list[Mapping[str, Any]],
    level: float,
    confidence: float,
) -> AgreementControl:
    """The policy of an export against the answers of the folder's model at full depth, in PyTorch."""
    full = made.predict(rows, policy=LastStep(), batch_size=BATCH).outputs
    named = {spec.name for spec in model.manifest.inputs}
    record = model.record([{name: row[name] for name in row if name in named} for row in rows], batch_size=BATCH)
    seen = to_trajectory(record, task=model.manifest.task, labels=full.argmax(-1).numpy())
    split = split_rows(rows, 0 if made.seed is None else made.seed)
    choose = split.choose if made.seed is not None else torch.cat([split.choose, split.learn[::2]])
    rest = torch.ones(len(rows), dtype=torch.bool)
    rest[choose] = False
    if not len(choose) or not bool(rest.any()):
        raise ArgumentError("texts", expected="some to choose and some to certify", got=len(rows), remedy="Pass more.")
    choosing, certifying = (seen.map(lambda t, part=part: t[part]) for part in (choose, rest.nonzero().flatten()))  # type: ignore[misc]
    return control_agreement(choosing, certifying, level=level, confidence=confidence)


def _seconds(made: FinetunedClassifier, model: OnnxModel, rows: list[Mapping[str, Any]]) -> WallClock:
    """Seconds of the plain model in PyTorch by those of the export, on the same texts."""
    named = {spec.name for spec in model.manifest.inputs}
    examples = [{name: row[name] for name in row if name in named} for row in rows]
    return seconds(made, batches_of(made, rows), lambda: model.predict(examples, batch_size=BATCH))
