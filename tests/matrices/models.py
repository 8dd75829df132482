"""Tiny models of every task and kind of step, random trajectories, and policies, a user's own among them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
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


class Tanh(nn.Module):
    """A step of one linear layer, with weights large enough for the answers to move."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        nn.init.normal_(self.linear.weight, std=0.6)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.linear(hidden))


class Momentum(nn.Module):
    """A state (position, {"velocity": …}): nested."""

    def __init__(self) -> None:
        super().__init__()
        self.force = Tanh()

    def forward(self, hidden: Any) -> Any:
        position, rest = hidden
        velocity = 0.5 * rest["velocity"] + self.force(position)
        return position + velocity, {"velocity": velocity}


class Cell(nn.Module):
    """A recurrent cell that reads the input, and a shared bias, at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(WIDTH, WIDTH)
        for weight in self.cell.parameters():
            nn.init.normal_(weight, std=0.8)

    def forward(self, hidden: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        assert bias.shape == (WIDTH,)
        return self.cell(x + bias, hidden)


class CellStem(nn.Module):
    """Zeros, with the input as context a row, and a bias for the whole batch."""

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


def first_of_pair(hidden: Any) -> Tensor:
    return hidden[0]


def positions(hidden: Tensor) -> Tensor:
    return hidden


def padding(rows: int) -> Tensor:
    """True at padding, `(rows, length)`; every row has a real position."""
    return torch.arange(LENGTH) >= 1 + torch.arange(rows).remainder(LENGTH)[:, None]


@dataclass
class Toy:
    """A wrapped model in evaluation mode with a batch for it, and what it is without `ponder`."""

    model: Any
    inputs: Any
    context: dict[str, Tensor] = field(default_factory=dict)
    plain: Any = None

    def call(self, rows: Tensor | None = None, **options: Any) -> Any:
        chosen = (
            (self.inputs, self.context) if rows is None else take((self.inputs, self.context), rows)
        )
        return self.model(chosen[0], **chosen[1], **options)

    def unroll(self, **options: Any) -> Any:
        with torch.no_grad():
            return self.model.unroll(self.inputs, **self.context, **options)

    def examples(self) -> list[Any]:
        """The rows one by one, as streams take them."""
        return [take((self.inputs, self.context), row) for row in range(ROWS)]


KINDS = (
    "shared",
    "stacked",
    "scheduled",
    "nested",
    "cell",
    "transformer",
    "captured",
    "captured-mask",
)
PER_POSITION = ("token_classification", "span")


def build(
    kind: str,
    task: str = "classification",
    *,
    dtype: torch.dtype = torch.float64,
    per_step: bool = False,
    **options: Any,
) -> Toy:
    """A model of a kind of steps and a task, with weights of a fixed seed that make the exits differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return _build(kind, task, dtype, per_step, options)


def _build(
    kind: str, task: str, dtype: torch.dtype, per_step: bool, options: dict[str, Any]
) -> Toy:
    generator = torch.Generator().manual_seed(5)
    flat, long = (
        torch.randn(*shape, WIDTH, generator=generator, dtype=dtype)
        for shape in ((ROWS,), (ROWS, LENGTH))
    )
    inputs: Any = flat
    context = dict[str, Tensor]()
    parts = dict[str, Any]()
    steps = None
    count = STEPS
    if kind == "shared":
        steps = Tanh()
        plain = _applied(steps, STEPS)
    elif kind == "stacked":
        steps = nn.ModuleList(Tanh() for _ in range(STEPS))
        count = None
        plain = nn.Sequential(*steps)
    elif kind == "scheduled":
        own = [Tanh(), Tanh()]
        steps = ponder.Steps(own, schedule=[0, 0, 1, 0, 1])
        count = None
        plain = nn.Sequential(*(own[place] for place in (0, 0, 1, 0, 1)))
    elif kind == "nested":
        steps, inputs, parts["readout"] = (
            Momentum(),
            (flat, {"velocity": flat.flip(0)}),
            first_of_pair,
        )
        run = _applied(steps, STEPS)
        plain = lambda hidden: run(hidden)[0]  # noqa: E731
    elif kind == "cell":
        steps = Cell()
        stem = CellStem()
        parts["stem"] = stem

        def plain(x: Tensor) -> Tensor:
            return _applied(lambda h: steps.cell(x + stem.bias, h), STEPS)(torch.zeros_like(x))

    elif kind == "transformer":
        steps = transformer_layer()
        inputs = long
        context = {"src_key_padding_mask": padding(ROWS)}
        plain = lambda x, **kw: _applied(lambda h: steps(h, **kw), STEPS)(x)  # noqa: E731
        parts["readout"] = positions if task in PER_POSITION else ponder.readouts.first_token
    else:
        module = nn.TransformerEncoder(
            transformer_layer(), STEPS, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False
        ).to(dtype)
        module = module.eval()
        inputs = long
        context = {"src_key_padding_mask": padding(ROWS)} if kind == "captured-mask" else {}
        captured = ponder.capture(module, {"src": long, **context})
        steps = captured.steps
        count = None
        plain = module
        per_row = task not in PER_POSITION
        parts = {"stem": captured.stem, "padding": captured.padding}
        parts["readout"] = Pooled(captured.readout) if per_row else captured.readout
    outputs = OUTPUTS[task]
    head: nn.Module = nn.Linear(WIDTH, outputs)
    if per_step:
        head = ponder.PerStep([nn.Linear(WIDTH, outputs) for _ in range(STEPS)])
    lambda_head = ponder.LambdaHead(WIDTH, layers=2, history=2)
    for weight in [*head.parameters(), *lambda_head.parameters()]:
        nn.init.normal_(weight, std=0.8)
    with torch.no_grad():
        list(lambda_head.parameters())[-1].fill_(-1.0)
    parts = {"head": head, "lambda_head": lambda_head, "task": task, **parts, **options}
    model = ponder.PonderWrapper(steps, count, **parts).to(dtype).eval()
    return Toy(model, inputs, context, plain)


