"""Distributions, priors, objectives, tasks and recipes against float64 loops, differences and their extremes."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

import ponder
from ponder import StepDistribution, objectives, policies, priors, recipes, tasks
from ponder.errors import ArgumentError
from tests import toys
from tests.matrices import cases, oracles
from tests.matrices.cases import labels_for, name
from tests.toys import LENGTH, OUTPUTS, PER_POSITION, TASKS, build

EXTREMES = [(1, 1.0), (2, 1.0), (3, 1e4), (12, 3.0), (100, 10.0), (1000, 1.0), (1000, 1e4)]


def hazards(rows: int, num_steps: int, scale: float, seed: int = 0) -> Tensor:
    """Random logits; the first rows are saturated on either side."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(rows, num_steps, generator=generator, dtype=torch.float64) * scale).clamp(
        -1e4, 1e4
    )
    logits[0], logits[1] = -scale, scale
    return logits


# -- the halting distribution --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_steps", "scale"), EXTREMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_halting_distribution_equals_the_oracle(
    num_steps: int, scale: float, dtype: torch.dtype
) -> None:
    logits = hazards(5, num_steps, scale).to(dtype)
    halting = StepDistribution.from_hazard_logits(logits)
    other = StepDistribution.from_hazard_logits(logits.flip(0).clamp(-3, 3))
    close = {"rel": 1e-4, "abs": 1e-6} if dtype == torch.float32 else {"rel": 1e-9, "abs": 1e-12}
    steps = torch.arange(1, num_steps + 1).expand(5, -1).T
    every = {
        "pmf": (halting.pmf, oracles.pmf),
        "cdf": (halting.cdf(steps).T, lambda row: oracles.cdf(oracles.pmf(row))),
        "mean": (halting.mean, lambda row: oracles.mean(oracles.pmf(row))),
        "variance": (halting.variance, lambda row: oracles.variance(oracles.pmf(row))),
        "entropy": (halting.entropy(), lambda row: oracles.entropy(oracles.pmf(row))),
    }
    for field, (found, oracle) in every.items():
        assert found.dtype == dtype
        for i, row in enumerate(logits.double().tolist()):
            assert found[i].tolist() == pytest.approx(oracle(row), **close), field
    assert halting.log_prob(steps).T.exp().tolist() == [
        pytest.approx(row, **close) for row in halting.pmf.tolist()
    ]
    assert (halting.mode - 1).tolist() == [row.index(max(row)) for row in halting.pmf.tolist()]
    found = kl_divergence(halting, other).tolist()
    pairs = zip(
        logits.double().tolist(), logits.flip(0).clamp(-3, 3).double().tolist(), strict=True
    )
    expected = [oracles.kl(oracles.pmf(p), oracles.pmf(q)) for p, q in pairs]
    finite = [i for i, value in enumerate(expected) if math.isfinite(value)]
    assert [found[i] for i in finite] == pytest.approx(
        [expected[i] for i in finite], rel=1e-3, abs=1e-5
    )
    assert bool((kl_divergence(halting, halting).abs() < 1e-6).all())


@pytest.mark.parametrize(("num_steps", "scale"), EXTREMES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 1e-3)],
    ids=str,
)
def test_normalised_with_finite_gradients(
    num_steps: int, scale: float, dtype: torch.dtype, tolerance: float
) -> None:
    logits = hazards(6, num_steps, scale).to(dtype).requires_grad_()
    halting = StepDistribution.from_hazard_logits(logits)
    assert bool(((halting.pmf.sum(-1) - 1).abs() <= tolerance * max(1, num_steps / 100)).all())
    assert bool((halting.cdf(torch.tensor(num_steps)) == 1.0).all())
    prior = priors.Geometric(0.1)(num_steps)
    loss = halting.mean.sum() + halting.entropy().sum() + kl_divergence(halting, prior).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert bool(loss.isfinite())
    assert bool(gradient.isfinite().all())
    assert not gradient[:, -1].any()  # the last hazard is ignored


