"""Training: heads and losses of all steps in one call, checkpointed steps, and truncated unrolls."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import ponder
from ponder import objectives, priors
from ponder.engine.losses import collected, step_losses
from ponder.engine.unroll import one_call
from ponder.objectives import Ponder
from ponder.parts.gradients import equilibrium
from ponder.parts.tasks import as_task
from tests.ponder import oracles
from tests.ponder.checks import refused
from tests.toys import NUM_STEPS, OUTPUTS, TOYS, WIDTH, labels_for, make_toy, wrap


def trained(model: Any, inputs: Any, context: Any, task: str = "classification") -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch of 6 and all gradients."""
    model.zero_grad()
    out = model.train()(inputs, labels=labels_for(task, 6), **context)
    out.loss.backward()
    return out.loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def rows_seen(part: nn.Module) -> list[int]:
    seen: list[int] = []
    part.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    return seen


# ---- One call for all steps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOYS)
def test_heads_are_called_once_and_nothing_changes(name: str) -> None:
    toy = make_toy(name)
    inputs, context = toy.batch(6)
    together = wrap(toy)
    alone = copy.deepcopy(together)
    alone.head.steps_in_one_call = alone.lambda_head.layers.steps_in_one_call = False
    seen = {model: (rows_seen(model.head), rows_seen(model.lambda_head)) for model in (together, alone)}
    loss, gradients = trained(together, inputs, context)
    expected_loss, expected = trained(alone, inputs, context)
    assert seen[together] == ([6 * NUM_STEPS], [6 * NUM_STEPS])
    assert seen[alone] == ([6] * NUM_STEPS, [6] * NUM_STEPS)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize("history", [1, 2, 3])
@pytest.mark.parametrize("initial", ["stem", "zeros"])
def test_the_lambda_head_reads_the_newest_step_first(history: int, initial: Any) -> None:
    toy = make_toy("shared")
    model = wrap(toy, lambda_head=ponder.LambdaHead(WIDTH, layers=2, history=history, initial=initial))
    inputs, _ = toy.batch(4)
    states = [inputs if initial == "stem" else torch.zeros_like(inputs)] * (history - 1)
    hidden, expected = inputs, []
    for _ in range(NUM_STEPS):
        hidden = toy.steps(hidden)
        states.append(hidden)
        expected.append(model.lambda_head(torch.cat([states[-1 - age] for age in range(history)], dim=-1)))
    torch.testing.assert_close(model.eval().unroll(inputs).hazard_logits, torch.stack(expected, dim=1))


@pytest.mark.filterwarnings("ignore:unroll in training mode")
def test_heads_that_look_across_rows_see_one_step_a_call() -> None:
    toy = make_toy("shared")
    inputs, _ = toy.batch(6)
    norm, hazards = nn.BatchNorm1d(WIDTH), nn.Sequential(nn.Linear(WIDTH, 1), nn.BatchNorm1d(1))
    model = wrap(toy, head=nn.Sequential(norm, nn.Linear(WIDTH, 3)), lambda_head=hazards)
    expected, hidden, statistics = [], inputs, copy.deepcopy(norm)
    for _ in range(NUM_STEPS):
        hidden = toy.steps(hidden)
        expected.append(model.head[1](statistics(hidden)))
    seen = rows_seen(norm), rows_seen(hazards)
    torch.testing.assert_close(model.train().unroll(inputs).outputs, torch.stack(expected, dim=1))
    assert seen == ([6] * NUM_STEPS, [6] * NUM_STEPS)
    torch.testing.assert_close(norm.running_mean, statistics.running_mean)
    model.eval().unroll(inputs)
    assert seen[0][NUM_STEPS:] == [6 * NUM_STEPS]
    assert not one_call(nn.BatchNorm1d(4, track_running_stats=False).eval())
    assert one_call(nn.Sequential(nn.LayerNorm(4), nn.Dropout(0.1), nn.Linear(4, 2)))


def test_a_head_a_step_answers_its_own_step() -> None:
    toy = make_toy("shared")
    model = wrap(toy, head=ponder.PerStep(nn.Linear(WIDTH, 3) for _ in range(NUM_STEPS)))
    seen = [rows_seen(head) for head in model.head.heads]
    hazards = rows_seen(model.lambda_head)
    model.train()(toy.batch(6)[0])
    assert seen == [[6]] * NUM_STEPS
    assert hazards == [6 * NUM_STEPS]


