"""The command `label`: label texts by a reference and a cheap model that learns from it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ponder.cascade.asking import Asking
from ponder.cascade.clients import ChatLabels
from ponder.cascade.live import BudgetSpentError, Live, Progress
from ponder.cli.answers import answer_file, names_of_answers
from ponder.cli.outcome import DataTable, Outcome
from ponder.cli.output import Options, probe_file, progress
from ponder.cli.show import show
from ponder.cli.texts import count, read_texts
from ponder.errors import ArgumentError

__all__ = ["Spending", "run", "spending_of"]

_ANSWERS = ("label", "source")
_SHOWN = 8  # classes


@dataclass(frozen=True)
class Spending:
    """What a call of the reference costs, and how many there may be.

    Args:
        price: Price of a call.
        limit_calls: Calls of this run at most; None for no limit.
        asking: How the reference is called.
    """

    price: float | None
    limit_calls: int | None
    asking: Asking


def spending_of(
    price: float | None, limit_calls: int | None, concurrency: int, per_minute: float | None
) -> Spending:
    """Return what the options of the command say."""
    asking = Asking(concurrency=concurrency, per_minute=per_minute)
    return Spending(price, limit_calls, asking)


def run(
    texts: Path,
    reference: str,
    out: Path,
    database: Path,
    reading: Options,
    server: tuple[str, Path | None],
    promise: tuple[float, float],
    spending: Spending,
    *,
    as_json: bool,
) -> int:
    """Label a file, and return the exit code: 3 if the limit of calls stopped it.

    Args:
        texts: The file.
        reference: `module:function`, or `openai:MODEL`.
        out: The file to write.
        database: The SQLite file with answers and the ledger.
        reading: Arguments of `read_texts`.
        server: The address of an OpenAI-shaped server, and a file with a label on each line.
        promise: Level and confidence.
        spending: Prices and limits.
        as_json: Whether to print JSON.
    """
    probe_file(out, [texts])
    ask = _reference(reference, *server)
    found = read_texts(texts, **reading)
    level, confidence = promise
    with progress() as advance:

        def report(now: Progress) -> None:
            phase = f"label ({100 * now.asked:.0f}% asked, at most {100 * now.bound:.1f}% differ)"
            if sys.stderr.isatty():
                phase = "label"  # the bar of a phase goes on only under one name
            advance(phase, now.done, now.total)

        live = Live(ask, level, confidence, database, asking=spending.asking, progress=report)
        if spending.limit_calls is not None:
            live.budget = live.account.spent + spending.limit_calls
        before = live.account.asked
        names = [f"{row}: {text}" for row, text in enumerate(found.texts)]
        answers = live.answer(found.texts, ids=names, finite=True)
    columns = list(found.rows[0])
    header = [*columns, *names_of_answers(_ANSWERS, columns)]
    written = answer_file(out, header)
    sides = zip(found.rows, answers.labels, answers.source, strict=True)
    rows = [
        dict(zip(header, [*row.values(), label, source], strict=True))
        for row, label, source in sides
    ]
    written.append(rows, begins=True)
    written.finish()
    show(_outcome(live, before, len(found), dict(answers.errors), spending, out), as_json=as_json)
    live.close()
    if answers.errors:
        return 3
    return 0


def _outcome(
    live: Live,
    before: int,
    rows: int,
    errors: Mapping[int, Exception],
    spending: Spending,
    out: Path,
) -> Outcome:
    """Return the calls of the reference, its audits and their costs as an outcome."""
    account = live.account
    table = [
        ("asked", f"{account.asked} of {rows} texts, {account.asked - before} of them in this run"),
        (
            "audits",
            f"{account.ledger.audits}, of which {account.ledger.caught} found another answer",
        ),
    ]
    if spending.price is not None:
        cost = account.asked * spending.price
        whole = rows * spending.price
        table.append(("cost", f"{cost:.2f} where all texts would have cost {whole:.2f}"))
    sentences = [live.statement]
    limited = sum(isinstance(error, BudgetSpentError) for error in errors.values())
    failed = len(errors) - limited
    if limited:
        sentences.append(f"{count(limited, 'text')} wait for the next run: the limit was reached.")
    if failed:
        first = next(each for each in errors.values() if not isinstance(each, BudgetSpentError))
        sentences.append(f"{count(failed, 'text')} without an answer; the first says: {first}")
    table.append(("written to", str(out)))
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


def _reference(given: str, base_url: str, labels: Path | None) -> Callable[..., Any]:
    """Return the function of a name, `module:function` or `openai:MODEL`."""
    kind, _, name = given.partition(":")
    if kind == "openai" and name:
        if labels is None:
            remedy = "Pass --labels FILE, with a label on each line."
            raise ArgumentError("--labels", expected="a file", got="none", remedy=remedy)
        lines = labels.read_text(encoding="utf-8").splitlines()
        return ChatLabels(name, [line.strip() for line in lines if line.strip()], base_url)
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` does, for a module beside the texts
    try:
        found: Callable[..., Any] = getattr(import_module(kind), name)
    except (ImportError, AttributeError, ValueError) as error:
        expected = "module:function, or openai:MODEL"
        remedy = "Name a function from a list of texts to a label for each."
        got = f"{given} ({error})"
        raise ArgumentError("--with", expected=expected, got=got, remedy=remedy) from error
    finally:
        sys.path.pop(0)
    return found
