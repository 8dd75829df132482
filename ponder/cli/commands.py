"""What the commands `exits`, `doctor` and `predict` do."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from ponder._utils.files import write_text
from ponder.analysis.diagnosis import diagnose
from ponder.cli.texts import Texts, read_texts
from ponder.cost.speed import WallClock, wall_clock
from ponder.errors import ArgumentError
from ponder.integrations.transformers import ExitReport, FinetunedClassifier, PonderForSequenceClassification, fit_exits
from ponder.integrations.transformers.exits import distinct
from ponder.integrations.transformers.tokenizing import Encoded, load_tokenizer, max_positions, tokenize

__all__ = ["doctor", "exits", "predict"]

_WIDTH = 80
_TIMED = 512  # texts, at most
_BATCH = 32
_CARD = "exits-report.json"


def exits(model: str, texts: Path, out: Path, columns: Sequence[str], options: Mapping[str, Any]) -> None:
    """Fit exits to a classifier, measure them, and write the folder.

    Args:
        model: A folder or a hub name.
        texts: The file of texts.
        out: The folder to write.
        columns: Of the file; found where empty.
        options: For `fit_exits`.
    """
    _quiet()
    _check_out(out, model)
    found = read_texts(texts, columns)
    kept = found.without_empty()
    made = PonderForSequenceClassification.from_finetuned(model)
    tokenizer = load_tokenizer(model)
    encoded = tokenize(tokenizer, kept.rows, max_positions(made.config))
    _say_left_out(found, encoded, left_out=True)
    start = time.perf_counter()
    report = fit_exits(
        made,
        encoded.rows,
        progress=sys.stderr.isatty(),
        **options,
    )
    seconds = time.perf_counter() - start
    clock = _seconds(made, distinct(encoded.rows)[-_TIMED:])
    made.save_pretrained(out)
    tokenizer.save_pretrained(out)
    card = {**report.to_dict(), "speed_up_in_steps": report.speed_up, "speed_up_in_seconds": clock.median}
    write_text(out / _CARD, json.dumps(card, indent=2) + "\n")
    _show(report, clock, seconds, out)


def doctor(folder: Path, texts: Path, columns: Sequence[str]) -> None:
    """Print what `ponder.diagnose` says of a folder's early heads on texts; arguments as for `exits`."""
    _quiet()
    made, tokenizer = FinetunedClassifier.from_pretrained(folder), load_tokenizer(str(folder))
    found = read_texts(texts, columns)
    encoded = tokenize(tokenizer, found.without_empty().rows, max_positions(made.config))
    _say_left_out(found, encoded, left_out=True)
    with torch.no_grad():
        seen = made.record(distinct(encoded.rows), batch_size=_BATCH, progress=sys.stderr.isatty())
    typer.echo("Accuracy below is agreement with full depth: the texts have no labels.\n")
    typer.echo(str(diagnose(replace(seen, labels=seen.outputs[:, -1].argmax(-1)))))
    typer.echo(f"\nThe folder's own policy: {made.policy!r}")


def predict(folder: Path, texts: Path, out: Path, columns: Sequence[str]) -> None:
    """Write the answers to texts, each at its exit, as CSV; arguments as for `exits`."""
    _quiet()
    made, tokenizer = FinetunedClassifier.from_pretrained(folder), load_tokenizer(str(folder))
    found = read_texts(texts, columns)
    encoded = tokenize(tokenizer, found.rows, max_positions(made.config))
    _say_left_out(found, encoded, left_out=False)
    answers = made.predict(encoded.rows, batch_size=_BATCH, progress=sys.stderr.isatty())
    labels, names = answers.outputs.argmax(-1).tolist(), made.config.id2label
    sure = answers.outputs.softmax(-1).amax(-1).tolist()
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    table.writerow([*found.columns, "label", "probability", "exit_step"])
    for row, label, share, step in zip(found.rows, labels, sure, answers.exit_step.tolist(), strict=True):
        table.writerow([*row, names.get(label, label), f"{share:.4f}", step])
    try:
        write_text(out, written.getvalue())
    except OSError as error:
        raise ArgumentError(
            "out", expected="a file that can be written", got=f"{out} ({error})", remedy="Name another."
        ) from error
    mean = answers.exit_step.double().mean().item()
    typer.echo(f"{len(labels)} answers in {out}; mean exit step {mean:.2f} of {made.num_steps}.")


def _quiet() -> None:
    """Transformers' own bars and notes would stand between ours."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _check_out(out: Path, model: str) -> None:
    """Refuse to write over the model itself, over a file, or among files of something else."""
    if out.exists() and Path(model).exists() and out.resolve() == Path(model).resolve():
        raise ArgumentError("out", expected="another folder than the model's", got=out, remedy="Name a new one.")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "exits.json").exists())):
        raise ArgumentError(
            "out", expected="a new or empty folder, or one of `ponder exits`", got=out, remedy="Name a new one."
        )


def _say_left_out(texts: Texts, encoded: Encoded, *, left_out: bool) -> None:
    if texts.empty:
        typer.echo(
            f"{texts.empty} empty texts {'were left out' if left_out else 'are answered like others'}.", err=True
        )
    if encoded.truncated:
        typer.echo(f"{encoded.truncated} texts were longer than the model takes, and were cut.", err=True)


def _seconds(model: FinetunedClassifier, rows: list[Any]) -> WallClock:
    """Seconds of the plain classifier by those to the exits, on the same batches of similar length."""
    plain, names = model.classifier, ("input_ids", "attention_mask", "token_type_ids")
    rows = sorted(rows, key=lambda row: -len(row["input_ids"]))
    padding = {"input_ids": getattr(plain.config, "pad_token_id", None) or 0}
    batches = []
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        batches.append(
            {
                name: torch.nn.utils.rnn.pad_sequence(
                    [torch.as_tensor(row[name]) for row in part], True, padding.get(name, 0)
                )
                for name in names
                if name in part[0]
            }
        )

    def run(call: Any) -> None:
        with torch.inference_mode():
            for batch in batches:
                call(**batch)

    plain.eval()
    return wall_clock(lambda: run(plain), lambda: run(model), pairs=3)


def _show(report: ExitReport, clock: WallClock, seconds: float, out: Path) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    share = f"{100 * report.disagreement:.2f}% of {report.certified_on} fresh texts"
    for name, value in (
        ("texts", f"{report.rows}, of them {report.duplicates} repeated (counted once)"),
        ("used to", f"learn {report.fitted}, choose {report.chosen_on}, certify {report.certified_on}"),
        ("policy", report.policy),
        ("other answers", share),
        ("steps", f"{report.mean_exit_step:.2f} of {report.num_steps} (×{report.speed_up:.2f})"),
        ("seconds", f"×{clock.median:.2f} ({clock.low:.2f}–{clock.high:.2f}), batches of {_BATCH}, this machine"),
        ("took", f"{seconds:.0f} s"),
        ("written to", str(out)),
    ):
        table.add_row(name, value)
    console = Console(width=_WIDTH, highlight=False)
    console.print(report.statement, markup=False)
    if not report.met:
        lowest = 100 * report.best_level
        console.print(f"With so many texts, {lowest:.2g}% is the least that could be promised.", markup=False)
    console.print(table, markup=False)
