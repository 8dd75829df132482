"""Building and calling a wrapped model: defaults, modes, and everything that does not fit."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

import ponder
from ponder import objectives, policies, priors
from ponder.errors import CheckpointError
from ponder.objectives import FinalStep, Ponder
from ponder.policies import Bernoulli, Entropy, FixedStep, LastStep, Patience, Quantile
from ponder.priors import Categorical, Geometric
from tests.ponder.checks import refused
from tests.toys import NUM_STEPS, WIDTH, labels_for, make_toy, wrap


def plain(**parts: Any) -> ponder.PonderWrapper:
    return wrap(make_toy("shared"), **parts)


# Defaults


def test_defaults_follow_the_lambda_head() -> None:
    pondering, not_pondering = plain(), plain(lambda_head=None)
    assert pondering.policy == Quantile(0.5)
    assert pondering.objective == Ponder(0.5)
    assert pondering.prior.rate == pytest.approx(1 - 0.9 ** (12 / NUM_STEPS))
    assert not_pondering.policy == LastStep()
    assert not_pondering.objective == FinalStep()
    assert not_pondering.prior is None
    assert pondering.num_steps == NUM_STEPS


def test_a_policy_of_one_call_does_not_stay() -> None:
    model = plain().eval()
    inputs, _ = make_toy("shared").batch(6)
    assert model(inputs, policy=FixedStep(2)).exit_step.tolist() == [2] * 6
    assert model.policy == Quantile(0.5)
    model.policy = FixedStep(3)
    assert model(inputs).exit_step.tolist() == [3] * 6


def test_training_takes_no_policy() -> None:
    inputs, _ = make_toy("shared").batch(6)
    with refused("policy", "training mode", "model.eval()"):
        plain().train()(inputs, policy=FixedStep(2))


def test_the_exit_loss_is_the_tasks_mean_at_the_exits() -> None:
    for task, function in (
        ("classification", nn.functional.cross_entropy),
        ("regression", nn.functional.mse_loss),
        ("multilabel", nn.functional.binary_cross_entropy_with_logits),
    ):
        model = plain(task=task).eval()
        inputs, _ = make_toy("shared").batch(6)
        labels = labels_for(task, 6)
        out = model(inputs, labels=labels)
        assert len(set(out.exit_step.tolist())) > 1
        torch.testing.assert_close(out.loss, function(out.outputs, labels))


def test_tasks_are_inferred_from_the_labels_where_none_is_named() -> None:
    inputs, _ = make_toy("shared").batch(6)
    classes = plain(task=None, outputs=3)
    assert classes.task is None
    labels = labels_for("classification", 6)
    out = classes(inputs, labels=labels)
    torch.testing.assert_close(out.loss, plain(outputs=3)(inputs, labels=labels).loss)
    assert out.trajectory.task is None
    numbers = plain(task=None, outputs=1, objective=FinalStep())(inputs, labels=torch.zeros(6))
    torch.testing.assert_close(numbers.loss, (numbers.outputs**2).mean())
    pairs = plain(task=None, outputs=2).eval().unroll(inputs, labels=torch.randn(6, 2)).detach()
    with refused("trajectories", "names no task", "task='regression'"):
        pairs.correct()


def test_a_task_may_be_a_users_own_loss() -> None:
    def hinge(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (1 - outputs[:, 0] * labels).clamp(min=0)

    model = plain(task=hinge, outputs=1, objective=FinalStep())
    inputs, _ = make_toy("shared").batch(6)
    labels = torch.tensor([1.0, -1.0] * 3)
    out = model(inputs, labels=labels)
    torch.testing.assert_close(out.loss, hinge(out.outputs, labels).mean())
    assert model.settings()["task"] == "custom"
    out = model.eval()(inputs, labels=labels)
    torch.testing.assert_close(out.loss, hinge(out.outputs, labels).mean())


def test_answers_per_token() -> None:
    model = ponder.PonderWrapper(
        nn.Linear(WIDTH, WIDTH),
        3,
        head=nn.Linear(WIDTH, 4),
        readout=ponder.readouts.identity,
        task="token_classification",
        objective=objectives.DeepSupervision(),
        policy=FixedStep(2),
    )
    inputs, labels = torch.randn(2, 5, WIDTH), torch.tensor([[0, 1, 2, 3, -100]] * 2)
    out = model(inputs, labels=labels)
    assert out.trajectory.outputs.shape == (2, 3, 5, 4)
    assert bool(out.loss.isfinite())
    assert model.eval()(inputs, labels=labels).outputs.shape == (2, 5, 4)


@pytest.mark.parametrize("policy", [FixedStep(2), Quantile(0.5), Bernoulli(1)], ids=str)
def test_row_ids_travel_with_rows(policy: policies.ExitPolicy) -> None:
    seen: list[list[int]] = []

    class Spy(policies.ExitPolicy):
        def init(self, batch):
            seen.append(batch.row_ids.tolist())

        def decide(self, step, state):
            return True, state

    model = plain().eval()
    inputs, _ = make_toy("shared").batch(3)
    model(inputs, policy=Spy())
    model(inputs, policy=Spy(), row_ids=torch.tensor([7, 9, -3], dtype=torch.int32))
    assert seen == [[0, 1, 2], [7, 9, -3]]
    trajectory = model.eval().unroll(inputs, row_ids=torch.tensor([7, 9, -3]))
    assert trajectory.row_ids.tolist() == [7, 9, -3]
    run = model(inputs, policy=policy, row_ids=torch.tensor([7, 9, -3]))
    assert torch.equal(run.exit_step, trajectory.replay(policy).exit_step)


def test_the_stem_sees_the_calls_context_and_may_replace_it() -> None:
    def stem(inputs: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
        return inputs * scale, {"bias": ponder.Shared(torch.ones(1, WIDTH))}

    def step(hidden: torch.Tensor, **context: Any) -> torch.Tensor:
        assert set(context) == {"bias"}
        return hidden + context["bias"]

    model = ponder.PonderWrapper(step, 2, head=nn.Identity(), stem=stem).eval()
    out = model(torch.zeros(3, WIDTH), scale=ponder.Shared(2.0))
    assert torch.equal(out.outputs, torch.full((3, WIDTH), 2.0))


# Parts that do not fit one another


@pytest.mark.parametrize("policy", [Quantile(0.5), Bernoulli(), Quantile(0.5) | LastStep()], ids=str)
def test_a_policy_on_hazards_needs_a_lambda_head(policy) -> None:
    inputs, _ = make_toy("shared").batch(3)
    with refused("policy", "no hazard", "lambda_head=ponder.LambdaHead(width)"):
        plain(lambda_head=None, policy=policy)
    model = plain(lambda_head=None).eval()
    with refused("policy"):
        model(inputs, policy=policy)
    with refused("policy"):
        model.policy = policy
    with refused("policy"):
        model.eval().unroll(inputs).replay(policy)
    assert model.policy == LastStep()


def test_the_ponder_objective_needs_a_lambda_head() -> None:
    with refused("objective", "no hazard", "Ponder(beta=0.5"):
        plain(lambda_head=None, objective=Ponder(0.5))
    model = plain(lambda_head=None)
    with refused("objective"):
        model.objective = Ponder(0.5) + FinalStep()
    assert model.objective == FinalStep()


@pytest.mark.parametrize("policy", [Entropy(0.2), policies.Confidence(0.9), policies.Margin(0.5)], ids=str)
def test_policies_on_classes_are_refused_in_regression(policy) -> None:
    with refused("policy", "class logits", "'regression'", "Patience with a tolerance"):
        plain(task="regression", policy=policy)


def test_patience_of_the_depth_is_refused() -> None:
    with refused("patience", f"less than the model's {NUM_STEPS} steps", "LastStep"):
        plain(policy=Patience(NUM_STEPS))
    plain(policy=Patience(NUM_STEPS - 1))


def test_a_prior_of_another_length_is_refused() -> None:
    with refused("prior", f"the model's {NUM_STEPS} steps", "2 probabilities"):
        plain(prior=Categorical((0.5, 0.5)))
    model = plain()
    before = model.prior
    with refused("prior"):
        model.prior = Categorical((0.5, 0.5))
    assert model.prior == before


def test_taking_the_prior_away_from_an_objective_that_needs_it_is_refused() -> None:
    model = plain()
    with refused("objective", "no prior"):
        model.prior = None
    assert model.prior is not None
    model.objective = FinalStep()
    model.prior = None
    assert model.prior is None


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("policy", "quantile"),
        ("policy", Quantile),
        ("objective", "ponder"),
        ("prior", "geometric"),
        ("prior", torch.ones(5) / 5),
    ],
)
def test_names_and_classes_are_no_instances(argument: str, value: Any) -> None:
    with refused(argument, type_error=True):
        plain(**{argument: value})


def test_a_call_names_a_policy_by_instance_too() -> None:
    model = plain().eval()
    inputs, _ = make_toy("shared").batch(3)
    with refused("policy", "str", type_error=True):
        model(inputs, policy="last-step")
    with refused("policy", "str", type_error=True):
        model.eval().unroll(inputs).replay("last-step")


@pytest.mark.parametrize("name", ["readout", "stem"])
def test_the_name_of_a_function_is_not_the_function(name: str) -> None:
    with refused(name, "expected a module or a function; got 'mean'", "not its name", type_error=True):
        wrap(make_toy("stacked"), **{name: "mean"})


def test_unknown_tasks_are_refused() -> None:
    with refused("task", "classification", "'sentiment'"):
        plain(task="sentiment", outputs=2)


def test_shapes_of_steps_and_heads() -> None:
    with refused("num_steps", "num_steps=12"):
        ponder.PonderWrapper(nn.Linear(2, 2), head=nn.Linear(2, 2))
    with refused("num_steps", "3, the number of steps given"):
        ponder.PonderWrapper([nn.Linear(2, 2)] * 3, 4, head=nn.Linear(2, 2))
    with refused("head", "one head for each of 3 steps", "2 heads"):
        ponder.PonderWrapper(nn.Linear(2, 2), 3, head=ponder.PerStep(nn.Linear(2, 2) for _ in range(2)))


# Calls that do not fit the model


@pytest.mark.parametrize("training", [True, False])
def test_inputs_are_batch_first_tensors(training: bool) -> None:
    model = plain().train(training)
    with refused("inputs", "batch first", "shape ()"):
        model(torch.tensor(1.0))
    with refused("inputs", "a tensor", type_error=True):
        model([1.0, 2.0])
    toy = make_toy("tuple-state")
    with refused("inputs[1]", "(3, …)", "shape (2, 8)"):
        wrap(toy).train(training)((torch.zeros(3, WIDTH), torch.zeros(2, WIDTH)))
    with refused("readout", "(2, 4, 8)", "readouts.first_token"):
        model(torch.zeros(2, 4, WIDTH))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("context", "path"),
    [
        ({"bias": torch.zeros(2, 4)}, "context['bias']"),
        ({"bias": {"inner": [torch.tensor(1.0)]}}, "context['bias']['inner'][0]"),
    ],
)
def test_context_that_is_not_batch_first_is_named(training: bool, context, path: str) -> None:
    model = ponder.PonderWrapper(lambda hidden, bias: hidden, 3, head=nn.Linear(WIDTH, 2))
    with refused(path, "(3, …)", "ponder.Shared"):
        model.train(training)(torch.zeros(3, WIDTH), **context)


def test_stems_and_steps_that_change_the_batch_are_named() -> None:
    with refused("hidden state returned by step 2", "(3, …)", "shape (2, 8)"):
        steps = [lambda hidden: hidden, lambda hidden: hidden[:2]]
        ponder.PonderWrapper(steps, head=nn.Linear(WIDTH, 2))(torch.zeros(3, WIDTH))
    with refused("hidden state returned by the stem[1]", "batch first"):
        toy = make_toy("tuple-state")
        stem = lambda inputs: (inputs, inputs[:1])  # noqa: E731
        wrap(toy, stem=stem)(torch.zeros(3, WIDTH))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("labels", "words", "type_error"),
    [
        (torch.zeros(4).long(), ("shape (3,)", "shape (4,)"), False),
        (torch.tensor([0, 1, 3]), ("classes 0 … 2", "between 0 and 3"), False),
        (torch.tensor([0.0, 1.0, 2.0]), ("integers", "torch.float32"), True),
        ([0, 1, 2], ("Tensor", "list"), True),
    ],
)
def test_labels_that_do_not_fit_are_refused(training: bool, labels, words, type_error: bool) -> None:
    with refused("labels", *words, type_error=type_error):
        plain().train(training)(torch.zeros(3, WIDTH), labels=labels)


@pytest.mark.parametrize("row_ids", [torch.arange(2), torch.arange(3.0), [0, 1, 2], torch.zeros(3, 1).long()], ids=str)
def test_row_ids_are_integers_one_a_row(row_ids: Any) -> None:
    for call in (plain().eval(), plain().eval().unroll):
        with refused("row_ids", "integers, shape (3,)"):
            call(torch.zeros(3, WIDTH), row_ids=row_ids)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.bool, torch.long])
def test_rows_without_a_real_position_are_refused(training: bool, dtype: torch.dtype) -> None:
    toy = make_toy("shared-context")
    ids, _ = toy.batch(3)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]).to(dtype)
    with refused("attention_mask", "at least one real position", "rows [1, 2]"):
        wrap(toy).train(training)(ids, attention_mask=mask)
    toy = make_toy("transformer")
    inputs, _ = toy.batch(3)
    if dtype == torch.bool:
        with refused("src_key_padding_mask", "rows [1, 2]"):
            wrap(toy).train(training)(inputs, src_key_padding_mask=mask == 0)


def test_settings_are_checked_before_they_are_taken() -> None:
    model = plain()
    settings = {**model.settings(), "num_steps": 7}
    with pytest.raises(CheckpointError, match="num_steps: the saved model has 7, this one 5"):
        model.apply_settings(settings)
    assert model.prior == priors.Geometric(0.1).rescaled(12, NUM_STEPS)
    assert isinstance(model.prior, Geometric)


@dataclasses.dataclass(frozen=True)
class Slip(priors.Prior):
    """Three slips of a log_pmf: not normalised, probabilities for their logarithms, and one step too many."""

    kind: str = "sum"

    def log_pmf(self, num_steps):
        steps = torch.arange(1, num_steps + 1, dtype=torch.float64)
        if self.kind == "sum":
            return steps.log()
        if self.kind == "log":
            return torch.full((num_steps,), 1.0 / num_steps, dtype=torch.float64)
        return torch.zeros(num_steps + 1, dtype=torch.float64).log_softmax(0)


@pytest.mark.parametrize("kind", ["sum", "log", "length"])
def test_a_prior_that_is_no_distribution_is_refused_when_it_meets_the_model(kind: str) -> None:
    model = wrap(make_toy("shared"))
    before = model.prior
    with refused("prior", "sum to 1", "log_softmax"):
        model.prior = Slip(kind)
    assert model.prior is before


@pytest.mark.parametrize("shape", ["scalar", "steps"])
def test_an_objective_that_gives_no_loss_per_example_is_refused(shape: str) -> None:
    @dataclasses.dataclass(frozen=True)
    class Own(objectives.Objective):
        def per_example(self, unrolled):
            return unrolled.losses.mean() if shape == "scalar" else unrolled.losses

    toy = make_toy("shared")
    model = wrap(toy)
    model.objective = Own()
    for rows in (1, NUM_STEPS, 5):  # shapes that would broadcast, and one that would not
        inputs, context = toy.batch(rows)
        with refused("objective", "one loss per example", f"({rows},)"):
            model.train()(inputs, labels=labels_for("classification", rows), **context)


def test_training_a_certified_model_warns_once() -> None:
    toy = make_toy("shared")
    model = wrap(toy)
    inputs, context = toy.batch(60)
    labels = labels_for("classification", 60)
    trajectory = model.eval().unroll(inputs, labels=labels, **context).detach()
    model.policy = ponder.control_risk(trajectory, policies.Confidence, level=0.3).policy
    with pytest.warns(UserWarning, match="certified for the weights before this training"):
        model.train()(inputs, labels=labels, **context)
    model(inputs, labels=labels, **context)  # not again
    with pytest.warns(UserWarning, match="A part of this policy is certified"):
        model.policy = model.policy.before(2)
    with pytest.warns(UserWarning, match="certified for the weights"):
        model(inputs, labels=labels, **context)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hazards", [True, False])
def test_the_prior_has_the_precision_of_what_it_is_compared_with(dtype: torch.dtype, hazards: bool) -> None:
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Own(objectives.Objective):
        needs = frozenset({"prior"})

        def per_example(self, unrolled):
            over_steps = unrolled.losses if unrolled.halting is None else unrolled.halting.pmf
            seen.append(unrolled.prior.pmf.dtype)
            return unrolled.losses[:, -1] - over_steps @ unrolled.prior.pmf

    toy = make_toy("shared")
    parts = {} if hazards else {"lambda_head": None, "prior": Geometric(0.2)}
    model = wrap(toy, objective=Own(), **parts).to(dtype).train()
    loss = model(toy.batch(4)[0].to(dtype), labels=labels_for("classification", 4)).loss
    assert seen == [loss.dtype] == [torch.promote_types(dtype, torch.float32)]
