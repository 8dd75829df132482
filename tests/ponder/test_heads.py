"""Lambda heads and one head per step."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

import ponder
from ponder import LambdaHead, PerStep
from ponder.objectives import FinalStep
from ponder.parts.gradients import equilibrium
from ponder.parts.heads import NormPerStep, as_lambda_head
from ponder.recipes import Stage, freeze_for, start_heads
from tests.ponder.checks import refused
from tests.toys import WIDTH, make_toy, wrap


def by_hand(head: LambdaHead, features: torch.Tensor, activation) -> torch.Tensor:
    """The Lambda head, layer by layer from its weights."""
    weights = [parameter for name, parameter in head.named_parameters() if name.endswith("weight")]
    biases = [parameter for name, parameter in head.named_parameters() if name.endswith("bias")]
    x = features
    for depth, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = x @ weight.T + bias
        if depth < len(weights) - 1:
            x = activation(x)
    return x[:, 0]


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("history", [1, 2, 3])
@pytest.mark.parametrize(
    ("name", "activation"), [("tanh", torch.tanh), ("relu", torch.relu), ("gelu", nn.functional.gelu)]
)
def test_layers_of_width(layers: int, history: int, name: str, activation) -> None:
    head = LambdaHead(4, layers=layers, history=history, activation=name).eval()
    features = torch.randn(5, 4 * history)
    assert head(features).shape == (5,)
    torch.testing.assert_close(head(features), by_hand(head, features, activation))
    sizes = [tuple(w.shape) for n, w in head.named_parameters() if n.endswith("weight")]
    assert sizes[0] == ((1 if layers == 1 else 4), 4 * history)
    assert len(sizes) == layers


def test_dropout_in_training_only() -> None:
    head = LambdaHead(4, layers=2, dropout=0.5)
    features = torch.randn(50, 4)
    assert not torch.equal(head(features), head(features))
    head.eval()
    assert torch.equal(head(features), head(features))


@pytest.mark.parametrize("history", [1, 2, 3])
@pytest.mark.parametrize("initial", ["stem", "zeros"])
def test_history_reads_the_newest_first_and_the_initial_state_before(history: int, initial: str) -> None:
    toy = make_toy("shared")
    hazards = LambdaHead(WIDTH, layers=2, history=history, initial=initial)
    model = wrap(toy, lambda_head=hazards)
    inputs, _ = toy.batch(4)
    features = [inputs if initial == "stem" else torch.zeros_like(inputs)] * history
    expected = []
    for _ in range(model.num_steps):
        inputs = toy.steps(inputs)
        features = [inputs, *features][:history]
        expected.append(by_hand(hazards, torch.cat(features, dim=1), torch.tanh))
    torch.testing.assert_close(model.eval().unroll(toy.batch(4)[0]).hazard_logits, torch.stack(expected, dim=1))


@pytest.mark.parametrize("history", [1, 2, 3, 4])
@pytest.mark.parametrize("initial", ["stem", "zeros"])
def test_history_leaves_with_its_rows(history: int, initial: str) -> None:
    toy = make_toy("shared")
    hazards = LambdaHead(WIDTH, history=history, initial=initial)
    nn.init.normal_(hazards.layers[-1].weight, std=0.5)
    model, (inputs, _) = wrap(toy, lambda_head=hazards).eval(), toy.batch(16)
    seen: set[int] = set()
    for q in (0.3, 0.5, 0.8, 0.95):
        exits = model(inputs, policy=ponder.policies.Quantile(q))
        replayed = model.eval().unroll(inputs).replay(ponder.policies.Quantile(q))
        assert torch.equal(exits.exit_step, replayed.exit_step)
        torch.testing.assert_close(exits.outputs, replayed.outputs)
        seen |= set(exits.exit_step.tolist())
    assert len(seen) > 2


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"width": 0}, "width"),
        ({"width": 4, "layers": 0}, "layers"),
        ({"width": 4, "layers": True}, "layers"),
        ({"width": 4, "history": 1.5}, "history"),
        ({"width": 4, "initial": "ones"}, "initial"),
        ({"width": 4, "activation": "swish"}, "activation"),
        ({"width": 4, "dropout": 1.0}, "dropout"),
    ],
)
def test_bad_shapes_are_refused(arguments: dict, argument: str) -> None:
    with refused(argument):
        LambdaHead(**arguments)


@pytest.mark.parametrize("shape", [(3, 5), (3, 2, 4), (4,)])
def test_features_of_another_width_are_refused(shape: tuple[int, ...]) -> None:
    with refused("width of the Lambda head", "(batch, 4)", str(shape)):
        LambdaHead(4)(torch.zeros(shape))


def test_a_users_own_module_gives_hazards() -> None:
    toy = make_toy("shared")
    plain = nn.Linear(WIDTH, 1)
    model = wrap(toy, lambda_head=plain)
    inputs, _ = toy.batch(4)
    expected, hidden = [], inputs
    for _ in range(model.num_steps):
        hidden = toy.steps(hidden)
        expected.append(plain(hidden)[:, 0])
    torch.testing.assert_close(model.eval().unroll(inputs).hazard_logits, torch.stack(expected, dim=1))
    assert as_lambda_head(model.lambda_head) is model.lambda_head
    with refused("lambda_head", "one hazard logit for each of 20 rows", "(20, 3)"):  # 4 rows at 5 steps
        wrap(toy, lambda_head=nn.Linear(WIDTH, 3)).eval().unroll(inputs)


@pytest.mark.parametrize("head", [PerStep([nn.Linear(4, 1)]), torch.sin, "linear"], ids=["per-step", "function", "str"])
def test_lambda_heads_are_one_module(head: object) -> None:
    with refused("lambda_head", type_error=True):
        as_lambda_head(head)


def test_each_step_has_its_own_head() -> None:
    toy = make_toy("shared")
    heads = [nn.Linear(WIDTH, 3) for _ in range(5)]
    model = wrap(toy, head=PerStep(heads))
    assert len(model.head) == 5
    inputs, _ = toy.batch(4)
    trajectory = model.eval().unroll(inputs)
    exits = model.eval()(inputs, policy=ponder.policies.Quantile(0.5))
    hidden = inputs
    for step, head in enumerate(heads, start=1):
        hidden = toy.steps(hidden)
        torch.testing.assert_close(trajectory.outputs[:, step - 1], head(hidden))
        here = exits.exit_step == step
        torch.testing.assert_close(exits.outputs[here], head(hidden)[here])
    assert len(set(exits.exit_step.tolist())) > 1


def test_heads_are_counted() -> None:
    with refused("head", "one head for each of 5 steps", "4 heads"):
        wrap(make_toy("shared"), head=PerStep(nn.Linear(WIDTH, 3) for _ in range(4)))
    with refused("heads", "no module"):
        PerStep([])


@pytest.mark.parametrize("head", [None, [nn.Linear(WIDTH, 3)], nn.ModuleList([nn.Linear(WIDTH, 3)])], ids=str)
def test_a_head_is_one_module(head: object) -> None:
    with refused("head", type(head).__name__, type_error=True):
        wrap(make_toy("shared"), head=head)


@pytest.mark.parametrize(
    "head", [None, [nn.Linear(WIDTH, 3)], nn.ModuleList(), PerStep([nn.Linear(WIDTH, 3)])], ids=lambda head: type(head)
)
def test_heads_of_steps_are_heads(head: object) -> None:
    with refused("heads", type(head).__name__, type_error=True):
        PerStep([nn.Linear(WIDTH, 3), head])
    with refused("head", type(head).__name__, type_error=True):
        NormPerStep(head, WIDTH, 3)


def test_a_list_of_modules_with_a_forward_of_its_own_is_a_head_and_one_function_is_one() -> None:
    class Both(nn.ModuleList):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return self[1](self[0](features).tanh())

    heads = PerStep(Both([nn.Linear(WIDTH, 4), nn.Linear(4, 3)]) for _ in range(2))
    assert heads(torch.randn(5, WIDTH), 2).shape == (5, 3)
    with refused("heads", "more than once"):
        PerStep([torch.sin, torch.sin])


@pytest.mark.parametrize("heads", [None, nn.Linear(WIDTH, 3)], ids=["none", "a module"])
def test_heads_of_steps_are_several(heads: object) -> None:
    with refused("heads", "one for each step", type_error=True):
        PerStep(heads)


@pytest.mark.parametrize("step", [0, -1, 4])
def test_there_is_no_head_of_a_step_that_is_none(step: int) -> None:
    for head in (PerStep(nn.Linear(WIDTH, 3) for _ in range(3)), NormPerStep(nn.Linear(WIDTH, 3), WIDTH, 3)):
        for steps in (step, (1, step)):
            with refused("step", "from 1 to 3"):
                head(torch.zeros(2, WIDTH), steps)


@pytest.mark.parametrize("steps", [(1, 2), (1, 2, 2, 1)])
def test_rows_without_a_step_of_theirs_are_not_left_out(steps: tuple[int, ...]) -> None:
    with refused("step", "each of 3 rows", f"{len(steps)} steps"):
        PerStep(nn.Linear(WIDTH, 3) for _ in range(2))(torch.zeros(3, WIDTH), steps)


@pytest.mark.parametrize("layers", [1, 3])
def test_a_new_head_starts_at_the_hazard_that_is_asked_for(layers: int) -> None:
    torch.manual_seed(0)
    hazards = [LambdaHead(32, layers, start=0.05)(torch.randn(64, 32)).sigmoid().mean().item() for _ in range(8)]
    assert sum(hazards) / 8 == pytest.approx(0.05, abs=0.02)
    for wrong in (0.0, 1.0, -1.0):
        with refused("start"):
            LambdaHead(32, start=wrong)


def normed(num_steps: int = 3) -> NormPerStep:
    head = NormPerStep(nn.Linear(WIDTH, 3), WIDTH, num_steps)
    for number, norm in enumerate(head.heads[:-1], start=1):
        nn.init.normal_(norm.weight, mean=number)
        nn.init.normal_(norm.bias)
    return head


def test_a_head_behind_norms_by_hand() -> None:
    head, features = normed(), torch.randn(5, WIDTH)
    first, second, shared = head.heads
    centred = (features - features.mean(1, keepdim=True)) / (features.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    for step, norm in ((1, first), (2, second)):
        torch.testing.assert_close(head(features, step), shared(centred * norm.weight + norm.bias))
    assert torch.equal(head(features, 3), shared(features))  # the last step reads what it always did
    at_their_own = torch.stack([head(features, step)[row] for row, step in enumerate((3, 1, 2, 1, 3))])
    torch.testing.assert_close(head(features, (3, 1, 2, 1, 3)), at_their_own)


@pytest.mark.parametrize(("argument", "number"), [("width", 0), ("width", 4.0), ("num_steps", 0), ("num_steps", True)])
def test_numbers_of_norms_are_checked(argument: str, number: object) -> None:
    with refused(argument, "whole number"):
        NormPerStep(nn.Linear(4, 2), **{"width": 4, "num_steps": 2, argument: number})


def test_norms_of_another_width_than_the_features_are_refused() -> None:
    for step in (1, 2):
        with refused("width of NormPerStep", "(…, 6)", "(5, 4)"):
            NormPerStep(nn.Linear(4, 2), width=6, num_steps=2)(torch.zeros(5, 4), step)


def test_the_head_behind_norms_may_be_a_function_but_owns_what_it_uses() -> None:
    features, weights = torch.randn(5, WIDTH), nn.Linear(WIDTH, 3)
    head = NormPerStep(functools.partial(weights), WIDTH, 2)
    assert torch.equal(head(features, 2), weights(features))
    assert weights in set(head.modules())
    with refused("head", "uses a Linear"):
        NormPerStep(lambda given: weights(given), WIDTH, 2)


def test_a_head_behind_norms_starts_a_stage_as_it_is_and_trains_norms_alone_where_early_heads_learn() -> None:
    head = normed()
    before = copy.deepcopy(head.state_dict())
    start_heads(Stage(FinalStep(), early_heads="last"), head)
    assert all(torch.equal(weight, before[name]) for name, weight in head.state_dict().items())
    freeze_for(Stage(FinalStep(), train="early_heads"), nn.Linear(2, 2), head)
    trained = {name for name, weight in head.named_parameters() if weight.requires_grad}
    assert trained == {f"heads.{step}.{kind}" for step in (0, 1) for kind in ("weight", "bias")}


def test_the_shared_head_behind_norms_hears_every_step_and_its_gradient_is_scaled_for_the_steps_alone() -> None:
    head, features = normed(), torch.randn(5, WIDTH, requires_grad=True)
    scaled = NormPerStep(copy.deepcopy(head.heads[-1]), WIDTH, 3, equilibrium(3))
    scaled.load_state_dict(head.state_dict())
    heard = []
    for each in (head, scaled):
        features.grad = None
        each.train()(features, 1).square().sum().backward()
        heard.append((features.grad, each.heads[-1].weight.grad))
    torch.testing.assert_close(heard[1][0], heard[0][0] / 3)
    torch.testing.assert_close(heard[1][1], heard[0][1])
    assert bool(heard[0][1].abs().sum() > 0)


def test_models_with_a_head_behind_norms_are_saved_and_exit_row_by_row(tmp_path) -> None:
    toy = make_toy("shared")
    model = wrap(toy, head=normed(toy.num_steps)).eval()
    inputs, _ = toy.batch(6)
    ponder.save(model, tmp_path / "model.pt")
    twin = ponder.load(wrap(make_toy("shared"), head=normed(toy.num_steps)), tmp_path / "model.pt").eval()
    assert torch.equal(twin.unroll(inputs).outputs, model.unroll(inputs).outputs)
    out = model(inputs, policy=ponder.policies.Confidence(0.5))
    expected = torch.stack([model.unroll(inputs).outputs[row, step - 1] for row, step in enumerate(out.exit_step)])
    torch.testing.assert_close(out.outputs, expected)