@settings(max_examples=25)
@given(st.integers(1, 9), st.floats(0.0, 1.0), st.integers(0, 10**6))
def test_quantiles_invert_the_cdf(num_steps: int, q: float, seed: int) -> None:
    halting = StepDistribution.from_hazard_logits(hazards(4, num_steps, 1.5, seed))
    step = halting.icdf(torch.tensor(q, dtype=torch.float64))
    assert bool((halting.cdf(step) >= q).all())
    before = torch.where(step > 1, halting.cdf((step - 1).clamp(min=1)), -1.0)
    assert bool((before < q).all())


def test_it_is_a_distribution_of_pytorch() -> None:
    halting = StepDistribution.from_hazard_logits(torch.tensor([[0.0, 1.0, -1.0], [2.0, 0.0, 0.0]]))
    assert isinstance(halting, Distribution)
    assert halting.batch_shape == (2,)
    assert halting.num_steps == 3
    assert torch.equal(halting.expand((4, 2)).pmf, halting.pmf.expand(4, 2, 3))
    assert halting.sample((7,)).shape == (7, 2)
    with pytest.raises(ValueError, match=r"support|1"):
        halting.log_prob(torch.tensor([4, 1]))
    assert kl_divergence(halting, priors.Uniform()(3)).shape == (2,)
    nowhere = StepDistribution(torch.tensor([0.0, -math.inf, -math.inf]))
    assert (float(nowhere.entropy()), float(nowhere.mean)) == (0.0, 1.0)
    assert float(kl_divergence(nowhere, priors.Uniform()(3))) == pytest.approx(math.log(3))
    assert float(kl_divergence(priors.Uniform()(3), nowhere)) == math.inf


def test_samples_have_its_law() -> None:
    logits = torch.tensor([-0.5, 0.2, 1.0, 0.0])
    halting = StepDistribution.from_hazard_logits(logits)
    rows = 20_000
    seen = Counter(halting.sample((rows,)).tolist())
    for step, mass in enumerate(oracles.pmf(logits.tolist()), start=1):
        assert abs(seen[step] / rows - mass) < 4 * math.sqrt(mass * (1 - mass) / rows)


def test_gradients_of_the_distribution() -> None:
    logits = hazards(3, 5, 1.0).requires_grad_()
    prior = priors.Geometric(0.3)(5, dtype=torch.float64)
    for reading in (
        lambda halting: halting.log_pmf,
        lambda halting: halting.pmf,
        lambda halting: halting.mean,
        lambda halting: halting.entropy(),
        lambda halting: kl_divergence(halting, prior),
        lambda halting: kl_divergence(prior.expand((3,)), halting),
    ):
        assert torch.autograd.gradcheck(
            lambda x, read=reading: read(StepDistribution.from_hazard_logits(x)), logits
        )


# -- priors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prior", [priors.Geometric(0.1), priors.Geometric(0.9), priors.Uniform()], ids=name
)
@pytest.mark.parametrize("num_steps", [1, 2, 12, 1000])
def test_priors_equal_the_oracle(prior: priors.Prior, num_steps: int) -> None:
    found = prior(num_steps)
    assert found.pmf.tolist() == pytest.approx(
        oracles.prior(prior.to_dict(), num_steps), rel=1e-3, abs=1e-7
    )
    assert float(found.pmf.sum()) == pytest.approx(1.0, abs=1e-5)
    assert prior(num_steps, dtype=torch.float64).pmf.dtype == torch.float64


@pytest.mark.parametrize("num_steps", [1, 6, 12, 24])
def test_a_rescaled_geometric_prior_goes_on_past_the_last_step_as_often(num_steps: int) -> None:
    rescaled = priors.Geometric(0.1).rescaled(12, num_steps)
    assert (1 - rescaled.rate) ** num_steps == pytest.approx((1 - 0.1) ** 12)


# -- tasks and objectives --------------------------------------------------------------------------------------------

