"""Numbers that official codes gave when they were executed, against the library.

The JSON files beside this page hold inputs and outputs alone, with repository, commit and file.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ponder import StepDistribution, Trajectory, objectives, policies, priors, recipes, tasks
from ponder.distributions import log_masses

HERE = Path(__file__).parent
CLOSE = 1e-5


def read(name: str) -> dict[str, Any]:
    return dict(json.loads((HERE / f"{name}.json").read_text()))


def palbert(vectors: dict[str, Any]) -> Trajectory:
    """The 64 rows and 12 steps that the released PALBERT ran, in float64."""
    return Trajectory(
        torch.tensor(vectors["logits"], dtype=torch.float64),
        torch.tensor(vectors["hazard_logits"], dtype=torch.float64),
        torch.arange(64),
        labels=torch.tensor(vectors["labels"]),
        task="classification",
    )


def unrolled(run: Trajectory, prior: StepDistribution) -> objectives.Unrolled:
    losses = run.meaning.step_losses(run.outputs, run.labels)
    return objectives.Unrolled(
        run.outputs, losses, run.meaning, hazard_logits=run.hazard_logits, prior=prior
    )


def parts(objective: objectives.Ponder, seen: objectives.Unrolled) -> tuple[float, float]:
    """The mean fit and the mean divergence of an objective of beta 1."""
    fit = objectives.Ponder(0.0, mass=objective.mass, floor=objective.floor).per_example(seen)
    return float(fit.mean()), float((objective.per_example(seen) - fit).mean())


@pytest.mark.parametrize("name", ["palbert", "palbert-early"])
def test_q_exit_is_that_of_the_released_palbert(name: str) -> None:
    vectors = read(name)
    run = palbert(vectors)
    for q, exits in vectors["exit_steps"].items():
        assert run.replay(policies.Quantile(float(q))).exit_step.tolist() == exits


@pytest.mark.parametrize("name", ["palbert", "palbert-early"])
@pytest.mark.parametrize("number", [0, 1])
def test_the_loss_is_that_of_the_released_palbert(name: str, number: int) -> None:
    vectors = read(name)
    official = vectors["training"][number]
    recipe = recipes.get("palbert", as_released=True, beta=1.0)
    objective = recipe.stages[0].objective
    if official["epsilon"] == 0:
        objective = objectives.Ponder(1.0, kl="prior_posterior", mass="lost")
    assert objective.floor == official["epsilon"]
    run = palbert(vectors)
    seen = unrolled(run, recipe.prior(12, dtype=torch.float64))
    fit, divergence = parts(objective, seen)
    assert fit == pytest.approx(official["task_loss"], abs=CLOSE)
    assert divergence == pytest.approx(official["regularisation"], abs=CLOSE)


@pytest.mark.parametrize("name", ["palbert", "palbert-early"])
def test_the_masses_are_those_of_the_released_palbert(name: str) -> None:
    vectors = read(name)
    official = torch.tensor(vectors["training"][1]["pmf_of_8_rows"], dtype=torch.float64)
    masses = log_masses(palbert(vectors).hazard_logits[:8], mass="lost").exp()
    torch.testing.assert_close(masses, official, rtol=0, atol=CLOSE)


def labml(vectors: dict[str, Any]) -> Tensor:
    """Hazard logits of 20 steps; the last hazard is 1, and is not recorded."""
    early = torch.tensor(vectors["hazard_logits_but_last"], dtype=torch.float64)
    return torch.nn.functional.pad(early, (0, 1))


def test_the_halting_distribution_is_that_of_labmls_pondernet() -> None:
    vectors = read("labml")
    found = StepDistribution.from_hazard_logits(labml(vectors)).pmf
    official = torch.tensor(vectors["p"], dtype=torch.float64)
    torch.testing.assert_close(found, official, rtol=0, atol=CLOSE)


def test_loss_and_regulariser_are_those_of_labmls_pondernet() -> None:
    """Its prior lacks the mass behind the last step, and its divergence is KL(prior ‖ posterior)."""
    vectors = read("labml")
    task = tasks.task_named("multilabel")
    outputs = torch.tensor(vectors["y"], dtype=torch.float64).unsqueeze(-1)
    labels = torch.tensor(vectors["target"], dtype=torch.float64).unsqueeze(-1)
    constant = torch.full((20,), math.log(0.2 / 0.8), dtype=torch.float64)
    prior = StepDistribution(log_masses(constant, mass="lost"), validate_args=False)
    seen = objectives.Unrolled(
        outputs,
        task.step_losses(outputs, labels),
        task,
        hazard_logits=labml(vectors),
        prior=prior,
    )
    fit, divergence = parts(objectives.Ponder(1.0, kl="prior_posterior"), seen)
    assert fit == pytest.approx(vectors["reconstruction_loss"], abs=CLOSE)
    assert divergence == pytest.approx(vectors["regularisation_lambda_0_2"], abs=CLOSE)
    # The prior of this library sums to 1, which is why its divergence is another number.
    normalised = objectives.Unrolled(
        outputs,
        seen.losses,
        task,
        hazard_logits=labml(vectors),
        prior=priors.Geometric(0.2)(20, dtype=torch.float64),
    )
    _, ours = parts(objectives.Ponder(1.0, kl="prior_posterior"), normalised)
    assert ours == pytest.approx(0.961, abs=5e-4)
