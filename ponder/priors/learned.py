r"""A prior that is trained with the model (empirical Bayes, in the sense of maximum marginal likelihood).

    p(n) = softmax_n(log p₀(n) + w_n)

with p₀ the initial prior and w, zero at first, the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from ponder._utils.validation import check_int
from ponder.errors import ArgumentError
from ponder.priors.base import Prior, PriorWeights, registry
from ponder.priors.uniform import Uniform

__all__ = ["Learned"]


class _Logits(PriorWeights):
    """What is added to the log-probabilities of the initial prior, `(steps,)`."""

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(num_steps))


@registry.register("learned")
@dataclass(frozen=True)
class Learned(Prior):
    """A prior with one learnable logit a step.

    The weights are in `module`, which a `PonderWrapper` makes its own: they are among its `parameters()` and in its
    `state_dict()`, move with it, and are saved with it. The hyper-parameters are frozen, and are what equality and
    `to_dict` are about; weights are not. Copies and pickles keep the weights. Weight decay would pull to the
    initial prior; `parameter_groups` spares them, as it does biases.

    Warning:
        A prior that only the KL trains follows the posterior: its best value is the posterior's average over the
        data, and where the posterior is the same for all inputs, the KL vanishes and regularises nothing. The
        likelihood alone then decides where to exit. Start from a prior that you mean, let it learn slowly, and look
        at where it went.

    Args:
        num_steps: N, the only number of steps it serves.
        initial: The prior p₀ that it starts from; uniform where None. It gives every step some probability.

    Example:
        >>> prior = Learned(3)
        >>> model = PonderWrapper(nn.Linear(8, 8), 3, head=nn.Linear(8, 2), lambda_head=LambdaHead(8), prior=prior)
        >>> "prior_weights.logits" in model.state_dict()
        True
        >>> prior(3).pmf.requires_grad
        True
    """

    num_steps: int
    initial: Prior | None = None

    def __post_init__(self) -> None:
        check_int("num_steps", self.num_steps, remedy="Pass the number of steps.")
        if self.initial is not None and self.initial.module is not None:
            raise ArgumentError(
                "initial", expected="a prior that does not learn", got=repr(self.initial), remedy="Pass what it has."
            )
        with torch.device("cpu"):  # read here, so never on the meta device that checkpoints are loaded under
            excluded = bool(self._initial(self.num_steps).isinf().any())
        if excluded:
            raise ArgumentError(
                "initial",
                expected="a prior that gives every step some probability",
                got=repr(self.initial),
                remedy="A step of probability 0 stays at 0 whatever is learnt: give it a little.",
            )
        object.__setattr__(self, "module", _Logits(self.num_steps))

    @property
    def logits(self) -> Tensor:
        """The weights w, `(steps,)`, a parameter."""
        assert isinstance(self.module, _Logits)
        return self.module.logits

    def log_pmf(self, num_steps: int) -> Tensor:
        """See `Prior.log_pmf`; inside the graph of the weights."""
        if num_steps != self.num_steps:
            raise ArgumentError(
                "prior",
                expected=f"a prior over the model's {num_steps} steps",
                got=f"Learned over {self.num_steps}",
                remedy=f"Build it as Learned({num_steps}).",
            )
        logits = self.logits
        precise = torch.float32 if logits.device.type == "mps" else torch.float64  # MPS has no float64
        start = self._initial(num_steps).to(precise).to(logits.device)
        return torch.log_softmax(start + logits.to(precise), dim=-1)

    def rescaled(self, tuned_for: int, num_steps: int) -> Self:
        """A prior for another number of steps is a new one, untrained, that starts from the rescaled initial prior."""
        if num_steps == self.num_steps:
            return self
        return type(self)(num_steps, None if self.initial is None else self.initial.rescaled(tuned_for, num_steps))

    def _initial(self, num_steps: int) -> Tensor:
        return (self.initial or Uniform()).log_pmf(num_steps)