OBJECTIVES: list[objectives.Objective] = [
    objectives.Ponder(0.5),
    objectives.Ponder(0.3, kl="prior_posterior"),
    objectives.Ponder(0.2, likelihood="log_expected"),
    objectives.Ponder(0.0),
    objectives.Ponder(0.4, kl="prior_posterior", mass="lost"),
    objectives.ACT(0.3),
    objectives.ACT(0.1, epsilon=0.4),
    objectives.AllRight(0.7),
    objectives.DeepSupervision("linear"),
    objectives.DeepSupervision("uniform"),
    objectives.FinalStep(),
    objectives.OneStep(2),
    objectives.Distillation(2.0, 0.7),
    objectives.Distillation(1.5, teacher="frozen"),
    objectives.MutualDistillation(2.0),
    objectives.Ponder(0.5) + 0.3 * (objectives.FinalStep() + 2.0 * objectives.Distillation(3.0)),
]
GRID = [
    (objective, task)
    for objective in OBJECTIVES
    for task in TASKS
    # Numbers are neither right nor wrong.
    if not (isinstance(objective, objectives.AllRight) and task == "regression")
]
every_objective = pytest.mark.parametrize(("objective", "task"), GRID, ids=name)
PRIOR = priors.Geometric(0.2)
ROWS = 4
STEPS = 4
MASK = ~toys.padding(ROWS)


def numbers(
    task: str, num_steps: int = STEPS, scale: float = 1.0, seed: int = 2
) -> dict[str, Tensor]:
    """Outputs, a teacher's, and hazards, in float64."""
    generator = torch.Generator().manual_seed(seed)
    cells = (LENGTH, OUTPUTS[task]) if task in PER_POSITION else (OUTPUTS[task],)
    shapes = {
        "outputs": (ROWS, num_steps, *cells),
        "hazard_logits": (ROWS, num_steps),
        "teacher": (ROWS, *cells),
    }
    return {
        each: (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).clamp(
            -1e4, 1e4
        )
        for each, shape in shapes.items()
    }


def losses_of(objective: objectives.Objective, task: str, given: dict[str, Tensor]) -> Tensor:
    """The losses of the rows, by the library."""
    rule = tasks.task_named(task)
    outputs = given["outputs"]
    labels = labels_for(task, ROWS)
    unrolled = objectives.Unrolled(
        outputs=outputs,
        losses=torch.stack([rule.losses(of_step, labels) for of_step in outputs.unbind(1)], dim=1),
        task=rule,
        hazard_logits=given["hazard_logits"],
        prior=PRIOR(outputs.shape[1], dtype=given["hazard_logits"].dtype),
        labels=labels,
        teacher_outputs=given["teacher"],
        mask=MASK if task in PER_POSITION else None,
    )
    return objective.per_example(unrolled)


def rows_of(task: str, given: dict[str, Tensor]) -> list[dict[str, Any]]:
    """The rows, for the oracles; what is distilled is real positions alone."""
    labels = labels_for(task, ROWS).tolist()
    rows = []
    for i in range(ROWS):
        outputs = given["outputs"][i].tolist()
        teacher = given["teacher"][i].tolist()
        losses = [oracles.task_loss(task, output, labels[i]) for output in outputs]
        if task in PER_POSITION:
            real = int(MASK[i].sum())
            outputs = [output[:real] for output in outputs]
            teacher = teacher[:real]
        row = {"task": task, "outputs": outputs, "teacher": teacher, "losses": losses}
        row["hazard_logits"] = given["hazard_logits"][i].tolist()
        row["all_outputs"], row["label"] = given["outputs"][i].tolist(), labels[i]
        rows.append(row | {"prior": oracles.prior(PRIOR.to_dict(), len(outputs))})
    return rows


@every_objective
@settings(max_examples=6)
@given(st.integers(2, 9), st.sampled_from([0.1, 1.0, 3.0]), st.integers(0, 10**6))
@example(1, 1.0, 0)
def test_objectives_equal_the_oracle_row_by_row(
    objective: objectives.Objective, task: str, num_steps: int, scale: float, seed: int
) -> None:
    if isinstance(objective, objectives.OneStep):
        num_steps = max(num_steps, 2)
    given = numbers(task, num_steps, scale, seed)
    expected = [oracles.objective(objective.to_dict(), row) for row in rows_of(task, given)]
    assert losses_of(objective, task, given).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@every_objective
