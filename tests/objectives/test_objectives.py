"""Objectives beyond the matrix of oracles: simulated exits, signals, drawn depths, sums, and what they ask for."""

from __future__ import annotations

import copy
import json
import math
import pickle
from typing import Any

import pytest
import torch

import ponder
from ponder import StepDistribution, objectives, priors
from ponder.errors import ArgumentError
from ponder.objectives import Depth, Progress, Unrolled
from ponder.objectives.right_answer import _counted
from ponder.tasks import task_named
from tests.matrices import oracles

ROWS = 6
STEPS = 4
CLASSES = 3
EVERY: list[objectives.Objective] = [
    objectives.Ponder(0.5, likelihood="log_expected"),
    objectives.ACT(0.02, epsilon=0.05),
    objectives.AllRight(0.5),
    objectives.DeepSupervision("uniform"),
    objectives.FinalStep(),
    objectives.OneStep(2),
    objectives.RandomDepth(minimum=2, maximum=3, warm_up=1),
    objectives.Distillation(2.0, 0.7, teacher="frozen", step=3),
    objectives.MutualDistillation(2.0),
    objectives.SimulatedExits(3, 7.0, signal="energy"),
    objectives.SignalCalibration(0.2, signal="margin"),
    objectives.Ponder(0.5) + 0.3 * objectives.Distillation(2.0),
]


def batch(task: str = "classification", **changes: Any) -> Unrolled:
    draw = torch.Generator().manual_seed(0)
    outputs = torch.randn(
        ROWS, STEPS, CLASSES if task == "classification" else 1, generator=draw, dtype=torch.float64
    )
    labels = (
        torch.randint(CLASSES, (ROWS,), generator=draw)
        if task == "classification"
        else torch.randn(ROWS, 1)
    )
    losses = torch.stack([task_named(task).losses(step, labels) for step in outputs.unbind(1)], 1)
    made = {
        "outputs": outputs,
        "losses": losses,
        "task": task_named(task),
        "hazard_logits": torch.randn(ROWS, STEPS, generator=draw, dtype=torch.float64),
        "prior": priors.Geometric(0.3)(STEPS, dtype=torch.float64),
        "labels": labels,
        "progress": Progress(3, 4),
        "teacher_outputs": outputs.mean(1),
    }
    return Unrolled(**{**made, **changes})


@pytest.mark.parametrize("objective", EVERY, ids=str)
def test_an_objective_survives_json_pickle_and_copies(objective: objectives.Objective) -> None:
    again = objectives.Objective.from_dict(json.loads(json.dumps(objective.to_dict())))
    assert again == objective == pickle.loads(pickle.dumps(objective)) == copy.deepcopy(objective)
    torch.testing.assert_close(again.per_example(batch()), objective.per_example(batch()))


@pytest.mark.parametrize("objective", EVERY, ids=str)
def test_one_step_has_a_finite_loss(objective: objectives.Objective) -> None:
    made = batch()
    if not isinstance(objective, objectives.OneStep | objectives.Distillation):
        one = objective.per_example(
            batch(
                outputs=made.outputs[:, :1],
                losses=made.losses[:, :1],
                hazard_logits=torch.zeros(ROWS, 1),
                prior=priors.Uniform()(1),
            )
        )
        assert one.shape == (ROWS,)
        assert bool(one.isfinite().all())


# -- simulated exits -----------------------------------------------------------------------------------------------


def simulated(
    objective: objectives.SimulatedExits, made: Unrolled, signals: list[list[float]]
) -> list[float]:
    """COSEE, Eqs. 3 to 7, by a plain loop."""
    early = [value for row in signals for value in row[:-1]]
    low = min(early)
    high = max(early)
    k = objective.thresholds
    bars = [low + (high - low) * (i + 0.5) / k for i in range(k)]
    beta = objective.sharpness * made.given("progress").share
    found = []
    for row, losses in zip(signals, made.losses.tolist(), strict=True):
        total = 0.0
        for bar in bars:
            exit_at = next((n for n, value in enumerate(row[:-1]) if value > bar), STEPS - 1)
            weights = [math.exp(-beta * abs(n - exit_at)) for n in range(STEPS)]
            total += sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
        found.append(total / k)
    return found


