"""RandomDepth: the loss and the gradient of a drawn depth against a plain loop, what is drawn, and what it refuses."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ponder
from ponder import objectives
from ponder.objectives import Alternating, DeepSupervision, Depth, FinalStep, RandomDepth
from tests.ponder.checks import refused
from tests.toys import NUM_STEPS, WIDTH, labels_for, make_toy, wrap


@pytest.mark.parametrize(
    ("objective", "pairs"),
    [
        (RandomDepth(), {(0, n) for n in range(1, 5)}),
        (RandomDepth(2, 3), {(0, 2), (0, 3)}),
        (RandomDepth(1, 2, warm_up=2), {(k, n) for k in (0, 1, 2) for n in (1, 2)}),
        (RandomDepth(1, warm_up=None), {(k, n) for k in range(4) for n in range(1, 5 - k)}),
        (RandomDepth(4), {(0, 4)}),
    ],
    ids=str,
)
def test_what_is_drawn(objective: RandomDepth, pairs: set[tuple[int, int]]) -> None:
    """Every depth that there is room for: the warm-up uniformly, and the steps uniformly given it."""
    torch.manual_seed(0)
    drawn = [objective.depth(4) for _ in range(4000)]
    counts = Counter((depth.warm_up, depth.steps) for depth in drawn)
    assert set(counts) == pairs
    warm_ups = {k for k, _ in pairs}
    for k, n in pairs:
        probability = 1 / len(warm_ups) / sum(1 for other, _ in pairs if other == k)
        deviation = (4000 * probability * (1 - probability)) ** 0.5
        assert abs(counts[k, n] - 4000 * probability) < 5 * deviation + 1e-9, (k, n)
    assert {depth.total for depth in drawn} == {k + n for k, n in pairs}


@pytest.mark.parametrize("toy_name", ["shared", "tuple-state", "gru-cell", "transformer"])
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("depth", [Depth(0, 3), Depth(2, 1), Depth(3, 2)], ids=str)
def test_loss_and_gradient_against_a_plain_loop(
    toy_name: str, checkpoint: bool, depth: Depth, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = make_toy(toy_name)
    model = wrap(toy, objective=RandomDepth(warm_up=None), checkpoint_steps=checkpoint, lambda_head=None).train()
    monkeypatch.setattr(RandomDepth, "depth", lambda self, num_steps: depth)
    inputs, context = toy.batch(6, seed=2)
    labels = labels_for("classification", 6)
    out = model(inputs, labels=labels, **context)
    out.loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    hidden, step_context = (inputs, context) if toy.stem is None else toy.stem(inputs)
    for number in range(depth.total):
        if number == depth.warm_up:  # nothing flows through what came before
            hidden = tuple(h.detach() for h in hidden) if isinstance(hidden, tuple) else hidden.detach()
        hidden = model.steps.fns[0](hidden, **step_context)
    loss = F.cross_entropy(model.head(model.readout(hidden, model.readout.reads(step_context))), labels)
    loss.backward()
    torch.testing.assert_close(out.loss, loss)
    assert out.exit_step.tolist() == [depth.total] * 6
    assert out.trajectory.num_steps == depth.steps
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-6, rtol=1e-4)


def test_no_graph_is_kept_for_the_warm_up() -> None:
    """Truncated backpropagation: what autograd keeps does not grow with the steps before."""

    def kept(warm_up: int) -> int:
        model = ponder.PonderWrapper(nn.Linear(WIDTH, WIDTH), 60, head=nn.Linear(WIDTH, 3), objective=_Always(warm_up))
        saved: list[torch.Tensor] = []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            saved.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.train()(torch.randn(4, WIDTH), labels=torch.zeros(4, dtype=torch.long))
        return len(saved)

    assert kept(0) == kept(50) > 0


class _Always(RandomDepth):
    """Draws its deepest warm-up."""

    def __init__(self, warm_up: int) -> None:
        super().__init__(1, 1, warm_up)

    def depth(self, num_steps: int) -> Depth:
        assert self.warm_up is not None
        return Depth(self.warm_up, 1)


def test_hazards_after_a_warm_up_are_those_of_the_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Lambda head reads the step before too, also where that one was not recorded."""
    toy = make_toy("shared")
    model = wrap(toy, objective=RandomDepth(warm_up=None)).train()
    inputs, _ = toy.batch(5)
    monkeypatch.setattr(RandomDepth, "depth", lambda self, num_steps: Depth(2, 3))
    recorded = model(inputs).trajectory.hazard_logits
    torch.testing.assert_close(recorded, model.eval().unroll(inputs).hazard_logits[:, 2:])


