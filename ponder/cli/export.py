"""The command `export`: a folder of `ponder exits` as ONNX graphs that stop, with a promise made after quantisation."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from ponder._utils.columns import EXPORT_REPORT, fitted_columns
from ponder._utils.files import write_text
from ponder.calibration import AgreementControl, control_agreement
from ponder.calibration.agreement import most_differing
from ponder.calibration.reference import differences, reference_labels
from ponder.cli.doctor import unseen
from ponder.cli.measuring import batches_of, seconds, spread
from ponder.cli.telling import BATCH, check_out, quiet, say_left_out, short, tell
from ponder.cli.texts import read_texts_for
from ponder.cost.speed import WallClock
from ponder.errors import ArgumentError
from ponder.export.certifying import to_trajectory
from ponder.export.manifest import FILE
from ponder.export.runtime import OnnxModel
from ponder.export.writing import copied, onnx, quantized
from ponder.integrations.transformers import FinetunedClassifier
from ponder.integrations.transformers.exits import split_rows
from ponder.integrations.transformers.tokenizing import load_tokenizer, max_positions, tokenize
from ponder.policies import Certified, ExitPolicy, LastStep
from ponder.trajectory import Trajectory

__all__ = ["run"]

_TIMED = 256  # texts, at most
_CALIBRATE = 256  # texts, at most
Kind = bool | Literal["all"]
_PRODUCTS: dict[Kind, str] = {False: "in fp32", True: "in int8, but for those that narrow", "all": "in int8"}


def run(
    folder: Path,
    out: Path,
    texts: Path | None,
    columns: Sequence[str],
    *,
    int8: bool,
    disagreement: float | None,
    confidence: float | None,
    as_json: bool,
) -> None:
    """Write an export, and choose and certify its threshold again where it answers otherwise than the folder does.

    Args:
        folder: What `ponder exits` wrote.
        out: The folder to write.
        texts: The file of texts that choose and certify; needed with `int8`, since that moves answers.
        columns: Names of the columns with the texts; found in the file where empty.
        int8: Quantise.
        disagreement: How often answers may differ from the fp32 model's at full depth; as often as the folder promises
            where None, or 1% where it promises nothing.
        confidence: Probability with which the promise holds, in (0, 1); 0.95 where None.
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
    if texts is None:
        _check_unread(column=columns or None, disagreement=disagreement, confidence=confidence)
    made, tokenizer = FinetunedClassifier.from_pretrained(folder), load_tokenizer(str(folder))
    confidence = 0.95 if confidence is None else confidence
    if texts is not None:
        level = _promised(made.policy) if disagreement is None else disagreement
        found = read_texts_for(folder, texts, columns)
        encoded = tokenize(tokenizer, found.without_empty().rows, max_positions(made))
        say_left_out(found, encoded, left_out=True)
        rows, _ = unseen(made, encoded.rows)
        sides = _sides(made, rows)

    def opened(written: Path) -> OnnxModel:
        return OnnxModel(written, threads=torch.get_num_threads())

    def write(kind: Kind, calibration: list[Mapping[str, Any]] | None) -> OnnxModel:
        return opened(quantized(fp32, small, kind, calibration=calibration) if kind else fp32)

    told: list[tuple[str, str]] = []
    sentences: list[str] = []
    card: dict[str, Any] = {"int8": int8, "columns": list(fitted_columns(folder) if texts is None else found.columns)}
    if texts is None:
        model = opened(onnx(made, out, tokenizer=tokenizer))
        sentences.append("Exits and answers are those of the folder, within 1e-4.")
    else:
        with TemporaryDirectory() as scratch:  # what fails leaves no export with a promise that is not its own
            fp32, small = Path(scratch) / "fp32", Path(scratch) / "int8"
            onnx(made, fp32, tokenizer=tokenizer)
            model, done, kind = _written(made, write, rows, sides, int8, level, confidence)
            model.policy = done.found.policy
            model.save_policy()
            copied(model.folder, out)
        clock = _seconds(made, model, spread(rows, _TIMED))
        sentences.append(done.statement("the fp32 model does at full depth"))
        card |= {
            "products": _PRODUCTS[kind],
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
        told = [
            ("products", _PRODUCTS[kind]),
            ("texts", f"{len(rows) - done.rows} choose, {done.rows} certify"),
            ("policy", short(card["policy"])),
            ("other answers", f"{100 * done.disagreement:.2f}%, at full depth {100 * done.moved:.2f}%"),
            ("steps", f"{done.mean_exit_step:.2f} of {model.num_steps}"),
            ("seconds", f"×{clock.median:.2f} ({clock.low:.2f}–{clock.high:.2f}) over PyTorch, batches of {BATCH}"),
        ]
    card |= {"bytes": sum(model.manifest.sizes.values()), "num_steps": model.num_steps}
    told = [("int8", "yes" if int8 else "no"), ("size", f"{card['bytes'] / 1e6:.1f} MB"), *told]
    write_text(out / EXPORT_REPORT, json.dumps(card, indent=2) + "\n")
    tell(card, sentences, [*told, ("written to", str(out))], as_json=as_json)


def _check_unread(**options: object) -> None:
    """Refuse options about texts where there are none."""
    for name, value in options.items():
        if value is not None:
            raise ArgumentError(
                name,
                expected=f"--texts FILE beside --{name}: without texts nothing is chosen or promised anew",
                got="no texts",
                remedy=f"Pass --texts FILE, or leave --{name} out.",
            )


def _promised(policy: ExitPolicy) -> float:
    """How often answers may differ from those at full depth of the folder's own model, by its certificate.

    Raises:
        ArgumentError: The certificate is about the answers of another model.
    """
    if isinstance(policy, Certified) and policy.risk == "disagreement_with_reference":
        raise ArgumentError(
            "disagreement",
            expected="a number for a folder of --deep: it promises to answer as the plain model did before its encoder "
            "learned, and an export promises to answer as the folder does at full depth",
            got="none",
            remedy="Pass --disagreement 0.01, say.",
        )
    promises = isinstance(policy, Certified) and policy.threshold_value is not None and policy.risk == "disagreement"
    return policy.level if promises else 0.01  # type: ignore[attr-defined]


def _written(
    made: FinetunedClassifier,
    write: Callable[[Kind, list[Mapping[str, Any]] | None], OnnxModel],
    rows: list[Mapping[str, Any]],
    sides: tuple[torch.Tensor, torch.Tensor],
    int8: bool,
    level: float,
    confidence: float,
) -> tuple[OnnxModel, AgreementControl, Kind]:
    """The export, its policy against the folder's model at full depth in PyTorch, and what was quantised.

    All products are, if on the choosing texts this takes at most half of the differences that the certifying ones could
    show and still promise; else what moves fewer answers. The ranges are those of choosing texts; the certifying ones
    choose nothing.
    """
    answers = made.predict(rows, policy=LastStep(), batch_size=BATCH)
    full = reference_labels(made.kind.task, answers.outputs).numpy()
    choose, certify = sides
    calibration = [rows[place] for place in spread(choose.tolist(), _CALIBRATE)]
    kinds: tuple[Kind, ...] = ("all", True) if int8 else (False,)
    tried: dict[Kind, tuple[float, Trajectory, Trajectory]] = {}
    for kind in kinds:
        model = write(kind, calibration if int8 else None)
        seen = to_trajectory(model.record(rows, batch_size=BATCH), task=model.manifest.task, labels=full)
        choosing, certifying = (seen.map(lambda t, part=part: t[part]) for part in (choose, certify))  # type: ignore[misc]
        tried[kind] = float(differences(choosing)[:, -1].double().mean()), choosing, certifying
        if 2 * tried[kind][0] * len(certify) <= max(most_differing(len(certify), level, confidence), 0):
            break
    best = min(tried, key=lambda each: tried[each][0])
    if best != kind:
        model, kind = write(best, calibration if int8 else None), best
    _, choosing, certifying = tried[kind]
    done = control_agreement(choosing, certifying, level=level, confidence=confidence, own_full_depth=not int8)
    return model, done, kind


def _sides(made: FinetunedClassifier, rows: list[Mapping[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The places of the rows that choose, and of those that certify."""
    split = split_rows(rows, 0 if made.seed is None else made.seed)
    choose = split.choose if made.seed is not None else torch.cat([split.choose, split.learn[::2]])
    rest = torch.ones(len(rows), dtype=torch.bool)
    rest[choose] = False
    if not len(choose) or not bool(rest.any()):
        raise ArgumentError("texts", expected="some to choose and some to certify", got=len(rows), remedy="Pass more.")
    return choose, rest.nonzero().flatten()


def _seconds(made: FinetunedClassifier, model: OnnxModel, rows: list[Mapping[str, Any]]) -> WallClock:
    """Seconds of the plain model in PyTorch by those of the export, on the same texts."""
    return seconds(made, batches_of(made, rows), lambda: model.predict(rows, batch_size=BATCH))
