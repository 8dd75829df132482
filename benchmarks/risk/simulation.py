"""Repeats risk control on many calibration sets, and counts broken promises and kept savings."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

import ponder
from benchmarks.risk import synthetic
from ponder.analysis.policy_grid import as_policy_grid
from ponder.calibration import BOUNDS
from ponder.calibration.control import find_low
from ponder.calibration.risks import losses_by_step
from ponder.engine.replay import check_replay
from ponder.policies import Quantile

__all__ = ["GRID", "RISKS", "Outcome", "Scene", "real_scene", "simulate", "split_scene", "synthetic_scene"]

RISKS = ("disagreement", "error_gap", "error")
GRID = [i / 100 for i in range(101)]
TRIALS = 1000


@dataclass(frozen=True)
class Scene:
    """A source of calibration sets, and what is true of a chosen threshold.

    Args:
        name: Its name in tables.
        rows: Rows of a calibration set.
        num_steps: N.
        draw: A generator → a calibration set, and the truth beside it: (risk, signed, q) → (risk, mean exit step).
        levels: Level of each risk.
        exact: Whether the truth is that of the law the rows are drawn from, as the promise means it.
    """

    name: str
    rows: int
    num_steps: int
    draw: Callable[
        [torch.Generator], tuple[ponder.Trajectory, Callable[[str, bool, float | None], tuple[float, float]]]
    ]
    levels: dict[str, float]
    exact: bool = True


@dataclass(frozen=True)
class Outcome:
    """What came of one risk under one bound.

    Args:
        scene: Name of the scene.
        risk: The risk.
        bound: The bound.
        level: What was asked.
        confidence: Probability with which the promise was to hold; None for conformal.
        trials: Calibration sets.
        rows: Rows in each.
        violations: Share of the sets whose threshold has a true risk above the level.
        mean_risk: Mean of the true risk.
        risk_error: Standard error of that mean.
        mean_exit_step: Mean over the sets.
        saving: Steps saved, as a share of what the best threshold with a true risk at the level saves, if there is one.
        exact: Whether the truth is that of the law the rows are drawn from, as in `Scene`.
    """

    scene: str
    risk: str
    bound: str
    level: float
    confidence: float | None
    trials: int
    rows: int
    violations: float
    mean_risk: float
    risk_error: float
    mean_exit_step: float
    saving: float | None
    exact: bool

    @property
    def kept(self) -> bool:
        """Whether the promise is kept, up to three standard errors of the simulation."""
        if not self.exact:
            return True
        if self.confidence is None:
            return self.mean_risk <= self.level + 3 * self.risk_error
        delta = 1.0 - self.confidence
        return self.violations <= delta + 3 * math.sqrt(delta * (1 - delta) / self.trials)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "kept": self.kept}


def simulate(scene: Scene, trials: int = TRIALS, confidence: float = 0.95, seed: int = 0) -> Iterator[Outcome]:
    """Every bound on every risk, each over `trials` calibration sets (the same sets for all)."""
    for risk in RISKS:
        level = scene.levels[risk]
        for bound in (*sorted(BOUNDS), "conformal"):
            generator = torch.Generator().manual_seed(seed)
            signed = bound != "conformal" and find_low(bound) < 0
            risks, steps, best = [], [], []
            for _ in range(trials):
                calibration, truth = scene.draw(generator)
                done = ponder.control_risk(
                    calibration,
                    Quantile,
                    risk=risk,  # type: ignore[arg-type]
                    level=level,
                    confidence=confidence,
                    bound=bound,
                    grid=GRID,
                )
                found, step = truth(risk, signed, done.policy.threshold_value)
                risks.append(found)
                steps.append(step)
                best.append(_cheapest(truth, risk, signed, level, scene.num_steps))
            possible = scene.num_steps - statistics.fmean(best)
            yield Outcome(
                scene=scene.name,
                risk=risk,
                bound=bound,
                level=level,
                confidence=None if bound == "conformal" else confidence,
                trials=trials,
                rows=scene.rows,
                violations=statistics.fmean(value > level + 1e-9 for value in risks),
                mean_risk=statistics.fmean(risks),
                risk_error=statistics.stdev(risks) / math.sqrt(trials),
                mean_exit_step=statistics.fmean(steps),
                saving=(scene.num_steps - statistics.fmean(steps)) / possible if possible > 0 else None,
                exact=scene.exact,
            )


def synthetic_scene(rows: int = 1000) -> Scene:
    """Two steps, with risks in closed form."""

    def truth(risk: str, signed: bool, q: float | None) -> tuple[float, float]:
        return synthetic.true_risk(risk, q, signed=signed), synthetic.true_mean_exit_step(q)

    levels = {"disagreement": 0.05, "error_gap": 0.02, "error": 0.13}
    return Scene("synthetic", rows, 2, lambda generator: (synthetic.draw(rows, generator), truth), levels)


def real_scene(name: str, population: ponder.Trajectory, rows: int) -> Scene:
    """Calibration sets drawn, with replacement, from a recorded trajectory that is taken as the whole world."""
    check_replay(population, Quantile(0.5))
    truth = _Truth(population)

    def draw(generator: torch.Generator) -> tuple[ponder.Trajectory, _Truth]:
        picked = torch.randint(len(population), (rows,), generator=generator)
        drawn = population.map(lambda tensor: tensor[picked])
        return replace(drawn, row_ids=torch.arange(rows)), truth  # each draw is a row of its own

    return Scene(f"{name}, resampled", rows, population.num_steps, draw, _levels(population))


def split_scene(name: str, population: ponder.Trajectory) -> Scene:
    """Half of a recorded trajectory, at random, to calibrate on; the truth is what the other half shows."""
    half = len(population) // 2

    def draw(generator: torch.Generator) -> tuple[ponder.Trajectory, _Truth]:
        order = torch.randperm(len(population), generator=generator)
        first, second = order[:half], order[half:]
        return population.map(lambda tensor: tensor[first]), _Truth(population.map(lambda tensor: tensor[second]))

    return Scene(f"{name}, split in halves", half, population.num_steps, draw, _levels(population), exact=False)


class _Truth:
    """Risk and mean exit step of every threshold of the grid over all rows of a trajectory."""

    def __init__(self, population: ponder.Trajectory) -> None:
        self._population = population
        self._tables: dict[tuple[str, bool], tuple[Tensor, Tensor]] = {}

    def __call__(self, risk: str, signed: bool, q: float | None) -> tuple[float, float]:
        if (risk, signed) not in self._tables:
            self._tables[risk, signed] = self._table(risk, signed)
        risks, steps = self._tables[risk, signed]
        place = -1 if q is None else GRID.index(q)
        return float(risks[place]), float(steps[place])

    def _table(self, risk: str, signed: bool) -> tuple[Tensor, Tensor]:
        by_step = losses_by_step(risk, self._population, -1.0 if signed else 0.0)  # type: ignore[arg-type]
        steps = as_policy_grid(Quantile, GRID, self._population).exit_steps(self._population)
        steps = torch.cat([steps, torch.full_like(steps[:1], self._population.num_steps)])
        return by_step.gather(1, steps.T - 1).mean(0), steps.double().mean(1)


def _levels(population: ponder.Trajectory) -> dict[str, float]:
    """Round levels that leave room to exit: 5 % disagreement, 2 % gap, and 3 % above the error of full depth."""
    full = float(losses_by_step("error", population)[:, -1].mean())
    return {"disagreement": 0.05, "error_gap": 0.02, "error": round(full + 0.03, 2)}


def _cheapest(
    truth: Callable[[str, bool, float | None], tuple[float, float]], risk: str, signed: bool, level: float, steps: int
) -> float:
    """Mean exit step of the cheapest threshold whose true risk, and that of all later ones, is at the level."""
    best = float(steps)
    for q in reversed(GRID):
        found, step = truth(risk, signed, q)
        if found > level + 1e-9:
            break
        best = step
    return best
