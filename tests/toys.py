"""Toy models: steps of every kind, with heads whose answers move, a batch for each, and counters of what runs.

`build` makes a model of one kind of steps for one task, always with the same weights and the same
batch. `sequence_model` is a model of token ids of several lengths. The matrices, the tests of the
model, of inference and of exports, and the golden files are all made of these parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import ponder
from ponder import policies

WIDTH = 8
STEPS = 5
LENGTH = 4
CLASSES = 3
ROWS = 12
OUTPUTS = {
    "classification": 3,
    "regression": 1,
    "multilabel": 3,
    "token_classification": 3,
    "span": 2,
}
TASKS = tuple(OUTPUTS)
PER_POSITION = ("token_classification", "span")
CLOSE = {"rtol": 1e-5, "atol": 1e-6}

# -- steps -------------------------------------------------------------------------------------------


class Tanh(nn.Module):
    """A step of one linear layer, with weights large enough for the answers to move."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        nn.init.normal_(self.linear.weight, std=0.6)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.linear(hidden))


class Momentum(nn.Module):
    """A step on a nested state (position, {"velocity": …})."""

    def __init__(self) -> None:
        super().__init__()
        self.force = Tanh()

    def forward(self, hidden: Any) -> Any:
        position, rest = hidden
        velocity = 0.5 * rest["velocity"] + self.force(position)
        return position + velocity, {"velocity": velocity}


class Pair(nn.Module):
    """A step on a nested state, with a value for each row and one for all rows as context."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = Tanh()

    def forward(
        self, hidden: dict[str, Tensor], row: Tensor, all_rows: Tensor
    ) -> dict[str, Tensor]:
        return {"a": self.inside(hidden["b"]) + row[:, None], "b": hidden["a"] * all_rows}


class Cell(nn.Module):
    """A recurrent cell that reads the input at every step, and a shared bias if there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(WIDTH, WIDTH)
        for weight in self.cell.parameters():
            nn.init.normal_(weight, std=0.8)

    def forward(self, hidden: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if bias is None:
            return self.cell(x, hidden)
        assert bias.shape == (WIDTH,)
        return self.cell(x + bias, hidden)


class CellStem(nn.Module):
    """Zeros, with the input as context of each row, and a bias as context of the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(WIDTH))

    def forward(self, inputs: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return torch.zeros_like(inputs), {"x": inputs, "bias": ponder.Shared(self.bias)}


def transformer_layer() -> nn.Module:
    """PyTorch's own layer, with weights large enough for the answers to move."""
    layer = nn.TransformerEncoderLayer(
        WIDTH, nhead=2, dim_feedforward=16, dropout=0.0, batch_first=True
    )
    for weight in layer.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=0.5)
    return layer


# -- readouts and masks ------------------------------------------------------------------------------


def first_of_pair(hidden: Any) -> Tensor:
    return hidden[0]


def positions(hidden: Tensor) -> Tensor:
    return hidden


class Pooled(nn.Module):
    """The first position of what another readout gives."""

    def __init__(self, readout: Any) -> None:
        super().__init__()
        self.readout = readout

    def forward(self, hidden: Any, **context: Any) -> Tensor:
        return self.readout(hidden, **context)[:, 0]


def padding(rows: int = ROWS) -> Tensor:
    """True at padding, `(rows, length)`; every row has a real position."""
    return torch.arange(LENGTH) >= 1 + torch.arange(rows).remainder(LENGTH)[:, None]


# -- models ------------------------------------------------------------------------------------------


@dataclass
class Toy:
    """A wrapped model in evaluation mode with a batch for it, and the encoder without `ponder`."""

    model: Any
    inputs: Any
    context: dict[str, Any] = field(default_factory=dict)
    plain: Any = None

    def call(self, rows: Tensor | None = None, **options: Any) -> Any:
        """Call the model on the batch, or on some of its rows."""
        inputs, context = self.inputs, self.context
        if rows is not None:
            inputs, context = take((inputs, context), rows)
        return self.model(inputs, **context, **options)

    def unroll(self, **options: Any) -> Any:
        """Record every step."""
        with torch.no_grad():
            return self.model.unroll(self.inputs, **self.context, **options)

    def examples(self) -> list[Any]:
        """The rows one by one, as streams take them."""
        return [take((self.inputs, self.context), row) for row in range(ROWS)]


def take(tree: Any, rows: Tensor | int) -> Any:
    """Some rows of nested tensors, or one without its batch dimension."""
    return torch.utils._pytree.tree_map(lambda tensor: tensor[rows], tree)


