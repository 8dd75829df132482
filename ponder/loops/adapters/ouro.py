"""Ouro: a stack of layers that is looped, with a gate that is trained against a uniform prior.

Zhu et al. 2025, arXiv 2510.25741. The gate gives hazards λ_n; a token exits at the first step whose
CDF reaches q, and training minimises Σ p_n ℓ_n − β H(p). A uniform prior over N steps gives the
same loss, but for a constant:

    β KL(p ‖ uniform) = β log N − β H(p)

So it is `policies.Quantile(q)`, `objectives.Ponder(beta)` and `priors.Uniform()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn

from ponder._utils.trees import Tree
from ponder.loops.blocks import Stack
from ponder.loops.loop import Loop
from ponder.loops.places import Places
from ponder.policies import Quantile
from ponder.priors import Uniform

__all__ = ["LoopedStack", "ouro_loop"]


class LoopedStack(Stack):
    """One step of a looped stack: every layer once, and the norm behind the last."""

    def __init__(self, layers: Iterable[nn.Module], norm: nn.Module) -> None:
        super().__init__(layers)
        self.norm = norm

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the states after one pass through the stack."""
        normed: Tensor = self.norm(super().forward(hidden, attention_mask))
        return normed

    def positions(
        self, hidden: Tensor, places: Places, kept: Sequence[Tree] | None
    ) -> tuple[Tensor, list[Tree]]:
        """Return the states of the running positions after a pass, and the kept values."""
        after, kept_after = super().positions(hidden, places, kept)
        return self.norm(after), kept_after


def ouro_loop(step: Callable[..., Tensor], head: nn.Module, gate: nn.Linear, q: float) -> Loop:
    """Return the loop of a stack, its language head and its gate, `(width,)` to one logit."""
    return Loop(step, head, gate, policy=Quantile(q), prior=Uniform())