def test_gradients_are_differences_with_teachers_held(
    objective: objectives.Objective, task: str
) -> None:
    """What teaches is a constant, and everything else learns; padding teaches nothing."""
    given = numbers(task)
    spec = objective.to_dict()
    nudge = 1e-5
    at = rows_of(task, given)
    leaves = {each: values.clone().requires_grad_() for each, values in given.items()}
    loss = losses_of(objective, task, leaves).sum()
    found = dict(
        zip(
            leaves, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True), strict=True
        )
    )
    assert found["teacher"] is None or not found["teacher"].any()
    for each in ("outputs", "hazard_logits"):
        learnt = torch.zeros_like(given[each]) if found[each] is None else found[each]
        for place in range(0, learnt.numel(), 1 if learnt.numel() < 60 else 3):
            sides = []
            for side in (nudge, -nudge):
                moved = copy.deepcopy(given)
                moved[each].view(-1)[place] += side
                pairs = zip(rows_of(task, moved), at, strict=True)
                sides.append(sum(oracles.objective(spec, row, of) for row, of in pairs))
            difference = (sides[0] - sides[1]) / (2 * nudge)
            assert float(learnt.reshape(-1)[place]) == pytest.approx(
                difference, rel=1e-3, abs=1e-6
            ), (
                each,
                place,
            )


@every_objective
@pytest.mark.parametrize(("num_steps", "scale"), [(2, 1e4), (100, 1e2), (1000, 1.0), (1000, 1e4)])
def test_losses_and_gradients_are_finite_at_the_extremes(
    objective: objectives.Objective, task: str, num_steps: int, scale: float
) -> None:
    if num_steps > 100 and (
        isinstance(objective, objectives.MutualDistillation) or task in PER_POSITION
    ):
        num_steps = 20  # pairs of steps, and positions, are many
    given = {
        each: values.float().requires_grad_()
        for each, values in numbers(task, num_steps, scale).items()
    }
    loss = losses_of(objective, task, given).mean()
    loss.backward()
    assert bool(loss.isfinite())
    for each in given.values():
        assert each.grad is None or bool(each.grad.isfinite().all())


def test_the_early_heads_learn_the_teachers_answer_and_not_its_inverse() -> None:
    """KL(teacher ‖ student): a student that is sure of the wrong class pays more than one that is unsure."""
    sure = torch.tensor([8.0, 0.0])
    unsure = torch.tensor([0.2, 0.0])
    for objective in (objectives.Distillation(), objectives.MutualDistillation()):
        given = {"teacher": torch.zeros(ROWS, 2), "hazard_logits": torch.zeros(ROWS, 2)}
        given["outputs"] = torch.stack([unsure, sure]).expand(ROWS, 2, 2).clone()
        forward = oracles.distillation_loss("classification", unsure.tolist(), sure.tolist(), 1.0)
        backward = oracles.distillation_loss("classification", sure.tolist(), unsure.tolist(), 1.0)
        assert backward > 3 * forward > 0.0
        both = isinstance(objective, objectives.MutualDistillation)
        expected = (forward + backward) / 2 if both else forward
        found = _two_classes(objective, given)
        assert found.tolist() == pytest.approx([expected] * ROWS, rel=1e-5)


def _two_classes(objective: objectives.Objective, given: dict[str, Tensor]) -> Tensor:
    rule = tasks.task_named("classification")
    losses = torch.zeros(ROWS, given["outputs"].shape[1])
    unrolled = objectives.Unrolled(
        given["outputs"],
        losses,
        rule,
        given["hazard_logits"],
        teacher_outputs=given["teacher"],
    )
    return objective.per_example(unrolled)


