"""Training through the unroll: heads called once or a step, warm-up, checkpoints, gradients."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder import objectives, priors
from ponder.model.source import unroll
from tests import toys
from tests.toys import CLOSE, ROWS, STEPS, WIDTH, build, by_hand

KINDS = ("shared", "stacked", "scheduled", "context", "padded")
LABELS = torch.arange(ROWS).remainder(toys.CLASSES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_losses_and_gradients_are_those_of_a_plain_loop(
    kind: str, per_step: bool, checkpoint: bool
) -> None:
    made = build(
        kind, per_step=per_step, objective=objectives.Ponder(0.3), checkpoint_steps=checkpoint
    )
    made.model.train()
    made.model.prior = priors.Geometric(0.3)
    out = made.call(labels=LABELS)
    known = by_hand(made)
    losses = torch.stack(
        [nn.functional.cross_entropy(o, LABELS, reduction="none") for o, _ in known], dim=1
    )
    hazards = torch.stack([hazard for _, hazard in known], dim=1).sigmoid()
    remaining = torch.cat([torch.ones(ROWS, 1), (1 - hazards[:, :-1]).cumprod(1)], dim=1)
    pmf = remaining * torch.cat([hazards[:, :-1], torch.ones(ROWS, 1)], dim=1)
    prior = torch.tensor([0.3, 0.21, 0.147, 0.1029, 0.2401], dtype=torch.float64)
    expected = ((pmf * losses).sum(1) + 0.3 * (pmf * (pmf / prior).log()).sum(1)).mean()
    torch.testing.assert_close(out.loss, expected, **CLOSE)
    weights = [weight for weight in made.model.parameters() if weight.requires_grad]
    ours = torch.autograd.grad(out.loss, weights)
    theirs = torch.autograd.grad(expected, weights)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_a_shared_head_is_called_once_for_all_steps() -> None:
    head = nn.Linear(WIDTH, 2)
    model = ponder.PonderWrapper(toys.Tanh(), STEPS, head=head)
    with toys.counted(head) as calls:
        model(torch.randn(ROWS, WIDTH))
    assert calls[head] == [ROWS * STEPS]


def test_a_lambda_head_that_no_objective_reads_is_not_run() -> None:
    halting = nn.Linear(WIDTH, 1)
    made = build("shared", lambda_head=halting, objective=objectives.FinalStep())
    made.model.train()
    with toys.counted(halting) as calls:
        out = made.call(labels=LABELS)
    assert (calls[halting], out.trajectory.hazard_logits) == ([], None)
    assert made.unroll().hazard_logits.shape == (ROWS, STEPS)


@pytest.mark.parametrize("history", [1, 2, 3, 6])
@pytest.mark.parametrize("initial", ["stem", "zeros"])
def test_the_lambda_head_reads_the_newest_step_first(history: int, initial: str) -> None:
    halting = ponder.LambdaHead(WIDTH, layers=2, history=history, initial=initial)
    made = build("shared", lambda_head=halting, policy=ponder.policies.Quantile(0.7))
    hidden = made.inputs
    before = made.inputs if initial == "stem" else torch.zeros_like(made.inputs)
    features = [before] * history
    expected = []
    for _ in range(STEPS):
        hidden = made.model.steps.fns[0](hidden)
        features = [hidden, *features[: history - 1]]
        expected.append(halting.layers(torch.cat(features, dim=1))[:, 0])
    run = made.unroll()
    torch.testing.assert_close(run.hazard_logits, torch.stack(expected, 1), **CLOSE)
    assert torch.equal(
        made.call().exit_step, run.replay(made.model.policy).exit_step
    )  # step by step, as rows exit


@dataclass(frozen=True)
class Tail(objectives.FinalStep):
    """Sees the last two of its steps alone."""

    def depth(self, num_steps: int) -> objectives.Depth:
        return objectives.Depth(num_steps - 2, 2)


def test_warm_up_steps_have_no_gradient_and_are_not_recorded() -> None:
    inputs = torch.randn(ROWS, WIDTH, requires_grad=True)
    step = toys.Tanh()
    model = ponder.PonderWrapper(
        step, STEPS, head=nn.Linear(WIDTH, 3), objective=Tail(), task="classification"
    )
    out = model(inputs, labels=LABELS)
    assert (out.trajectory.num_steps, out.exit_step.tolist()) == (2, [STEPS] * ROWS)
    out.loss.backward()
    assert inputs.grad is None
    assert float(step.linear.weight.grad.abs().sum()) > 0
    model.eval()
    torch.testing.assert_close(
        out.outputs, model(inputs, policy=ponder.policies.LastStep()).outputs, **CLOSE
    )


@pytest.mark.parametrize("history", [1, 3])
def test_a_lambda_head_remembers_the_steps_of_the_warm_up(history: int) -> None:
    halting = ponder.LambdaHead(WIDTH, layers=2, history=history)
    made = build("shared", lambda_head=halting)
    whole = made.unroll()
    source = made.model.start(made.inputs, {"output", "hazard"}).source
    found = unroll(source, objectives.Depth(2, STEPS - 2)).hazard_logits
    torch.testing.assert_close(found, whole.hazard_logits[:, 2:], **CLOSE)


def test_answers_at_positions_of_which_the_lambda_head_reads_the_mean() -> None:
    options = {
        **toys.heads(),
        "task": "token_classification",
        "padding": ponder.Padding("src_key_padding_mask", 0),
    }
    model = ponder.PonderWrapper(
        [toys.transformer_layer() for _ in range(STEPS)],
        readout=ponder.readouts.identity,
        objective=objectives.Ponder(0.3),
        **options,
    )
    inputs = torch.randn(ROWS, toys.LENGTH, WIDTH)
    mask = toys.padding()
    labels = torch.zeros(ROWS, toys.LENGTH, dtype=torch.long).masked_fill(mask, -100)
    out = model(inputs, labels=labels, src_key_padding_mask=mask)
    assert out.trajectory.outputs.shape == (ROWS, STEPS, toys.LENGTH, toys.CLASSES)
    assert torch.equal(out.trajectory.mask, ~mask)
    out.loss.backward()
    run = model.eval().unroll(inputs, src_key_padding_mask=mask)
    for policy in (ponder.policies.Quantile(0.6), ponder.policies.Confidence(0.6)):
        exits = model(inputs, policy=policy, src_key_padding_mask=mask)
        assert torch.equal(exits.exit_step, run.replay(policy).exit_step)


def test_memory_grows_by_the_states_between_steps_only() -> None:
    kept = {}
    for checkpoint in (False, True):
        made = build("shared", checkpoint_steps=checkpoint, objective=objectives.FinalStep())
        made.model.train()
        saved: list[int] = []

        def pack(tensor: Tensor, saved: list[int] = saved) -> Tensor:
            saved.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            made.call(labels=LABELS)
        kept[checkpoint] = sum(saved)
    assert kept[True] < kept[False]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_hazards_are_at_least_float32(dtype: torch.dtype) -> None:
    made = build("shared")
    made.model.to(dtype)
    run = made.model.unroll(made.inputs.to(dtype))
    assert run.hazard_logits.dtype == torch.promote_types(dtype, torch.float32)
    assert run.outputs.dtype == dtype


def test_rows_without_a_label_count_for_nothing() -> None:
    made = build("stacked", objective=objectives.Ponder(0.3))
    made.model.train()
    labels = LABELS.clone()
    labels[4:] = -100
    part = made.model(made.inputs[:4], labels=LABELS[:4])
    torch.testing.assert_close(made.call(labels=labels).loss, part.loss, **CLOSE)
    assert made.call(labels=torch.full_like(LABELS, -100)).loss.item() == 0.0