@pytest.mark.parametrize("signal", ["confidence", "energy"])
@pytest.mark.parametrize("share", [0, 3, 4])
def test_simulated_exits_equal_the_plain_loop(signal: Any, share: int) -> None:
    made = batch(progress=Progress(share, 4))
    objective = objectives.SimulatedExits(3, 5.0, signal)
    statistics = {
        "confidence": lambda z: max(math.exp(v) for v in oracles.log_softmax(z)),
        "energy": lambda z: oracles.sigmoid(math.log(math.fsum(map(math.exp, z)))),
    }
    signals = [[statistics[signal](step) for step in row] for row in made.outputs.tolist()]
    assert objective.per_example(made).tolist() == pytest.approx(
        simulated(objective, made, signals)
    )
    if share == 0:
        torch.testing.assert_close(objective.per_example(made), made.losses.mean(1))


def test_a_frozen_teacher_teaches_the_step_that_is_named() -> None:
    made = batch()
    for step in range(1, STEPS + 1):
        pairs = zip(
            made.outputs[:, step - 1].tolist(), made.given("teacher_outputs").tolist(), strict=True
        )
        expected = [0.5 * oracles.distillation_loss("classification", s, t, 2.0) for s, t in pairs]
        found = objectives.Distillation(2.0, 0.5, teacher="frozen", step=step).per_example(made)
        assert found.tolist() == pytest.approx(expected)


def test_no_gradient_flows_through_the_weights_of_simulated_exits() -> None:
    outputs = batch().outputs.requires_grad_()
    made = batch(outputs=outputs, losses=batch().losses.detach())
    assert not objectives.SimulatedExits().per_example(made).requires_grad


def test_signal_calibration_equals_the_plain_loop() -> None:
    made = batch()
    margin = 0.3
    labels = made.given("labels").tolist()
    labels[1] = -100  # a row without a label is neither right nor wrong
    gaps = []
    for n in range(STEPS - 1):
        sure: dict[bool, list[float]] = {True: [], False: []}
        for z, label in zip(made.outputs[:, n].tolist(), labels, strict=True):
            if label != -100:
                sure[z.index(max(z)) == label].append(
                    max(math.exp(v) for v in oracles.log_softmax(z))
                )
        if sure[True] and sure[False]:
            means = {right: sum(values) / len(values) for right, values in sure.items()}
            gaps.append(max(0.0, means[False] - means[True] + margin))
    found = objectives.SignalCalibration(margin).per_example(batch(labels=torch.tensor(labels)))
    assert found.tolist() == pytest.approx([sum(gaps) / max(len(gaps), 1)] * ROWS)


def test_wrong_answers_become_less_sure() -> None:
    outputs = batch().outputs.requires_grad_()
    objectives.SignalCalibration(1.0).per_example(batch(outputs=outputs)).mean().backward()
    grad = outputs.grad
    assert grad is not None
    assert bool(grad[:, :-1].any())
    assert not grad[:, -1].any()


@pytest.mark.parametrize("signal", ["confidence", "margin", "negative_entropy", "energy"])
def test_gradients_of_signals_are_finite_on_the_surest_rows(signal: Any) -> None:
    outputs = (1e4 * batch().outputs).requires_grad_()
    objectives.SignalCalibration(2.0, signal).per_example(batch(outputs=outputs)).mean().backward()
    assert outputs.grad is not None
    assert bool(outputs.grad.isfinite().all())


@pytest.mark.parametrize(
    "objective", [objectives.SimulatedExits(), objectives.SignalCalibration()], ids=str
)
def test_signals_of_classes_need_classes(objective: objectives.Objective) -> None:
    with pytest.raises(ArgumentError, match="one class an example"):
        objective.per_example(batch("regression"))


# -- depth ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("minimum", "maximum", "warm_up"), [(1, None, 0), (2, 4, 8), (3, 3, None), (1, None, None)]
)
def test_drawn_depths_are_uniform_and_fit(
    minimum: int, maximum: int | None, warm_up: int | None
) -> None:
    objective = objectives.RandomDepth(minimum, maximum, warm_up)
    num_steps = 12
    drawn = [objective.depth(num_steps) for _ in range(4000)]
    room = num_steps - minimum if warm_up is None else warm_up
    assert {depth.warm_up for depth in drawn} == set(range(room + 1))
    for start in range(room + 1):
        steps = [depth.steps for depth in drawn if depth.warm_up == start]
        most = num_steps - start if maximum is None else min(maximum, num_steps - start)
        counts = [steps.count(n) for n in range(minimum, most + 1)]
        assert sum(counts) == len(steps)
        assert min(counts) > len(steps) / len(counts) / 3
    with pytest.raises(ArgumentError):
        objectives.RandomDepth(minimum=5).depth(4)


