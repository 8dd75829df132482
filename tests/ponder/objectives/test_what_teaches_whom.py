"""Gradients against differences of the oracles: what teaches is a constant, and everything else learns."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from ponder import StepDistribution, objectives, priors
from ponder.objectives import Alternating, FinalStep, Objective, Ponder, Progress, SignalCalibration, Unrolled
from ponder.parts.tasks import as_task
from tests.ponder import oracles
from tests.ponder.examples import OBJECTIVES, Example, make_objective
from tests.toys import OUTPUTS, labels_for

SEED, ROWS, STEPS, NUDGE = 2, 3, 3, 1e-5
PRIOR = priors.Geometric(0.2)
LEARNS = ("outputs", "hazard_logits", "features")

Plain = list[dict[str, Any]]


def numbers(task: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    shapes = {
        "outputs": (ROWS, STEPS, OUTPUTS[task]),
        "hazard_logits": (ROWS, STEPS),
        "features": (ROWS, STEPS, 2),
        "teacher": (ROWS, OUTPUTS[task]),
    }
    return {name: torch.randn(*shape, generator=generator, dtype=torch.double) for name, shape in shapes.items()}


def loss_of(objective: Objective, task: str, given: dict[str, torch.Tensor]) -> torch.Tensor:
    rule, outputs, labels = as_task(task), given["outputs"], labels_for(task, ROWS)
    if labels.is_floating_point():
        labels = labels.double()
    losses = torch.stack([rule.losses(of_step, labels) for of_step in outputs.unbind(1)], dim=1)
    prior = PRIOR(STEPS)
    batch = Unrolled(
        outputs,
        losses,
        rule,
        StepDistribution.from_hazard_logits(given["hazard_logits"]),
        StepDistribution(prior.log_pmf.double(), validate_args=False),
        labels=labels,
        features=given["features"],
        progress=Progress(3, 4),
        teacher_outputs=given["teacher"],
    )
    return objective.per_example(batch).sum()


def rows_of(task: str, given: dict[str, torch.Tensor]) -> Plain:
    rows: Plain = [
        {
            **{name: values[i].tolist() for name, values in given.items()},
            "task": task,
            "label": labels_for(task, ROWS)[i].tolist(),
            "progress": (3, 4),
            "prior": oracles.prior(PRIOR.to_dict(), STEPS),
        }
        for i in range(ROWS)
    ]
    for row in rows:
        row["losses"] = [oracles.task_loss(task, output, row["label"]) for output in row["outputs"]]
        row["batch"] = rows
    return rows


def held(spec: dict[str, Any], row: dict[str, Any], at: dict[str, Any]) -> float:
    """The oracle of a row that moves, with what teaches in it as it is in the row `at`, which does not."""
    name = spec["name"]
    if name == "alternating":
        return held(spec["odd"], row, at)
    if name == "weighted":
        return sum(w * held(each, row, at) for each, w in zip(spec["objectives"], spec["weights"], strict=True))
    if name == "mutual-distillation":
        pairs = [(s, t) for i, s in enumerate(row["outputs"]) for j, t in enumerate(at["outputs"]) if i != j]
        return sum(oracles.distillation_loss(row["task"], *pair, spec["temperature"]) for pair in pairs) / len(pairs)
    if name == "simulated-exits":  # where the rows would leave is a constant
        row = {**at, "losses": row["losses"]}
    if name == "alignment":
        row = {**row, "features": [*row["features"][:-1], at["features"][-1]]}
    if name == "distillation" and spec.get("teacher") != "frozen":
        row = {**row, "outputs": [*row["outputs"][:-1], at["outputs"][-1]]}
    return oracles.objective(spec, row)


def differences(spec: dict[str, Any], task: str, given: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """Central differences of the held oracle, summed over the rows."""
    at, found = rows_of(task, given), torch.zeros_like(given[name])
    for place in range(found.numel()):
        values = []
        for nudge in (NUDGE, -NUDGE):
            moved = copy.deepcopy(given)
            moved[name].view(-1)[place] += nudge
            values.append(sum(held(spec, *pair) for pair in zip(rows_of(task, moved), at, strict=True)))
        found.view(-1)[place] = (values[0] - values[1]) / (2 * NUDGE)
    return found


@pytest.mark.parametrize("case", OBJECTIVES, ids=str)
def test_gradients_are_differences_of_the_oracle_with_its_teachers_held(case: Example) -> None:
    objective, given = make_objective(case), numbers(case.task)
    expected = {name: differences(objective.to_dict(), case.task, given, name) for name in LEARNS}
    assert any(bool(each.any()) for each in expected.values())
    loss = loss_of(objective, case.task, {name: values.requires_grad_() for name, values in given.items()})
    names = [*LEARNS, "teacher"]
    found = dict(zip(names, torch.autograd.grad(loss, [given[name] for name in names], allow_unused=True), strict=True))
    for name in LEARNS:
        learnt = torch.zeros_like(given[name]) if found[name] is None else found[name]
        torch.testing.assert_close(
            learnt, expected[name], rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
        )
    assert found["teacher"] is None or not found["teacher"].any()


def test_the_last_steps_features_learn_nothing_of_alignment() -> None:
    given = numbers("classification")
    features = given["features"].requires_grad_()
    loss_of(objectives.Alignment(), "classification", given).backward()
    assert bool((features.grad[:, -1] == 0).all())
    assert bool((features.grad[:, :-1] != 0).any(-1).all())


WHOLE, ALONE = SignalCalibration(), FinalStep()


@pytest.mark.parametrize(
    ("one", "other", "whole", "cut"),
    [
        (WHOLE, ALONE, True, False),
        (ALONE, WHOLE, True, False),
        (ALONE, ALONE, False, False),
        (Ponder(0.1), ALONE, False, False),
        (ALONE, Ponder(0.1), False, False),
        (Ponder(0.1), Ponder(0.2), False, True),
    ],
)
@pytest.mark.parametrize("join", [lambda one, other: one + 0.5 * other, Alternating])
def test_what_goes_together_asks_of_a_batch_what_either_asks(
    join: Any, one: Objective, other: Objective, whole: bool, cut: bool
) -> None:
    joined = join(one, other)
    assert joined.reads_whole_batch is whole
    assert joined.truncatable is cut
    assert joined.needs >= one.needs | other.needs
