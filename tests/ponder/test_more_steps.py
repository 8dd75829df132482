"""More steps than trained: a shared step runs for as many as a call asks, in a batch, on a record and in a stream."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ponder
from ponder import objectives, policies, priors
from ponder.errors import ArgumentError
from tests.ponder.checks import refused
from tests.toys import LENGTH, NUM_STEPS, WIDTH, make_toy, wrap

SHARED = ("shared", "tuple-state", "dict-state", "gru-cell", "lstm-cell", "transformer", "shared-context")
NOT_SHARED = ("stacked", "scheduled", "functions")
MORE = 3 * NUM_STEPS
BATCH = 12
POLICIES = (
    policies.LastStep(),
    policies.Quantile(0.97),
    policies.Bernoulli(seed=3),
    policies.Patience(4),
    policies.Converged(patience=3),
    policies.Converged(0.05, patience=2, on="features"),
    policies.FixedStep(MORE - 2),
    policies.Confidence(0.99).after(3),
)


def rows_of(inputs: Any, context: dict[str, Any]) -> list[Any]:
    """The examples of a batch, as a data set has them."""
    take = lambda tree, row: (  # noqa: E731 (a nested lambda reads shorter than a function here)
        tree[row]
        if isinstance(tree, torch.Tensor)
        else {key: take(value, row) for key, value in tree.items()}
        if isinstance(tree, dict)
        else type(tree)(take(value, row) for value in tree)
        if isinstance(tree, list | tuple)
        else tree
    )
    return [(take(inputs, row), take(context, row)) for row in range(BATCH)]


HALF = [(toy, policy) for n, toy in enumerate(SHARED) for k, policy in enumerate(POLICIES) if (n + k) % 2]


@pytest.mark.parametrize(("toy_name", "policy"), HALF, ids=str)
@pytest.mark.parametrize("num_steps", [MORE, 3])
def test_a_call_of_n_steps_is_a_model_of_n_steps(toy_name: str, policy: policies.ExitPolicy, num_steps: int) -> None:
    toy = make_toy(toy_name)
    model = wrap(toy).eval()
    toy.num_steps = num_steps
    longer = wrap(toy).eval()
    longer.load_state_dict(model.state_dict())
    inputs, context = toy.batch(BATCH, seed=5)
    try:
        expected = longer(inputs, policy=policy, **context)
    except ArgumentError as error:  # a policy that asks for more than 3 steps: refused alike
        with refused(error.argument):
            model(inputs, policy=policy, num_steps=num_steps, **context)
        return
    with torch.no_grad():
        found = model(inputs, policy=policy, num_steps=num_steps, **context)
        replayed = model.unroll(inputs, num_steps=num_steps, keep_features=True, **context).replay(policy)
    assert found.exit_step.tolist() == replayed.exit_step.tolist() == expected.exit_step.tolist()
    torch.testing.assert_close(found.outputs, expected.outputs)
    torch.testing.assert_close(replayed.outputs, expected.outputs)
    rows = rows_of(inputs, context)
    predicted = model.predict(rows, policy=policy, num_steps=num_steps)
    assert predicted.exit_step.tolist() == expected.exit_step.tolist()
    recorded = model.record(rows, num_steps=num_steps, keep_features=True).replay(policy)
    assert recorded.exit_step.tolist() == expected.exit_step.tolist()
    with ponder.StreamEngine(model, policy, num_steps=num_steps, max_batch=5) as engine:
        streamed = [answer for _, answer in engine.run(rows, ordered=True)]
    assert [answer.exit_step for answer in streamed] == expected.exit_step.tolist()
    torch.testing.assert_close(torch.stack([a.output for a in streamed]), expected.outputs, atol=1e-5, rtol=1e-4)


def test_policies_let_rows_go_beyond_the_trained_steps() -> None:
    """Or the test above would compare nothing new."""
    model = wrap(make_toy("gru-cell")).eval()
    inputs, context = make_toy("gru-cell").batch(40, seed=1)
    for policy in POLICIES:
        assert int(model(inputs, policy=policy, num_steps=MORE, **context).exit_step.max()) > NUM_STEPS, policy


def test_hazards_beyond_the_trained_steps_are_computed() -> None:
    model = wrap(make_toy("shared")).eval()
    inputs, _ = make_toy("shared").batch(BATCH)
    trajectory = model.unroll(inputs, num_steps=MORE)
    expected, hidden = [], [inputs]
    with torch.no_grad():
        for _ in range(MORE):
            hidden.append(model.steps.fns[0](hidden[-1]))
            expected.append(model.lambda_head(torch.cat([hidden[-1], hidden[-2]], dim=-1)))
    torch.testing.assert_close(trajectory.hazard_logits, torch.stack(expected, dim=1))
    torch.testing.assert_close(trajectory.halting.pmf.sum(-1), torch.ones(BATCH))


def test_patience_and_hazards_mean_the_same_however_many_steps_follow() -> None:
    """A step of a shared model is the same step in a longer run, so that nothing but the end is moved."""
    model = wrap(make_toy("shared")).eval()
    inputs, _ = make_toy("shared").batch(200)
    for policy in (policies.Patience(2), policies.Quantile(0.5), policies.Converged(patience=2)):
        short, long = (model(inputs, policy=policy, num_steps=n).exit_step for n in (NUM_STEPS, MORE))
        early = short < NUM_STEPS
        assert bool(early.any())
        assert torch.equal(short[early], long[early])


@pytest.mark.parametrize("toy_name", NOT_SHARED)
def test_stacks_refuse(toy_name: str) -> None:
    toy = make_toy(toy_name)
    model = wrap(toy).eval()
    inputs, context = toy.batch(4)
    for call in (
        lambda: model(inputs, num_steps=MORE, **context),
        lambda: model.unroll(inputs, num_steps=2, **context),
        lambda: model.predict(inputs, num_steps=MORE),
        lambda: model.record(inputs, num_steps=MORE),
        lambda: ponder.StreamEngine(model, num_steps=MORE),
        lambda: model.train()(inputs, num_steps=MORE, **context),
    ):
        with refused("num_steps", "One shared step can run for longer"):
            call()
    assert model.eval()(inputs, num_steps=NUM_STEPS, **context).outputs.shape[0] == 4


def test_a_head_a_step_refuses() -> None:
    heads = ponder.PerStep(nn.Linear(WIDTH, 3) for _ in range(NUM_STEPS))
    model = wrap(make_toy("shared"), head=heads).eval()
    with refused("num_steps", "one head for each"):
        model(torch.zeros(2, WIDTH), num_steps=MORE)


@pytest.mark.parametrize("num_steps", [0, -1, 2.0, True, "60"])
def test_what_is_no_number_of_steps(num_steps: Any) -> None:
    model = wrap(make_toy("shared")).eval()
    with refused("num_steps", "a whole number"):
        model(torch.zeros(2, WIDTH), num_steps=num_steps)


def test_policies_of_another_length() -> None:
    tempered = policies.Tempered(policies.Confidence(0.9), temperatures=(1.0,) * NUM_STEPS)
    model = wrap(make_toy("shared"), policy=tempered).eval()
    inputs = torch.zeros(2, WIDTH)
    model(inputs)
    for call in (lambda: model(inputs, num_steps=MORE), lambda: ponder.StreamEngine(model, num_steps=MORE)):
        with pytest.raises(ArgumentError, match="temperatures"):
            call()
    with refused("step", str(NUM_STEPS)):
        model(inputs, policy=policies.FixedStep(NUM_STEPS), num_steps=2)


def test_priors_of_another_length() -> None:
    """A hazard serves any number of steps; a table of probabilities only its own."""
    inputs, labels = torch.zeros(2, WIDTH), torch.tensor([0, 1])
    model = wrap(make_toy("shared"), prior=priors.Geometric(0.2), objective=objectives.Ponder(0.1)).train()
    out = model(inputs, labels=labels, num_steps=MORE)
    assert out.trajectory.num_steps == MORE
    expected = priors.Geometric(0.2)(MORE)
    kl = torch.distributions.kl_divergence(out.trajectory.halting, expected.expand((2,)))
    losses = torch.nn.functional.cross_entropy(out.trajectory.outputs.flatten(0, 1), labels.repeat_interleave(MORE))
    assert losses.isfinite()
    fit = (out.trajectory.halting.pmf * _losses(out.trajectory, labels)).sum(-1)
    torch.testing.assert_close(out.loss, (fit + 0.1 * kl).mean())
    model = wrap(make_toy("shared"), prior=priors.Categorical((0.2,) * NUM_STEPS)).train()
    with pytest.raises(ArgumentError, match="probabilities"):
        model(inputs, labels=labels, num_steps=MORE)
    assert model.eval()(inputs, num_steps=MORE).outputs.shape == (2, 3)  # no prior is asked outside training


def _losses(trajectory: ponder.Trajectory, labels: torch.Tensor) -> torch.Tensor:
    logits = trajectory.outputs.log_softmax(-1)
    return -logits.gather(-1, labels.view(-1, 1, 1).expand(-1, MORE, 1)).squeeze(-1)


def test_a_state_that_grows_is_refused() -> None:
    class Remembers(nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.cat([hidden, hidden[:, -1:] + 1], dim=1)

    model = ponder.PonderWrapper(
        Remembers(), num_steps=4, readout=ponder.readouts.last, head=nn.Linear(WIDTH, 3)
    ).eval()
    with refused("hidden state returned by step 1", "(2, 5, 8)", "since the step is shared"):
        model(torch.zeros(2, LENGTH, WIDTH))

    class Collects(nn.Module):
        def forward(self, hidden: dict[str, Any]) -> dict[str, Any]:
            return {**hidden, f"step {len(hidden)}": hidden["now"]}

    model = ponder.PonderWrapper(Collects(), 4, readout=lambda hidden: hidden["now"], head=nn.Linear(WIDTH, 3)).eval()
    with refused("hidden state returned by step 1['step 1']", "no tensor"):
        model({"now": torch.zeros(2, WIDTH)})


# -- what a looped solver is made of: the input read again at every step, and a state of two parts that both go on


class Recall(nn.Module):
    """z_n = tanh(A [x, y_{n−1}, z_{n−1}]), y_n = tanh(B [y_{n−1}, z_n]): TRM's form."""

    def __init__(self) -> None:
        super().__init__()
        self.latent, self.answer = nn.Linear(3 * WIDTH, WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.5)

    def forward(self, state: tuple[torch.Tensor, torch.Tensor], problem: torch.Tensor) -> Any:
        answer, latent = state
        latent = torch.tanh(self.latent(torch.cat([problem, answer, latent], dim=-1)))
        return torch.tanh(self.answer(torch.cat([answer, latent], dim=-1))), latent


