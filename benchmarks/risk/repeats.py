"""Traffic in which texts come again: how often is a promise about its rows broken?

    python -m benchmarks.risk.repeats --draws 1000 --out benchmarks/results/risk

The traffic is a set of texts with a probability each. A log of rows is drawn from it, thresholds
are chosen and certified on the log, and the true risk is that of all texts by their probabilities.
A frequent text is one that a student is sure of, and wrong about with probability one half; of
others it is sure and mostly right, or unsure.

Three ways of the library are tried, which take the log as rows: `certify_cascade`, `certify` on the
sides of `fit_exits`, and `control_risk`. The fourth, "once", counts each text of the log once, as
this library did before.
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
from ponder._utils.rows import split
from ponder.calibration import certify, certify_cascade, control_risk
from ponder.calibration.control import RiskControl
from ponder.calibration.records import Record
from ponder.policies.certainty import Confidence

Floats = NDArray[Any]
TEXTS = 2000
SETTINGS: Mapping[str, tuple[int, float]] = {
    "none": (0, 0.0),
    "1 text": (1, 0.05),
    "5 texts": (5, 0.2),
    "20 texts": (20, 0.1),
    "Zipf 1.0": (0, 1.0),
    "Zipf 1.2": (0, 1.2),
}
"""Number of frequent texts and their share of the rows together; of Zipf's law the exponent."""
_SIDES = (0.4, 0.2, 0.4)  # of fit_exits: to learn, to choose, to certify

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def repeats(
    draws: Annotated[int, typer.Option(min=1, help="Logs of each setting.")] = 1000,
    rows: Annotated[int, typer.Option(min=200, help="Rows of a log.")] = 1000,
    level: Annotated[float, typer.Option(help="The risk that is promised.")] = 0.02,
    processes: Annotated[int, typer.Option(min=1, help="Processes at once.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("runs/risk"),
) -> None:
    """Count broken promises where texts come again."""
    with ProcessPoolExecutor(processes) as pool:
        running = [
            pool.submit(measured, setting, way, draws, rows, level)
            for setting in SETTINGS
            for way in WAYS
        ]
        outcomes = [each.result() for each in running]
    settings = {"draws": draws, "rows": rows, "level": level, "confidence": 0.95, "texts": TEXTS}
    result = {
        "settings": settings,
        "outcomes": outcomes,
        "environment": environment(torch.device("cpu")),
    }
    write_json(out / "repeats.json", result)
    columns = ("frequent", "way", "certified", "broken", "observed", "true")
    print_table(columns, map(_cells, outcomes))


def measured(setting: str, way: str, draws: int, rows: int, level: float) -> dict[str, Any]:
    """Return how often the promise of one way is given and broken, as plain JSON."""
    met = 0
    broken = 0
    observed = list[float]()
    true = list[float]()
    for number in range(draws):
        draw = np.random.default_rng(number)
        traffic, shares = traffic_of(setting, draw)
        log = draw.choice(len(shares), size=rows, p=shares)
        found = WAYS[way](traffic, log, level, number)
        steps = traffic.exit_steps(found.policy)
        lost = ~traffic.agreement()[np.arange(len(shares)), steps - 1]
        risk = float(lost @ shares)
        met += found.met
        broken += found.met and risk > level
        observed.append(found.observed)
        true.append(risk)
    return {
        "frequent": setting,
        "way": way,
        "draws": draws,
        "certified": met / draws,
        "broken": broken / draws,
        "observed": float(np.mean(observed)),
        "true": float(np.mean(true)),
    }


def traffic_of(setting: str, draw: np.random.Generator) -> tuple[Record, Floats]:
    """Return the answers of two stages to all texts, and the probability of each text."""
    frequent, share = SETTINGS[setting]
    is_frequent = np.arange(TEXTS) < frequent
    sure = is_frequent | (draw.uniform(size=TEXTS) < 0.7)
    confidence = np.where(sure, draw.uniform(0.95, 0.999, TEXTS), draw.uniform(0.4, 0.95, TEXTS))
    wrong = draw.uniform(size=TEXTS) < np.where(is_frequent, 0.5, np.where(sure, 0.003, 0.4))
    first = np.stack([confidence, 1.0 - confidence], axis=1)
    first[wrong] = first[wrong, ::-1]
    outputs = np.log(np.stack([first, np.tile([1.0 - 1e-9, 1e-9], (TEXTS, 1))], axis=1))
    if setting.startswith("Zipf"):
        shares = 1.0 / np.arange(1.0, TEXTS + 1.0) ** share
    else:
        rest = (1.0 - share) / (TEXTS - frequent)
        shares = np.where(is_frequent, share / max(frequent, 1), rest)
    # Row ids are hashes of texts in earnest, so which texts are dealt to which side differs from
    # log to log.
    ids = draw.integers(-(2**62), 2**62, size=TEXTS)
    record = Record(outputs, None, ids, task="classification", content_ids=True)
    return record, shares / shares.sum()


def _rows(traffic: Record, rows: Any) -> Record:
    return traffic.map(lambda values: values[rows])


def _by_cascade(traffic: Record, log: Any, level: float, seed: int) -> RiskControl:
    return certify_cascade(_rows(traffic, log), [1.0, 20.0], level=level, seed=seed)


def _by_exits(traffic: Record, log: Any, level: float, seed: int) -> RiskControl:
    _, choose, check = split(traffic.row_ids[log], _SIDES, seed)
    return certify(_rows(traffic, log[choose]), _rows(traffic, log[check]), level=level)


def _by_control(traffic: Record, log: Any, level: float, seed: int) -> RiskControl:
    return control_risk(_rows(traffic, log), Confidence, level=level, bound="exact_binomial")


def _once(traffic: Record, log: Any, level: float, seed: int) -> RiskControl:
    return _by_cascade(traffic, np.unique(log), level, seed)


WAYS: Mapping[str, Callable[[Record, Any, float, int], RiskControl]] = {
    "cascade": _by_cascade,
    "exits": _by_exits,
    "control_risk": _by_control,
    "once": _once,
}


def _cells(outcome: Mapping[str, Any]) -> tuple[str, ...]:
    shares = (f"{outcome[name]:.1%}" for name in ("certified", "broken"))
    means = (f"{outcome[name]:.2%}" for name in ("observed", "true"))
    return (outcome["frequent"], outcome["way"], *shares, *means)


if __name__ == "__main__":
    run_app(app)
