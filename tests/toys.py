"""Toy backbones: small enough for every contract, and one of each kind that `ponder` promises to carry.

Each toy holds the raw parts of an encoder and `plain`, the encoder itself written out as a loop without `ponder`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

import ponder
from ponder import readouts

WIDTH = 8
NUM_STEPS = 5
LENGTH = 4
OUTPUTS = {"classification": 3, "regression": 1, "multilabel": 3, "token_classification": 3}


class Affine(nn.Module):
    """A step on `(batch, width)`, with weights large enough for the answers to move."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        nn.init.normal_(self.linear.weight, std=0.6)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.linear(hidden))


class Toy(ABC):
    """An encoder in parts.

    `steps`, `num_steps`, `stem` and `readout` are what `PonderWrapper` takes; `row_context` names the context
    tensors of a batch, and `shared` says whether the context holds a `Shared` value as well.
    """

    steps: Any
    num_steps: int | None = None
    stem: Any = None
    readout: Any = None

    @abstractmethod
    def batch(self, size: int, seed: int = 0) -> tuple[Any, dict[str, Any]]:
        """Inputs and context of `size` rows."""

    @abstractmethod
    def plain(self, inputs: Any, **context: Any) -> Tensor:
        """Features after all steps, without `ponder`."""


class SharedStep(Toy):
    def __init__(self) -> None:
        self.steps, self.num_steps = Affine(), NUM_STEPS

    def batch(self, size: int, seed: int = 0) -> tuple[Any, dict[str, Any]]:
        return _normal(seed, size, WIDTH), {}

    def plain(self, inputs: Any, **context: Any) -> Tensor:
        for _ in range(NUM_STEPS):
            inputs = self.steps(inputs)
        return inputs


class Stacked(SharedStep):
    def __init__(self) -> None:
        self.steps = nn.ModuleList(Affine() for _ in range(NUM_STEPS))

    def plain(self, inputs: Any, **context: Any) -> Tensor:
        for step in self.steps:
            inputs = step(inputs)
        return inputs


class Scheduled(SharedStep):
    def __init__(self) -> None:
        self.parts = [Affine(), Affine(), Affine()]
        self.steps = ponder.Steps(self.parts, schedule=[0, 0, 1, 2, 1])

    def plain(self, inputs: Any, **context: Any) -> Tensor:
        a, b, c = self.parts
        return b(c(b(a(a(inputs)))))


def rotate(hidden: Tensor, gain: Tensor) -> Tensor:
    return torch.tanh(gain[:, None] * hidden.roll(1, dims=1) + 0.1)


def mirror(hidden: Tensor, **context: Tensor) -> Tensor:
    return torch.sin(hidden.flip(1) * context["gain"][:, None])


class Functions(SharedStep):
    """Plain functions as steps, with a context value that is a number per example."""

    def __init__(self) -> None:
        self.steps = [rotate, mirror, rotate, rotate, mirror]

    def batch(self, size: int, seed: int = 0) -> tuple[Any, dict[str, Any]]:
        return _normal(seed, size, WIDTH), {"gain": _normal(seed + 1, size)}

    def plain(self, inputs: Any, **context: Any) -> Tensor:
        for step in self.steps:
            inputs = step(inputs, **context)
        return inputs