def test_objectives_that_read_early_steps_run_no_more() -> None:
    assert objectives.OneStep(2).depth(12) == Depth(0, 2)
    assert objectives.Distillation(teacher="frozen", step=5).depth(12) == Depth(0, 5)
    both = objectives.OneStep(2) + objectives.Distillation(teacher="frozen", step=5)
    assert both.depth(12) == Depth(0, 5)
    assert (both + objectives.FinalStep()).depth(12) == Depth(0, 12)
    with pytest.raises(ArgumentError):
        objectives.OneStep(13).depth(12)
    with pytest.raises(ArgumentError, match="same steps"):
        objectives.RandomDepth() + objectives.FinalStep()
    with pytest.raises(ArgumentError, match="same steps"):
        2.0 * objectives.RandomDepth() + objectives.FinalStep()


# -- sums and needs ------------------------------------------------------------------------------------------------


def test_sums_are_flat_and_weighted() -> None:
    a = objectives.FinalStep()
    b = objectives.DeepSupervision()
    c = objectives.OneStep(1)
    joined = 2 * (a + 0.5 * b) + 0.25 * c
    assert joined == objectives.Weighted((a, b, c), (2.0, 1.0, 0.25))
    expected = sum(
        w * each.per_example(batch())
        for w, each in zip(joined.weights, joined.objectives, strict=True)
    )
    torch.testing.assert_close(joined.per_example(batch()), expected)


def test_what_is_missing_is_named_with_its_remedy() -> None:
    with pytest.raises(ArgumentError, match="LambdaHead"):
        (objectives.FinalStep() + objectives.Ponder(0.5)).check(has_hazard=False, has_prior=True)
    with pytest.raises(ArgumentError, match="prior="):
        objectives.Ponder(0.5).check(has_hazard=True, has_prior=False)
    with pytest.raises(ArgumentError, match=r"model\.teacher"):
        objectives.Distillation(teacher="frozen").per_example(batch(teacher_outputs=None))
    with pytest.raises(ArgumentError, match="Progress"):
        objectives.SimulatedExits().per_example(batch(progress=None))
    objectives.Distillation().check(has_hazard=False, has_prior=False)


# -- is the whole answer right -------------------------------------------------------------------------------------


def test_without_exploration_a_row_counts_up_to_its_halt() -> None:
    """Halts at steps 2, 1 and never; a step that halts counts."""
    made = batch(
        hazard_logits=torch.tensor([[-1.0, 2.0, 3.0, -1.0], [1.0] * 4, [0.0] * 4] * 3)[:ROWS]
    )
    every = objectives.AllRight(0.5)
    counted = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]] * 3)[:ROWS]
    assert torch.equal(_counted(made.hazard_logits, 0.0), counted > 0)
    found = objectives.AllRight(0.5, exploration=0.0).per_example(made)
    shorter = [
        every.per_example(
            batch(
                outputs=made.outputs[:, : int(steps)],
                losses=made.losses[:, : int(steps)],
                hazard_logits=made.hazard_logits[:, : int(steps)],
            )
        )[row]
        * steps
        / STEPS
        for row, steps in enumerate(counted.sum(1))
    ]
    torch.testing.assert_close(found, torch.stack(shorter))


def test_a_row_that_explores_goes_on_for_longer() -> None:
    torch.manual_seed(0)
    halting_at_once = torch.ones(4000, 4)
    counted = _counted(halting_at_once, 0.25).sum(1)
    shares = torch.bincount(counted, minlength=5)[1:] / 4000
    assert shares.tolist() == pytest.approx([0.75, 0.25 / 3, 0.25 / 3, 0.25 / 3], abs=0.03)


def test_numbers_are_neither_right_nor_wrong() -> None:
    with pytest.raises(ArgumentError, match="right or wrong"):
        objectives.AllRight().per_example(batch("regression"))


