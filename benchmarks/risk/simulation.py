"""Repeat risk control on many calibration sets, and count broken promises and kept savings."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

import ponder
from ponder.calibration.risks import losses_of
from ponder.policies import Confidence, ExitPolicy, Quantile
from ponder.statistics.bounds import BOUNDS

__all__ = ["GRID", "RISKS", "Scene", "real_scene", "simulate", "synthetic_scene", "true_risk"]

Risk = Literal["disagreement", "error_gap", "error"]
RISKS: tuple[Risk, ...] = ("disagreement", "error_gap", "error")
GRID = [i / 100 for i in range(101)]
LAST_ERROR = 0.1
Truth = Callable[[Risk, bool, float | None], tuple[float, float]]
"""From risk, sign and q to the true risk at q, or at full depth if None, and the mean exit step."""


@dataclass(frozen=True)
class Scene:
    """A source of calibration sets, and the truth about every threshold.

    Args:
        name: Its name in tables.
        rows: Rows of a calibration set.
        num_steps: N.
        draw: Draws a calibration set.
        truth: The risk under the law from which the rows are drawn.
        levels: Level of each risk.
        policy: The policy whose threshold is certified.
    """

    name: str
    rows: int
    num_steps: int
    draw: Callable[[torch.Generator], ponder.Trajectory]
    truth: Truth
    levels: dict[Risk, float]
    policy: Callable[[float], ExitPolicy] = Quantile


def simulate(
    scene: Scene, trials: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """Yield every bound on every risk over the same `trials` calibration sets, as plain JSON.

    `violations` is the share of the sets whose threshold has a true risk above the level;
    `mean_risk` is the mean of the true risk, and `risk_error` its standard error; `saving` are the
    steps saved, as a share of those that the best threshold with a true risk at the level saves;
    `kept` says whether the promise is kept.
    """
    for risk in RISKS:
        level = scene.levels[risk]
        for bound in (*sorted(BOUNDS), "conformal"):
            signed = bound != "conformal" and BOUNDS[bound].low < 0
            if bound != "conformal" and BOUNDS[bound].binary and risk == "error_gap" and signed:
                continue
            generator = torch.Generator().manual_seed(seed)
            found = list[tuple[float, float]]()
            for _ in range(trials):
                done = ponder.control_risk(
                    scene.draw(generator),
                    scene.policy,
                    risk=risk,
                    level=level,
                    confidence=confidence,
                    bound=bound,
                    grid=GRID,
                )
                found.append(scene.truth(risk, signed, done.certificate.threshold_value))
            risks, steps = zip(*found, strict=True)
            possible = scene.num_steps - _cheapest(scene, risk, signed, level)
            saved = scene.num_steps - statistics.fmean(steps)
            outcome = {
                "scene": scene.name,
                "risk": risk,
                "bound": bound,
                "level": level,
                "confidence": None if bound == "conformal" else confidence,
                "trials": trials,
                "rows": scene.rows,
                "violations": statistics.fmean(value > level + 1e-9 for value in risks),
                "mean_risk": statistics.fmean(risks),
                "risk_error": statistics.stdev(risks) / math.sqrt(trials),
                "mean_exit_step": statistics.fmean(steps),
                "saving": saved / possible if possible > 0 else None,
            }
            yield {**outcome, "kept": _kept(outcome)}


def _kept(outcome: Mapping[str, Any]) -> bool:
    """Return whether a promise is kept, up to three standard errors of the simulation."""
    if outcome["confidence"] is None:
        return bool(outcome["mean_risk"] <= outcome["level"] + 3 * outcome["risk_error"])
    delta = 1.0 - outcome["confidence"]
    return bool(
        outcome["violations"] <= delta + 3 * math.sqrt(delta * (1 - delta) / outcome["trials"])
    )


def _cheapest(scene: Scene, risk: Risk, signed: bool, level: float) -> float:
    """Return the mean exit step of the cheapest threshold with a true risk within the level."""
    best = float(scene.num_steps)
    for q in reversed(GRID):
        found, step = scene.truth(risk, signed, q)
        if found > level + 1e-9:
            break
        best = step
    return best


def synthetic_scene(rows: int = 1000) -> Scene:
    """Two steps and two classes, with risks in closed form.

    Step 1 stops with hazard s ~ U(0, 1) and is wrong with probability (1 − s)/2; step 2 is wrong
    with probability 0.1, independently of both.
    """

    def draw(generator: torch.Generator) -> ponder.Trajectory:
        sure = torch.rand(rows, generator=generator)
        labels = torch.randint(2, (rows,), generator=generator)
        errors = torch.stack([(1 - sure) / 2, torch.full((rows,), LAST_ERROR)], 1)
        answers = labels.unsqueeze(1) ^ (torch.rand(rows, 2, generator=generator) < errors).long()
        return ponder.Trajectory(
            outputs=torch.nn.functional.one_hot(answers, 2).float(),
            hazard_logits=torch.stack([sure.logit(eps=1e-7), torch.zeros(rows)], dim=1),
            row_ids=torch.arange(rows),
            labels=labels,
            task="classification",
        )

    def truth(risk: Risk, signed: bool, q: float | None) -> tuple[float, float]:
        return true_risk(risk, q, signed=signed), 2.0 if q is None else 2.0 - (1.0 - q)

    return Scene(
        "synthetic", rows, 2, draw, truth, {"disagreement": 0.05, "error_gap": 0.02, "error": 0.13}
    )


def true_risk(risk: Risk, q: float | None, *, signed: bool = True) -> float:
    """Return the risk of Q-exit at q in the synthetic scene; of full depth where q is None.

    A row exits at step 1 where s > q, so every risk is an integral over s from q to 1.

    Args:
        risk: The risk.
        q: The threshold.
        signed: Whether an error that the early exit avoids counts as −1 in the gap, or as 0.
    """
    out = 0.0 if q is None else 1.0 - q
    early = out**2 / 4  # ∫ (1 − s)/2
    if risk == "disagreement":
        return early * (1 - LAST_ERROR) + (out - early) * LAST_ERROR
    if risk == "error":
        return early + (1 - out) * LAST_ERROR
    return early - out * LAST_ERROR if signed else early * (1 - LAST_ERROR)


def real_scene(name: str, population: ponder.Trajectory, rows: int) -> Scene:
    """Confidence exits on calibration sets drawn with replacement from a recorded population."""
    tables: dict[tuple[Risk, bool], tuple[Any, Any]] = {}

    def truth(risk: Risk, signed: bool, q: float | None) -> tuple[float, float]:
        if (risk, signed) not in tables:
            by_step, _ = losses_of(risk, population, -1.0 if signed else 0.0)
            steps = np.stack([population.exit_steps(Confidence(value)) for value in GRID])
            steps = np.concatenate([steps, np.full_like(steps[:1], population.num_steps)])
            tables[risk, signed] = (
                by_step[np.arange(len(population)), steps - 1].mean(1),
                steps.mean(1),
            )
        risks, means = tables[risk, signed]
        place = -1 if q is None else GRID.index(q)
        return float(risks[place]), float(means[place])

    def draw(generator: torch.Generator) -> ponder.Trajectory:
        picked = torch.randint(len(population), (rows,), generator=generator)
        drawn = population.map(lambda tensor: tensor[picked])
        return replace(
            drawn, row_ids=torch.arange(rows), content_ids=False
        )  # each draw is a row of its own

    full = 1.0 - float(population.correct()[:, -1].mean())
    levels: dict[Risk, float] = {
        "disagreement": 0.05,
        "error_gap": 0.02,
        "error": round(full + 0.03, 2),
    }
    return Scene(f"{name}, resampled", rows, population.num_steps, draw, truth, levels, Confidence)
