"""Heads: the Lambda head that gives hazards, and one head for each step where heads are not shared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from ponder._utils.validation import check_choice, check_int, check_real, check_share
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.parts.callables import as_module
from ponder.parts.gradients import rescaled_gradient

__all__ = [
    "ACTIVATIONS",
    "LAMBDA_HEADS",
    "HazardLayer",
    "LambdaHead",
    "NormPerStep",
    "PerStep",
    "as_head",
    "as_lambda_head",
    "not_the_rows",
]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU}
"""What may stand between the layers of a Lambda head, by name."""


class LambdaHead(nn.Module):
    r"""The hazard of a step from the features of the last few: λ_n = σ(Λ([f_n, f_{n−1}, …])).

    One layer on one step is PonderNet's (Banino et al. 2021); three layers with tanh on two steps is PALBERT's
    (Section 3.2, Eq. 3).

    Args:
        width: Size of the features of one step.
        layers: Number of linear layers, ≥ 1.
        history: How many steps' features are concatenated, newest first, ≥ 1.
        initial: What stands for steps before the first: ``"stem"``, the readout of the stem's output h_0 (the
            paper's Eq. 3), or ``"zeros"``.
        activation: Between the layers: ``"tanh"``, ``"relu"`` or ``"gelu"``.
        dropout: Probability of dropping an input of a layer, in [0, 1).
        start: About what hazard a new head gives, in (0, 1); 0.5 leaves the last bias as PyTorch draws it. The
            prior's hazard is a start from which the divergence has nothing to repair; a small one is a deep start, from
            which halting begins late.

    Shape:
        features of `history` steps, concatenated, `(batch, history · width)` → hazard logits `(batch,)`.

    Example:
        >>> head = LambdaHead(4, layers=3, history=2)
        >>> model = PonderWrapper(nn.Linear(4, 4), num_steps=3, head=nn.Linear(4, 2), lambda_head=head)
        >>> model.eval().unroll(torch.randn(5, 4)).hazard_logits.shape
        torch.Size([5, 3])
    """

    activation: str | None = None  # of those that were pickled before it was kept

    def __init__(
        self,
        width: int,
        layers: int = 1,
        history: int = 1,
        *,
        initial: Literal["stem", "zeros"] = "stem",
        activation: Literal["tanh", "relu", "gelu"] = "tanh",
        dropout: float = 0.0,
        start: float = 0.5,
    ) -> None:
        super().__init__()
        for argument, count in (("width", width), ("layers", layers), ("history", history)):
            check_int(argument, count)
        check_choice("initial", initial, ("stem", "zeros"))
        check_choice("activation", activation, ACTIVATIONS)
        check_real("dropout", dropout, 0.0, 1.0, open_high=True)
        check_share("start", start)
        self.width, self.history, self.initial, self.activation = width, history, initial, activation
        sizes = [width * history] + [width] * (layers - 1)
        modules: list[nn.Module] = []
        for size in sizes[:-1]:
            modules += [nn.Dropout(dropout), nn.Linear(size, width), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*modules, nn.Dropout(dropout), HazardLayer(sizes[-1], start))

    def choices(self) -> dict[str, str | None]:
        """What no weight tells, and yet makes hazards: `activation` and `initial`; None where it changes nothing."""
        return {
            "activation": None if len(self.layers) == 2 else self.activation,  # dropout and one linear layer
            "initial": None if self.history == 1 else self.initial,
        }

    def forward(self, features: Tensor) -> Tensor:
        """Hazard logits, `(batch,)`, from concatenated features, `(batch, history · width)`."""
        if features.dim() != 2 or features.shape[-1] != self.width * self.history:
            raise ArgumentError(
                "width of the Lambda head",
                expected=f"features (batch, {self.width}) from the readout at each of {self.history} steps",
                got=f"concatenated features of shape {tuple(features.shape)}",
                remedy="Give LambdaHead the width of what it reads, and a readout that pools to (batch, width); where "
                "the answers are not pooled, pass halting_readout=ponder.readouts.mean, say.",
            )
        logits: Tensor = self.layers(features)
        return rearrange(logits, "batch 1 -> batch")


class HazardLayer(nn.Linear):
    """The last layer of a Lambda head: its bias starts at the logit of a hazard, `start_logit`.

    Args:
        width: Size of what it reads.
        start: The hazard, in (0, 1).
    """

    def __init__(self, width: int, start: float) -> None:
        super().__init__(width, 1)
        self.start_logit = math.log(start) - math.log1p(-start)
        with torch.no_grad():
            self.bias.add_(self.start_logit)


class PerStep(nn.Module):
    """One head for each step (PABEE, DeeBERT, FastBERT), where a plain head is shared by all.

    Args:
        heads: The heads, as many modules as the model has steps, all distinct.
        gradient_scales: Factors by which the gradient of each head is multiplied where it leaves the head for the
            steps, as `ponder.parts.gradients.equilibrium(num_steps)` has it; the heads themselves learn as always. 1
            where None.

    Raises:
        ArgumentTypeError: One of them is no head.
        ArgumentError: The same module stands in two places, which would be a shared head after all.

    Example:
        >>> heads = PerStep(nn.Linear(4, 2) for _ in range(3))
        >>> heads(torch.randn(5, 4), 2).shape  # the head of step 2
        torch.Size([5, 2])
    """

    steps_in_one_call = False  # each step has its own

    def __init__(self, heads: Iterable[nn.Module], gradient_scales: Iterable[float] | None = None) -> None:
        super().__init__()
        if not isinstance(heads, Iterable):
            raise ArgumentTypeError(
                "heads",
                expected="modules, one for each step",
                got=type(heads).__name__,
                remedy="Build them: PerStep(nn.Linear(768, 2) for _ in range(12)).",
            )
        given = list(heads)
        if len({id(head) for head in given}) != len(given) or not given:
            raise ArgumentError(
                "heads",
                expected="distinct modules, one for each step",
                got="the same module more than once" if given else "no module",
                remedy="Build each one: PerStep(nn.Linear(768, 2) for _ in range(12)); a shared head needs no PerStep.",
            )
        made = [_as_one("heads", head) for head in given]
        scales = (1.0,) * len(made) if gradient_scales is None else tuple(gradient_scales)
        if len(scales) != len(made):
            raise ArgumentError(
                "gradient_scales",
                expected=f"one for each of {len(made)} heads",
                got=len(scales),
                remedy="Pass ponder.parts.gradients.equilibrium(num_steps), say.",
            )
        for scale in scales:
            check_real("gradient_scales", scale)
        self.heads = nn.ModuleList(made)
        self.gradient_scales = scales

    def __len__(self) -> int:
        return len(self.heads)

    def forward(self, features: Tensor, step: int | Sequence[int]) -> Tensor:
        """The outputs of step `step` (1-based), or of the step of each row, where rows stand at different ones."""
        if not isinstance(step, int):
            return self._each_at_its_step(features, step)
        if not 1 <= step <= len(self.heads):
            raise ArgumentError(
                "step",
                expected=f"a step from 1 to {len(self.heads)}",
                got=step,
                remedy="Steps are counted from 1.",
            )
        if self.training:
            features = rescaled_gradient(features, self.gradient_scales[step - 1])
        return self._at(features, step)

    def start_as_last(self) -> None:
        """Make the heads of all steps but the last copies of the last one."""
        *early, last = self.heads
        for each in early:
            each.load_state_dict(last.state_dict())

    def _at(self, features: Tensor, step: int) -> Tensor:
        outputs: Tensor = self.heads[step - 1](features)
        return outputs

    def _each_at_its_step(self, features: Tensor, steps: Sequence[int]) -> Tensor:
        """Send every row through the head of its own step."""
        rows: dict[int, list[int]] = {}
        for row, step in enumerate(steps):
            rows.setdefault(step, []).append(row)
        if len(rows) == 1:
            return self.forward(features, steps[0])
        if len(steps) != features.shape[0]:
            raise ArgumentError(
                "step",
                expected=f"a step for each of {features.shape[0]} rows",
                got=f"{len(steps)} steps",
                remedy="Pass one number for all rows, or one for each.",
            )
        places = [torch.tensor(of_step, device=features.device) for of_step in rows.values()]
        outputs = torch.cat([self.forward(features[of_step], step) for step, of_step in zip(rows, places, strict=True)])
        return outputs[torch.argsort(torch.cat(places))]


class NormPerStep(PerStep):
    """One head that all steps share, behind a layer norm that each step but the last has of its own.

    It has hardly more weights than a shared head, and lets every step bring its features to the scale that the head of
    the last one reads.

    Args:
        head: The shared head.
        width: Size of the features, ≥ 1.
        num_steps: N, ≥ 1.
        gradient_scales: As for `PerStep`.

    Raises:
        ArgumentTypeError: `head` is no head, or has one for each step.
        ArgumentError: A number is out of range; later, features of another width.

    Example:
        >>> heads = NormPerStep(nn.Linear(4, 2), width=4, num_steps=3)
        >>> heads(torch.randn(5, 4), 2).shape, sum(weight.numel() for weight in heads.parameters())
        (torch.Size([5, 2]), 26)
    """

    def __init__(
        self,
        head: Callable[..., Tensor],
        width: int,
        num_steps: int,
        gradient_scales: Iterable[float] | None = None,
    ) -> None:
        check_int("width", width)
        check_int("num_steps", num_steps)
        shared = _as_one("head", head)
        super().__init__([*(nn.LayerNorm(width) for _ in range(num_steps - 1)), shared], gradient_scales)
        self.width = width

    def start_as_last(self) -> None:
        """Leave the norms as they are: what they lead to is the last head already."""

    def _at(self, features: Tensor, step: int) -> Tensor:
        if features.shape[-1:] != (self.width,):
            raise ArgumentError(
                "width of NormPerStep",
                expected=f"features (…, {self.width})",
                got=f"features of shape {tuple(features.shape)}",
                remedy="Pass the width of what the readout gives.",
            )
        outputs = super()._at(features, step)
        return outputs if step == len(self) else super()._at(outputs, len(self))


def as_head(head: Callable[..., Tensor], num_steps: int) -> nn.Module:
    """A head that can be called, and has one part for each step where it is `PerStep`."""
    if not isinstance(head, PerStep):
        return _as_one("head", head)
    if len(head) != num_steps:
        raise ArgumentError(
            "head",
            expected=f"one head for each of {num_steps} steps",
            got=f"{len(head)} heads",
            remedy="Match them.",
        )
    return head


def _as_one(argument: str, head: Callable[..., Tensor]) -> nn.Module:
    """A head of one step, or of all of them, as a module."""
    empty = isinstance(head, nn.Module) and getattr(head.forward, "__func__", None) is nn.Module.forward
    if not callable(head) or empty or isinstance(head, PerStep):  # empty: a list of modules has no forward, say
        raise ArgumentTypeError(
            argument,
            expected="a module features -> outputs",
            got=type(head).__name__,
            remedy="Pass nn.Linear(…), say; for one head a step, head=ponder.PerStep([…]) of the model.",
        )
    return as_module(argument, head)


def not_the_rows(output: object, rows: int) -> ArgumentError:
    """The refusal of outputs that are not one tensor with a row for each row of features."""
    got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    return ArgumentError(
        "outputs of the head",
        expected=f"one tensor with the batch first, ({rows}, …)",
        got=got,
        remedy="Return one tensor; where there are several answers, concatenate them, and take them apart in the task.",
    )


def as_lambda_head(head: nn.Module) -> LambdaHead | _PlainLambda:
    """A user's own module as a Lambda head on one step's features."""
    if isinstance(head, LambdaHead | _PlainLambda):
        return head
    if isinstance(head, PerStep):
        raise ArgumentTypeError(
            "lambda_head",
            expected="one module shared by all steps",
            got="PerStep",
            remedy="Share the Lambda head; PerStep is for the head.",
        )
    if not isinstance(head, nn.Module):
        raise ArgumentTypeError(
            "lambda_head",
            expected="ponder.LambdaHead or a module features (batch, width) -> hazard logits (batch,)",
            got=type(head).__name__,
            remedy="Pass ponder.LambdaHead(width).",
        )
    return _PlainLambda(head)


class _PlainLambda(nn.Module):
    """A module of the user's that reads one step's features."""

    history = 1
    initial = "zeros"

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, features: Tensor) -> Tensor:
        logits: Any = self.module(features)
        if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.numel() != features.shape[0]:
            raise ArgumentError(
                "lambda_head",
                expected=f"one hazard logit for each of {features.shape[0]} rows",
                got=f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__,
                remedy="Return (batch,) or (batch, 1).",
            )
        return torch.flatten(logits)


LAMBDA_HEADS = (LambdaHead, _PlainLambda)
