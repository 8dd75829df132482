"""The command `exits`: fit exits to a classifier, measure them, and write the folder, its card and its report."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ponder._utils.columns import EXITS_REPORT
from ponder._utils.files import write_text
from ponder._utils.rounding import rounded_down, rounded_up
from ponder.cli.exits_page import Run, page_of
from ponder.cli.measuring import Measured, measure
from ponder.cli.telling import BATCH, check_out, quiet, say_left_out, short, tell
from ponder.cli.texts import read_texts
from ponder.errors import ArgumentError
from ponder.integrations.transformers import ExitReport, PonderForSequenceClassification, fit_exits
from ponder.integrations.transformers.exits import distinct, split_rows
from ponder.integrations.transformers.tokenizing import load_tokenizer, max_positions, tokenize

__all__ = ["run"]


def run(
    model: str,
    texts: Path,
    out: Path,
    columns: Sequence[str],
    labels: str | None,
    options: Mapping[str, Any],
    *,
    deep: bool,
    as_json: bool,
) -> dict[str, Any]:
    """Fit exits to a classifier, measure them, and write the folder.

    Args:
        model: A folder or a hub name.
        texts: The file of texts.
        out: The folder to write.
        columns: Names of the columns with the texts; found in the file where empty.
        labels: The column with labels, where there is one.
        options: Arguments of `fit_exits`, by name; its own where None.
        deep: Let the encoder learn too.
        as_json: Print the card instead of a table.

    Returns:
        The card: all that was found and measured.
    """
    quiet()
    check_out(out, model, "exits.json")
    options = _asked(options)
    found = read_texts(texts, columns, labels)
    kept = found.without_empty()
    made = PonderForSequenceClassification.from_finetuned(model, "exits-deep" if deep else "exits")
    tokenizer = load_tokenizer(model)
    encoded = tokenize(tokenizer, kept.rows, max_positions(made))
    rows = kept.labelled(encoded.rows, made.config.id2label)
    say_left_out(found, encoded, left_out=True)
    start = time.perf_counter()
    report = fit_exits(made, rows, progress=sys.stderr.isatty(), **options)
    took = time.perf_counter() - start
    once = distinct(rows)
    fresh = [once[place] for place in split_rows(once, options["seed"]).certify.tolist()]
    measured = measure(made, fresh)
    made.columns = tuple(found.columns)
    made.save_pretrained(out)
    tokenizer.save_pretrained(out)
    card = {
        **report.to_dict(),
        **measured.to_dict(),
        "speed_up_in_steps": report.speed_up,  # on all certifying texts, of which some are timed
        "speed_up_asked": options.get("speed_up"),
        "recipe": "exits-deep" if deep else "exits",
        "columns": list(found.columns),
        "empty": found.empty,
        "truncated": encoded.truncated,
        "seconds_of_fitting": took,
    }
    write_text(out / EXITS_REPORT, json.dumps(card, indent=2) + "\n")
    page = page_of(Run(model, texts.name, report, measured, card))
    page.write(out / "README.md", out / "report.html")
    tell(
        card,
        [*_sentences(report), *_slower(measured)],
        _rows(report, measured, took, found.columns, out),
        as_json=as_json,
    )
    return card


def _asked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given.

    Raises:
        ArgumentError: Both a level and a speed-up were, of which one says what the other comes to.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if "disagreement" in given and "speed_up" in given:
        raise ArgumentError(
            "disagreement",
            expected="--disagreement or --speed-up, and not both: what a speed-up costs is told, and not chosen",
            got=f"{given['disagreement']} and {given['speed_up']}",
            remedy="Leave one of them out.",
        )
    return given


def _sentences(report: ExitReport) -> list[str]:
    if report.met:
        return [report.statement]
    lowest = rounded_up(100 * report.best_level, 2)
    return [report.statement, f"With so many texts, {lowest}% is the least that could be promised."]


def _slower(measured: Measured) -> list[str]:
    clock = measured.speed_up.wall_clock
    if clock is None or clock.high >= 1.0:
        return []
    return ["On this machine it is slower than the plain model: layers so cheap save less than exits take."]


def _rows(
    report: ExitReport, measured: Measured, took: float, columns: Sequence[str], out: Path
) -> list[tuple[str, str]]:
    clock, flops = measured.speed_up.wall_clock, measured.speed_up.flops
    assert clock is not None
    rows = [
        ("read", " and ".join(columns)),
        ("texts", f"{report.rows}, of them {report.duplicates} repeated (counted once)"),
        ("used to", f"learn {report.fitted}, choose {report.chosen_on}, certify {report.certified_on}"),
        ("policy", short(report.policy)),
        ("other answers", f"{100 * report.disagreement:.2f}% of {report.certified_on} fresh texts"),
    ]
    if report.moved:
        rows.append(("at full depth", f"{100 * report.moved:.2f}% other answers: the encoder learned too"))
    if not math.isnan(report.plain_accuracy):
        rows.append(("accuracy", f"{100 * report.exit_accuracy:.2f}%, plain model {100 * report.plain_accuracy:.2f}%"))
    return [
        *rows,
        ("steps", f"{report.mean_exit_step:.2f} of {report.num_steps} (×{rounded_down(report.speed_up, 3)})"),
        ("FLOPs", "not counted" if flops is None else f"×{flops:.2f}"),
        ("seconds", f"×{clock.median:.2f} ({clock.low:.2f}–{clock.high:.2f}), batches of {BATCH}, this machine"),
        ("took", f"{took:.0f} s"),
        ("written to", f"{out} (report.html)"),
    ]
