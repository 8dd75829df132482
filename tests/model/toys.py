"""Small models of every kind of steps, with a batch for each, and counters of what runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import ponder
from ponder import policies

WIDTH = 6
STEPS = 4
ROWS = 9
CLASSES = 3
LENGTH = 5


class Tanh(nn.Module):
    """A step of one layer; it notes how many rows it ran on."""

    def __init__(self, ran: list[int] | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.ran = [] if ran is None else ran
        nn.init.normal_(self.linear.weight, std=0.8)

    def forward(self, hidden: Tensor) -> Tensor:
        self.ran.append(len(hidden))
        return torch.tanh(self.linear(hidden))


class Pair(nn.Module):
    """A step on a nested state, with a value a row and a value for all as context."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = Tanh()

    def forward(
        self, hidden: dict[str, Tensor], row: Tensor, all_rows: Tensor
    ) -> dict[str, Tensor]:
        return {"a": self.inside(hidden["b"]) + row[:, None], "b": hidden["a"] * all_rows}


class Mix(nn.Module):
    """A step that mixes the real positions of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.0, batch_first=True)
        for weight in self.layer.parameters():
            nn.init.normal_(weight, std=0.5)

    def forward(self, hidden: Tensor, src_key_padding_mask: Tensor | None = None) -> Tensor:
        return self.layer(hidden, src_key_padding_mask=src_key_padding_mask)


@dataclass
class Toy:
    """A model with a call of it."""

    model: ponder.PonderWrapper
    inputs: Any
    context: dict[str, Any] = field(default_factory=dict)

    def __call__(self, **options: Any) -> Any:
        return self.model(self.inputs, **self.context, **options)

    def unroll(self, **options: Any) -> Any:
        return self.model.unroll(self.inputs, **self.context, **options)


def padding_mask(rows: int = ROWS) -> Tensor:
    """True at padding, `(rows, length)`."""
    return torch.arange(LENGTH) >= 1 + torch.arange(rows).remainder(LENGTH)[:, None]


def heads(per_step: bool = False) -> dict[str, Any]:
    """Heads whose answers move from step to step."""

    def head() -> nn.Module:
        made = nn.Linear(WIDTH, CLASSES)
        nn.init.normal_(made.weight, std=1.5)
        return made

    halting = ponder.LambdaHead(WIDTH, layers=2, history=2)
    nn.init.normal_(halting.layers[-1].weight, std=2.0)
    return {
        "head": ponder.PerStep(head() for _ in range(STEPS)) if per_step else head(),
        "lambda_head": halting,
    }


def toy(kind: str, **options: Any) -> Toy:
    """Return a toy of a kind of steps, in evaluation mode."""
    options = {"task": "classification", **heads(options.pop("per_step", False)), **options}
    rows = torch.randn(ROWS, WIDTH)
    if kind == "shared":
        made = Toy(ponder.PonderWrapper(Tanh(), STEPS, **options), rows)
    elif kind == "stacked":
        made = Toy(ponder.PonderWrapper([Tanh() for _ in range(STEPS)], **options), rows)
    elif kind == "scheduled":
        made = Toy(
            ponder.PonderWrapper(ponder.Steps([Tanh(), Tanh()], [0, 1, 1, 0]), **options), rows
        )
    elif kind == "nested":
        model = ponder.PonderWrapper(Pair(), STEPS, readout=lambda hidden: hidden["a"], **options)
        context = {"row": torch.randn(ROWS), "all_rows": ponder.Shared(torch.randn(WIDTH))}
        made = Toy(model, {"a": rows, "b": torch.randn(ROWS, WIDTH)}, context)
    else:
        options.setdefault("padding", ponder.Padding("src_key_padding_mask", 0))
        model = ponder.PonderWrapper(
            [Mix() for _ in range(STEPS)], readout=ponder.readouts.mean, **options
        )
        made = Toy(
            model, torch.randn(ROWS, LENGTH, WIDTH), {"src_key_padding_mask": padding_mask()}
        )
    made.model.eval()
    return made


KINDS = ("shared", "stacked", "scheduled", "nested", "padded")


class Counting(nn.Module):
    """A module that notes the number of rows of each call."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside
        self.ran = list[int]()

    def forward(self, features: Tensor) -> Tensor:
        self.ran.append(len(features))
        return self.inside(features)


def by_hand(made: Toy, depth: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    """Outputs and hazard logits of every step, one step after the other, without the library's loop."""
    model = made.model
    hidden = made.inputs
    context = {
        name: value.value if isinstance(value, ponder.Shared) else value
        for name, value in made.context.items()
    }
    known = []
    past = model.readout(hidden, **context)
    for step in range(1, depth + 1):
        hidden = model.steps(step, hidden, **context)
        features = model.readout(hidden, **context)
        outputs = (
            model.head(features, step)
            if isinstance(model.head, ponder.PerStep)
            else model.head(features)
        )
        known.append((outputs, model.lambda_head.layers(torch.cat([features, past], 1))[:, 0]))
        past = features
    return known


def middle(made: Toy) -> policies.Confidence:
    """Return a policy under which about half of the rows exit at step 1; no row is as sure as its threshold."""
    sure = by_hand(made)[0][0].detach().softmax(-1).amax(-1).sort().values
    return policies.Confidence(float(sure[3:5].mean()))


def exits_by_hand(made: Toy, threshold: float) -> list[int]:
    """Exit steps under `Confidence(threshold)`."""
    steps = [STEPS] * ROWS
    for step, (outputs, _) in reversed(list(enumerate(by_hand(made), start=1))):
        for row, sure in enumerate((outputs.softmax(-1).amax(-1) > threshold).tolist()):
            steps[row] = step if sure else steps[row]
    return steps


CONFIDENT = policies.Confidence(0.75)
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
