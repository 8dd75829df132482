"""The command `exits`: fit exits to a classifier, time them, and write a folder with a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from ponder._utils.rounding import rounded_down
from ponder.cascade.stages import classes_of
from ponder.cli.options import (
    SHARE,
    Columns,
    Confidence,
    Json,
    Labels,
    Model,
    NoHeader,
    Out,
    Seed,
    TextsFile,
)
from ponder.cli.outcome import Outcome, usage_of
from ponder.cli.output import new_folder, probe_folder, progress
from ponder.cli.report import changed_texts, policy_figure
from ponder.cli.show import keep, show
from ponder.cli.texts import Texts, read_texts
from ponder.errors import ArgumentError
from ponder.integrations.transformers.classifiers import BATCH, FittedClassifier, fit_classifier
from ponder.statistics.certificate import CONFIDENCE, LEVEL, count, percent
from ponder.statistics.used import Used

__all__ = ["run"]

_FEWEST = 50  # of `fit_exits`


def run(
    model: Model,
    texts: TextsFile,
    out: Out,
    column: Columns = None,
    labels: Labels = None,
    no_header: NoHeader = False,
    disagreement: Annotated[
        float | None,
        typer.Option(
            help=f"The share of answers that may differ; {LEVEL} by default.",
            show_default=False,
            **SHARE,
        ),
    ] = None,
    confidence: Confidence = CONFIDENCE,
    speed_up: Annotated[
        float | None,
        typer.Option(
            help="Choose exits for this speed-up in steps; the share that differs is promised.",
            min=1.01,
        ),
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Train early exits for MODEL on texts without labels, and certify when to exit.

    Example: `ponder exits my-model --texts traffic.csv --out exits`
    """
    if speed_up is not None and disagreement is not None:
        raise ArgumentError(
            "--speed-up",
            expected="--speed-up or --disagreement, since one decides on the other",
            got="both",
            remedy="Leave one of them out.",
        )
    if disagreement is None:
        disagreement = LEVEL
    probe_folder(out, "exits", model)
    found = read_texts(texts, column, labels, header=not no_header).without_empty()
    if (distinct := len(set(found.texts))) < _FEWEST:
        expected = f"at least {_FEWEST} distinct texts (some 1,000 certify 1%)"
        remedy = "Name a file with more texts like those to come; they need no labels."
        got = f"{distinct} in {texts}"
        raise ArgumentError("--texts", expected=expected, got=got, remedy=remedy)
    with progress() as advance:
        made = fit_classifier(
            model,
            found.texts,
            found.labels,
            speed_up=speed_up,
            confidence=confidence,
            seed=seed,
            disagreement=disagreement,
            progress=advance,
        )
    outcome = _outcome(made, found, Path(model).name, out, speed_up)
    with new_folder(out) as new:
        made.model.save_pretrained(new)
        Used.of(found.texts, taught=made.taught).write(new)
        outcome = keep(outcome, new, out)
    show(outcome, as_json=json)


def _outcome(
    made: FittedClassifier, found: Texts, name: str, out: Path, asked: float | None
) -> Outcome:
    report = made.report
    clock = made.clock
    policy = made.model.policy
    facts = {
        "command": "exits",
        "columns": list(found.columns),
        **report.to_dict(),
        "speed_up_in_steps": report.speed_up,
        "speed_up_in_seconds": [clock.low, clock.median, clock.high],
        "speed_up_asked": asked,
        "batch_size": BATCH,
        "threads": torch.get_num_threads(),
        "truncated": made.truncated,
        "seconds_of_fitting": made.seconds,
    }
    level = report.level if report.met else None
    names: Sequence[str] = classes_of(made.model) or ()
    return Outcome(
        facts,
        [report.statement, *_remarks(made)],
        _rows(made, policy.words(), asked),
        figure=policy_figure(report.certifying, policy, level),
        tables=[changed_texts(report.certifying, policy, made.certifying, names)],
        title=f"Exits for {name}",
        usage=usage_of(out),
    )


def _remarks(made: FittedClassifier) -> list[str]:
    if not made.report.met:
        least = percent(made.report.best_level, 2)
        return [f"With so many texts, {least} is the least that can be promised."]
    if made.clock.high < 1.0:
        return [
            "On this machine it is slower than the plain model: such cheap layers save less than "
            "exits take."
        ]
    return []


def _rows(made: FittedClassifier, policy: str, asked: float | None) -> list[tuple[str, str]]:
    report = made.report
    clock = made.clock
    texts = count(report.rows, "text")
    if report.duplicates:
        texts += f", {report.duplicates} repeated"
    if made.truncated:
        texts += f", {made.truncated} longer than the model takes (cut)"
    sides = f"learn {report.fitted}, choose {report.chosen_on}, certify {report.certified_on}"
    observed = f"{100 * report.disagreement:.2f}% of {report.certified_on} texts that chose nothing"
    rows = [
        ("texts", texts),
        ("used to", sides),
        ("policy", policy),
        ("other answers", observed),
    ]
    if asked:
        rows.insert(0, ("asked for", f"×{asked:g} in steps, with the fewest other answers"))
    if not math.isnan(report.plain_accuracy):
        plain = f"plain model {100 * report.plain_accuracy:.2f}%"
        rows.append(("accuracy", f"{100 * report.exit_accuracy:.2f}%, {plain}"))
    times = f"(×{rounded_down(report.speed_up, 3)})"
    seconds = (
        f"×{clock.median:.2f} ({clock.low:.2f}–{clock.high:.2f}), batches of {BATCH}, this machine"
    )
    rows += [
        ("steps", f"{report.mean_exit_step:.2f} of {report.num_steps} {times}"),
        ("seconds", seconds),
        ("took", f"{made.seconds:.0f} s"),
    ]
    return rows
