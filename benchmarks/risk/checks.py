"""Is the verdict of `ponder check` right where texts come again, and where a file holds rows that were used?

    python -m benchmarks.risk.checks --draws 1000 --out benchmarks/results/risk

A log of a traffic certifies a cascade, as in `benchmarks.risk.repeats`. Then a file of rows judges the promise, and
some of its rows are left out by a rule. Of each rule two things are counted. *bias*: the mean of the share of other
answers among the rows that judge, less the true risk of the policy. *wrong*: had the promise been of just the true
risk, how often would the verdict be "broken", or "kept"? Each may be in at most 5% of draws.

Files: "new" rows of the traffic; the log that has "grown" by new rows; new rows and a "half" of the log.
Rules: "rows" is that of the library (`ponder.statistics.repeats.fresh_rows`). "texts" leaves out the rows of every
text that was used in one row, as this library did before. "unseen" leaves out all rows of texts that were used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from benchmarks.command_line import print_table, run_app
from benchmarks.environment import environment
from benchmarks.files import write_json
from benchmarks.risk.repeats import SETTINGS, WAYS, traffic_of
from ponder.statistics.repeats import fresh_rows
from ponder.statistics.verdict import judge

Ints = NDArray[Any]
_CONFIDENCE = 0.95

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def checks(
    draws: Annotated[int, typer.Option(min=1, help="Logs of each setting.")] = 1000,
    rows: Annotated[int, typer.Option(min=200, help="Rows of a log, and new rows.")] = 1000,
    processes: Annotated[int, typer.Option(min=1, help="Processes at once.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("runs/risk"),
) -> None:
    """Count wrong verdicts where texts come again."""
    with ProcessPoolExecutor(processes) as pool:
        running = [pool.submit(measured, setting, draws, rows) for setting in SETTINGS]
        outcomes = [outcome for each in running for outcome in each.result()]
    result = {
        "settings": {"draws": draws, "rows": rows, "confidence": _CONFIDENCE},
        "outcomes": outcomes,
        "environment": environment(torch.device("cpu")),
    }
    write_json(out / "checks.json", result)
    print_table(
        ("frequent", "file", "rule", "judged", "bias", "broken", "kept"), map(_cells, outcomes)
    )


def measured(setting: str, draws: int, rows: int) -> list[dict[str, Any]]:
    """Return the bias and the wrong verdicts of each rule on each file, as plain JSON."""
    found: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for number in range(draws):
        draw = np.random.default_rng(number)
        traffic, shares = traffic_of(setting, draw)
        log, new = (draw.choice(len(shares), size=rows, p=shares) for _ in range(2))
        policy = WAYS["cascade"](traffic, log, 0.02, number).policy
        steps = traffic.exit_steps(policy)
        lost = ~traffic.agreement()[np.arange(len(shares)), steps - 1]
        risk = float(lost @ shares)
        for file, held in FILES.items():
            given = np.concatenate([held(log, draw), new])
            for rule, select in RULES.items():
                judging = lost[given[select(given, log)]]
                found.setdefault((file, rule), []).append(_judged(judging, risk))
    return [
        {"frequent": setting, "file": file, "rule": rule, "draws": draws, **_means(each)}
        for (file, rule), each in found.items()
    ]


def _judged(lost: Any, risk: float) -> tuple[float, ...]:
    """Return the rows that judge, the share of other answers less the risk, and whether each verdict is wrong."""
    if not len(lost) or risk <= 0.0:
        return len(lost), float(lost.mean()) - risk if len(lost) else 0.0, 0.0, 0.0
    name = judge(int(lost.sum()), len(lost), risk, _CONFIDENCE).name
    return len(lost), float(lost.mean()) - risk, float(name == "broken"), float(name == "kept")


def _means(each: list[tuple[float, ...]]) -> dict[str, float]:
    names = ("judged", "bias", "broken", "kept")
    return dict(zip(names, np.mean(each, axis=0).tolist(), strict=True))


def _half(log: Ints, draw: np.random.Generator) -> Ints:
    return draw.permutation(log)[: len(log) // 2]


FILES: Mapping[str, Callable[[Ints, np.random.Generator], Ints]] = {
    "new": lambda log, draw: log[:0],
    "grown": lambda log, draw: log,
    "half": _half,
}
"""The used rows that a file holds besides new ones."""


def _by_texts(given: Ints, log: Ints) -> Any:
    texts, counts = np.unique(log, return_counts=True)
    return ~np.isin(given, texts[counts == 1])


RULES: Mapping[str, Callable[[Ints, Ints], Any]] = {
    "rows": fresh_rows,
    "texts": _by_texts,
    "unseen": lambda given, log: ~np.isin(given, log),
}
"""Functions of the rows of a file and of those that were used, which return the rows that judge."""


def _cells(outcome: Mapping[str, Any]) -> tuple[str, ...]:
    shares = (f"{outcome[name]:.1%}" for name in ("broken", "kept"))
    names = (outcome[name] for name in ("frequent", "file", "rule"))
    return (*names, f"{outcome['judged']:.0f}", f"{outcome['bias']:+.2%}", *shares)


if __name__ == "__main__":
    run_app(app)
