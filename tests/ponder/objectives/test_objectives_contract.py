"""Every registered objective: oracle, extremes, what it needs. More of its contract is in tests/ponder/testing."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import ponder
from ponder import StepDistribution, objectives, priors
from ponder.objectives import (
    NEEDS,
    DeepSupervision,
    Distillation,
    FinalStep,
    Objective,
    Ponder,
    Progress,
    Unrolled,
    Weighted,
)
from ponder.parts.tasks import as_task
from ponder.recipes import Stage
from tests.ponder import oracles
from tests.ponder.checks import refused
from tests.ponder.examples import OBJECTIVES, Example, in_turn, make_objective
from tests.toys import OUTPUTS, TOYS, labels_for, make_toy, wrap

every_objective = pytest.mark.parametrize("case", OBJECTIVES, ids=str)
PRIOR = priors.Geometric(0.2)


def unroll(task: str, rows: int, num_steps: int, scale: float, seed: int) -> tuple[Unrolled, torch.Tensor]:
    """A random training batch, and its hazard logits."""
    generator = torch.Generator().manual_seed(seed)
    outputs = (torch.randn(rows, num_steps, OUTPUTS[task], generator=generator) * scale).clamp(-1e4, 1e4)
    logits = (torch.randn(rows, num_steps, generator=generator) * scale).clamp(-1e4, 1e4)
    outputs.requires_grad_(), logits.requires_grad_()
    rule, labels = as_task(task), labels_for(task, rows, seed)
    each = torch.arange(rows).repeat_interleave(num_steps)
    losses = rule.losses(outputs.flatten(0, 1), labels[each]).reshape(rows, num_steps)
    features = torch.randn(rows, num_steps, 4, generator=generator).requires_grad_()
    taught = torch.randn(rows, OUTPUTS[task], generator=generator) * scale
    progress = Progress(seed % 8, 7 + seed % 8)
    batch = Unrolled(
        outputs,
        losses,
        rule,
        StepDistribution.from_hazard_logits(logits),
        PRIOR(num_steps),
        labels=labels,
        features=features,
        progress=progress,
        teacher_outputs=taught,
    )
    return batch, logits


def in_plain_python(task: str, batch: Unrolled, logits: torch.Tensor) -> list[dict[str, Any]]:
    """The rows of a batch, for the oracle."""
    labels, features, taught, progress = batch.labels, batch.features, batch.teacher_outputs, batch.progress
    plain: list[dict[str, Any]] = [
        {
            "task": task,
            "label": labels[i].tolist(),
            "features": features[i].tolist(),
            "teacher": taught[i].tolist(),
            "progress": (progress.step, progress.total),
            "outputs": batch.outputs[i].tolist(),
            "losses": [oracles.task_loss(task, o, labels[i].tolist()) for o in batch.outputs[i].tolist()],
            "hazard_logits": logits[i].tolist(),
            "prior": oracles.prior(PRIOR.to_dict(), logits.shape[1]),
        }
        for i in range(len(logits))
    ]
    for row in plain:
        row["batch"] = plain
    return plain


def test_every_objective_has_an_example_and_an_oracle() -> None:
    assert {case.name for case in OBJECTIVES} == set(objectives.names()) == set(oracles.OBJECTIVES)


@every_objective
@settings(max_examples=12)
@given(st.integers(1, 12), st.sampled_from([0.1, 1.0, 3.0]), st.integers(0, 10**6))
@example(1, 1.0, 0)
def test_equals_the_oracle_row_by_row(case: Example, num_steps: int, scale: float, seed: int) -> None:
    batch, logits = unroll(case.task, 4, num_steps, scale, seed)
    plain = in_plain_python(case.task, batch, logits)
    objective = make_objective(case)
    expected = [oracles.objective(objective.to_dict(), row) for row in plain]
    losses = objective.per_example(batch)
    assert losses.shape == (4,)
    assert losses.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-4)


@every_objective
@settings(max_examples=20)
@given(st.sampled_from([1, 2, 12, 100]), st.sampled_from([1.0, 1e2, 1e4]), st.integers(0, 10**6))
@example(1000, 1.0, 0)
@example(1000, 1e4, 0)
def test_loss_and_gradients_are_finite_at_the_extremes(case: Example, num_steps: int, scale: float, seed: int) -> None:
    batch, logits = unroll(case.task, 2, num_steps, scale, seed)
    loss = make_objective(case).per_example(batch).mean()
    assert bool(loss.isfinite())
    loss.backward()
    for tensor in (batch.outputs, logits):
        assert tensor.grad is None or bool(tensor.grad.isfinite().all())


@pytest.mark.parametrize("case", [case for case in OBJECTIVES if case.task == "classification"], ids=str)
def test_a_class_that_is_excluded_by_a_logit_of_minus_infinity_changes_nothing(case: Example) -> None:
    batch, _ = unroll("classification", 4, 5, 1.0, 3)
    excluded = torch.nn.functional.pad(batch.outputs.detach(), (0, 1), value=-torch.inf).requires_grad_()
    taught = torch.nn.functional.pad(batch.teacher_outputs, (0, 1), value=-torch.inf)
    each = batch.labels.repeat_interleave(5)
    losses = as_task("classification").losses(excluded.flatten(0, 1), each).reshape(4, 5)
    wider = dataclasses.replace(batch, outputs=excluded, losses=losses, teacher_outputs=taught)
    found = make_objective(case).per_example(wider)
    assert torch.allclose(found, make_objective(case).per_example(batch), atol=1e-6)
    if found.requires_grad:
        found.mean().backward()
        assert excluded.grad is None or bool(excluded.grad.isfinite().all())


@every_objective
def test_loss_and_gradients_are_finite_where_all_hazards_are_saturated(case: Example) -> None:
    batch, _ = unroll(case.task, 2, 1000, 1.0, 0)
    logits = torch.tensor([[-1e4], [1e4]]).repeat(1, 1000).requires_grad_()
    batch = dataclasses.replace(batch, halting=StepDistribution.from_hazard_logits(logits))
    loss = make_objective(case).per_example(batch).mean()
    loss.backward()
    assert bool(loss.isfinite())
    assert logits.grad is None or bool(logits.grad.isfinite().all())


@pytest.mark.parametrize(("toy_name", "case"), in_turn(OBJECTIVES, list(TOYS), 5))
def test_the_models_loss_is_the_mean_of_the_oracles(toy_name: str, case: Example) -> None:
    toy = make_toy(toy_name)
    prior, objective = priors.Geometric(0.3), make_objective(case)
    if objective.draws_depth and not ponder.Steps.of(toy.steps, toy.num_steps).shared:
        with refused("objective", "not shared"):
            wrap(toy, task=case.task, objective=objective, prior=prior)
        return
    model = wrap(toy, task=case.task, objective=objective, prior=prior).train()
    inputs, context = toy.batch(3, seed=1)
    labels = labels_for(case.task, 3)
    taught = torch.randn(3, OUTPUTS[case.task])
    model.attach_teacher(lambda inputs, **context: taught)
    model.progress = Progress(3, 4)
    out = model(inputs, labels=labels, **context)
    trajectory = out.trajectory
    features = model.eval().unroll(inputs, keep_features=True, **context).features
    rows = [
        {
            "task": case.task,
            "label": labels[i].tolist(),
            "features": features[i].tolist(),
            "teacher": taught[i].tolist(),
            "progress": (3, 4),
            "outputs": trajectory.outputs[i].tolist(),
            "losses": [oracles.task_loss(case.task, o, labels[i].tolist()) for o in trajectory.outputs[i].tolist()],
            "hazard_logits": trajectory.hazard_logits[i].tolist(),
            "prior": oracles.prior(prior.to_dict(), model.num_steps),
        }
        for i in range(3)
    ]
    for row in rows:
        row["batch"] = rows
    rows = [oracles.objective(model.objective.to_dict(), row) for row in rows]
    assert out.loss.item() == pytest.approx(math.fsum(rows) / 3, rel=1e-3, abs=1e-4)
    assert out.loss.shape == ()
    whole = objective.draws_depth or objective.depth(model.num_steps).total == model.num_steps
    if not objective.draws_depth:
        assert out.exit_step.tolist() == [objective.depth(model.num_steps).total] * 3
    assert torch.equal(out.outputs, trajectory.outputs[:, -1])
    if (case.name, toy_name) == ("alignment", "functions"):
        return  # nothing that it compares has weights
    out.loss.backward()
    read = {"steps"}
    read |= set() if case.name == "alignment" else {"head"}  # it compares features, whatever the head makes of them
    if "hazard" in model.objective.needs and case.name != "simulated-exits":  # whose weights take no gradient
        read |= {"lambda_head"}
    for name, parameter in model.named_parameters():
        runs = whole or not name.startswith("steps.") or name.startswith("steps.fns.0.")  # all others are cut off
        if name.split(".")[0] in read and runs:
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all())


@every_objective
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_outputs_give_finite_float32_losses(case: Example, dtype: torch.dtype) -> None:
    batch, logits = unroll(case.task, 3, 12, 3.0, 0)
    outputs = batch.outputs.detach().to(dtype)
    labels = labels_for(case.task, 3, 0)
    losses = torch.stack([batch.task.losses(o, labels) for o in outputs.unbind(1)], dim=1)
    halting = StepDistribution.from_hazard_logits(logits.to(dtype))
    half = dataclasses.replace(batch, outputs=outputs, losses=losses, halting=halting)
    loss = make_objective(case).per_example(half)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, make_objective(case).per_example(batch), rtol=0.05, atol=0.05)


@every_objective
def test_what_it_needs_is_checked(case: Example) -> None:
    objective = make_objective(case)
    assert objective.needs <= set(NEEDS)
    for need in ("hazard", "prior"):
        has = {"has_hazard": need != "hazard", "has_prior": need != "prior"}
        if need in objective.needs:
            with refused("objective", f"no {need}"):
                objective.check(**has)
        else:
            objective.check(**has)


# Sums


def test_sums_are_flat_and_weighted() -> None:
    a, b, c = FinalStep(), DeepSupervision(), Distillation()
    assert a + 0.5 * b == Weighted((a, b), (1.0, 0.5))
    assert 2 * (a + 0.5 * b) + c == Weighted((a, b, c), (2.0, 1.0, 1.0))
    assert c + (a + b) == Weighted((c, a, b), (1.0, 1.0, 1.0))
    assert (a + Ponder(0.1)).needs == {"hazard", "prior"}
    assert (a + b).needs == frozenset()


def test_a_sum_is_the_sum() -> None:
    batch, _ = unroll("classification", 3, 5, 1.0, 0)
    a, b = Ponder(0.3), DeepSupervision()
    expected = a.per_example(batch) + 0.5 * b.per_example(batch)
    torch.testing.assert_close((a + 0.5 * b).per_example(batch), expected)


def test_objectives_that_go_together_ask_for_the_depth_of_each() -> None:
    # Trap: the one that takes turns did not ask.
    class Deep(FinalStep):
        def check_depth(self, num_steps: int) -> None:
            raise ZeroDivisionError

    for both in (Deep() + FinalStep(), objectives.Alternating(FinalStep(), Deep())):
        with pytest.raises(ZeroDivisionError):
            both.check_depth(3)


@pytest.mark.parametrize("method", ["check", "check_batch", "check_task", "check_prior", "check_depth"])
def test_objectives_that_go_together_ask_what_each_asks(method: str) -> None:
    # Trap: a guard of an objective was gone as soon as it had a weight.
    def refuse(self: Any, *args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError

    Guarded = type("Guarded", (FinalStep,), {method: refuse})
    batch, _ = unroll("classification", 3, 5, 1.0, 0)
    arguments: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "check": ((), {"has_hazard": False, "has_prior": False}),
        "check_batch": ((batch,), {}),
        "check_task": ((as_task("classification"),), {}),
        "check_prior": ((PRIOR(5),), {}),
        "check_depth": ((5,), {}),
    }
    args, kwargs = arguments[method]
    for both in (0.5 * Guarded(), Guarded() + FinalStep(), objectives.Alternating(FinalStep(), Guarded())):
        with pytest.raises(ZeroDivisionError):
            getattr(both, method)(*args, **kwargs)


def test_objectives_written_by_users_add_up_too() -> None:
    class Mine(Objective):
        def per_example(self, unrolled: Unrolled) -> torch.Tensor:
            return unrolled.losses.amax(-1)

    batch, _ = unroll("classification", 3, 5, 1.0, 0)
    torch.testing.assert_close(
        (0.5 * Mine() + FinalStep()).per_example(batch), 0.5 * batch.losses.amax(-1) + batch.losses[:, -1]
    )


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: Ponder(-0.1), "beta"),
        (lambda: Ponder(math.nan), "beta"),
        (lambda: Ponder(0.5, kl="forward"), "kl"),
        (lambda: Ponder(0.5, likelihood="log"), "likelihood"),
        (lambda: DeepSupervision("quadratic"), "weights"),
        (lambda: Distillation(temperature=0.0), "temperature"),
        (lambda: Distillation(weight=-1.0), "weight"),
        (lambda: Distillation(teacher="frozen", step=0), "step"),
        (lambda: Distillation(step=2), "step"),
        (lambda: Weighted((), ()), "weights"),
        (lambda: Weighted((FinalStep(),), (1.0, 2.0)), "weights"),
        (lambda: math.nan * FinalStep(), "weights"),
    ],
)
def test_bad_hyper_parameters_are_refused(make, argument: str) -> None:
    with refused(argument):
        make()


def test_unknown_names_list_the_known_ones() -> None:
    with refused("objective", "final-step", "'elbo'"):
        objectives.get("elbo")


# Distillation


def test_the_teacher_learns_nothing_from_its_students() -> None:
    batch, _ = unroll("classification", 3, 4, 1.0, 0)
    Distillation(2.0).per_example(batch).sum().backward()
    assert bool((batch.outputs.grad[:, -1] == 0).all())
    assert bool((batch.outputs.grad[:, :-1] != 0).any())


def test_a_frozen_teacher_may_teach_one_step_alone() -> None:
    batch, _ = unroll("classification", 3, 4, 1.0, 0)
    objective = Distillation(2.0, teacher="frozen", step=3)
    objective.per_example(batch).sum().backward()
    moved = (batch.outputs.grad != 0).any(-1).any(0)
    assert moved.tolist() == [False, False, True, False]
    assert Objective.from_dict(objective.to_dict()) == objective
    assert "step" not in Distillation(2.0, teacher="frozen").to_dict()  # as versions before read it
    with refused("step", "from 1 to 4"):
        Distillation(teacher="frozen", step=5).per_example(batch)


@pytest.mark.parametrize("teacher", ["last_step", "frozen"])
def test_distillation_of_tokens_teaches_all_that_are_no_padding(teacher) -> None:
    """Policies and certificates compare the answers at all of them, whether they have a label or not."""
    generator = torch.Generator().manual_seed(0)
    outputs, taught = torch.randn(2, 3, 4, 5, generator=generator), torch.randn(2, 4, 5, generator=generator)
    labels = torch.tensor([[-100, 0, 4, -100], [2, -100, -100, -100]])
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    batch = Unrolled(
        outputs,
        torch.zeros(2, 3),
        as_task("token_classification"),
        None,
        None,
        labels=labels,
        teacher_outputs=taught,
        mask=mask,
    )
    steps, of = (range(3), taught) if teacher == "frozen" else (range(2), outputs[:, -1])
    expected = []
    for row, places in enumerate(([0, 1, 2, 3], [0, 1])):
        pairs = [(outputs[row, n, t].tolist(), of[row, t].tolist()) for n in steps for t in places]
        each = [oracles.distillation_loss("classification", *pair, 2.0) for pair in pairs]
        expected.append(sum(each) / len(each))
    found = Distillation(2.0, teacher=teacher).per_example(batch)
    torch.testing.assert_close(found, torch.tensor(expected))
    broken = outputs.masked_fill(~mask[:, None, :, None], math.nan).requires_grad_()
    loss = Distillation(2.0, teacher=teacher).per_example(dataclasses.replace(batch, outputs=broken))
    torch.testing.assert_close(loss, found)  # what stands at padding does not count, in the gradient neither
    assert torch.autograd.grad(loss.sum(), broken)[0].isfinite().all()
    up_to_labels = torch.tensor([[True, True, True, False], [True, False, False, False]])
    told, bare = (dataclasses.replace(batch, mask=each) for each in (up_to_labels, None))
    torch.testing.assert_close(Distillation().per_example(bare), Distillation().per_example(told))


def test_distillation_of_a_span_teaches_where_it_starts_and_where_it_ends() -> None:
    outputs = torch.randn(1, 2, 6, 2, generator=torch.Generator().manual_seed(0))
    batch = Unrolled(outputs, torch.zeros(1, 2), as_task("span"), None, None, labels=torch.tensor([[1, 3]]))
    pairs = [(outputs[0, 0, :, end].tolist(), outputs[0, 1, :, end].tolist()) for end in (0, 1)]
    ends = [oracles.distillation_loss("classification", *pair, 3.0) for pair in pairs]
    torch.testing.assert_close(Distillation(3.0).per_example(batch), torch.tensor([sum(ends) / 2]))


@pytest.mark.parametrize("teacher", ["last_step", "frozen"])
def test_distillation_of_a_span_does_not_look_at_padding(teacher) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, taught = torch.randn(2, 3, 6, 2, generator=generator), torch.randn(2, 6, 2, generator=generator)
    mask = torch.arange(6) < torch.tensor([[6], [4]])
    batch = Unrolled(
        outputs,
        torch.zeros(2, 3),
        as_task("span"),
        None,
        None,
        labels=torch.tensor([[1, 3], [0, 2]]),
        teacher_outputs=taught,
        mask=mask,
    )
    found = Distillation(2.0, teacher=teacher).per_example(batch)
    for row, length in enumerate((6, 4)):
        alone = dataclasses.replace(
            batch,
            outputs=outputs[row : row + 1, :, :length],
            losses=torch.zeros(1, 3),
            teacher_outputs=taught[row : row + 1, :length],
            mask=None,
        )
        torch.testing.assert_close(found[row], Distillation(2.0, teacher=teacher).per_example(alone)[0])
    broken = outputs.masked_fill(~mask[:, None, :, None], math.nan).requires_grad_()
    loss = Distillation(2.0, teacher=teacher).per_example(dataclasses.replace(batch, outputs=broken))
    torch.testing.assert_close(loss, found)
    assert torch.autograd.grad(loss.sum(), broken)[0].isfinite().all()


def test_distillation_is_refused_where_the_task_does_not_define_it() -> None:
    outputs = torch.zeros(2, 3, 4, 5)
    with refused("objective", "Distillation"):
        Distillation().per_example(Unrolled(outputs, torch.zeros(2, 3), as_task(lambda o, y: o.sum(-1)), None, None))


# Alignment, calibration of the signal


def test_alignment_does_not_look_at_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 4, 5, generator=generator)
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    batch = Unrolled(
        torch.zeros(2, 3, 4, 2),
        torch.zeros(2, 3),
        as_task("token_classification"),
        None,
        None,
        features=features,
        mask=mask,
    )
    found = objectives.Alignment(2.0).per_example(batch)
    for row, length in enumerate((4, 2)):
        own = features[row : row + 1, :, :length]
        alone = dataclasses.replace(batch, features=own, losses=torch.zeros(1, 3), mask=None)
        torch.testing.assert_close(found[row], objectives.Alignment(2.0).per_example(alone)[0])


class PerPosition(torch.nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)

    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden)


class FirstPosition(torch.nn.Linear):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features[:, 0])


@pytest.mark.parametrize("task", ["token_classification", "span", "classification"])
def test_the_loss_of_a_row_does_not_depend_on_the_padding_beside_it(task: str) -> None:
    torch.manual_seed(0)
    pooled = task == "classification"  # by the head: features have positions, and outputs have none
    model = ponder.PonderWrapper(
        [PerPosition() for _ in range(3)],
        head=FirstPosition(4, 2) if pooled else torch.nn.Linear(4, 2),
        readout=lambda hidden: hidden,
        task=task,
        objective=objectives.Alignment(),
        padding=ponder.Padding(pooled=False),
    )
    label = {"token_classification": [1, 0, 1, 0, 1], "span": [1, 3], "classification": 1}[task]
    x, labels = torch.randn(2, 5, 4), torch.tensor([label] * 2)
    seen = []
    for more in (0, 7):
        given = torch.nn.functional.pad(x, (0, 0, 0, more), value=3.0)
        mask = torch.nn.functional.pad(torch.ones(2, 5), (0, more))
        each = task == "token_classification"
        of_rows = torch.nn.functional.pad(labels, (0, more), value=-100) if each else labels
        seen.append(float(model.train()(given, labels=of_rows, attention_mask=mask).loss.detach()))
    assert seen[0] == pytest.approx(seen[1], rel=1e-5)


def test_the_signal_is_calibrated_for_one_class_an_example_alone() -> None:
    absolute = as_task(lambda outputs, labels: (outputs - labels).abs().mean(-1))
    outputs = torch.randn(4, 3, 2)
    for task, labels in ((absolute, torch.randn(4, 2)), (as_task("multilabel"), torch.ones(4, 2))):
        batch = Unrolled(outputs, torch.rand(4, 3), task, None, None, labels=labels, progress=Progress(1, 2))
        with refused("signal", "one class an example", "Leave SignalCalibration out"):
            objectives.SignalCalibration().per_example(batch)
        with refused("signal", "one class an example", "signal='halting'"):
            objectives.SimulatedExits().per_example(batch)


OWN_LOSS = as_task(lambda outputs, labels: (outputs - labels).abs().mean(-1))


@pytest.mark.parametrize(
    ("objective", "task", "argument"),
    [
        (Distillation(), OWN_LOSS, "objective"),
        (objectives.FinalStep() + 0.5 * objectives.MutualDistillation(), OWN_LOSS, "objective"),
        (objectives.SimulatedExits(), OWN_LOSS, "signal"),
        (objectives.SimulatedExits() + objectives.SignalCalibration(), "token_classification", "signal"),
        (objectives.SignalCalibration(), "multilabel", "signal"),
        (objectives.Alternating(objectives.FinalStep(), objectives.SignalCalibration()), "regression", "signal"),
        (objectives.Alternating(Distillation(), objectives.FinalStep()), OWN_LOSS, "objective"),
    ],
)
def test_a_task_that_an_objective_cannot_teach_is_refused_before_a_batch_comes(objective, task, argument) -> None:
    """A later stage was refused when those before it had been trained."""

    def wrapped(named):
        steps = [torch.nn.Linear(4, 4) for _ in range(2)]
        return ponder.PonderWrapper(steps, head=torch.nn.Linear(4, 2), task=named)

    model = wrapped(task)
    with refused(argument):
        model.stages = (Stage(objectives.FinalStep()), Stage(objective))
    with refused(argument):
        model.objective = objective
    assert (model.stages, model.objective) == ((), objectives.FinalStep())
    for able in (None, "classification", as_task("classification").smoothed(0.1)):
        wrapped(able).objective = objective
    wrapped(task).objective = objectives.DeepSupervision()


def test_the_halting_distribution_is_a_signal_that_every_task_has() -> None:
    model = ponder.PonderWrapper(
        torch.nn.Linear(4, 4), 2, head=torch.nn.Linear(4, 2), task=OWN_LOSS, lambda_head=ponder.LambdaHead(4)
    )
    model.objective = objectives.SimulatedExits(signal="halting")


def test_what_no_objective_can_need_is_refused() -> None:
    for needs in (frozenset({"feature"}), frozenset({"halting"}), ["features"], "features"):
        kind = type("Wrong", (objectives.FinalStep,), {"needs": needs})
        with refused("Wrong.needs", "features"):
            ponder.PonderWrapper(torch.nn.Linear(4, 4), 2, head=torch.nn.Linear(4, 2), objective=kind())


def test_a_term_of_a_sum_gives_a_loss_for_each_row() -> None:
    class Reduced(objectives.FinalStep):
        def per_example(self, unrolled):
            return super().per_example(unrolled).mean()

    objective = objectives.FinalStep() + 0.5 * Reduced()
    model = ponder.PonderWrapper(torch.nn.Linear(4, 4), 2, head=torch.nn.Linear(4, 2), objective=objective)
    with refused("objective", "from Reduced.per_example", "shape ()"):
        model.train()(torch.randn(3, 4), labels=torch.tensor([0, 1, 0]))


def test_objectives_are_weighed_from_either_side_and_summed() -> None:
    first, second = objectives.Distillation(), objectives.DeepSupervision()
    for made in (first * 0.5, first / 2, 0.5 * first):
        assert (made.objectives, made.weights) == ((first,), (0.5,))
    assert sum([first, 2 * second]) == first + 2 * second
    with pytest.raises(TypeError, match="unsupported operand"):
        1 + first