@dataclass
class Body:
    """A toy without its heads.

    Args:
        steps: The steps, as for `ponder.PonderWrapper`.
        inputs: A batch.
        plain: The encoder without `ponder`.
        num_steps: N of one shared step.
        context: Arguments of a call besides the inputs.
        parts: Further parts of the model: stem, readout, padding.
    """

    steps: Any
    inputs: Any
    plain: Any = None
    num_steps: int | None = None
    context: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)


def _applied(step: Any, times: int) -> Any:
    def run(hidden: Any) -> Any:
        for _ in range(times):
            hidden = step(hidden)
        return hidden

    return run


def _shared(rows: Tensor, sequences: Tensor, task: str) -> Body:
    step = Tanh()
    return Body(step, rows, _applied(step, STEPS), STEPS)


def _stacked(rows: Tensor, sequences: Tensor, task: str) -> Body:
    steps = nn.ModuleList(Tanh() for _ in range(STEPS))
    return Body(steps, rows, nn.Sequential(*steps))


def _scheduled(rows: Tensor, sequences: Tensor, task: str) -> Body:
    layers = [Tanh(), Tanh()]
    schedule = [0, 0, 1, 0, 1]
    plain = nn.Sequential(*(layers[place] for place in schedule))
    return Body(ponder.Steps(layers, schedule=schedule), rows, plain)


def _nested(rows: Tensor, sequences: Tensor, task: str) -> Body:
    step = Momentum()
    run = _applied(step, STEPS)
    inputs = (rows, {"velocity": rows.flip(0)})
    parts = {"readout": first_of_pair}
    return Body(step, inputs, lambda hidden: run(hidden)[0], STEPS, parts=parts)


def _cell(rows: Tensor, sequences: Tensor, task: str) -> Body:
    step = Cell()
    stem = CellStem()

    def plain(x: Tensor) -> Tensor:
        return _applied(lambda hidden: step.cell(x + stem.bias, hidden), STEPS)(torch.zeros_like(x))

    return Body(step, rows, plain, STEPS, parts={"stem": stem})


def _context(rows: Tensor, sequences: Tensor, task: str) -> Body:
    context = {"row": rows[:, 0], "all_rows": ponder.Shared(rows[0])}
    inputs = {"a": rows, "b": rows.flip(0)}
    parts = {"readout": lambda hidden: hidden["a"]}
    return Body(Pair(), inputs, None, STEPS, context, parts)


def _transformer(rows: Tensor, sequences: Tensor, task: str) -> Body:
    step = transformer_layer()

    def plain(x: Tensor, **context: Any) -> Tensor:
        return _applied(lambda hidden: step(hidden, **context), STEPS)(x)

    readout = positions if task in PER_POSITION else ponder.readouts.first_token
    context = {"src_key_padding_mask": padding()}
    return Body(step, sequences, plain, STEPS, context, {"readout": readout})


def _padded(rows: Tensor, sequences: Tensor, task: str) -> Body:
    steps = [transformer_layer() for _ in range(STEPS)]
    parts = {
        "readout": ponder.readouts.mean,
        "padding": ponder.Padding("src_key_padding_mask", 0),
    }
    return Body(steps, sequences, context={"src_key_padding_mask": padding()}, parts=parts)


def _captured(
    rows: Tensor, sequences: Tensor, task: str, context: dict[str, Tensor] | None = None
) -> Body:
    module = nn.TransformerEncoder(
        transformer_layer(), STEPS, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False
    )
    module = module.to(sequences.dtype).eval()
    context = context or {}
    captured = ponder.capture(module, {"src": sequences, **context})
    readout = captured.readout if task in PER_POSITION else Pooled(captured.readout)
    parts = {"stem": captured.stem, "padding": captured.padding, "readout": readout}
    return Body(captured.steps, sequences, module, context=context, parts=parts)


def _captured_mask(rows: Tensor, sequences: Tensor, task: str) -> Body:
    return _captured(rows, sequences, task, {"src_key_padding_mask": padding()})


BODIES: dict[str, Callable[[Tensor, Tensor, str], Body]] = {
    "shared": _shared,
    "stacked": _stacked,
    "scheduled": _scheduled,
    "nested": _nested,
    "cell": _cell,
    "context": _context,
    "transformer": _transformer,
    "padded": _padded,
    "captured": _captured,
    "captured-mask": _captured_mask,
}


