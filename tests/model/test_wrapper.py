"""The model as users build it: its door, its defaults, what is assigned, and what a call leaves behind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder import objectives, policies, priors, recipes, tasks
from tests import toys
from tests.compare import assert_same_answers, assert_same_weights
from tests.toys import CLASSES, CLOSE, ROWS, STEPS, WIDTH, build

KINDS = ("shared", "stacked", "scheduled", "context", "padded")
LABELS = torch.arange(ROWS).remainder(CLASSES)
ArgumentError = ponder.errors.ArgumentError


def test_defaults_follow_the_lambda_head() -> None:
    plain = ponder.PonderWrapper(nn.Linear(4, 4), num_steps=6, head=nn.Linear(4, 2))
    assert (plain.policy, plain.objective, plain.prior) == (
        policies.LastStep(),
        objectives.FinalStep(),
        None,
    )
    halting = ponder.PonderWrapper(
        nn.Linear(4, 4), 6, head=nn.Linear(4, 2), lambda_head=ponder.LambdaHead(4)
    )
    assert (halting.policy, halting.objective) == (policies.Quantile(0.5), objectives.Ponder(0.5))
    assert halting.prior == priors.Geometric(0.1).rescaled(12, 6)
    assert halting.spec == policies.ModelSpec(6, has_hazard=True)


def _step(hidden: Tensor, scale: Tensor | None = None) -> Tensor:
    return hidden if scale is None else hidden * scale


def make(**options: Any) -> ponder.PonderWrapper:
    """A model of pure functions."""
    options = {"head": nn.Linear(WIDTH, CLASSES), "task": "classification", **options}
    return ponder.PonderWrapper(_step, STEPS, **options).eval()


INPUTS = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))

MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "a closure with weights": (
        lambda: make(readout=lambda hidden: LAYER(hidden)),
        "Pass the module itself",
    ),
    "training mode": (
        lambda: make().train()(INPUTS, policy=policies.LastStep()),
        r"Call model\.eval\(\) first",
    ),
    "a missing Lambda head": (lambda: make(policy=policies.Quantile(0.5)), r"ponder\.LambdaHead"),
    "a missing Lambda head of the objective": (
        lambda: make(objective=objectives.Ponder(0.5)),
        r"ponder\.LambdaHead",
    ),
    "labels of another shape": (lambda: make()(INPUTS, labels=LABELS[:3]), "labels"),
    "labels that are no classes": (lambda: make()(INPUTS, labels=LABELS + 5), "labels"),
    "labels of another dtype": (lambda: make()(INPUTS, labels=LABELS.float() + 0.5), "labels"),
    "an unknown argument": (lambda: make()(INPUTS, mask=LABELS), "'mask'"),
    "a misspelt argument": (lambda: make()(INPUTS, label=LABELS), "Did you mean 'labels'"),
    "a context without rows": (lambda: make()(INPUTS, scale=torch.ones(3)), r"ponder\.Shared"),
    "an output without the batch": (lambda: make(head=nn.Flatten(0))(INPUTS), "the batch first"),
    "several outputs": (
        lambda: make(head=nn.GRU(WIDTH, 2))(INPUTS),
        "one tensor with the batch first",
    ),
    "no batch": (lambda: make()(torch.tensor(1.0)), "the batch first"),
    "no tensor": (lambda: make()("text"), "Pass tensors"),
    "one head too few": (
        lambda: make(head=ponder.PerStep([nn.Linear(WIDTH, 2)])),
        "one head a step",
    ),
    "a policy by its name": (lambda: make(policy="quantile"), "ExitPolicy"),
    "an objective by its name": (lambda: make(objective="ponder"), "Objective"),
    "a loss as the objective": (
        lambda: setattr(make(), "objective", nn.CrossEntropyLoss()),
        "Objective",
    ),
    "an unknown task": (lambda: make(task="classify"), "token_classification"),
    "ids of other rows": (lambda: make()(INPUTS, row_ids=torch.arange(2)), "row_ids"),
}
LAYER = nn.Linear(WIDTH, WIDTH)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_get_a_remedy_at_the_door(mistake: str) -> None:
    call, says = MISTAKES[mistake]
    with pytest.raises((ArgumentError, ponder.errors.ArgumentTypeError), match=says):
        call()


def test_a_stem_sees_the_call_and_may_replace_the_context() -> None:
    def stem(inputs: dict[str, Tensor], scale: Tensor) -> tuple[Tensor, dict[str, Any]]:
        assert isinstance(scale, Tensor)
        return inputs["x"], {"scale": scale[:, None] * 2}

    model = make(stem=stem)
    given = torch.linspace(0.5, 1.5, ROWS)
    expected = model.head(INPUTS * (2 * given[:, None]) ** STEPS)
    torch.testing.assert_close(model({"x": INPUTS}, scale=given).outputs, expected, **CLOSE)
    shared = make(stem=lambda inputs, scale: (inputs, {"scale": ponder.Shared(scale)}))
    torch.testing.assert_close(
        shared(INPUTS, scale=ponder.Shared(torch.tensor(2.0))).outputs,
        shared.head(INPUTS * 2.0**STEPS),
        **CLOSE,
    )


def test_a_step_that_takes_any_keyword_is_given_all() -> None:
    model = ponder.PonderWrapper(
        lambda hidden, **context: hidden + context["b"], STEPS, head=nn.Identity()
    ).eval()
    assert model(torch.zeros(2, 1), b=torch.ones(2, 1)).outputs.tolist() == [[STEPS], [STEPS]]
    with pytest.raises(ArgumentError, match="Did you mean 'policy'"):
        model(torch.zeros(2, 1), polcy=1)


def test_assigning_an_objective_leaves_one_stage() -> None:
    steps = [toys.Tanh() for _ in range(STEPS)]
    model = ponder.PonderWrapper.from_recipe(steps, "deebert", num_outputs=3, example=INPUTS)
    stages = recipes.get("deebert").for_steps(STEPS).stages
    assert (model.stages, model.objective) == (stages, stages[0].objective)
    model.objective = objectives.DeepSupervision("uniform")
    assert model.stages == (recipes.Stage(objectives.DeepSupervision("uniform")),)
    model.stages = stages
    assert model.objective == stages[0].objective


def test_the_task_is_inferred_from_the_labels_where_none_is_named() -> None:
    model = make(task=None, head=nn.Linear(WIDTH, 2))
    outputs = model(INPUTS).outputs
    classes = LABELS.clamp(max=1)
    numbers = torch.randn(ROWS, 2)
    torch.testing.assert_close(
        model(INPUTS, labels=classes).loss, nn.functional.cross_entropy(outputs, classes)
    )
    torch.testing.assert_close(
        model(INPUTS, labels=numbers).loss, nn.functional.mse_loss(outputs, numbers)
    )
    model.task = tasks.Custom(lambda o, labels: (o - labels).abs().mean(-1))
    torch.testing.assert_close(
        model(INPUTS, labels=numbers).loss, nn.functional.l1_loss(outputs, numbers)
    )
    model.task = tasks.Regression()
    with pytest.raises(ArgumentError):
        model(INPUTS, policy=policies.Confidence(0.5))
    model.policy = policies.Patience(2, tolerance=0.1)
    assert isinstance(model.task, tasks.Regression)


@pytest.mark.parametrize("policy", [policies.Bernoulli(seed=3), policies.Quantile(0.6)])
def test_row_ids_travel_with_rows(policy: policies.ExitPolicy) -> None:
    made = build("stacked", policy=policy)
    ids = torch.arange(100, 100 + ROWS)
    whole = made.call(row_ids=ids)
    for row in range(ROWS):
        alone = made.model(made.inputs[[row]], row_ids=ids[[row]])
        assert alone.exit_step.item() == whole.exit_step[row].item()


@pytest.mark.parametrize("kind", KINDS)
def test_settings_and_weights_make_the_same_model(kind: str, tmp_path: Path) -> None:
    one, other = (
        build(kind, seed=seed, policy=policies.Patience(seed), prior=priors.Learned(STEPS))
        for seed in (1, 2)
    )
    one.model.objective = objectives.Ponder(0.1)
    ponder.save(one.model, tmp_path / "model.safetensors")
    ponder.load(tmp_path / "model.safetensors", into=other.model)
    assert (other.model.policy, other.model.stages) == (one.model.policy, one.model.stages)
    assert_same_weights(other.model, one.model)
    expected = one.call()
    found = other.model(one.inputs, **one.context)
    assert_same_answers(found.outputs, expected.outputs)
    assert torch.equal(found.exit_step, expected.exit_step)  # answers in double precision
    assert other.model.weights_digest() == one.model.weights_digest()


def test_the_weights_of_a_learned_prior_are_the_models() -> None:
    made = build("shared", prior=priors.Learned(STEPS))
    made.model.train()
    assert "prior_weights" in dict(made.model.named_children())
    made.call(labels=LABELS).loss.backward()
    assert all(weight.grad is not None for weight in made.model.prior_weights.parameters())
    twin = copy.deepcopy(made.model)
    assert twin.prior.module is twin.prior_weights is not made.model.prior_weights


# -- frozen parts --------------------------------------------------------------------------------------------------


def test_frozen_parts_stay_in_evaluation_mode() -> None:
    def part() -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5))

    steps = [part() for _ in range(STEPS)]
    stem = nn.Dropout(0.5)
    model = ponder.PonderWrapper(steps, stem=stem, **toys.heads(per_step=True))
    steps[0].requires_grad_(False)
    model.head.heads[1].requires_grad_(False)
    assert model.train().training
    assert [step.training for step in steps] == [False, True, True, True, True]
    assert [head.training for head in model.head.heads] == [True, False, True, True, True]
    assert stem.training
    for step in steps:
        step.requires_grad_(False)
    model.train()
    assert not stem.training  # dropout alone is as the encoder is
    assert model.lambda_head.training
    model.requires_grad_(True)
    model.lambda_head.layers[1].requires_grad_(False)
    assert all(
        inner.training for inner in model.train().modules()
    )  # as with adapters, parts of a part go along
    assert not model.eval().steps.fns[1].training


# -- teachers ------------------------------------------------------------------------------------------------------


def test_a_teacher_answers_at_full_depth_without_dropout_and_is_no_part_of_the_model() -> None:
    made = build("stacked", objective=objectives.Distillation(teacher="frozen"))
    weights = len(list(made.model.parameters()))
    teacher = copy.deepcopy(made.model)
    teacher.policy = policies.FixedStep(1)
    made.model.teacher = teacher.train()
    made.model.train()
    assert len(list(made.model.parameters())) == weights
    assert not teacher.training
    expected = made.call(labels=LABELS).loss
    made.model.teacher = lambda inputs, **context: (
        teacher(inputs, policy=policies.LastStep()).outputs
    )
    torch.testing.assert_close(made.call(labels=LABELS).loss, expected)
    made.model.teacher = lambda inputs, **context: teacher(inputs).outputs[:, :2]
    with pytest.raises(RuntimeError, match="expand"):  # in PyTorch's own words
        made.call(labels=LABELS)
    made.model.teacher = None
    with pytest.raises(ArgumentError, match="teacher"):
        made.call(labels=LABELS)


def test_a_lambda_head_reads_no_padding() -> None:
    options: dict[str, Any] = {"head": nn.Linear(WIDTH, 2), "lambda_head": ponder.LambdaHead(WIDTH)}
    options |= {
        "padding": ponder.Padding(),
        "task": "token_classification",
        "readout": ponder.readouts.identity,
    }
    model = ponder.PonderWrapper(
        lambda hidden, attention_mask: hidden.tanh(), STEPS, **options
    ).eval()
    rows = torch.randn(2, 5, WIDTH)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    both, short = (
        model.unroll(rows[start:, :length], attention_mask=mask[start:, :length]).hazard_logits
        for start, length in ((0, 5), (1, 3))
    )
    assert both is not None
    torch.testing.assert_close(both[1:], short)
