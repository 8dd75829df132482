"""`python -m benchmarks.live`: `run` measures streams, `redraws` counts broken promises on synthetic ones.

`kills` kills processes that share a file, and `overhead` measures what `Live` adds to a call. `batches` compares a
certificate about the rows of a batch with one about rows like them.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from sklearn.linear_model import LogisticRegression

import ponder
from benchmarks.command_line import run_app
from benchmarks.environment import environment
from benchmarks.files import write_json
from benchmarks.live import rivals, streams
from benchmarks.live.batches import batches
from benchmarks.live.kills import trial
from benchmarks.live.overhead import overhead
from benchmarks.live.redraws import SETTINGS, redrawn
from benchmarks.live.rivals import Result

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
LEVELS, ROWS, TAUGHT, CERTIFY = (0.02, 0.05), 12_000, (600, 1200, 2400), (750, 1500)


class _Linear:
    """Logistic regression on embeddings; rows are numbers of texts."""

    name = "logistic regression on MiniLM embeddings"

    def __init__(self, corpus: streams.Corpus, rows: Sequence[int], names: Sequence[str]) -> None:
        self._embeddings = corpus.embeddings
        model = LogisticRegression(C=20, max_iter=60, tol=1e-3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of many classes, and of few steps
            self._model = model.fit(self._embeddings[list(rows)], list(names))
        self.classes = tuple(self._model.classes_)

    def predict_proba(self, rows: Sequence[int]) -> Any:
        """Return probabilities, `(rows, classes)`."""
        return self._model.predict_proba(self._embeddings[list(rows)])


class _Words:
    """A `Student`; rows are numbers of texts."""

    name = "Student"

    def __init__(self, corpus: streams.Corpus, rows: Sequence[int], names: Sequence[str]) -> None:
        self._texts = corpus.texts
        self._student = ponder.cascade.Student.fit([self._texts[row] for row in rows], names)
        self.classes = self._student.classes

    def predict_proba(self, rows: Sequence[int]) -> Any:
        """Return probabilities, `(rows, classes)`."""
        return self._student.predict_proba([self._texts[row] for row in rows])


CHEAP: Mapping[str, Any] = {"linear": _Linear, "student": _Words}


@app.command("run")
def run_command(
    text_dir: Annotated[Path, typer.Option(envvar="TEXT_DIR", help="Folder of the tasks.")],
    glue_dir: Annotated[Path, typer.Option(envvar="GLUE_DIR", help="Folder of GLUE.")],
    seed: Annotated[list[int], typer.Option(min=0, help="Seeds of the orders and draws.")],
    setting: Annotated[list[str], typer.Option(help="Settings; all by default.")] = [],  # noqa: B006
    cheap: Annotated[str, typer.Option(help="linear or student.")] = "linear",
    cache: Annotated[Path, typer.Option(help="Folder of embeddings.")] = Path("models/live"),
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("runs/live"),
) -> None:
    """Measure settings; each stream is written as soon as it is done, and left out if it is there."""
    for each in seed:
        for chosen in setting or streams.SETTINGS:
            for task in streams.SETTINGS[chosen]:
                name = f"{task}-{chosen.replace(' ', '-')}-{cheap}-s{each}.json"
                if (out / name).exists():
                    continue
                corpus = streams.read(task, text_dir, glue_dir, cache)
                order = streams.order_of(corpus, chosen, ROWS, each)
                rows = list(_measured(corpus, order, each, CHEAP[cheap]))
                facts = {"task": task, "setting": chosen, "seed": each, "rows": len(order)}
                facts |= {"cheap": CHEAP[cheap].name, "reference": "gold"}
                write_json(out / name, {**facts, "ways": rows, "environment": _environment()})
                for row in rows:
                    typer.echo(f"{chosen}, {task}: {row}")


@app.command("batches")
def batches_command(
    text_dir: Annotated[Path, typer.Option(envvar="TEXT_DIR", help="Folder of the tasks.")],
    glue_dir: Annotated[Path, typer.Option(envvar="GLUE_DIR", help="Folder of GLUE.")],
    task: Annotated[str, typer.Option(help="The task.")] = "banking77",
    draws: Annotated[int, typer.Option(min=1)] = 20,
    cache: Annotated[Path, typer.Option(help="Folder of embeddings.")] = Path("models/live"),
    out: Annotated[Path, typer.Option(help="The file of results.")] = Path(
        "runs/live/batches.json"
    ),
) -> None:
    """Measure what `certify --finite` saves on a batch, of which some rows are drawn and asked."""
    corpus = streams.read(task, text_dir, glue_dir, cache)
    order = streams.order_of(corpus, "no drift", ROWS, 0)
    model = _Linear(corpus, order[:1200].tolist(), corpus.labels[order[:1200]].tolist())
    batch = order[1200:]
    shares = model.predict_proba(batch.tolist())
    answers = np.array(model.classes)[shares.argmax(1)]
    found = list(batches(answers, shares.max(1), corpus.labels[batch], draws))
    facts = {"task": task, "rows": len(batch), "taught": 1200, "draws": draws}
    write_json(out, {**facts, "ways": found, "environment": _environment()})
    for row in found:
        typer.echo(str(row))


@app.command("redraws")
def redraws_command(
    streams_of_each: Annotated[int, typer.Option("--streams", min=1)] = 1000,
    rows: Annotated[int, typer.Option(min=100)] = 800,
    out: Annotated[Path, typer.Option(help="The file of results.")] = Path(
        "runs/live/redraws.json"
    ),
) -> None:
    """Count broken promises of `Live`'s rule and ledger on synthetic streams of each setting."""
    found = list[dict[str, Any]]()
    for name in SETTINGS:
        found.append(redrawn(name, streams_of_each, rows))
        typer.echo(str(found[-1]))
        write_json(out, {"rows": rows, "settings": found, "environment": _environment()})