@pytest.mark.parametrize("kind", ["wrapper", "loop"])
def test_each_step_learns_from_a_detached_state(kind: str) -> None:
    """The gradients are those of a plain loop that detaches, with and without a second objective."""
    torch.manual_seed(0)
    step = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh())
    head, halting = torch.nn.Linear(6, 3), ponder.LambdaHead(6)
    hidden, labels = torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])
    losses = []
    state = hidden
    for _ in range(STEPS):
        state = step(state.detach())
        output = head(state)
        right = (output.argmax(-1) == labels).float()
        q_loss = torch.nn.functional.binary_cross_entropy_with_logits(halting(state), right)
        losses.append(torch.nn.functional.cross_entropy(output, labels) + 0.5 * q_loss)
    expected = torch.autograd.grad(sum(losses) / STEPS, list(step.parameters()))
    objective = objectives.AllRight(0.5) + 0.0 * objectives.FinalStep()
    if kind == "wrapper":
        model = ponder.PonderWrapper(
            step, STEPS, head=head, lambda_head=halting, objective=objective
        )
        loss = model.train()(hidden, labels=labels).loss
    else:
        loop = ponder.loops.Loop(step, head, halting).train()
        call = {"labels": labels[:, None], "max_steps": STEPS, "objective": objective}
        loss = loop(hidden[:, None], **call).loss
    found = torch.autograd.grad(loss, list(step.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


# -- traps ---------------------------------------------------------------------------------------------------------


def two_steps(logits: list[float], losses: list[list[float]]) -> Unrolled:
    outputs = torch.zeros(len(losses), len(logits), 2)
    return Unrolled(
        outputs,
        torch.tensor(losses),
        task_named(None),
        torch.tensor(logits).expand(len(losses), -1),
        priors.Geometric(0.3)(len(logits)),
    )


def test_never_stopping_costs_the_last_steps_loss() -> None:
    """The last step's mass is not to be forgotten, or λ → 0 wins."""
    made = two_steps([-1e4] * 4, [[0.1, 0.2, 0.3, 5.0]])
    for likelihood in ("expected_log", "log_expected"):
        assert objectives.Ponder(0.0, likelihood=likelihood).per_example(
            made
        ).item() == pytest.approx(5.0)


def test_the_divergence_has_the_direction_that_it_names() -> None:
    made = two_steps([4.0, -1.0, 0.5], [[0.0, 0.0, 0.0]])
    p = oracles.pmf([4.0, -1.0, 0.5])
    q = oracles.prior({"name": "geometric", "rate": 0.3}, 3)
    found = [
        objectives.Ponder(1.0, kl).per_example(made).item()
        for kl in ("posterior_prior", "prior_posterior")
    ]
    assert found == pytest.approx([oracles.kl(p, q), oracles.kl(q, p)], rel=1e-5)
    assert abs(found[0] - found[1]) > 0.1


@pytest.mark.parametrize("early", [[-2.0, 0.3], [9.0, 0.3], [4.0, 3.0]])
def test_a_floor_and_the_end_of_a_batch_are_those_of_a_plain_loop(early: list[float]) -> None:
    """No row, one row, and every row has a CDF above 0.95 before the last step."""
    logits = [[early[0], -0.4, 2.0, 0.1], [early[1], 9.0 if early[1] > 1 else -1.0, 0.2, 0.7]]
    losses = [[0.5, 0.1, 2.0, 3.0], [1.0, 4.0, 0.3, 0.2]]
    prior = oracles.prior({"name": "geometric", "rate": 0.3}, 4)
    objective = objectives.Ponder(0.6, "prior_posterior", mass="lost", floor=0.05)

    def expected(of_rows: list[list[float]]) -> list[float]:
        ran = oracles.batch_steps(of_rows, 0.05)
        rows = [
            {
                "losses": each,
                "task": "classification",
                "hazard_logits": hazards,
                "prior": prior,
                "batch_steps": ran,
            }
            for each, hazards in zip(losses, of_rows, strict=True)
        ]
        return [oracles.objective(objective.to_dict(), row) for row in rows]

    given = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    made = Unrolled(
        torch.zeros(2, 4, 2),
        torch.tensor(losses, dtype=torch.float64),
        task_named(None),
        given,
        priors.Geometric(0.3)(4, dtype=torch.float64),
    )
    found = objective.per_example(made)
    assert found.tolist() == pytest.approx(expected(logits), rel=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), given)
    nudge = 1e-5
    for row in range(2):
        for step in range(4):
            sides = []
            for side in (nudge, -nudge):
                moved = copy.deepcopy(logits)
                moved[row][step] += side
                sides.append(sum(expected(moved)))
            difference = (sides[0] - sides[1]) / (2 * nudge)
            assert float(gradient[row, step]) == pytest.approx(difference, rel=1e-4, abs=1e-7)


def test_a_divergence_of_no_weight_may_be_infinite() -> None:
    shallow = StepDistribution(
        torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64).log()
    )  # excludes two steps
    assert objectives.Ponder(0.0).per_example(batch(prior=shallow)).isfinite().all()


def test_losses_are_weighted_before_they_are_reduced() -> None:
    logits = torch.tensor([[1e4, 0.0], [-1e4, 0.0]])
    losses = torch.tensor([[4.0, 0.0], [0.0, 4.0]])
    made = Unrolled(torch.zeros(2, 2, 2), losses, task_named(None), logits, priors.Uniform()(2))
    assert objectives.Ponder(0.0).per_example(made).tolist() == pytest.approx([4.0, 4.0])
