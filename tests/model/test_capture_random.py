"""Modules drawn at random: each is captured right, in every mode and kind of call, or refused."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ponder._utils.trees import take_rows, unwrap
from ponder.errors import ArgumentError
from ponder.model.capture import Captured, capture
from tests.model.test_capture import answer, cut, through

WIDTH = 8
LENGTH = 5
ROWS = 3
TRAITS: dict[str, tuple[str, ...]] = {
    "block": ("mlp", "attention", "norm", "gated", "counting"),
    "output": ("tensor", "tuple", "dict", "handed", "number"),
    "entry": ("identity", "linear", "dropout", "batch norm", "token", "transposed", "batch mean"),
    "passing": (
        "place",
        "name",
        "list",
        "first flag",
        "start",
        "table",
        "mask",
        "data flag",
        "index",
    ),
    "between": (
        "nothing",
        "nothing",
        "add",
        "norm",
        "in place",
        "dropout",
        "relu in training",
        "scaled by zero",
    ),
    "end": (
        "norm",
        "mean",
        "nothing",
        "first",
        "masked mean",
        "dropout",
        "start",
        "all states",
        "head",
        "conditional",
        "roll",
    ),
    "result": ("tensor", "dict", "tuple"),
    "holder": ("list", "list", "sequential", "nested", "looped", "slice"),
}


class Layer(nn.Module):
    def __init__(self, traits: dict[str, str], number: int) -> None:
        super().__init__()
        self.traits = traits
        self.number = number
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.other = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.gate = nn.Parameter(torch.zeros(WIDTH))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, hidden: Any, extra: Any = None, flag: Any = False) -> Any:
        hidden = hidden[0] if isinstance(hidden, list) else hidden
        kind = self.traits["block"]
        output = self.traits["output"]
        out = torch.tanh(self.linear(self.norm(hidden)))
        if kind == "attention":
            hide = (
                extra
                if isinstance(extra, Tensor) and extra.dtype == torch.bool and extra.dim() == 2
                else None
            )
            out = self.attention(out, out, out, key_padding_mask=hide, need_weights=False)[0]
        elif kind == "gated":
            out = out + self.gate * self.other(hidden).roll(
                1, 0
            )  # rows mix once the gate has learned
        elif kind == "counting" and self.training:
            self.calls += 1
        if isinstance(extra, Tensor) and extra.is_floating_point():
            out = out + 0.1 * extra
        out = hidden + (2 * out if flag else out)
        if output == "tuple":
            return (out, None)
        if output == "dict":
            return {"hidden": out, "norm": out.norm()}
        if output == "handed":
            return (out, out.mean(-1, keepdim=True) if extra is None else extra)
        return (out, float(out.detach().mean() > 0)) if output == "number" else out


class Drawn(nn.Module):
    def __init__(self, traits: dict[str, str]) -> None:
        super().__init__()
        self.traits = traits
        made = [Layer(traits, number) for number in range(3)]
        holder = traits["holder"]
        self.layers: Any = nn.ModuleList([made[0]] * 3 if holder == "looped" else made)
        if holder == "sequential":
            self.layers = nn.Sequential(*made)
        elif holder == "nested":
            self.layers = nn.ModuleList([nn.ModuleList([each]) for each in made])
        self.enter = nn.Linear(WIDTH, WIDTH)
        self.drop = nn.Dropout(0.3)
        self.statistics = nn.BatchNorm1d(WIDTH)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 2)
        self.between = nn.LayerNorm(WIDTH)
        self.scale = nn.Parameter(torch.zeros(()))

    def entered(self, x: Tensor) -> Tensor:
        entry = self.traits["entry"]
        if entry == "linear":
            return self.enter(x)
        if entry == "dropout":
            return self.drop(self.enter(x))
        if entry == "batch norm":
            return self.statistics(x.transpose(1, 2)).transpose(1, 2)
        if entry == "token":
            return torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return x - x.mean(0) if entry == "batch mean" else x

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Any:
        traits = self.traits
        hidden = start = self.entered(x)
        hide = None if attention_mask is None else attention_mask == 0
        passing = traits["passing"]
        states = []
        extra = None
        for number, layer in enumerate(
            self.layers[:2] if traits["holder"] == "slice" else self.layers
        ):
            layer = layer[0] if traits["holder"] == "nested" else layer
            out = self.called(layer, number, hidden, start, hide, extra, passing)
            if isinstance(out, dict):
                hidden = out["hidden"]
            elif isinstance(out, tuple):
                hidden, extra = out
            else:
                hidden = out
            hidden = self.stepped(hidden, start, number)
            states.append(hidden)
        return self.ended(hidden, start, states, attention_mask)

    def called(
        self,
        layer: Any,
        number: int,
        hidden: Tensor,
        start: Tensor,
        hide: Any,
        extra: Any,
        passing: str,
    ) -> Any:
        if self.traits["output"] == "handed":
            return layer(hidden, extra)
        if self.traits["output"] == "number" and extra is not None:
            return layer(hidden, None, extra)
        if passing == "name":
            return layer(hidden=hidden)
        if passing == "list":
            return layer([hidden])
        if passing == "first flag":
            return layer(hidden, flag=number == 0)
        if passing == "start":
            return layer(hidden, start)
        if passing == "table":
            return layer(hidden, torch.arange(hidden.shape[1]).float().sin()[None, :, None])
        if passing == "mask":
            return layer(hidden, hide if hide is None or hide.shape[1] == hidden.shape[1] else None)
        if passing == "data flag":
            return layer(hidden, flag=bool(start.sum() > 0))
        return layer(hidden, flag=number) if passing == "index" else layer(hidden)

    def stepped(self, hidden: Tensor, start: Tensor, number: int) -> Tensor:
        between = self.traits["between"]
        if between == "add":
            return hidden + 0.1 * start
        if between == "norm":
            return self.between(hidden)
        if between == "in place":
            hidden += self.scale * start
        if between == "dropout":
            return self.drop(hidden)
        if between == "scaled by zero":
            return hidden + self.scale * start
        return hidden.relu() if between == "relu in training" and self.training else hidden

    def ended(
        self, hidden: Tensor, start: Tensor, states: list[Tensor], mask: Tensor | None
    ) -> Any:
        end = self.traits["end"]
        if end == "norm":
            hidden = self.norm(hidden)
        elif end == "first":
            hidden = self.norm(hidden)[:, 0]
        elif end == "mean":
            hidden = hidden.mean(1)
        elif end == "masked mean" and mask is not None and mask.shape[1] == hidden.shape[1]:
            hidden = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        elif end == "dropout":
            hidden = self.drop(self.norm(hidden))
        elif end == "start":
            hidden = hidden + start
        elif end == "all states":
            hidden = torch.stack(states).mean(0)
        elif end == "head":
            hidden = self.head(hidden.mean(1))
        elif end == "conditional":
            hidden = self.norm(hidden) if mask is None else hidden
        elif end == "roll":
            hidden = hidden + self.scale * hidden.roll(1, 0)
        result = self.traits["result"]
        return (
            {"out": hidden, "count": 3}
            if result == "dict"
            else (hidden, None)
            if result == "tuple"
            else hidden
        )


def draw(seed: int) -> tuple[dict[str, str], nn.Module, dict[str, Any]]:
    chosen = random.Random(seed)
    traits = {
        name: chosen.choice(values if chosen.random() < 0.5 else values[:2])
        for name, values in TRAITS.items()
    }
    torch.manual_seed(seed)
    mask = (
        (torch.arange(LENGTH) < torch.tensor([5, 3, 4])[:, None]).long()
        if chosen.random() < 0.5
        else None
    )
    call = {"x": torch.randn(ROWS, LENGTH, WIDTH)} | (
        {} if mask is None else {"attention_mask": mask}
    )
    return traits, Drawn(traits).eval(), call


def different_call(
    parts: Captured, module: nn.Module, call: dict[str, Any], *, can_cut: bool
) -> str | None:
    """Where a call differs from the module's, and with `can_cut` from the module cut at each depth."""
    try:
        features = through(parts, call)
    except ArgumentError:  # refused when it comes
        return None
    if not torch.equal(features[-1], answer(module, call)):
        return "full depth"
    for depth in range(1, len(features) if can_cut else 1):
        expected = answer(cut(module, parts.stem.contract.order, depth), call)
        if not torch.equal(features[depth - 1], expected):
            return f"depth {depth}"
    return None


