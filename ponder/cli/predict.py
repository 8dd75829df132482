"""The command `predict`: answers to texts as CSV, from a folder of `ponder exits` or of `ponder export`."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import typer
from torch import Tensor

from ponder._utils.files import write_text
from ponder.cli.telling import BATCH, quiet, say_left_out, tell
from ponder.cli.texts import Texts, read_texts_for
from ponder.errors import ArgumentError, CheckpointError
from ponder.export.examples import encoded, open_tokenizer
from ponder.export.runtime import OnnxModel
from ponder.integrations.transformers import FinetunedClassifier
from ponder.integrations.transformers.finetuned import is_export
from ponder.integrations.transformers.tokenizing import Encoded, load_tokenizer, max_positions, tokenize

__all__ = ["run"]

_ANSWER = ("label", "probability", "exit_step")
_SHOWN = 5  # rows without an answer


def run(folder: Path, texts: Path, out: Path, columns: Sequence[str], *, as_json: bool) -> None:
    """Write the answers to texts, each at its exit.

    Args:
        folder: What `ponder exits` or `ponder export` wrote.
        texts: The file of texts.
        out: The CSV file to write: the columns that were read, label, probability and exit step. Where the model
            answers NaN, label and probability are empty.
        columns: Names of the columns with the texts; found in the file where empty.
        as_json: Print JSON instead of a sentence.
    """
    quiet()
    _check_out(out, texts, folder)
    answer = _of_export if is_export(folder) else _of_exits
    found = read_texts_for(folder, texts, columns)
    _check_columns(found)
    outputs, exit_step, names, steps = answer(folder, found)
    places = outputs.argmax(-1)
    shares = outputs.float().softmax(-1).gather(-1, places.unsqueeze(-1)).squeeze(-1)
    answered = shares.isfinite()
    _say_unanswered((~answered).nonzero().flatten().tolist())
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\r\n")
    table.writerow([*found.columns, *_ANSWER])
    told = zip(found.rows, answered.tolist(), places.tolist(), shares.tolist(), exit_step.tolist(), strict=True)
    for row, there, place, share, step in told:
        table.writerow([*row, *((names[place], f"{share:.4f}") if there else ("", "")), step])
    try:
        write_text(out, written.getvalue())
    except OSError as error:
        raise ArgumentError(
            "out", expected="a file that can be written", got=f"{out} ({error})", remedy="Name another."
        ) from error
    mean = exit_step.double().mean().item()
    count = int(answered.sum())
    card = {
        "answers": count,
        "without_answer": len(answered) - count,
        "out": str(out),
        "mean_exit_step": mean,
        "num_steps": steps,
    }
    tell(card, [f"{count} answers in {out}; mean exit step {mean:.2f} of {steps}."], [], as_json=as_json)


def _say_unanswered(places: Sequence[int]) -> None:
    """Say on the standard error which rows have no answer: NaN is the largest of all logits, and no class."""
    if places:
        shown = ", ".join(str(place + 1) for place in places[:_SHOWN]) + (", …" if len(places) > _SHOWN else "")
        typer.echo(
            f"{len(places)} texts have no answer (NaN), and no label: row {shown}.\n"
            "Look for what they have in common, and for NaN in the weights of the model.",
            err=True,
        )


def _check_out(out: Path, texts: Path, folder: Path) -> None:
    """Refuse to write over what is read: the texts, and the model."""
    written = out.resolve()
    if written == texts.resolve() or written.is_relative_to(folder.resolve()) or out.is_dir():
        raise ArgumentError(
            "out",
            expected="a file of its own, which is neither that of the texts nor in the model's folder",
            got=out,
            remedy="Name another.",
        )


def _check_columns(texts: Texts) -> None:
    """Refuse texts whose column would stand twice in the answers."""
    for name in texts.columns:
        if name in _ANSWER:
            raise ArgumentError(
                "column",
                expected=f"texts in a column that is not called as the answers are ({', '.join(_ANSWER)})",
                got=repr(name),
                remedy="Rename the column in the file of texts.",
            )


def _of_exits(folder: Path, texts: Texts) -> tuple[Tensor, Tensor, list[str], int]:
    """Outputs, exit steps, names of the classes and N, from a folder of `ponder exits`."""
    made, tokenizer = FinetunedClassifier.from_pretrained(folder), load_tokenizer(str(folder))
    if not made.kind.task.one_class:
        raise CheckpointError(
            f"{folder}: expected exits of a classifier of texts; got the task {made.kind.task.name!r}. "
            "Call the model itself: FinetunedClassifier.from_pretrained(folder).predict(rows)."
        )
    encoded = tokenize(tokenizer, texts.rows, max_positions(made))
    say_left_out(texts, encoded, left_out=False)
    found = made.predict(encoded.rows, batch_size=BATCH, progress=sys.stderr.isatty())
    names = [str(made.config.id2label[place]) for place in range(found.outputs.shape[-1])]
    return found.outputs, found.exit_step, names, made.num_steps


def _of_export(folder: Path, texts: Texts) -> tuple[Tensor, Tensor, list[str], int]:
    """The same from an export, whose model PyTorch does not run."""
    model = OnnxModel(folder, threads=torch.get_num_threads())
    manifest = model.manifest
    if manifest.tokenizer is None or not manifest.classes or manifest.per_position:
        raise CheckpointError(
            f"{folder}: expected an export of a classifier of texts, with its tokenizer. Export it again."
        )
    if manifest.own_answers:
        raise CheckpointError(
            f"{folder}: its task {manifest.task!r} finds answers in code of its own, which an export does not hold. "
            "Call the model in PyTorch."
        )
    tokenizer = open_tokenizer(folder, manifest)
    made = tokenizer.encode_batch([row if len(row) > 1 else row[0] for row in texts.rows])
    rows = [encoded(one, manifest) for one in made]
    say_left_out(texts, Encoded(rows, [bool(one.overflowing) for one in made]), left_out=False)
    found = model.predict(rows, batch_size=BATCH)
    names = list(manifest.labels) or [str(place) for place in range(found.outputs.shape[-1])]
    return torch.from_numpy(found.outputs), torch.from_numpy(found.exit_step), names, model.num_steps
