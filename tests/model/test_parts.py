"""Steps, heads and readouts by themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder import recipes
from ponder.model.heads import make_heads
from ponder.model.readouts import ReadoutCall
from ponder.training import joined_loss
from tests.toys import CLOSE, LENGTH, ROWS, WIDTH, padding

# -- steps ---------------------------------------------------------------------------------------------------------


def test_callables_are_registered_once_however_often_they_are_named() -> None:
    one = nn.Linear(2, 2)
    two = nn.Linear(2, 2)
    steps = ponder.Steps([one, two, one], schedule=[0, 1, 2, 1])
    assert (steps.num_steps, steps.schedule, steps.shared) == (4, (0, 1, 0, 1), False)
    assert len(list(steps.parameters())) == 4
    assert ponder.Steps([one] * 3).shared
    assert ponder.Steps.of(one, 5).schedule == (0,) * 5
    assert ponder.Steps.of(nn.ModuleList([one, two]), None).num_steps == 2
    assert ponder.Steps.of(steps, None) is steps
    assert ponder.Steps.of(one, 5).schedule_of(7) == (0,) * 7


def test_steps_know_their_number_and_where_their_state_lies() -> None:
    seen: list[Any] = []

    def step(hidden: Tensor, index: Tensor) -> tuple[str, Tensor]:
        seen.append(index.tolist())
        return "attention", hidden + 1

    steps = ponder.Steps([step], [0] * 3, index=True, state=1)
    hidden = torch.zeros(2, 4)
    for number in (1, 2, 3):
        hidden = steps(number, hidden)
    steps(2, hidden, torch.tensor([2, 3]))
    assert (hidden[0, 0].item(), seen) == (3.0, [[1, 1], [2, 2], [3, 3], [2, 3]])


def _closes_over(layer: nn.Module) -> Any:
    return lambda hidden: layer(hidden)


class Owner(nn.Module):
    """A module of which a method is no step by itself."""

    def method(self, hidden: Tensor) -> Tensor:
        return hidden


LAYER = nn.TransformerEncoderLayer(4, 2, 8)  # batch_first=False


@pytest.mark.parametrize(
    ("steps", "num_steps", "says"),
    [
        (nn.Linear(2, 2), None, "Pass num_steps=12"),
        ([nn.Linear(2, 2)], 2, "Leave num_steps out"),
        (_closes_over(nn.Linear(2, 2)), 2, "Pass the module itself"),
        (Owner().method, 2, "Pass the module itself"),
        ([LAYER], None, "batch_first=True"),
        (["gelu"], None, "an nn.Module, or a pure function"),
    ],
)
def test_steps_that_newcomers_try_are_refused_with_the_remedy(
    steps: Any, num_steps: int | None, says: str
) -> None:
    with pytest.raises(ponder.errors.ArgumentError, match=says):
        ponder.Steps.of(steps, num_steps)


@pytest.mark.parametrize(
    ("after", "says"),
    [
        (lambda hidden: (hidden, None), "state=0"),
        (lambda hidden: hidden[:1], "rows exit one by one"),
        (lambda hidden: torch.cat([hidden, hidden], 1), "the step is shared"),
    ],
)
def test_a_state_of_another_shape_is_refused(after: Any, says: str) -> None:
    model = ponder.PonderWrapper(after, num_steps=2, head=nn.Linear(4, 2)).eval()
    with pytest.raises(ponder.errors.ArgumentError, match=says):
        model(torch.randn(3, 4))


def test_stacked_steps_may_change_the_width() -> None:
    heads = ponder.PerStep([nn.Linear(3, 2), nn.Linear(5, 2)])
    model = ponder.PonderWrapper(
        [nn.Linear(4, 3), nn.Linear(3, 5)], head=heads, policy=ponder.policies.Confidence(0.6)
    )
    assert model.eval()(torch.randn(6, 4)).outputs.shape == (6, 2)
    assert model.unroll(torch.randn(6, 4)).outputs.shape == (6, 2, 2)
    single = ponder.PonderWrapper(nn.Linear(4, 3), num_steps=1, head=nn.Linear(3, 2)).eval()
    assert single(torch.randn(6, 4)).outputs.shape == (6, 2)


# -- heads ---------------------------------------------------------------------------------------------------------


def test_a_head_of_rows_at_several_steps() -> None:
    heads = ponder.PerStep(nn.Linear(4, 2) for _ in range(3))
    features = torch.randn(5, 4)
    steps = [3, 1, 3, 2, 1]
    expected = torch.stack(
        [heads.heads[step - 1](row) for row, step in zip(features, steps, strict=True)]
    )
    torch.testing.assert_close(heads(features, steps), expected, **CLOSE)
    assert torch.equal(heads(features, [2] * 5), heads(features, 2))
    with pytest.raises(ponder.errors.ArgumentError, match="distinct modules"):
        ponder.PerStep([nn.Linear(4, 2)] * 3)


@pytest.mark.parametrize("start", [0.1, 0.5, 0.9])
def test_a_lambda_head_starts_at_a_hazard(start: float) -> None:
    hazards = [
        float(ponder.LambdaHead(8, 3, 2, start=start)(torch.zeros(1, 16)).sigmoid().detach())
        for _ in range(50)
    ]
    assert sum(hazards) / 50 == pytest.approx(start, abs=0.1)
    layers = ponder.LambdaHead(8, 3, 2, dropout=0.1).layers
    assert [type(part) for part in layers[:3]] == [nn.Dropout, nn.Linear, nn.Tanh]
    assert [tuple(part.weight.shape) for part in layers if isinstance(part, nn.Linear)] == [
        (8, 16),
        (8, 8),
        (1, 8),
    ]


def test_the_lambda_head_of_the_released_palbert_is_wide() -> None:
    spec = recipes.get("palbert", as_released=True)
    _, head = make_heads(spec, 768, 2, 12)
    assert head is not None
    linear = [part for part in head.layers if isinstance(part, nn.Linear)]
    assert [tuple(part.weight.shape) for part in linear] == [(1536, 1536)] * 3 + [(1, 1536)]
    assert [type(part) for part in head.layers[:3]] == [nn.Dropout, nn.Linear, nn.Tanh]
    assert head.layers[0].p == 0.1
    assert not head.before_first_step(torch.randn(2, 768)).any()


def test_a_detached_lambda_head_learns_and_does_not_move_the_features() -> None:
    features = torch.randn(3, 8, requires_grad=True)
    head = ponder.LambdaHead(8, layers=2, detach=True)
    head(features).sum().backward()
    assert features.grad is None
    assert all(weight.grad is not None for weight in head.parameters())


@pytest.mark.parametrize("name", recipes.names())
def test_heads_are_those_of_the_recipe(name: str) -> None:
    recipe = recipes.get(name).for_steps(5)
    head, halting = make_heads(recipe, 8, 3, 5)
    assert isinstance(head, ponder.PerStep) == bool(recipe.per_step_heads)
    assert (halting is None) == (recipe.lambda_head is None)
    if halting is not None and recipe.lambda_head is not None:
        assert halting.history == recipe.lambda_head.history


# -- readouts ------------------------------------------------------------------------------------------------------

REAL = ~padding()
MASKS = [
    {},
    {"attention_mask": REAL.long()},
    {"attention_mask": REAL},
    {"src_key_padding_mask": ~REAL},
]


@pytest.mark.parametrize("context", MASKS, ids=lambda context: "".join(context))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_readouts_leave_padding_out(context: dict[str, Tensor], dtype: torch.dtype) -> None:
    states = torch.randn(ROWS, LENGTH, WIDTH).to(dtype)
    real = REAL if context else torch.ones_like(REAL)
    parts = [states[row][real[row]] for row in range(ROWS)]
    expected = {
        "mean": torch.stack([part.float().mean(0).to(dtype) for part in parts]),
        "last": torch.stack([part[-1] for part in parts]),
        "first_token": states[:, 0],
    }
    for name, features in expected.items():
        readout = getattr(ponder.readouts, name)
        for call in (
            ReadoutCall(readout),
            ReadoutCall(readout, states=ReadoutCall(lambda hidden: hidden + 0)),
        ):
            torch.testing.assert_close(
                call(states, **context, other=1), features, rtol=1e-3, atol=1e-4
            )


@pytest.mark.parametrize("side", ["left", "right", "holes"])
def test_the_last_token_is_the_last_real_position_on_whichever_side_padding_lies(side: str) -> None:
    states = torch.randn(ROWS, LENGTH, WIDTH)
    real = REAL.flip(1) if side == "left" else REAL.clone()
    if side == "holes":
        real = torch.zeros_like(REAL)
        real[:, [0, 3]] = True
    expected = [states[row][real[row]][-1] for row in range(ROWS)]
    found = ponder.readouts.last_token(states, attention_mask=real)
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=0)


def test_a_mean_over_a_long_text_does_not_overflow_in_half_precision() -> None:
    states = torch.full((1, 4096, 1), 100.0, dtype=torch.float16)
    assert ponder.readouts.mean(states, attention_mask=torch.ones(1, 4096)).item() == 100.0


def test_a_mask_with_a_name_of_its_own_is_read_where_it_is_declared() -> None:
    states = torch.randn(ROWS, LENGTH, WIDTH)
    padding = ponder.Padding("frames", 0)
    expected = ponder.readouts.mean(states, attention_mask=REAL)
    for call in (
        ReadoutCall(ponder.readouts.mean, padding),
        ReadoutCall(ponder.readouts.mean, padding, ReadoutCall(ponder.readouts.identity)),
        ReadoutCall(lambda hidden, frames: ponder.readouts.mean(hidden, ~frames), padding),
        ReadoutCall(
            lambda hidden, **context: ponder.readouts.mean(hidden, ~context["frames"]), padding
        ),
    ):
        torch.testing.assert_close(call(states, frames=~REAL), expected)


def test_a_state_with_positions_needs_a_readout() -> None:
    model = ponder.PonderWrapper(nn.Linear(4, 4), num_steps=2, head=nn.Linear(4, 2)).eval()
    with pytest.raises(ponder.errors.ArgumentError, match=r"ponder\.readouts\.first_token"):
        model(torch.randn(2, 5, 4))


def test_functions_are_modules_without_weights() -> None:
    assert list(ponder.Steps([torch.sin]).parameters()) == []


def test_the_mean_over_the_parts_of_a_batch_is_that_over_its_rows() -> None:
    losses = torch.tensor([1.0, 2.0, 3.0, 6.0])
    parts = [
        joined_loss(part.mean(), torch.tensor(len(part)), torch.tensor(4), 2)
        for part in losses.split([3, 1])
    ]
    assert sum(parts) / 2 == losses.mean()
