"""`fit_classifier`: exits for a fine-tuned classifier of texts, and the time that they save."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ponder._utils.rows import Text, class_numbers
from ponder.calibration.cost import WallClock, wall_clock
from ponder.cascade.stages import classes_of
from ponder.integrations.transformers.exits import ExitReport, fit_exits
from ponder.integrations.transformers.heads import PonderForSequenceClassification
from ponder.integrations.transformers.reading import PlainClassifier, read_fine_tuned
from ponder.integrations.transformers.texts import max_positions, tokenize

__all__ = ["BATCH", "FittedClassifier", "fit_classifier"]

BATCH = 32
"""Texts of a batch while the models are timed."""
_TIMED = 512
"""Texts that are timed, at most."""


@dataclass(frozen=True, eq=False)
class FittedClassifier:
    """A classifier with exits.

    Args:
        model: The model; `save_pretrained` writes it.
        report: What was certified.
        clock: Speed-up in seconds over the plain model.
        certifying: The texts that certified.
        taught: The texts that the heads learned on, repeats included.
        truncated: Number of texts that are longer than the model takes.
        seconds: Seconds that fitting took.
    """

    model: PonderForSequenceClassification
    report: ExitReport
    clock: WallClock
    certifying: list[Text] = field(repr=False)
    taught: list[Text] = field(repr=False)
    truncated: int
    seconds: float


def fit_classifier(
    source: str,
    texts: Sequence[Text],
    labels: Sequence[object] | None = None,
    *,
    progress: Callable[[str, int, int], object] | None = None,
    **options: Any,
) -> FittedClassifier:
    """Fit exits to a fine-tuned classifier, and time them.

    Args:
        source: Folder or hub name of the classifier, with its tokenizer.
        texts: Texts, or pairs of texts, like those to come; no labels are needed.
        labels: Names or numbers of the right classes, for accuracies alone.
        progress: A function `progress(phase, done, total)`.
        **options: Options of `fit_exits`: `disagreement`, `confidence`, `speed_up`, `seed`.

    Raises:
        ArgumentError: There are fewer than 50 different texts, or the model is not a classifier.
    """
    model = read_fine_tuned(source)
    started = time.perf_counter()
    encoded = tokenize(model.tokenizer, texts, max_positions(model.encoder))
    known: list[int | None] = [None] * len(texts)
    if labels is not None:
        known = list(class_numbers(labels, classes_of(model) or ()))
    rows = [{**row, "labels": label} for row, label in zip(encoded.rows, known, strict=True)]
    report = fit_exits(model, rows, progress=progress, **options)
    seconds = time.perf_counter() - started
    certifying = [texts[place] for place in report.places]
    timed = certifying[:: len(certifying) // _TIMED + 1]
    plain = PlainClassifier.of(model)
    clock = wall_clock(lambda: plain.predict(timed), lambda: model.predict(timed), pairs=3)
    return FittedClassifier(
        model=model,
        report=report,
        clock=clock,
        certifying=certifying,
        taught=[texts[place] for place in report.taught_places],
        truncated=encoded.truncated,
        seconds=seconds,
    )
