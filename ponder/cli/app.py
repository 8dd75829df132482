"""The commands: `exits`, `doctor` and `predict`."""

from __future__ import annotations

import csv
import io
import json
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from ponder._utils.files import write_text
from ponder.analysis.diagnosis import diagnose
from ponder.cli.texts import Encoded, Texts, encode, read_texts
from ponder.cost.speed import WallClock, wall_clock
from ponder.errors import ArgumentError, CheckpointError, PonderError
from ponder.integrations.transformers import ExitReport, FinetunedClassifier, PonderForSequenceClassification, fit_exits
from ponder.integrations.transformers.exits import distinct

__all__ = ["app"]

app = typer.Typer(
    help="Exits for a fine-tuned classifier: the same answers, sooner, with a promise.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

_WIDTH = 80
_TIMED = 512  # texts, at most
_BATCH = 32
_CARD = "ponder.json"
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", ".model")  # how the files of vocabularies end

ModelFolder = Annotated[Path, typer.Argument(help="A folder that `ponder exits` wrote.", metavar="FOLDER")]
TextsFile = Annotated[Path, typer.Option("--texts", help="CSV, JSON lines, Parquet, or a text on each line.")]
Columns = Annotated[
    list[str] | None, typer.Option("--column", help="The column with the texts; twice for pairs.", metavar="NAME")
]


def _version(asked: bool) -> None:
    if asked:
        print(f"ponder {metadata.version('ponder-torch')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()


@app.command()
def exits(
    model: Annotated[str, typer.Argument(help="A fine-tuned classifier: a folder or a hub name.", metavar="MODEL")],
    texts: TextsFile,
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    column: Columns = None,
    disagreement: Annotated[float, typer.Option(help="How often answers may differ from MODEL's.")] = 0.01,
    confidence: Annotated[float, typer.Option(help="Of the promise.")] = 0.95,
    speed_up: Annotated[
        float | None, typer.Option(help="Aim at this many times fewer steps, and say what it costs.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
) -> None:
    """Give MODEL exits: train them on texts without labels, choose, certify, measure."""
    with _plain_errors():
        _check_out(out, model)
        found = read_texts(texts, column or ())
        kept = found.without_empty()
        made = PonderForSequenceClassification.from_finetuned(model)
        tokenizer = _tokenizer(model)
        encoded = encode(tokenizer, kept, _positions(made.classifier))
        _say_left_out(found, encoded, left_out=True)
        start = time.perf_counter()
        report = fit_exits(
            made,
            encoded.rows,
            disagreement=disagreement,
            confidence=confidence,
            speed_up=speed_up,
            seed=seed,
            progress=sys.stderr.isatty(),
        )
        seconds = time.perf_counter() - start
        clock = _seconds(made, distinct(encoded.rows)[-_TIMED:])
        made.save_pretrained(out)
        tokenizer.save_pretrained(out)
        card = {**report.to_dict(), "speed_up_in_steps": report.speed_up, "speed_up_in_seconds": clock.median}
        write_text(out / _CARD, json.dumps(card, indent=2) + "\n")
        _show(report, clock, seconds, out)


@app.command()
def doctor(folder: ModelFolder, texts: TextsFile, column: Columns = None) -> None:
    """Do exits pay here? Which policy, or which fixed step? Judged by agreement with full depth."""
    with _plain_errors():
        made, tokenizer = FinetunedClassifier.from_pretrained(folder), _tokenizer(str(folder))
        found = read_texts(texts, column or ())
        encoded = encode(tokenizer, found.without_empty(), _positions(made.classifier))
        _say_left_out(found, encoded, left_out=True)
        with torch.no_grad():
            seen = made.record(distinct(encoded.rows), batch_size=_BATCH, progress=sys.stderr.isatty())
        typer.echo("Accuracy below is agreement with full depth: the texts have no labels.\n")
        typer.echo(str(diagnose(replace(seen, labels=seen.outputs[:, -1].argmax(-1)))))
        typer.echo(f"\nThe folder's own policy: {made.policy!r}")


@app.command()
def predict(
    folder: ModelFolder,
    texts: TextsFile,
    out: Annotated[Path, typer.Option(help="The CSV file to write.")],
    column: Columns = None,
) -> None:
    """Answer every text, each at its exit; the exit step stands beside the answer."""
    with _plain_errors():
        made, tokenizer = FinetunedClassifier.from_pretrained(folder), _tokenizer(str(folder))
        found = read_texts(texts, column or ())
        encoded = encode(tokenizer, found, _positions(made.classifier))
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


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Errors of the library, and of files, as a sentence on the standard error, and the exit status 1."""
    try:
        yield
    except PonderError as error:
        typer.echo(textwrap.fill(f"ponder: {error}", _WIDTH, break_long_words=False, break_on_hyphens=False), err=True)
        raise typer.Exit(1) from error


def _check_out(out: Path, model: str) -> None:
    """Refuse to write over the model itself, over a file, or among files of something else."""
    if out.exists() and Path(model).exists() and out.resolve() == Path(model).resolve():
        raise ArgumentError("out", expected="another folder than the model's", got=out, remedy="Name a new one.")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "exits.json").exists())):
        raise ArgumentError(
            "out", expected="a new or empty folder, or one of `ponder exits`", got=out, remedy="Name a new one."
        )


def _tokenizer(source: str) -> Any:
    folder = Path(source)
    try:
        if folder.is_dir() and not any(path.name.endswith(_TOKENIZERS) for path in folder.iterdir()):
            raise FileNotFoundError(folder)  # Transformers would make one up, in which every word is unknown
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # whatever Transformers stumbles over
        raise CheckpointError(
            f"tokenizer: expected the tokenizer's files in {source}; got none that can be read. "
            "Save them there: tokenizer.save_pretrained(folder)."
        ) from error


def _positions(classifier: PreTrainedModel) -> int:
    """How many tokens the model takes; positions of RoBERTa's kind begin behind the padding's number."""
    config = classifier.config
    count = int(getattr(config, "max_position_embeddings", None) or 10**10)
    shifted = config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "xlm-roberta-xl")
    return count - (int(config.pad_token_id or 0) + 1 if shifted else 0)


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
