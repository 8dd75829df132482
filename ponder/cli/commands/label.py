"""The command `label`: label texts by a reference and a cheap model that learns from it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from ponder.cascade.asking import Ask, Asking, ReferenceDownError
from ponder.cascade.clients import ChatLabels
from ponder.cascade.live import BudgetSpentError, Live, LiveAnswers, Progress
from ponder.cli.answers import answer_file, names_of_answers
from ponder.cli.options import SHARE, Columns, Confidence, Json, NoHeader
from ponder.cli.outcome import DataTable, Outcome
from ponder.cli.output import probe_file, progress
from ponder.cli.show import show
from ponder.cli.texts import Texts, read_labels, read_texts
from ponder.errors import ArgumentError
from ponder.statistics.certificate import CONFIDENCE, LEVEL, count

__all__ = ["WAITING", "run"]

WAITING = 3
"""The exit code if texts have no answer."""
_ANSWERS = ("label", "source")
_SHOWN = 8
"""Classes that are shown, those that were asked about most."""


def run(
    texts: Annotated[Path, typer.Argument(help="The file with the texts.", metavar="TEXTS")],
    reference: Annotated[
        str, typer.Option("--with", help="module:function, or openai:MODEL.", metavar="REFERENCE")
    ],
    out: Annotated[Path, typer.Option(help="The file to write: .csv, .jsonl or .parquet.")],
    database: Annotated[
        Path, typer.Option("--db", help="The SQLite file that keeps the answers of the reference.")
    ],
    column: Columns = None,
    no_header: NoHeader = False,
    level: Annotated[
        float,
        typer.Option(
            "--level", "--disagreement", help="The share of answers that may differ.", **SHARE
        ),
    ] = LEVEL,
    confidence: Confidence = CONFIDENCE,
    labels: Annotated[
        Path | None, typer.Option(help="With openai: a file with a label on each line.")
    ] = None,
    base_url: Annotated[
        str, typer.Option(help="With openai: the address of the server.")
    ] = "https://api.openai.com/v1",
    price: Annotated[float | None, typer.Option(min=0, help="The price of a call.")] = None,
    limit_calls: Annotated[
        int | None,
        typer.Option(min=0, help="The limit of calls of this run; run it again to continue."),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="The number of concurrent calls.")] = 1,
    per_minute: Annotated[
        float | None, typer.Option(min=1e-3, help="The limit of calls a minute.")
    ] = None,
    json: Json = False,
) -> None:
    """Label texts by a reference, for example an LLM, and a cheap model that learns from it.

    The share of wrong labels is promised.

    Example: `ponder label texts.csv --with my_module:ask --out labelled.csv --db labels.db`
    """
    probe_file(out, [texts])
    ask = _reference(reference, base_url, labels)
    found = read_texts(texts, column, header=not no_header)
    asking = Asking(concurrency=concurrency, per_minute=per_minute)
    with progress() as advance:

        def report(now: Progress) -> None:
            """Show the number of answered texts, and the bound so far."""
            phase = f"label ({100 * now.asked:.0f}% asked, at most {100 * now.bound:.1f}% differ)"
            if sys.stderr.isatty():
                phase = "label"  # the bar of a phase needs one name
            advance(phase, now.done, now.total)

        live = Live(ask, level, confidence, database, asking=asking, progress=report)
        if limit_calls is not None:
            live.budget = live.account.asked + limit_calls
        asked_before = live.account.asked
        ids = [f"{row}: {text}" for row, text in enumerate(found.texts)]
        answers = live.answer(found.texts, ids=ids, finite=True)
    _write(out, found, answers)
    table = _table(live, len(found), live.account.asked - asked_before, price)
    table.append(("written to", str(out)))
    show(_outcome(live, dict(answers.errors), table), as_json=json)
    live.close()
    if answers.errors:
        raise typer.Exit(WAITING)


def _write(out: Path, texts: Texts, answers: LiveAnswers) -> None:
    """Write the answers to a file, after the columns of the texts."""
    columns = list(texts.rows[0])
    header = [*columns, *names_of_answers(_ANSWERS, columns)]
    answered = zip(texts.rows, answers.labels, answers.source, strict=True)
    rows = [
        dict(zip(header, [*row.values(), label, source], strict=True))
        for row, label, source in answered
    ]
    file = answer_file(out, header)
    file.append(rows, begins=True)
    file.finish()


def _table(live: Live, rows: int, asked_now: int, price: float | None) -> list[tuple[str, str]]:
    """Return the calls of the reference, its audits and their costs as rows of a table.

    Args:
        live: The models and their account.
        rows: The number of texts.
        asked_now: The number of texts about which the reference was asked in this run.
        price: Price of a call, or None.
    """
    account = live.account
    ledger = account.ledger
    table = [
        ("asked", f"{account.asked} of {rows} texts, {asked_now} of them in this run"),
        ("audits", f"{ledger.audits}, of which {ledger.caught} found another answer"),
    ]
    if price is not None:
        cost = account.asked * price
        whole = rows * price
        table.append(("cost", f"{cost:.2f} where all texts would have cost {whole:.2f}"))
    return table


def _outcome(
    live: Live, errors: Mapping[int, Exception], table: Sequence[tuple[str, str]]
) -> Outcome:
    """Return the promise, the texts without an answer, and the table as an outcome."""
    account = live.account
    sentences = [live.statement]
    limited = sum(isinstance(error, BudgetSpentError) for error in errors.values())
    down = [error for error in errors.values() if isinstance(error, ReferenceDownError)]
    failed = len(errors) - limited
    if limited:
        sentences.append(f"{count(limited, 'text')} wait for the next run: the limit was reached.")
    if down:
        # The first of these texts failed themselves; they wait as well.
        sentences.append(f"{count(failed, 'text')} wait for the next run. {down[0]}")
    elif failed:
        first = next(each for each in errors.values() if not isinstance(each, BudgetSpentError))
        sentences.append(f"{count(failed, 'text')} without an answer; the first says: {first}")
    asked = list(live.asked_by_class().items())[:_SHOWN]
    cells = [[name, str(number)] for name, number in asked]
    classes = DataTable("Asked most", ["asked most", "texts"], cells, printed=True)
    ledger = account.ledger
    facts = {
        "statement": live.statement,
        "answers": account.answers,
        "asked": account.asked,
        "bound": ledger.bound,
        "audits": ledger.audits,
        "caught": ledger.caught,
        "without_answer": len(errors),
    }
    return Outcome(facts, sentences, table, tables=[classes])


def _reference(given: str, base_url: str, labels: Path | None) -> Ask:
    """Return the function of a name, `module:function` or `openai:MODEL`."""
    kind, _, name = given.partition(":")
    if kind == "openai" and name:
        return ChatLabels(name, read_labels(labels), base_url)
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` does, for a module beside the texts
    try:
        function: Ask = getattr(import_module(kind), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ArgumentError(
            "--with",
            expected="module:function, or openai:MODEL",
            got=f"{given} ({error})",
            remedy="Name a function from a list of texts to a label for each.",
        ) from error
    finally:
        sys.path.pop(0)
    return function