def build(
    kind: str,
    task: Any = "classification",
    *,
    dtype: torch.dtype = torch.float64,
    per_step: bool = False,
    seed: int = 3,
    **options: Any,
) -> Toy:
    """A model of a kind of steps and a task, with weights of a fixed seed that make the exits differ.

    Args:
        kind: A key of `BODIES`.
        task: A key of `OUTPUTS`, or a loss for outputs of `CLASSES` numbers.
        dtype: Type of weights and inputs.
        per_step: One head a step.
        seed: Seed of the weights.
        options: Arguments of `ponder.PonderWrapper`, instead of those of the toy.
    """
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(ROWS, WIDTH, generator=generator, dtype=dtype)
    sequences = torch.randn(ROWS, LENGTH, WIDTH, generator=generator, dtype=dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = BODIES[kind](rows, sequences, task)
        parts = {**heads(OUTPUTS.get(task, CLASSES), per_step=per_step), "task": task}
    model = ponder.PonderWrapper(body.steps, body.num_steps, **{**parts, **body.parts, **options})
    return Toy(model.to(dtype).eval(), body.inputs, body.context, body.plain)


def heads(outputs: int = CLASSES, *, per_step: bool = False) -> dict[str, Any]:
    """A head and a Lambda head whose answers move from step to step."""
    head: nn.Module = nn.Linear(WIDTH, outputs)
    if per_step:
        head = ponder.PerStep([nn.Linear(WIDTH, outputs) for _ in range(STEPS)])
    lambda_head = ponder.LambdaHead(WIDTH, layers=2, history=2)
    for weight in [*head.parameters(), *lambda_head.parameters()]:
        nn.init.normal_(weight, std=0.8)
    with torch.no_grad():
        list(lambda_head.parameters())[-1].fill_(-1.0)
    return {"head": head, "lambda_head": lambda_head}


# -- a model of token ids ----------------------------------------------------------------------------


class SequenceStem(nn.Module):
    """Embeddings of token ids, with their mask as context."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, WIDTH)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return self.embedding(ids), {"attention_mask": attention_mask}


class SequenceStep(nn.Module):
    """A step that mixes the real positions of a row; it notes rows and length of every call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.sizes = list[tuple[int, int]]()

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        self.sizes.append((hidden.shape[0], hidden.shape[1]))
        real = attention_mask.unsqueeze(-1)
        mean = (hidden * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)
        return hidden + torch.tanh(2.0 * self.linear(hidden + mean))


def sequence_model(
    task: str = "classification", shared: bool = False, **options: Any
) -> ponder.PonderWrapper:
    """A model of token ids, of four steps, in evaluation mode."""
    torch.manual_seed(1)
    return ponder.PonderWrapper(
        SequenceStep() if shared else [SequenceStep() for _ in range(4)],
        num_steps=4,
        stem=SequenceStem(),
        readout=positions if task == "token_classification" else ponder.readouts.mean,
        head=nn.Linear(WIDTH, CLASSES),
        task=task,
        padding=ponder.Padding(),
        **options,
    ).eval()


def token_ids(count: int, seed: int = 0) -> list[Tensor]:
    """Token ids of several lengths."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 12, (count,), generator=draw).tolist()
    return [torch.randint(50, (length,), generator=draw) for length in lengths]


def sizes_of(model: ponder.PonderWrapper) -> list[tuple[int, int]]:
    """Rows and length of every call of a step since the last look."""
    found = [size for step in model.steps.fns for size in step.sizes]
    for step in model.steps.fns:
        step.sizes.clear()
    return found


# -- what runs, and what should come out -------------------------------------------------------------


@contextmanager
def counted(*modules: nn.Module) -> Iterator[dict[nn.Module, list[int]]]:
    """Note the number of rows of every call of some modules."""
    calls: dict[nn.Module, list[int]] = {module: [] for module in modules}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[module].append(len(torch.utils._pytree.tree_leaves((args, kwargs))[0]))

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in calls]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def by_hand(made: Toy, depth: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    """Outputs and hazard logits of every step, without the library's loop; for models without a stem."""
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
        head = model.head.heads[step - 1] if isinstance(model.head, ponder.PerStep) else model.head
        hazards = model.lambda_head.layers(torch.cat([features, past], 1))[:, 0]
        known.append((head(features), hazards))
        past = features
    return known


def middle(made: Toy) -> policies.Confidence:
    """Return a policy under which half of the rows exit at step 1; no row is at its threshold."""
    confidences = by_hand(made)[0][0].detach().softmax(-1).amax(-1).sort().values
    return policies.Confidence(float(confidences[ROWS // 2 - 1 : ROWS // 2 + 1].mean()))


def exits_by_hand(made: Toy, threshold: float) -> list[int]:
    """Exit steps under `Confidence(threshold)`."""
    steps = [STEPS] * ROWS
    for step, (outputs, _) in reversed(list(enumerate(by_hand(made), start=1))):
        for row, passes in enumerate((outputs.softmax(-1).amax(-1) > threshold).tolist()):
            if passes:
                steps[row] = step
    return steps