def start(inputs: torch.Tensor) -> Any:
    return (torch.zeros_like(inputs), torch.zeros_like(inputs)), {"problem": inputs}


def answer(state: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return state[0]


@pytest.mark.parametrize("per_token", [False, True])
def test_recall_and_a_pair_in_batch_replay_and_stream(per_token: bool) -> None:
    """Rows leave at different steps; those that stay must keep their own problem and both halves of their state."""
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, 3)
    nn.init.normal_(head.weight)
    task: Any = "token_classification" if per_token else "classification"
    model = ponder.PonderWrapper(Recall(), 6, stem=start, readout=answer, head=head, task=task).eval()
    inputs = torch.randn(20, *([LENGTH] if per_token else []), WIDTH)
    policy, num_steps = policies.Converged(patience=2), 25

    expected = []
    with torch.no_grad():
        for row in inputs:  # each alone, in plain Python
            y, z, before, count = torch.zeros_like(row), torch.zeros_like(row), None, 0
            for step in range(1, num_steps + 1):
                y, z = model.steps.fns[0]((y, z), problem=row)
                now = head(y).argmax(-1)
                count = count + 1 if before is not None and torch.equal(now, before) else 0
                before = now
                if count == 2 or step == num_steps:
                    expected.append((step, head(y)))
                    break
        found = model(inputs, policy=policy, num_steps=num_steps)
        replayed = model.unroll(inputs, num_steps=num_steps).replay(policy)
    steps = [step for step, _ in expected]
    assert len(set(steps)) > 2
    assert found.exit_step.tolist() == replayed.exit_step.tolist() == steps
    outputs = torch.stack([output for _, output in expected])
    torch.testing.assert_close(found.outputs, outputs, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(replayed.outputs, outputs, atol=1e-5, rtol=1e-4)
    with ponder.StreamEngine(model, policy, num_steps=num_steps, max_batch=4) as engine:
        streamed = [answer for _, answer in engine.run(inputs, ordered=True)]
    assert [one.exit_step for one in streamed] == steps
    torch.testing.assert_close(torch.stack([one.output for one in streamed]), outputs, atol=1e-5, rtol=1e-4)