def test_answers_per_token_are_not_copied_together() -> None:
    head = nn.Linear(WIDTH, 3)
    model = ponder.PonderWrapper(nn.Linear(WIDTH, WIDTH), 3, head=head, readout=ponder.readouts.identity)
    seen = rows_seen(head)
    model.train()(torch.randn(2, 4, WIDTH))
    assert seen == [2, 2, 2]


def test_steps_may_change_their_state_in_place() -> None:
    def double(hidden: Tensor) -> Tensor:
        return hidden.mul_(2.0)

    model = ponder.PonderWrapper(double, 3, head=nn.Identity(), lambda_head=nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        trajectory = model.eval().unroll(torch.ones(2, 1), keep_features=True)
    assert trajectory.outputs[0, :, 0].tolist() == [2.0, 4.0, 8.0]
    assert trajectory.features is not None
    assert trajectory.features[0, :, 0].tolist() == [2.0, 4.0, 8.0]


@pytest.mark.parametrize("task", [*OUTPUTS])
def test_built_in_losses_take_all_steps_at_once(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    shape = (5, 4, 6, OUTPUTS[task]) if task == "token_classification" else (5, 4, OUTPUTS[task])
    outputs = torch.randn(shape)
    labels = torch.randint(3, (5, 6)) if task == "token_classification" else labels_for(task, 5)
    if task == "token_classification":
        labels[0, 2:] = -100
    known = as_task(task)
    assert known is not None
    calls: list[int] = []
    losses = type(known).losses
    monkeypatch.setattr(type(known), "losses", lambda self, o, y: calls.append(len(o)) or losses(self, o, y))
    together = step_losses(known, outputs, labels)
    monkeypatch.setattr(type(known), "each_row_alone", False)
    torch.testing.assert_close(together, step_losses(known, outputs, labels))
    assert calls == [20, 5, 5, 5, 5]


def test_a_loss_of_a_subclass_sees_the_rows_of_one_step() -> None:
    # Trap: it was handed those of all steps, since the losses that it overrides may be.
    class Balanced(ponder.tasks.Classification):
        def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
            return super().losses(outputs, labels) / torch.bincount(labels, minlength=3)[labels]

    class Squared(Balanced):
        each_row_alone = True

    toy = make_toy("shared")
    inputs, _ = toy.batch(6)
    labels = torch.tensor([0, 0, 0, 0, 1, 2])
    model = wrap(toy, task=Balanced(), outputs=3, objective=objectives.FinalStep())
    outputs = model.eval()(inputs, policy=ponder.policies.LastStep()).outputs
    by_hand = ponder.tasks.Classification().losses(outputs, labels)
    weights = torch.tensor([0.25, 0.25, 0.25, 0.25, 1.0, 1.0])
    torch.testing.assert_close(model.train()(inputs, labels=labels).loss, (by_hand * weights).mean())
    assert not Balanced.each_row_alone
    assert Squared.each_row_alone
    assert type("Deeper", (Balanced,), {}).each_row_alone is False


def test_a_users_loss_is_called_once_a_step() -> None:
    calls: list[tuple[int, int]] = []

    def own(outputs: Tensor, labels: Tensor) -> Tensor:
        calls.append((len(outputs), len(labels)))
        return (outputs[:, 0] - labels) ** 2

    toy = make_toy("shared")
    wrap(toy, task=own, outputs=1).train()(toy.batch(6)[0], labels=torch.zeros(6))
    assert calls == [(6, 6)] * NUM_STEPS


# ---- Checkpointed steps --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOYS)
def test_checkpointed_steps_give_the_same_gradients(name: str) -> None:
    toy = make_toy(name)
    inputs, context = toy.batch(6)
    model = wrap(toy)
    loss, expected = trained(model, inputs, context)
    model.checkpoint_steps = True
    again, gradients = trained(model, inputs, context)
    assert torch.equal(loss, again)
    torch.testing.assert_close(gradients, expected, rtol=0.0, atol=0.0)


class InPlace(nn.Linear):
    """A step that changes its state in place, as a step may."""

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(super().forward(hidden.mul_(2.0)))


def test_checkpointed_steps_may_change_their_state_in_place() -> None:
    """Trap: computed again for the backward pass, a step began with the state that it had changed."""
    torch.manual_seed(0)
    steps = [nn.Linear(8, 8), InPlace(8, 8), nn.Linear(8, 8)]
    model = ponder.PonderWrapper(steps, head=nn.Linear(8, 3), objective=objectives.DeepSupervision())
    inputs = torch.randn(6, 8)
    loss, expected = trained(model, inputs, {})
    model.checkpoint_steps = True
    again, gradients = trained(model, inputs, {})
    assert torch.equal(loss, again)
    torch.testing.assert_close(gradients, expected, rtol=0.0, atol=0.0)


def transformer(num_steps: int, **options: Any) -> ponder.PonderWrapper:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, nhead=2, dim_feedforward=64, dropout=0.3, batch_first=True)
    readout = ponder.readouts.first_token
    return ponder.PonderWrapper(
        layer, num_steps, head=nn.Linear(16, 3), lambda_head=ponder.LambdaHead(16), readout=readout, **options
    )


def test_dropout_repeats_in_the_backward_pass() -> None:
    inputs, results = torch.randn(6, 8, 16), []
    for checkpoint in (False, True):
        model = transformer(4, checkpoint_steps=checkpoint)
        torch.manual_seed(1)
        results.append(trained(model, inputs, {})[1])
    torch.testing.assert_close(results[1], results[0], rtol=0.0, atol=0.0)


class Live(TorchDispatchMode):
    """Counts the bytes of everything made inside that is still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return result

    def bytes(self) -> int:
        return sum(size for ref, size in self.made.values() if not ref.expired())


def test_memory_grows_by_the_states_between_steps_only() -> None:
    inputs = torch.randn(4, 32, 16)

    def kept(num_steps: int, checkpoint: bool) -> int:
        model = transformer(num_steps, checkpoint_steps=checkpoint).train()
        with Live() as live:
            out = model(inputs, labels=torch.zeros(4, dtype=torch.long))
        assert out.loss is not None
        return live.bytes()

    states = 12 * inputs.nbytes
    assert states <= kept(16, True) - kept(4, True) < 1.3 * states
    assert kept(16, False) - kept(4, False) > 10 * states


@pytest.mark.filterwarnings("ignore:unroll in training mode")
def test_steps_run_twice_in_training_and_once_without_a_graph() -> None:
    toy = make_toy("shared")
    inputs, _ = toy.batch(6)
    model = wrap(toy, checkpoint_steps=True)
    seen = rows_seen(toy.steps)
    trained(model, inputs, {})
    assert len(seen) == 2 * NUM_STEPS
    with torch.no_grad():
        model.unroll(inputs)
        model.eval()(inputs, policy=ponder.policies.LastStep())
    assert len(seen) == 4 * NUM_STEPS


def test_training_options_are_no_settings_of_the_model() -> None:
    model = transformer(4, checkpoint_steps=True, truncate_below=0.01)
    assert model.settings() == transformer(4).settings()
    clone = copy.deepcopy(model)
    assert clone.checkpoint_steps
    assert clone.truncate_below == 0.01


# ---- Truncated unrolls ---------------------------------------------------------------------------------------------


def with_hazards(logits: list[list[float]], **options: Any) -> tuple[ponder.PonderWrapper, Tensor, list[int]]:
    """A model whose state is (step, hazard logit of every step), its inputs, and the steps that it ran."""
    ran: list[int] = []

    def step(hidden: Tensor) -> Tensor:
        ran.append(len(ran) + 1)
        return torch.cat([hidden[:, :1] + 1, hidden[:, 1:]], dim=1)

    class Hazard(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return features.gather(1, features[:, :1].long())[:, 0]

    table = torch.tensor(logits)
    inputs = torch.cat([torch.zeros(len(logits), 1), table], dim=1)
    torch.manual_seed(0)
    head = nn.Linear(inputs.shape[1], 3)
    model = ponder.PonderWrapper(step, table.shape[1], head=head, lambda_head=Hazard(), **options)
    return model.train(), inputs, ran


LOGITS = [[0.0, 2.0, 3.0, 1.0, 0.0, -1.0], [1.0, -1.0, 2.0, 4.0, 0.5, 0.0], [3.0, 3.0, -2.0, 1.0, 1.0, 1.0]]


def steps_until(logits: list[list[float]], below: float) -> int:
    """The first step after which Π (1 − λ) is smaller than `below` in every row; N where there is none."""
    for step in range(1, len(logits[0])):
        if all(oracles.survival_before(row)[step] < below for row in logits):
            return step
    return len(logits[0])


@pytest.mark.parametrize("below", [0.3, 0.1, 0.02, 0.005, 1e-6])
@pytest.mark.parametrize("likelihood", ["expected_log", "log_expected"])
def test_a_truncated_unroll_accounts_for_all_mass(below: float, likelihood: Any) -> None:
    prior, objective = priors.Geometric(0.3), Ponder(0.7, likelihood=likelihood)
    model, inputs, ran = with_hazards(LOGITS, truncate_below=below, objective=objective, prior=prior)
    labels = torch.tensor([0, 1, 2])
    out = model(inputs, labels=labels)
    steps = steps_until(LOGITS, below)
    assert len(ran) == steps == out.trajectory.num_steps
    assert out.exit_step.tolist() == [steps] * 3
    torch.testing.assert_close(out.trajectory.halting.pmf.sum(-1), torch.ones(3))
    p_prior = oracles.prior(prior.to_dict(), 6)
    if steps < 6:  # what is left is one step more, which answers as the last
        p_prior = [*p_prior[:steps], sum(p_prior[steps:])]
    expected = 0.0
    for row in range(3):
        p = oracles.pmf([*LOGITS[row][:steps], 0.0][: len(p_prior)])
        outputs = out.trajectory.outputs[row].tolist()
        losses = [oracles.task_loss("classification", of_step, int(labels[row])) for of_step in outputs]
        losses = [*losses, losses[-1]][: len(p_prior)]
        if likelihood == "expected_log":
            fit = sum(share * loss for share, loss in zip(p, losses, strict=True))
        else:
            fit = -math.log(sum(share * math.exp(-loss) for share, loss in zip(p, losses, strict=True)))
        expected += fit + 0.7 * oracles.kl(p, p_prior)
    assert out.loss.item() == pytest.approx(expected / 3, rel=1e-5)
    out.loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("sure_of", [1, 2, 4])
def test_a_posterior_that_is_sure_of_one_step_is_as_far_from_the_prior_in_a_truncated_unroll(sure_of: int) -> None:
    # Trap: all that lay behind was put onto the last step that ran, where the prior then had as much.
    table = [[-9.0] * (sure_of - 1) + [7.0] * (13 - sure_of)] * 2
    found = []
    for below in (None, 0.01):
        model, inputs, ran = with_hazards(table, truncate_below=below, prior=priors.Geometric(0.1))
        model.lambda_head.shift = nn.Parameter(torch.zeros(()))
        read = model.lambda_head.forward
        model.lambda_head.forward = lambda features, read=read, shift=model.lambda_head.shift: read(features) + shift
        model.objective = Ponder(1.0)
        loss = model(inputs, labels=torch.tensor([0, 1])).loss
        (slope,) = torch.autograd.grad(loss, model.lambda_head.shift)
        found.append((len(ran), loss.item(), slope.item()))
    (full, loss, slope), (steps, cut_loss, cut_slope) = found
    assert (full, steps) == (12, sure_of)
    assert cut_loss == pytest.approx(loss, abs=0.02)
    assert cut_slope == pytest.approx(slope, rel=0.9), "not 0, nor the other way"


def test_the_depths_of_the_truncation_test_differ() -> None:
    assert len({steps_until(LOGITS, below) for below in (0.3, 0.1, 0.02, 0.005, 1e-6)}) >= 4


def test_one_row_with_mass_keeps_the_batch_running() -> None:
    model, inputs, ran = with_hazards([[9.0] * 5, [-9.0] * 5], truncate_below=0.01)
    assert model(inputs).trajectory.num_steps == 5
    model, inputs, ran = with_hazards([[9.0] * 5, [9.0] * 5], truncate_below=0.01)
    assert model(inputs).trajectory.num_steps == len(ran) == 1


def test_only_training_calls_are_truncated() -> None:
    model, inputs, _ = with_hazards(LOGITS)
    assert model(inputs).trajectory.num_steps == 6
    model.truncate_below = 0.3
    assert model(inputs).trajectory.num_steps < 6
    assert model.eval().unroll(inputs).num_steps == 6
    assert model.eval()(inputs, policy=ponder.policies.LastStep()).exit_step.tolist() == [6] * 3


class LastToo(Ponder):
    """Reads the last step, which its base does not."""

    def per_example(self, unrolled: objectives.Unrolled) -> Tensor:
        return super().per_example(unrolled) + unrolled.losses[:, -1]


class Waits(TorchDispatchMode):
    """Counts how often the host waits for a number."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("below", "waits"), [(None, 0), (1e-30, NUM_STEPS - 1)])
def test_at_most_one_wait_a_step(below: float | None, waits: int) -> None:
    toy = make_toy("shared")
    model = wrap(toy, truncate_below=below).train()
    with Waits() as mode:
        model(toy.batch(6)[0])
    assert mode.count == waits


@pytest.mark.parametrize(
    "objective",
    [
        objectives.FinalStep(),
        objectives.DeepSupervision(),
        objectives.Distillation(2.0),
        Ponder(0.5) + 0.3 * objectives.FinalStep(),
        Ponder(0.5, kl="prior_posterior"),
        LastToo(0.5),
    ],
    ids=str,
)
def test_objectives_that_need_the_last_step_are_not_truncated(objective: objectives.Objective) -> None:
    toy = make_toy("shared")
    with refused("truncate_below", "halting distribution", "objectives.Ponder"):
        wrap(toy, objective=objective, truncate_below=0.01)
    model = wrap(toy, truncate_below=0.01)
    with refused("truncate_below"):
        model.objective = objective
    assert model.objective == Ponder(0.5)
    model = wrap(toy, objective=objective)
    with refused("truncate_below"):
        model.truncate_below = 0.01
    assert model.truncate_below is None
    wrap(toy, objective=Ponder(0.5) + 0.3 * Ponder(0.1), truncate_below=0.01)


@pytest.mark.parametrize("mass", [0.0, 1.0, -0.1, float("nan"), True, "0.1"])
def test_masses_that_mean_nothing_are_refused(mass: Any) -> None:
    with refused("truncate_below", "(0, 1)"):
        wrap(make_toy("shared"), truncate_below=mass)


def test_truncation_needs_a_lambda_head() -> None:
    with refused("truncate_below", "LambdaHead"):
        wrap(make_toy("shared"), lambda_head=None, truncate_below=0.1)


def test_a_learned_prior_learns_from_its_tail() -> None:
    prior = priors.Learned(6)
    whole = prior(6)
    log_pmf = collected(whole, 3).log_pmf
    torch.testing.assert_close(log_pmf.exp(), torch.tensor([*whole.pmf[:2].tolist(), whole.pmf[2:].sum().item()]))
    log_pmf[-1].backward()
    assert all(bool((p.grad != 0).any()) for p in prior.module.parameters())


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("halting", [False, True])
def test_gradients_of_every_example_by_torch_func(halting: bool, scaled: bool) -> None:
    torch.manual_seed(0)
    lambda_head = ponder.LambdaHead(WIDTH, history=2) if halting else None
    head = ponder.PerStep((nn.Linear(WIDTH, 3) for _ in range(3)), equilibrium(3)) if scaled else nn.Linear(WIDTH, 3)
    model = ponder.PonderWrapper(
        nn.Linear(WIDTH, WIDTH), 3, head=head, lambda_head=lambda_head, task="classification"
    ).train()
    weights = {name: tensor.detach() for name, tensor in model.named_parameters()}
    inputs, labels = torch.randn(4, WIDTH), torch.tensor([0, 1, 2, 1])

    def loss(given: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        return functional_call(model, given, (one[None],), {"labels": label[None]}).loss

    each = vmap(grad(loss), (None, 0, 0))(weights, inputs, labels)
    for row in range(4):
        model.zero_grad()
        model(inputs[row : row + 1], labels=labels[row : row + 1]).loss.backward()
        for name, parameter in model.named_parameters():
            expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(each[name][row], expected, atol=1e-5, rtol=1e-4)