def wrong(seed: int) -> str | None:
    """What a captured module gets wrong; None where all is right, or it is refused."""
    traits, module, call = draw(seed)
    try:
        parts = capture(module, call)
    except ArgumentError:
        return None
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    mask = torch.ones(ROWS, LENGTH, dtype=torch.long)
    mask[0, 3:] = 0
    other = torch.randn(ROWS, LENGTH, WIDTH)
    calls: dict[str, dict[str, Any]] = {
        "the example": call,
        "other numbers": {**call, "x": other},
        "a mask": {"x": other, "attention_mask": mask},
        "no padding": {"x": other, "attention_mask": torch.ones_like(mask)},
        "no mask": {"x": -other},
        "shorter": {key: value[:, :-1] for key, value in call.items()},
        "more rows": {key: torch.cat([value, value[:1]]) for key, value in call.items()},
        "one row": {key: value[:1] for key, value in call.items()},
    }
    plain = traits["passing"] in ("place", "mask", "start", "table")
    can_cut = plain and traits["output"] != "handed" and traits["holder"] != "looped"
    for grad in (False, True):
        for name, each in calls.items():
            with torch.set_grad_enabled(grad):
                difference = different_call(parts, module, each, can_cut=can_cut)
            if difference is not None:
                return f"{difference} of {name}, grad={grad}"
    keep = torch.tensor([1, 2])
    whole = through(parts, call)
    state, context = parts.stem(dict(call))
    state = take_rows(parts.steps(1, state, **unwrap(context)), keep)
    given = unwrap(take_rows(context, keep))
    for step in range(2, parts.steps.num_steps + 1):
        state = parts.steps(step, state, **given)
    if not torch.allclose(parts.readout(state, **given), whole[-1][keep], atol=1e-5):
        return "rows that remain"
    module.train()
    outs = []
    for run in (lambda: through(parts, call, every=False)[-1], lambda: answer(module, call)):
        try:
            through(parts, call)
        except ArgumentError:
            return None
        torch.manual_seed(1)
        outs.append(run())
    return None if torch.equal(*outs) else "training"


@pytest.mark.parametrize("start", range(0, 160, 20))
def test_drawn_modules_are_right_or_refused(start: int) -> None:
    assert {seed: found for seed in range(start, start + 20) if (found := wrong(seed))} == {}