class Pooled(nn.Module):
    """The first position of what another readout gives."""

    def __init__(self, readout: Any) -> None:
        super().__init__()
        self.readout = readout

    def forward(self, hidden: Any, **context: Any) -> Tensor:
        return self.readout(hidden, **context)[:, 0]


def _applied(step: Any, times: int) -> Any:
    def run(hidden: Any) -> Any:
        for _ in range(times):
            hidden = step(hidden)
        return hidden

    return run


def take(tree: Any, rows: Tensor | int) -> Any:
    """Some rows of nested tensors, or one without its batch dimension."""
    return torch.utils._pytree.tree_map(lambda tensor: tensor[rows], tree)


def answered(outputs: Tensor, task: str = "classification") -> Tensor:
    """Outputs `(rows, …)` or `(rows, steps, …)` in which padding is blank: what stands there is no answer."""
    if task not in PER_POSITION:
        return outputs
    beyond = padding(ROWS).view(ROWS, *[1] * (outputs.dim() - 3), LENGTH, 1)
    return outputs.masked_fill(beyond.to(outputs.device), 0.0)


def labels_for(task: str, rows: int = ROWS, seed: int = 0) -> Tensor:
    """Labels of the type and shape that the task takes; −100 at padding."""
    generator = torch.Generator().manual_seed(seed)
    if task == "classification":
        return torch.randint(0, CLASSES, (rows,), generator=generator)
    if task == "multilabel":
        return torch.randint(0, 2, (rows, OUTPUTS[task]), generator=generator).double()
    if task == "regression":
        return torch.randn(rows, OUTPUTS[task], generator=generator, dtype=torch.float64)
    if task == "token_classification":
        labels = torch.randint(0, CLASSES, (rows, LENGTH), generator=generator)
        return labels.masked_fill(padding(rows), -100)
    return torch.zeros(rows, 2, dtype=torch.long)


def random_trajectory(task: str, rows: int, num_steps: int, scale: float, seed: int) -> Any:
    """Hazards and outputs out of nothing; every third row repeats its answers, so that patience has something."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, num_steps, *((LENGTH,) if task in PER_POSITION else ()), OUTPUTS[task])
    outputs = torch.randn(shape, generator=generator) * scale
    outputs[::3] = outputs[::3, :1] + 0.05 * torch.randn(outputs[::3].shape, generator=generator)
    return ponder.Trajectory(
        outputs=outputs.clamp(-1e4, 1e4),
        hazard_logits=(torch.randn(rows, num_steps, generator=generator) * scale).clamp(-1e4, 1e4),
        row_ids=torch.randint(-(2**62), 2**62, (rows,), generator=generator),
        task=task,
        mask=~padding(rows) if task in PER_POSITION else None,
    )


def rows_of(trajectory: Any) -> list[dict[str, Any]]:
    """The rows of a trajectory, for the oracles; padding is left out."""
    rows = []
    for i in range(len(trajectory)):
        outputs = trajectory.outputs[i].double()
        if trajectory.batch.task.name in PER_POSITION:
            cells = (
                outputs if trajectory.mask is None else outputs[:, trajectory.mask[i]]
            ).tolist()
        else:
            cells = outputs.unsqueeze(1).tolist()
        hazards = trajectory.hazard_logits
        rows.append(
            {
                "outputs": cells,
                "task": trajectory.batch.task.name,
                "row_id": int(trajectory.row_ids[i]),
                "hazard_logits": None if hazards is None else hazards[i].double().tolist(),
            }
        )
    return rows


# -- policies ----------------------------------------------------------------------------------------------------


@policies.register("matrix-rising")
@dataclass(frozen=True)
class Rising(policies.ExitPolicy):
    """A user's own: leave once the hazard has risen, and the largest output with it, `times` times."""

    times: int = 1
    needs = frozenset({"hazard", "output"})

    def init(self, batch: Any) -> Any:
        lowest = torch.full((batch.size,), -torch.inf, dtype=torch.float64)
        return {
            "count": torch.zeros(batch.size, dtype=torch.long),
            "seen": (lowest, lowest.clone()),
        }

    def decide(self, step: Any, state: Any) -> Any:
        now = step.hazard.double(), step.output.double().flatten(1).amax(1)
        risen = (now[0] > state["seen"][0]) & (now[1] > state["seen"][1]) & (step.index > 1)
        count = state["count"] + risen.long()
        return count >= self.times, {"count": count, "seen": now}