def _environment() -> dict[str, Any]:
    return dict(environment(torch.device("cpu")))


def _measured(
    corpus: streams.Corpus, order: Any, seed: int, cheap: Any
) -> Iterator[dict[str, Any]]:
    """Yield a row of the results for each level and way."""
    labels = corpus.labels[order]
    views = dict[int, tuple[Any, Any]]()
    for taught in TAUGHT:
        model = cheap(corpus, order[:taught].tolist(), labels[:taught].tolist())
        shares = model.predict_proba(order.tolist())
        views[taught] = shares.max(axis=1), np.array(model.classes)[shares.argmax(axis=1)] != labels
    for level in LEVELS:
        for finite in (False, True):
            start = time.perf_counter()
            name = "Live, finite" if finite else "Live"
            found = _live(corpus, order, level, finite, cheap)
            yield _row(level, name, found) | {"seconds": round(time.perf_counter() - start, 1)}
        for taught, view in views.items():
            yield from _rivals(level, taught, *view, seed)


def _rivals(level: float, taught: int, sure: Any, differs: Any, seed: int) -> Iterator[Any]:
    """Yield a row for each rival whose cheap model was taught by the first rows."""
    for certify in CERTIFY:
        found = rivals.fixed(sure, differs, level, taught, certify)
        yield _row(level, f"fixed {taught}/{certify}", found)
        found = rivals.pac_labels(sure, differs, level, taught, certify, seed)
        yield _row(level, f"PAC labels {taught}/{certify}", found)
    yield _row(level, f"BARGAIN {taught}", rivals.bargain(sure, differs, level, taught, seed))
    for audit in (0.1, 0.3):
        found = rivals.bpac(sure, differs, level, taught, audit, seed)
        yield _row(level, f"B-PAC {taught}/{audit:g}", found)


def _row(level: float, way: str, found: Result) -> dict[str, Any]:
    numbers = {name: round(value, 5) for name, value in vars(found).items()}
    return {"level": level, "way": way, **numbers}


def _live(corpus: streams.Corpus, order: Any, level: float, finite: bool, cheap: Any) -> Result:
    """Answer the stream by `ponder.Live`."""

    def ask(rows: Sequence[int]) -> list[str]:
        return [str(corpus.labels[row]) for row in rows]

    def teach(rows: Sequence[int], names: Sequence[str]) -> Any:
        return cheap(corpus, rows, names)

    live = ponder.Live(ask, level, teach=teach)
    found = live.answer([int(row) for row in order], finite=finite)
    wrong = np.array(found.labels) != corpus.labels[order]
    asked = np.array([source == "reference" for source in found.source])
    return Result.of(asked, wrong)


@app.command("kills")
def kills_command(
    folder: Annotated[Path, typer.Argument(help="Folder of the files that are labelled.")],
    kills: Annotated[int, typer.Option(min=1)] = 500,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path, typer.Option(help="The file of results.")] = Path("runs/live/kills.json"),
) -> None:
    """Kill two processes that label one file again and again, and count what is lost or paid again."""
    for faults in trial(folder, kills, processes=2, rows=3000, seed=seed):
        write_json(out, {**vars(faults), "environment": _environment()})
        typer.echo(str(faults))


@app.command("overhead")
def overhead_command(
    folder: Annotated[Path, typer.Argument(help="Folder of the database.")],
    out: Annotated[Path, typer.Option(help="The file of results.")] = Path(
        "runs/live/overhead.json"
    ),
) -> None:
    """Measure what `Live` adds to 20,000 calls of 50 ms, 16 at once."""
    seconds = overhead(folder / "overhead.db", 20_000, 0.05, 16)
    found = {"milliseconds": round(1000 * seconds, 3), "texts": 20_000, "call": 0.05}
    write_json(out, {**found, "concurrency": 16, "environment": _environment()})
    typer.echo(str(found))


if __name__ == "__main__":
    run_app(app)
