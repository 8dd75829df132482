"""`python -m benchmarks.live`: measure streams, or print the table of what was measured."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
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
from benchmarks.live.rivals import Result

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
LEVELS, ROWS, TAUGHT, CERTIFY = (0.02, 0.05), 12_000, (600, 1200, 2400), (750, 1500)


class _Linear:
    """Logistic regression on embeddings; rows are numbers of texts."""

    def __init__(self, corpus: streams.Corpus, rows: Sequence[int], names: Sequence[str]) -> None:
        self._embeddings = corpus.embeddings
        model = LogisticRegression(C=20, max_iter=60, tol=1e-3)
        self._model = model.fit(self._embeddings[list(rows)], list(names))
        self.classes = tuple(self._model.classes_)

    def predict_proba(self, rows: Sequence[int]) -> Any:
        """Return probabilities, `(rows, classes)`."""
        return self._model.predict_proba(self._embeddings[list(rows)])


@app.command()
def live_command(
    text_dir: Annotated[Path, typer.Option(envvar="TEXT_DIR", help="Folder of the tasks.")],
    glue_dir: Annotated[Path, typer.Option(envvar="GLUE_DIR", help="Folder of GLUE.")],
    seed: Annotated[int, typer.Option(min=0)] = 0,
    cache: Annotated[Path, typer.Option(help="Folder of embeddings.")] = Path("models/live"),
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("runs/live"),
) -> None:
    """Measure every setting; each is written as soon as it is done."""
    for setting, tasks in streams.SETTINGS.items():
        for task in tasks:
            corpus = streams.read(task, text_dir, glue_dir, cache)
            order = streams.order_of(corpus, setting, ROWS, seed)
            rows = list(_measured(corpus, order, seed))
            name = f"{task}-{setting.replace(' ', '-')}-s{seed}.json"
            facts = {"task": task, "setting": setting, "seed": seed, "rows": len(order)}
            facts |= {"cheap": "logistic regression on MiniLM embeddings", "reference": "gold"}
            write_json(out / name, {**facts, "ways": rows, "environment": _environment()})
            for row in rows:
                typer.echo(f"{setting}, {task}: {row}")


def _environment() -> dict[str, Any]:
    return dict(environment(torch.device("cpu")))


def _measured(corpus: streams.Corpus, order: Any, seed: int) -> Iterator[dict[str, Any]]:
    """Yield a row of the results for each level and way."""
    labels = corpus.labels[order]
    views = dict[int, tuple[Any, Any]]()
    for taught in TAUGHT:
        model = _Linear(corpus, order[:taught].tolist(), labels[:taught].tolist())
        shares = model.predict_proba(order.tolist())
        views[taught] = shares.max(1), np.array(model.classes)[shares.argmax(1)] != labels
    for level in LEVELS:
        for finite in (False, True):
            start = time.perf_counter()
            name = "Live, finite" if finite else "Live"
            found = _live(corpus, order, level, finite)
            yield _row(level, name, found) | {"seconds": round(time.perf_counter() - start, 1)}
        for taught, (sure, differs) in views.items():
            for certify in CERTIFY:
                found = rivals.fixed(sure, differs, level, taught, certify)
                yield _row(level, f"fixed {taught}/{certify}", found)
            yield _row(
                level, f"BARGAIN {taught}", rivals.bargain(sure, differs, level, taught, seed)
            )
            for audit in (0.1, 0.3):
                found = rivals.bpac(sure, differs, level, taught, audit, seed)
                yield _row(level, f"B-PAC {taught}/{audit:g}", found)


def _row(level: float, way: str, found: Result) -> dict[str, Any]:
    numbers = {name: round(value, 5) for name, value in vars(found).items()}
    return {"level": level, "way": way, **numbers}


def _live(corpus: streams.Corpus, order: Any, level: float, finite: bool) -> Result:
    """Answer the stream by `ponder.Live`."""

    def ask(rows: Sequence[int]) -> list[str]:
        return [str(corpus.labels[row]) for row in rows]

    def teach(rows: Sequence[int], names: Sequence[str]) -> _Linear:
        return _Linear(corpus, rows, names)

    live = ponder.Live(ask, level, teach=teach)
    found = live.answer([int(row) for row in order], finite=finite)
    wrong = np.array(found.labels) != corpus.labels[order]
    asked = np.array([source == "reference" for source in found.source])
    return Result.of(asked, wrong)


if __name__ == "__main__":
    run_app(app)
