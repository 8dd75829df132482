"""Heads: the Lambda head that gives hazards, and one head for each step where heads are not shared."""

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

__all__ = ["LambdaHead", "PerStep", "make_heads"]


class LambdaHead(nn.Module):
    r"""Hazard of a step from the features of the last few: λ_n = σ(Λ([f_n, f_{n−1}, …])).

    One layer on one step is PonderNet's (Banino et al. 2021); three layers with tanh on two steps
    is PALBERT's (Section 3.2, Eq. 3).

    Args:
        width: Size of the features of one step.
        layers: Number of linear layers, ≥ 1.
        history: How many steps' features are concatenated, newest first, ≥ 1.
        initial: What stands for steps before the first: ``"stem"``, the readout of the stem's
            output h_0 (the paper's Eq. 3), or ``"zeros"``.
        dropout: Probability of dropping an input of a layer, in [0, 1).
        start: About what hazard a new head gives, in (0, 1); 0.5 leaves the last bias as PyTorch
            draws it. The prior's hazard is a start from which the divergence has nothing to repair;
            a small one is a deep start.

    Shape: features of `history` steps, concatenated, `(batch, history · width)` → hazard logits
        `(batch,)`.

    Example:
        >>> head = LambdaHead(4, layers=3, history=2)
        >>> model = PonderWrapper(nn.Linear(4, 4), num_steps=3, head=nn.Linear(4, 2), lambda_head=head)
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
    ) -> None:
        super().__init__()
        check_choice("initial", initial, ("stem", "zeros"))
        self.width, self.history, self.initial = width, history, initial
        sizes = [width * history] + [width] * (layers - 1)
        modules: list[nn.Module] = []
        for size in sizes[:-1]:
            modules += [nn.Dropout(dropout), nn.Linear(size, width), nn.Tanh()]
        last, self.start_logit = nn.Linear(sizes[-1], 1), math.log(start) - math.log1p(-start)
        with torch.no_grad():
            last.bias.add_(self.start_logit)
        self.layers = nn.Sequential(*modules, nn.Dropout(dropout), last)

    def forward(self, features: Tensor) -> Tensor:
        """Hazard logits, `(batch,)`, from concatenated features, `(batch, history · width)`."""
        logits: Tensor = rearrange(self.layers(features), "... 1 -> ...")
        return logits


class PerStep(nn.Module):
    """One head for each step (PABEE, DeeBERT, FastBERT), where a plain head is shared by all.

    Args:
        heads: The heads, as many modules as the model has steps, all distinct.

    Raises:
        ArgumentError: The same module stands in two places, which would be a shared head after all.

    Example:
        >>> heads = PerStep(nn.Linear(4, 2) for _ in range(3))
        >>> heads(torch.randn(5, 4), 2).shape  # the head of step 2
        torch.Size([5, 2])
    """

    def __init__(self, heads: Iterable[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        if len(set(map(id, self.heads))) != len(self.heads) or not len(self.heads):
            got = "the same module more than once" if len(self.heads) else "no module"
            remedy = "Build each one: PerStep(nn.Linear(768, 2) for _ in range(12)); a shared head needs no PerStep."
            raise ArgumentError(
                "heads", expected="distinct modules, one for each step", got=got, remedy=remedy
            )

    def __len__(self) -> int:
        return len(self.heads)

    def forward(self, features: Tensor, step: int | Sequence[int]) -> Tensor:
        """Return the outputs of step `step` (1-based), or of the step of each row, where rows stand at several."""
        if isinstance(step, int):
            outputs: Tensor = self.heads[step - 1](features)
            return outputs
        at = torch.tensor(step, device=features.device)
        rows = {own: (at == own).nonzero().flatten() for own in set(step)}
        outputs = torch.cat([self.heads[own - 1](features[places]) for own, places in rows.items()])
        return outputs[torch.argsort(torch.cat(list(rows.values())))]


def make_heads(
    recipe: Recipe, width: int, num_outputs: int, num_steps: int, dropout: float = 0.1
) -> tuple[nn.Module, LambdaHead | None]:
    """Return a recipe's head (dropout, then linear; one a step where it wants so) and its Lambda head."""

    def head() -> nn.Module:
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(width, num_outputs))

    made = PerStep(head() for _ in range(num_steps)) if recipe.per_step_heads else head()
    spec = recipe.lambda_head
    if spec is None:
        return made, None
    start = spec.hazard(recipe.prior, num_steps)
    return made, LambdaHead(width, spec.layers, spec.history, initial=spec.initial, start=start)