def test_the_same_seed_draws_the_same_and_evaluation_draws_nothing() -> None:
    toy = make_toy("shared")
    model, labels = wrap(toy, objective=RandomDepth(warm_up=None)), labels_for("classification", 4)
    inputs, _ = toy.batch(4)
    depths = []
    for _ in range(2):
        torch.manual_seed(7)
        depths.append([model.train()(inputs, labels=labels).trajectory.num_steps for _ in range(20)])
    assert depths[0] == depths[1]
    assert len(set(depths[0])) > 2
    state = torch.get_rng_state()
    assert model.eval().unroll(inputs).num_steps == NUM_STEPS
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("toy_name", ["stacked", "scheduled"])
def test_stacks_refuse(toy_name: str) -> None:
    with refused("objective", "are not shared"):
        wrap(make_toy(toy_name), objective=RandomDepth())


def test_a_head_a_step_refuses() -> None:
    heads = ponder.PerStep(nn.Linear(WIDTH, 3) for _ in range(NUM_STEPS))
    with refused("objective", "are not shared"):
        wrap(make_toy("shared"), head=heads, objective=RandomDepth())


def test_what_leaves_no_room() -> None:
    wrap(make_toy("shared"), objective=RandomDepth(2, warm_up=NUM_STEPS - 2))
    with refused("objective", f"{NUM_STEPS} steps"):
        wrap(make_toy("shared"), objective=RandomDepth(3, warm_up=NUM_STEPS - 2))
    with refused("objective", f"{NUM_STEPS} steps"):
        wrap(make_toy("shared"), objective=RandomDepth(NUM_STEPS + 1))
    model = wrap(make_toy("shared"), objective=RandomDepth(2, warm_up=3)).train()
    with refused("objective", "at most the model's 3 steps"):
        model(torch.zeros(2, WIDTH), labels=torch.tensor([0, 1]), num_steps=3)


@pytest.mark.parametrize(
    "arguments", [{"minimum": 0}, {"minimum": 3, "maximum": 2}, {"warm_up": -1}, {"minimum": True}, {"maximum": 2.5}]
)
def test_numbers_that_mean_nothing(arguments: dict[str, Any]) -> None:
    with refused(list(arguments)[-1]):
        RandomDepth(**arguments)


def test_sums_with_others_are_refused_and_weights_are_not() -> None:
    for other in (FinalStep(), DeepSupervision()):
        with refused("objectives", "draws how many"):
            _ = other + 0.5 * RandomDepth()
        with refused("objectives", "draws how many"):
            Alternating(other, RandomDepth())
    model = wrap(make_toy("shared"), objective=0.5 * RandomDepth(2, 2)).train()
    out = model(torch.randn(3, WIDTH), labels=torch.tensor([0, 1, 2]))
    assert out.trajectory.num_steps == 2
    expected = F.cross_entropy(out.trajectory.outputs[:, -1], torch.tensor([0, 1, 2]))
    torch.testing.assert_close(out.loss, 0.5 * expected)


def test_it_is_found_by_its_name() -> None:
    objective = objectives.get("random-depth", minimum=1, maximum=4, warm_up=8)
    assert objectives.from_dict(objective.to_dict()) == objective == RandomDepth(1, 4, 8)