class Momentum(nn.Module):
    """State (position, velocity)."""

    def __init__(self) -> None:
        super().__init__()
        self.force = Affine()

    def forward(self, hidden: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        position, velocity = hidden
        velocity = 0.5 * velocity + self.force(position)
        return position + velocity, velocity


def first_of_pair(hidden: tuple[Tensor, Tensor]) -> Tensor:
    return hidden[0]


class TupleState(Toy):
    num_steps = NUM_STEPS
    readout = staticmethod(first_of_pair)

    def __init__(self) -> None:
        self.steps = Momentum()

    def batch(self, size: int, seed: int = 0) -> tuple[Any, dict[str, Any]]:
        return (_normal(seed, size, WIDTH), _normal(seed + 1, size, WIDTH)), {}

    def plain(self, inputs: Any, **context: Any) -> Tensor:
        for _ in range(NUM_STEPS):
            inputs = self.steps(inputs)
        return inputs[0]


class Accumulator(nn.Module):
    """State {"now", "memory": [sum, number of steps]}: nested, and with a long tensor and a plain number in it."""

    def __init__(self) -> None:
        super().__init__()
        self.update = Affine()

    def forward(self, hidden: dict[str, Any]) -> dict[str, Any]:
        total, age = hidden["memory"]
        now = self.update(hidden["now"] + 0.1 * total)
        return {"now": now, "memory": [total + now, age + 1], "scale": hidden["scale"]}


def scaled_now(hidden: dict[str, Any]) -> Tensor:
    return hidden["now"] * hidden["scale"]


class DictState(TupleState):
    readout = staticmethod(scaled_now)

    def __init__(self) -> None:
        self.steps = Accumulator()

    def batch(self, size: int, seed: int = 0) -> tuple[Any, dict[str, Any]]:
        now, total = _normal(seed, size, WIDTH), _normal(seed + 1, size, WIDTH)
        return {"now": now, "memory": [total, torch.zeros(size, dtype=torch.long)], "scale": 2.0}, {}

    def plain(self, inputs: Any, **context: Any) -> Tensor:
        for _ in range(NUM_STEPS):
            inputs = self.steps(inputs)
        return 2.0 * inputs["now"]


class GRUStep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(WIDTH, WIDTH)
        for weight in self.cell.parameters():
            nn.init.normal_(weight, std=0.8)

    def forward(self, hidden: Tensor, x: Tensor) -> Tensor:
        return self.cell(x, hidden)


def zeros_and_input(inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return torch.zeros_like(inputs), {"x": inputs}


class GRU(Toy):
    """A recurrent cell on a 2-D state; the stem gives (hidden, context)."""

    num_steps = NUM_STEPS
    stem = staticmethod(zeros_and_input)

    def __init__(self) -> None:
        self.steps = GRUStep()

    def batch(self, size: int, seed: int = 0) -> tuple[Any, dict[str, Any]]:
        return _normal(seed, size, WIDTH), {}

    def plain(self, inputs: Any, **context: Any) -> Tensor:
        hidden = torch.zeros_like(inputs)
        for _ in range(NUM_STEPS):
            hidden = self.steps.cell(inputs, hidden)
        return hidden


class LSTMStep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(WIDTH, WIDTH)
        for weight in self.cell.parameters():
            nn.init.normal_(weight, std=0.8)

    def forward(self, hidden: tuple[Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cell(x, hidden)


class LSTM(Toy):
    """A recurrent cell whose state is a pair, with its input as context of the call."""

    num_steps = NUM_STEPS
    readout = staticmethod(first_of_pair)

    def __init__(self) -> None:
        self.steps = LSTMStep()

    def batch(self, size: int, seed: int = 0) -> tuple[Any, dict[str, Any]]:
        state = (_normal(seed, size, WIDTH), _normal(seed + 1, size, WIDTH))
        return state, {"x": _normal(seed + 2, size, WIDTH)}

    def plain(self, inputs: Any, **context: Any) -> Tensor:
        for _ in range(NUM_STEPS):
            inputs = self.steps.cell(context["x"], inputs)
        return inputs[0]


class Transformer(Toy):
    """PyTorch's own layer, shared by all steps, with its padding mask and the masked mean."""

    num_steps = NUM_STEPS
    readout = staticmethod(readouts.mean)

    def __init__(self) -> None:
        self.steps = nn.TransformerEncoderLayer(WIDTH, nhead=2, dim_feedforward=16, dropout=0.0, batch_first=True)
        for weight in self.steps.parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.5)

    def batch(self, size: int, seed: int = 0) -> tuple[Any, dict[str, Any]]:
        return _normal(seed, size, LENGTH, WIDTH), {"src_key_padding_mask": _padding(size, seed)}

    def plain(self, inputs: Any, **context: Any) -> Tensor:
        for _ in range(NUM_STEPS):
            inputs = self.steps(inputs, **context)
        real = (~context["src_key_padding_mask"]).to(inputs.dtype)[..., None]
        return (inputs * real).sum(1) / real.sum(1).clamp(min=1)


class Biased(nn.Module):
    """Mixes positions by a bias that belongs to the whole batch, and a mask that belongs to each row."""

    def __init__(self) -> None:
        super().__init__()
        self.update = Affine()

    def forward(self, hidden: Tensor, bias: Tensor, attention_mask: Tensor) -> Tensor:
        assert bias.shape == (LENGTH, LENGTH)
        weights = bias.masked_fill(attention_mask[:, None, :] == 0, -torch.inf).softmax(-1)
        return self.update(weights @ hidden)


class EmbeddingStem(nn.Module):
    """Token ids to (hidden, context with a `Shared` position bias)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, WIDTH)
        self.bias = nn.Parameter(torch.randn(LENGTH, LENGTH))

    def forward(self, inputs: Tensor, attention_mask: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return self.embedding(inputs), {"bias": ponder.Shared(self.bias), "attention_mask": attention_mask}


class SharedContext(Toy):
    num_steps = NUM_STEPS
    readout = staticmethod(readouts.first_token)

    def __init__(self) -> None:
        self.steps, self.stem = Biased(), EmbeddingStem()

    def batch(self, size: int, seed: int = 0) -> tuple[Any, dict[str, Any]]:
        ids = torch.randint(0, 11, (size, LENGTH), generator=torch.Generator().manual_seed(seed))
        return ids, {"attention_mask": (~_padding(size, seed)).long()}

    def plain(self, inputs: Any, **context: Any) -> Tensor:
        hidden = self.stem.embedding(inputs)
        for _ in range(NUM_STEPS):
            hidden = self.steps(hidden, bias=self.stem.bias, attention_mask=context["attention_mask"])
        return hidden[:, 0]


TOYS: dict[str, type[Toy]] = {
    "shared": SharedStep,
    "stacked": Stacked,
    "scheduled": Scheduled,
    "functions": Functions,
    "tuple-state": TupleState,
    "dict-state": DictState,
    "gru-cell": GRU,
    "lstm-cell": LSTM,
    "transformer": Transformer,
    "shared-context": SharedContext,
}


def make_toy(name: str, seed: int = 0) -> Toy:
    """The toy called `name`, with weights of `seed`."""
    torch.manual_seed(seed)
    return TOYS[name]()


def wrap(toy: Toy, *, task: Any = "classification", outputs: int | None = None, **overrides: Any) -> Any:
    """`toy` in a `PonderWrapper` with a head and a Lambda head whose weights make the exits differ."""
    head = nn.Linear(WIDTH, outputs or OUTPUTS.get(task, 2))
    nn.init.normal_(head.weight, std=1.0)
    hazards = ponder.LambdaHead(WIDTH, layers=2, history=2)
    for weight in hazards.parameters():
        nn.init.normal_(weight, std=0.7)
    parts = {"head": head, "lambda_head": hazards, "stem": toy.stem, "readout": toy.readout, "task": task}
    return ponder.PonderWrapper(toy.steps, toy.num_steps, **{**parts, **overrides})


def labels_for(task: str, size: int, seed: int = 0) -> Tensor:
    """Labels of `size` rows, of the type and shape that `task` takes."""
    generator = torch.Generator().manual_seed(seed)
    if task == "classification":
        return torch.randint(0, OUTPUTS[task], (size,), generator=generator)
    if task == "multilabel":
        return torch.randint(0, 2, (size, OUTPUTS[task]), generator=generator).float()
    return torch.randn(size, OUTPUTS[task], generator=generator)


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _padding(size: int, seed: int) -> Tensor:
    """True at padding; every row has one real position or more."""
    real = torch.randint(1, LENGTH + 1, (size, 1), generator=torch.Generator().manual_seed(seed))
    return torch.arange(LENGTH) >= real