@policies.register("matrix-settled")
@dataclass(frozen=True)
class Settled(policies.ThresholdPolicy):
    """A user's own with a threshold and features: leave once they have moved little since the step before."""

    distance: float
    needs = frozenset({"features"})
    tunable = policies.Threshold("distance", "below")

    def statistic(self, step: Any, state: Any) -> Any:
        now = step.features.flatten(1)
        if state is None:
            return torch.full(now.shape[:1], torch.inf, dtype=now.dtype), now
        return (now - state).norm(dim=1), now


CLASSES_ONLY = ("classification", "token_classification")
CASES: list[policies.ExitPolicy] = [
    policies.Quantile(0.5),
    policies.Quantile(0.0),
    policies.Quantile(1.0),
    policies.Bernoulli(seed=3),
    policies.ACT(0.1),
    policies.ACT(0.5) & policies.Quantile(0.3),
    policies.Patience(1, tolerance=0.5),
    policies.Patience(2, tolerance=0.9),
    policies.Converged(patience=1, tolerance=0.5),
    policies.Converged(patience=1, tolerance=0.5, on="features"),
    policies.Converged(patience=2, tolerance=0.1),
    policies.FixedStep(2),
    policies.LastStep(),
    policies.Entropy(0.6),
    policies.Entropy(0.7, normalize=True),
    policies.Confidence(0.7),
    policies.Margin(0.4),
    policies.Energy(0.8),
    policies.Voting(3),
    policies.Quantile(0.6) | policies.Patience(2, tolerance=0.5),
    policies.Quantile(0.3) & policies.Patience(1, tolerance=0.9),
    policies.Patience(1, tolerance=0.9).after(3),
    policies.Bernoulli(seed=5).before(3),
    ((policies.Confidence(0.9) | policies.Voting(2)) & policies.Quantile(0.2)).after(2).before(4),
    Rising(1),
    Settled(1.2),
]
RETIRING = {"certified", "gate", "stage-thresholds", "top-k"}
"""Registered names without a case: what is fitted or made by others, or decides on groups (`tests/rerank`)."""


def leaves(policy: policies.ExitPolicy) -> list[policies.ExitPolicy]:
    """The policies that one is made of."""
    inside = [
        *getattr(policy, "policies", ()),
        *([policy.policy] if hasattr(policy, "policy") else []),
    ]
    return [leaf for part in inside for leaf in leaves(part)] or [policy]


def serves(policy: policies.ExitPolicy, task: str) -> bool:
    of_classes = (
        policies.Entropy,
        policies.Confidence,
        policies.Margin,
        policies.Energy,
        policies.Voting,
    )
    return task in CLASSES_ONLY or not any(isinstance(leaf, of_classes) for leaf in leaves(policy))


PAIRS = [(policy, task) for policy in CASES for task in TASKS if serves(policy, task)]
KIND_OF_TASK = {
    "classification": "shared",
    "regression": "stacked",
    "multilabel": "nested",
    "token_classification": "transformer",
    "span": "transformer",
}


def name(value: Any) -> str:
    return (
        value
        if isinstance(value, str)
        else repr(value).replace("policies=", "").replace("policy=", "")
    )


# -- helpers -----------------------------------------------------------------------------------------------------


@contextmanager
def counted(*modules: nn.Module) -> Iterator[dict[nn.Module, int]]:
    rows = dict.fromkeys(modules, 0)

    def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows[module] += len(torch.utils._pytree.tree_leaves((args, kwargs))[0])

    hooks = [module.register_forward_pre_hook(count, with_kwargs=True) for module in rows]
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()


def reloaded(model: Any, other: Any, path: Path) -> Any:
    """Save a model, and read it into another that was built in the same way."""
    ponder.save(model, path)
    if "into" in inspect.signature(ponder.load).parameters:
        return ponder.load(path, into=other)
    return ponder.load(other, path)
