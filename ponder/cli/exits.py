"""The command `exits`: fit exits to a classifier, time them, and write the folder with its report."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ponder._utils.rounding import rounded_down, rounded_up
from ponder.calibration.cost import WallClock, wall_clock
from ponder.cascade.stages import classes_of
from ponder.cli.output import probe_folder, progress, short, show
from ponder.cli.report import write_report
from ponder.cli.texts import count, read_texts
from ponder.errors import ArgumentError
from ponder.integrations.transformers import ExitReport, fit_exits
from ponder.integrations.transformers.reading import PlainClassifier, read_fine_tuned
from ponder.integrations.transformers.texts import max_positions, tokenize

__all__ = ["run"]

_FEWEST = 50  # of `fit_exits`
_BATCH, _TIMED = 32, 512  # texts of a batch; texts at most


def run(
    model: str,
    texts: Path,
    out: Path,
    reading: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    as_json: bool,
) -> None:
    """Fit exits to a classifier, time them, and write the folder."""
    probe_folder(out, "exits", model)
    found = read_texts(texts, **reading).without_empty()
    if (distinct := len(set(found.texts))) < _FEWEST:
        expected = f"at least {_FEWEST} distinct texts (some 1,000 certify 1%)"
        remedy = "Name a file with more texts like those to come; they need no labels."
        raise ArgumentError(
            "--texts", expected=expected, got=f"{distinct} in {texts}", remedy=remedy
        )
    made = read_fine_tuned(model)
    names, started = classes_of(made) or (), time.perf_counter()
    encoded = tokenize(made.tokenizer, found.texts, max_positions(made.encoder))
    labels: Sequence[int | None] = found.numbered(names) or [None] * len(found)
    with progress() as advance:
        rows = [{**row, "labels": label} for row, label in zip(encoded.rows, labels, strict=True)]
        report = fit_exits(made, rows, progress=advance, **options)
    took, certifying = (
        time.perf_counter() - started,
        [found.texts[place] for place in report.places],
    )
    some, plain = (
        certifying[:: len(certifying) // _TIMED + 1],
        PlainClassifier(made.encoder, made.tokenizer),
    )
    clock = wall_clock(lambda: plain.predict(some), lambda: made.predict(some), pairs=3)
    made.save_pretrained(out)
    card = {
        "command": "exits",
        "columns": list(found.columns),
        **report.to_dict(),
        "speed_up_in_steps": report.speed_up,
        "speed_up_in_seconds": [clock.low, clock.median, clock.high],
        "speed_up_asked": options.get("speed_up"),
        "batch_size": _BATCH,
        "threads": torch.get_num_threads(),
        "truncated": encoded.truncated,
        "seconds_of_fitting": took,
    }
    said = [report.statement, *_remarks(report, clock)]
    table = [*_rows(report, clock, card), ("took", f"{took:.0f} s")]
    given, level = (
        (report.certifying, made.policy, certifying, names),
        report.level if report.met else None,
    )
    write_report(
        out / "report.html", f"Exits for {Path(model).name}", said, table, *given, level=level
    )
    show(card, said, table, as_json=as_json, out=out)


def _remarks(report: ExitReport, clock: WallClock) -> list[str]:
    said = []
    if not report.met:
        said.append(
            f"With so many texts, {rounded_up(100 * report.best_level, 2)}% is the least that can be promised."
        )
    if clock.high < 1.0:
        said.append(
            "On this machine it is slower than the plain model: layers so cheap save less than exits take."
        )
    return said


def _rows(report: ExitReport, clock: WallClock, card: Mapping[str, Any]) -> list[tuple[str, str]]:
    again = f", {report.duplicates} repeated (counted once)" if report.duplicates else ""
    cut = f", {card['truncated']} longer than the model takes (cut)" if card["truncated"] else ""
    asked = card["speed_up_asked"]
    rows = [
        *([("asked for", f"×{asked:g} in steps, with the fewest other answers")] if asked else []),
        ("texts", count(report.rows, "text") + again + cut),
        (
            "used to",
            f"learn {report.fitted}, choose {report.chosen_on}, certify {report.certified_on}",
        ),
        ("policy", short(report.policy)),
        (
            "other answers",
            f"{100 * report.disagreement:.2f}% of {report.certified_on} texts that chose nothing",
        ),
    ]
    if not math.isnan(report.plain_accuracy):
        rows.append(
            (
                "accuracy",
                f"{100 * report.exit_accuracy:.2f}%, plain model {100 * report.plain_accuracy:.2f}%",
            )
        )
    return [
        *rows,
        (
            "steps",
            f"{report.mean_exit_step:.2f} of {report.num_steps} (×{rounded_down(report.speed_up, 3)})",
        ),
        (
            "seconds",
            f"×{clock.median:.2f} ({clock.low:.2f}–{clock.high:.2f}), batches of {_BATCH}, this machine",
        ),
    ]