@pytest.mark.parametrize("task", PER_POSITION)
@pytest.mark.parametrize(
    "objective",
    [
        objectives.Distillation(2.0),
        objectives.Distillation(teacher="frozen"),
        objectives.MutualDistillation(),
    ],
    ids=name,
)
def test_padding_teaches_nothing(objective: objectives.Objective, task: str) -> None:
    given = numbers(task)
    changed = copy.deepcopy(given)
    for each, at in (("outputs", ~MASK[:, None].expand(ROWS, STEPS, LENGTH)), ("teacher", ~MASK)):
        changed[each][at] = 50.0 * torch.randn(int(at.sum()), OUTPUTS[task], dtype=torch.float64)
    found = losses_of(objective, task, given)
    torch.testing.assert_close(losses_of(objective, task, changed), found)
    given["outputs"].requires_grad_()
    losses_of(objective, task, given).sum().backward()
    gradient = given["outputs"].grad
    assert gradient is not None
    assert not gradient[~MASK[:, None].expand(ROWS, STEPS, LENGTH)].any()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "objective", [objectives.Ponder(0.5), objectives.MutualDistillation(2.0)], ids=name
)
def test_the_models_loss_is_the_mean_over_labelled_rows(
    objective: objectives.Objective, task: str
) -> None:
    made = build(cases.KIND_OF_TASK[task], task, objective=objective, prior=PRIOR)
    labels = labels_for(task, toys.ROWS)
    out = made.model.train()(made.inputs, labels=labels, **made.context)
    trajectory = out.trajectory
    unrolled = objectives.Unrolled(
        outputs=trajectory.outputs,
        losses=torch.stack(
            [tasks.task_named(task).losses(o, labels) for o in trajectory.outputs.unbind(1)], dim=1
        ),
        task=tasks.task_named(task),
        hazard_logits=trajectory.hazard_logits,
        prior=PRIOR(toys.STEPS, dtype=torch.float64),
        labels=labels,
        mask=trajectory.mask,
    )
    each = objective.per_example(unrolled)
    assert out.loss.item() == pytest.approx(each.mean().item(), rel=1e-6)
    assert torch.equal(out.outputs, trajectory.outputs[:, -1])
    assert out.exit_step.tolist() == [toys.STEPS] * toys.ROWS
    if task in ("classification", *PER_POSITION):  # rows without a label count for nothing
        labels[::2] = -100
        fewer = made.model(made.inputs, labels=labels, **made.context)
        assert fewer.loss.item() == pytest.approx(each[1::2].mean().item(), rel=1e-6)


@pytest.mark.parametrize("task", ["classification", "regression", "token_classification"])
def test_the_mean_answer_equals_the_oracle_in_a_run_and_on_a_record(task: str) -> None:
    made = build(cases.KIND_OF_TASK[task], task)
    labels = labels_for(task, toys.ROWS)
    model = made.model.eval()
    out = model(made.inputs, labels=labels, answer="expected", **made.context)
    trajectory = model.unroll(made.inputs, **made.context)
    torch.testing.assert_close(trajectory.expected, out.outputs)
    assert out.exit_step.tolist() == [toys.STEPS] * toys.ROWS
    rule = tasks.task_named(task)
    assert out.loss.item() == pytest.approx(rule.losses(out.outputs, labels).mean().item())
    for i in range(toys.ROWS):
        p = oracles.pmf(trajectory.hazard_logits[i].tolist())
        steps = trajectory.outputs[i]
        if task != "regression":
            steps = steps.softmax(-1)
        expected = torch.tensor(oracles.mean_output(steps.tolist(), p), dtype=steps.dtype)
        found = out.outputs[i]
        if task != "regression":
            found = found.exp()
        if trajectory.mask is not None:
            found = found[trajectory.mask[i]]
            expected = expected[trajectory.mask[i]]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_sets_of_labels_have_no_mean_answer() -> None:
    made = build(cases.KIND_OF_TASK["multilabel"], "multilabel")
    with pytest.raises(ArgumentError, match="classes or numbers"):
        made.model.eval()(made.inputs, answer="expected", **made.context)


def test_objectives_add_up_and_say_what_they_need() -> None:
    a = objectives.Ponder(0.5)
    b = objectives.Distillation(teacher="frozen")
    joined = a + 0.5 * b + 0.5 * objectives.FinalStep()
    assert [type(each) for each in joined.objectives] == [
        objectives.Ponder,
        objectives.Distillation,
        objectives.FinalStep,
    ]
    assert joined.weights == (1.0, 0.5, 0.5)
    assert joined.needs >= {"hazard", "prior", "teacher"}


# -- recipes -------------------------------------------------------------------------------------------------------

