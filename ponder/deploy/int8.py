"""int8 with a promise: the products that are quantised, and a policy that is certified for them.

Quantised answers differ. So the policy is chosen again, on a third of the texts, and certified on
the others against the answers of the model before int8, at full depth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from ponder._utils.rounding import rounded_up
from ponder._utils.rows import CHOOSE_AND_CERTIFY, Text, class_numbers, content_ids, split
from ponder.calibration import RiskControl, certify
from ponder.calibration.cost import WallClock, wall_clock
from ponder.calibration.records import Ints, Record
from ponder.calibration.risks import OtherAnswers
from ponder.cascade import Cascade, CascadeReport
from ponder.cascade.stages import classes_of, stage_of
from ponder.deploy.exporting import onnx, quantized
from ponder.deploy.ranking import Pool, Ranker
from ponder.deploy.runtime import OnnxModel
from ponder.errors import ArgumentError
from ponder.policies.base import LastStep, all_within
from ponder.policies.combine import Certified, promise_about
from ponder.policies.topk import TopK
from ponder.statistics.bounds import binomial_cdf, upper_bound
from ponder.statistics.certificate import CONFIDENCE, LEVEL, percent

__all__ = ["Int8", "cascade_onnx", "certified_int8", "choose", "most_moved", "ranker_onnx"]

Progress = Callable[[str, int, int], object]
_RANGES = 256
"""Texts that fix the ranges of activations, at most."""
_TIMED = 256
"""Texts that are timed, at most."""
_FEWEST = 50
"""The least number of texts."""


@dataclass(frozen=True, eq=False)
class Int8:
    """Result of an export in int8.

    Args:
        model: The export.
        found: The policy, its promise and its exits.
        statement: The promise in one sentence, or why nothing is promised.
        products: The matrix products in int8: ``"all"``, or ``"some"``, those that do not narrow.
        chosen_on: Number of texts that chose.
        certified_on: Number of texts that certified.
        moved: Share of the certifying texts whose answer at full depth changes with int8.
        clock: Speed-up in seconds over the model at full depth.
    """

    model: OnnxModel
    found: RiskControl
    statement: str
    products: str
    chosen_on: int
    certified_on: int
    moved: float
    clock: WallClock = field(repr=False)


def certified_int8(
    model: Any,
    folder: str | Path,
    texts: Sequence[Text],
    *,
    level: float = LEVEL,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    progress: Progress | None = None,
) -> Int8:
    """Write a model as ONNX graphs in int8, with a policy certified against full depth.

    Args:
        model: A classifier of `ponder.integrations.transformers`, with exits.
        folder: The folder of the export.
        texts: Texts like those to come, from which no head learned.
        level: The share of answers that may differ from those of the model at full depth, in (0,
            1).
        confidence: Probability with which the promise holds, in (0, 1).
        seed: Seed of the split.
        progress: A function `progress(phase, done, total)`.

    Raises:
        ArgumentError: There are fewer than 50 texts.
    """
    if len(texts) < _FEWEST:
        expected = f"at least {_FEWEST} texts from which nothing learned"
        remedy = "Name a file with more texts like those to come."
        raise ArgumentError("--texts", expected=expected, got=str(len(texts)), remedy=remedy)
    report = progress or (lambda *_: None)
    names = classes_of(model) or ()
    sides = split(content_ids(texts), CHOOSE_AND_CERTIFY, seed)
    answers = model.predict(list(texts), policy=LastStep()).labels
    full = np.array(class_numbers(answers, names))
    choosing_texts = [texts[place] for place in sides[0].tolist()]
    with TemporaryDirectory() as scratch:
        report("quantise", 0, 2)
        full_precision = OnnxModel(onnx(model, Path(scratch) / "fp32"))
        full_precision.policy = LastStep()  # its promise, if any, is not about int8
        full_precision.save()
        small = choose(
            full_precision.folder,
            choosing_texts[:_RANGES],
            choosing_texts,
            full[sides[0]],
            most_moved(len(sides[1]), level, confidence),
        )
        report("quantise", 1, 2)
        choosing, certifying = [
            small.record([texts[place] for place in side.tolist()], labels=full[side])
            for side in sides
        ]
        control = certify(
            choosing, certifying, risk=OtherAnswers(), level=level, confidence=confidence
        )
        small.policy = control.policy
        small.save(folder)
        report("quantise", 2, 2)
        products = small.folder.name
    exported = OnnxModel(folder)
    timed = list(texts[:_TIMED])
    clock = wall_clock(
        lambda: model.predict(timed, policy=LastStep()), lambda: exported.predict(timed)
    )
    return Int8(
        model=exported,
        found=control,
        statement=_statement(certifying, control),
        products=products,
        chosen_on=len(choosing),
        certified_on=len(certifying),
        moved=1.0 - float(certifying.correct()[:, -1].mean()),
        clock=clock,
    )


def choose(
    export: Path,
    ranges: Sequence[Text],
    texts: Sequence[Text],
    answers: Ints,
    most: float,
    threads: int | None = None,
) -> OnnxModel:
    """Return an export in int8, in the folder ``all`` or ``some`` beside it, by its products.

    All products are quantised, unless this changes more than the share `most` of the answers at
    full depth; then those that narrow are not.

    Args:
        export: The folder of an export in float32.
        ranges: Texts that fix the ranges of activations.
        texts: Texts that choose.
        answers: Their answers before int8, numbers of classes, `(texts,)`.
        most: The share of these that may change.
        threads: Threads of one operation of the export that is returned.
    """
    kinds: tuple[tuple[str, Literal[True, "all"]], ...] = (("all", "all"), ("some", True))
    for name, products in kinds:
        folder = quantized(export, export.parent / name, products, calibration=ranges)
        model = OnnxModel(folder, threads=threads)
        moved = model.predict(texts, policy=LastStep()).outputs.argmax(axis=-1) != answers
        if moved.mean() <= most:
            break
    return model


def most_moved(certifying: int, level: float, confidence: float) -> float:
    """Return half of the share of answers that may differ; the other half is for exits."""
    cdf = binomial_cdf(certifying, level)
    failures = int(np.searchsorted(cdf, 1.0 - confidence, side="right")) - 1
    return 0.5 * max(failures, 0) / certifying


def cascade_onnx(
    cascade: Cascade,
    folder: str | Path,
    texts: Sequence[Text] | None = None,
    *,
    level: float = LEVEL,
    confidence: float = CONFIDENCE,
) -> CascadeReport | None:
    """Write a cascade whose models are ONNX graphs, so that it runs without PyTorch.

    Args:
        cascade: The cascade.
        folder: The folder of the cascade.
        texts: If texts are given, the last stage is in int8, and the cascade is certified again on
            them, against the last stage before int8.
        level: The share of answers that may differ, in (0, 1).
        confidence: Probability with which the promise holds, in (0, 1).

    Returns:
        The report of that certificate; None without texts.
    """
    report = None
    with TemporaryDirectory() as scratch:
        stages = [
            _as_graphs(stage, Path(scratch) / str(number))
            for number, stage in enumerate(cascade.stages)
        ]
        policy = promise_about(cascade.weights_digest, cascade.policy)
        small = Cascade(stages, cascade.costs, policy=policy, classes=cascade.classes)
        if isinstance(policy, Certified):  # graphs answer as the model does
            small.policy = policy.with_facts(weights=small.weights_digest())
        if texts is not None:
            choosing = split(content_ids(texts), CHOOSE_AND_CERTIFY)[0]
            ranges = [texts[place] for place in choosing.tolist()[:_RANGES]]
            folder_of_last = stages[-1].model.folder
            last = OnnxModel(quantized(folder_of_last, Path(scratch) / "int8", calibration=ranges))
            small = Cascade([*stages[:-1], last], classes=cascade.classes)
            report = small.certify(
                texts, level=level, confidence=confidence, reference=cascade.stages[-1]
            )
        small.save(folder)
    return report


def ranker_onnx(ranker: Ranker, folder: Path, pools: Sequence[Pool] = ()) -> Ranker:
    """Write a ranker as ONNX graphs, so that it runs without PyTorch.

    Args:
        ranker: A ranker that runs in PyTorch.
        folder: The folder of the export.
        pools: If there are queries, the graphs are in int8, and the margin of the policy is
            certified again on them.

    Returns:
        The export.
    """
    pairs = [(pool.query, document) for pool in pools[::10] for document in pool.documents[:8]]
    onnx(ranker.model, folder, int8=bool(pools), calibration=pairs[:_RANGES] or None)
    exported = Ranker(OnnxModel(folder), ranker.settings)
    fitted = ranker.settings.fitted
    exits = [part for part in all_within(exported.settings.policy) if isinstance(part, TopK)]
    if pools and exits:
        exported.certify(pools, exits[0], changed=fitted["level"], risk=fitted["risk"])
    exported.settings.write(folder)
    return exported


def _as_graphs(stage: Any, folder: Path) -> Any:
    """Return a stage as graphs if its model can be exported, else unchanged."""
    if not hasattr(stage.model, "export_source"):
        return stage
    return stage_of(OnnxModel(onnx(stage.model, folder)))


def _statement(certifying: Record, control: RiskControl) -> str:
    """Return the promise in words, or the least level that int8 alone could keep."""
    certificate = control.policy.certificate
    level = certificate.level
    confidence = certificate.confidence or CONFIDENCE
    rows = len(certifying)
    if control.met:
        rule = control.policy.rule()
        change = "other answers than before int8"
        return replace(certificate, rule=rule, change=change, unit="text").sentence
    differ = int((~certifying.correct()[:, -1]).sum())
    least = rounded_up(upper_bound(differ, rows, confidence), 2)
    return (
        f"No promise of {percent(level)}, so every text runs to the last step: int8 alone changes "
        f"the answers to {differ} of {rows} texts. --disagreement {least} is the least that it "
        "could keep."
    )
