"""Heads: the Lambda head, which gives hazards, and a head for each step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from ponder._utils.checks import check_choice
from ponder.errors import ArgumentError
from ponder.recipes import Recipe

__all__ = ["LambdaHead", "PerStep", "make_heads", "next_input"]


class LambdaHead(nn.Module):
    r"""Hazard of a step from the features of the last steps: λ_n = σ(Λ([f_n, f_{n−1}, …])).

    One layer on one step is PonderNet's (Banino et al. 2021); three layers with tanh on two steps
    is PALBERT's (Section 3.2, Eq. 3).

    Args:
        width: Size of the features of one step.
        layers: Number of linear layers, ≥ 1.
        history: How many steps' features are concatenated, newest first, ≥ 1.
        initial: The features of steps before the first: ``"stem"``, the readout of the stem's
            output h_0 (Eq. 3), or ``"zeros"``.
        dropout: Probability of dropping an input of the head, in [0, 1).
        widening: The width of the layers between, in widths of a feature, ≥ 1: 2 is that of
            PALBERT's released code, for two steps.
        detach: Whether the head learns without moving the encoder: no gradient flows from the
            hazards into the features.
        start: The hazard around which a new head starts, in (0, 1). 0.5 leaves the last bias as
            PyTorch draws it. With the prior's hazard the divergence from the prior starts near 0;
            with a small one, training starts at deep exits.

    Shape: features of `history` steps, concatenated, `(batch, history · width)` → hazard logits
        `(batch,)`.

    Example:
        >>> head = LambdaHead(4, layers=3, history=2)
        >>> model = PonderWrapper(
        ...     nn.Linear(4, 4), num_steps=3, head=nn.Linear(4, 2), lambda_head=head
        ... )
        >>> model.eval().unroll(torch.randn(5, 4)).hazard_logits.shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        width: int,
        layers: int = 1,
        history: int = 1,
        *,
        initial: Literal["stem", "zeros"] = "stem",
        dropout: float = 0.0,
        start: float = 0.5,
        widening: int = 1,
        detach: bool = False,
    ) -> None:
        super().__init__()
        check_choice("initial", initial, ("stem", "zeros"))
        self.width = width
        self.history = history
        self.initial = initial
        self.detach = detach
        size = width * history
        modules: list[nn.Module] = [nn.Dropout(dropout)]
        for _ in range(layers - 1):
            modules += [nn.Linear(size, width * widening), nn.Tanh()]
            size = width * widening
        last = nn.Linear(size, 1)
        self.start_logit = math.log(start) - math.log1p(-start)
        with torch.no_grad():
            last.bias.add_(self.start_logit)
        self.layers = nn.Sequential(*modules, last)

    def forward(self, features: Tensor) -> Tensor:
        """Hazard logits, `(batch,)`, from concatenated features, `(batch, history · width)`."""
        if self.detach:
            features = features.detach()
        logits: Tensor = rearrange(self.layers(features), "... 1 -> ...")
        return logits

    def before_first_step(self, features: Tensor) -> Tensor:
        """Return what counts as the input before step 1, `(batch, history · width)`.

        Args:
            features: The readout of the stem's output, `(batch, width)`.
        """
        past = torch.cat([features] * self.history, dim=-1)
        if self.initial == "zeros":
            return torch.zeros_like(past)
        return past


def next_input(newest: Tensor, past: Tensor) -> Tensor:
    """Return the input of a Lambda head at a step, `(batch, history · width)`, the newest first.

    Args:
        newest: The features of the step, `(batch, width)`.
        past: The input at the step before, whose oldest features are dropped.
    """
    return torch.cat([newest, past[:, : -newest.shape[1]]], dim=-1)


class PerStep(nn.Module):
    """One head for each step, as in PABEE, DeeBERT and FastBERT; a plain head is shared by all.

    Args:
        heads: The heads, as many modules as the model has steps, all distinct.

    Raises:
        ArgumentError: A module is given twice: it would be a shared head.

    Example:
        >>> heads = PerStep(nn.Linear(4, 2) for _ in range(3))
        >>> heads(torch.randn(5, 4), 2).shape  # the head of step 2
        torch.Size([5, 2])
    """

    def __init__(self, heads: Iterable[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        if len(set(map(id, self.heads))) != len(self.heads) or not len(self.heads):
            got = "no module"
            if len(self.heads):
                got = "the same module more than once"
            remedy = (
                "Build each one: PerStep(nn.Linear(768, 2) for _ in range(12)); a shared head "
                "needs no PerStep."
            )
            raise ArgumentError(
                "heads", expected="distinct modules, one for each step", got=got, remedy=remedy
            )

    def __len__(self) -> int:
        return len(self.heads)

    def forward(self, features: Tensor, step: int | Sequence[int]) -> Tensor:
        """Return the outputs of a step (1-based); a list gives the step of each row."""
        if isinstance(step, int):
            outputs: Tensor = self.heads[step - 1](features)
            return outputs
        step_of_row = torch.tensor(step, device=features.device)
        rows_at = {each: (step_of_row == each).nonzero().flatten() for each in set(step)}
        outputs = torch.cat(
            [self.heads[each - 1](features[rows]) for each, rows in rows_at.items()]
        )
        return outputs[torch.argsort(torch.cat(list(rows_at.values())))]


def make_heads(
    recipe: Recipe, width: int, num_outputs: int, num_steps: int, dropout: float = 0.1
) -> tuple[nn.Module, LambdaHead | None]:
    """Return the head of a recipe (dropout and a linear layer), and its Lambda head, if any."""

    def make_head() -> nn.Module:
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(width, num_outputs))

    head = PerStep(make_head() for _ in range(num_steps)) if recipe.per_step_heads else make_head()
    spec = recipe.lambda_head
    if spec is None:
        return head, None
    return head, LambdaHead(
        width,
        spec.layers,
        spec.history,
        initial=spec.initial,
        dropout=spec.dropout,
        start=spec.hazard(recipe.prior, num_steps),
        widening=spec.widening,
        detach=spec.detach,
    )