RECIPES: dict[
    str, tuple[Any, Any, tuple[int, int] | None, bool]
] = {  # policy at 6 steps, first objective, Lambda head
    "vanilla": (policies.LastStep(), objectives.FinalStep(), None, False),
    "pondernet": (policies.Bernoulli(0), objectives.Ponder(0.5), (1, 1), False),
    "palbert": (policies.Quantile(0.5), objectives.Ponder(0.5), (3, 2), False),
    "act": (policies.ACT(0.01), objectives.ACT(0.01), (1, 1), False),
    "pabee": (policies.Patience(3, 0.1), objectives.DeepSupervision("linear"), None, True),
    "deebert": (policies.Entropy(0.2), objectives.FinalStep(), None, True),
    "fastbert": (policies.Entropy(0.5, normalize=True), objectives.FinalStep(), None, True),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_their_papers(recipe: str) -> None:
    policy, objective, lambda_head, per_step = RECIPES[recipe]
    steps = [toys.Tanh() for _ in range(6)]
    model = ponder.PonderWrapper.from_recipe(
        steps, recipe, num_outputs=3, example=torch.randn(2, toys.WIDTH)
    )
    assert model.policy == policy
    assert model.objective == objective
    assert isinstance(model.head, ponder.PerStep) is per_step
    assert (model.lambda_head is None) is (lambda_head is None)
    if lambda_head is not None:
        shapes = [
            tuple(weight.shape) for weight in model.lambda_head.parameters() if weight.dim() == 2
        ]
        assert len(shapes) == lambda_head[0]
        assert shapes[0][1] == lambda_head[1] * toys.WIDTH
        assert model.prior == priors.Geometric(0.1).rescaled(12, 6)
    inputs = torch.randn(7, toys.WIDTH)
    labels = torch.randint(3, (7,))
    assert bool(model.eval()(inputs, labels=labels).loss.isfinite())
    model.train().objective = objective
    model(inputs, labels=labels).loss.backward()
    learn = [bool(weight.grad.any()) for weight in model.head.parameters()]
    assert all(learn) is (
        objective != objectives.FinalStep() or not per_step
    )  # the last step teaches its own head


@pytest.mark.parametrize(
    ("switches", "policy", "lambda_head"),
    [
        ({}, policies.Quantile(0.5), (3, 2)),
        ({"q_exit": False}, policies.Bernoulli(0), (3, 2)),
        ({"deep_lambda": False}, policies.Quantile(0.5), (1, 2)),
        ({"hidden_concat": False, "q": 0.3}, policies.Quantile(0.3), (3, 1)),
    ],
)
def test_each_switch_of_palbert_changes_its_part(
    switches: dict[str, Any], policy: policies.ExitPolicy, lambda_head: tuple[int, int]
) -> None:
    recipe = recipes.get("palbert", **switches)
    assert recipe.policy == policy
    assert (recipe.lambda_head.layers, recipe.lambda_head.history) == lambda_head
    assert dataclasses.is_dataclass(recipe)


def test_palbert_averages_likelihoods_as_equation_2_if_it_is_asked_to() -> None:
    recipe = recipes.get("palbert", likelihood="log_expected")
    assert recipe.stages[0].objective == objectives.Ponder(0.5, likelihood="log_expected")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("task", TASKS)
def test_recipes_serve_every_task(recipe: str, task: str) -> None:
    layer = toys.transformer_layer()
    encoder = torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).eval()
    inputs = torch.randn(toys.ROWS, LENGTH, toys.WIDTH)
    mask = toys.padding(toys.ROWS)
    example_call = {"src": inputs, "src_key_padding_mask": mask}
    options = {"num_outputs": OUTPUTS[task], "example": example_call, "task": task}
    if recipe in ("deebert", "fastbert") and task not in cases.CLASSES_ONLY:
        with pytest.raises(ArgumentError):
            ponder.PonderWrapper.from_recipe(encoder, recipe, **options)
        return
    model = ponder.PonderWrapper.from_recipe(encoder, recipe, **options).eval()
    labels = labels_for(task, toys.ROWS)
    labels = labels.float() if labels.is_floating_point() else labels
    with torch.no_grad():
        out = model(inputs, src_key_padding_mask=mask, labels=labels)
    assert bool(out.loss.isfinite())
    assert out.outputs.shape == (
        toys.ROWS,
        *((LENGTH,) if task in PER_POSITION else ()),
        OUTPUTS[task],
    )
