"""Policies on how sure the head is of a class: entropy (DeeBERT, FastBERT), confidence, margin, energy (COSEE)."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder._utils.trees import Tree
from ponder.errors import ArgumentError
from ponder.parts.signals import energy
from ponder.policies.base import Setting, StepView, check_not_negative, check_unit, registry
from ponder.policies.threshold import Knob, ThresholdPolicy

__all__ = ["Confidence", "Energy", "Entropy", "Margin"]


class _Certainty(ThresholdPolicy):
    """Exit where the class probabilities are sure enough."""

    needs = frozenset({"output"})

    @abstractmethod
    def measure(self, log_probabilities: Tensor) -> Tensor:
        """The statistic, `(batch,)`, of log-probabilities `(batch, classes)`, float32."""

    def check(self, setting: Setting) -> None:
        super().check(setting)
        if setting.task not in (None, "classification", "custom"):
            raise _refusal(self, f"the task {setting.task!r}")

    def statistic(self, step: StepView, state: Tree) -> tuple[Tensor, Tree]:
        output = step.output
        if output.dim() != 2 or output.shape[-1] < 2:
            raise _refusal(self, f"outputs of shape {tuple(output.shape)}")
        return self.measure(F.log_softmax(output.float(), dim=-1)), state


@registry.register("entropy")
@dataclass(frozen=True)
class Entropy(_Certainty):
    r"""Stop once the entropy of the answer, −Σ p log p, is below a threshold (DeeBERT, Xin et al. 2020).

    Args:
        threshold: In nats, ≥ 0; or, with `normalize`, in [0, 1].
        normalize: Divide by log(classes), FastBERT's "uncertainty" (Liu et al. 2020, Eq. 6).
    """

    threshold: float
    normalize: bool = False
    knob = Knob("threshold", "below", high=lambda num_steps, width: max(1.0, math.log(width)))  # normalised or in nats

    def __post_init__(self) -> None:
        if self.normalize:
            check_unit("threshold", self.threshold)
        else:
            check_not_negative("threshold", self.threshold)  # in nats

    def measure(self, log_probabilities: Tensor) -> Tensor:
        p = log_probabilities.exp()
        entropy = -torch.where(p == 0, 0.0, p * log_probabilities).sum(-1)  # 0 log 0 = 0, also for a logit of −inf
        return entropy / math.log(log_probabilities.shape[-1]) if self.normalize else entropy


@registry.register("confidence")
@dataclass(frozen=True)
class Confidence(_Certainty):
    """Stop once the most probable class has more than a threshold of the probability.

    Args:
        threshold: In [0, 1].
    """

    threshold: float
    knob = Knob("threshold", "above")

    def __post_init__(self) -> None:
        check_unit("threshold", self.threshold)

    def measure(self, log_probabilities: Tensor) -> Tensor:
        return log_probabilities.amax(-1).exp()


@registry.register("margin")
@dataclass(frozen=True)
class Margin(_Certainty):
    """Stop once the two most probable classes are further apart than a threshold.

    Args:
        threshold: Difference of probabilities, in [0, 1].
    """

    threshold: float
    knob = Knob("threshold", "above")

    def __post_init__(self) -> None:
        check_unit("threshold", self.threshold)

    def measure(self, log_probabilities: Tensor) -> Tensor:
        best, second = log_probabilities.topk(2, dim=-1).values.exp().unbind(-1)
        return best - second


@registry.register("energy")
@dataclass(frozen=True)
class Energy(ThresholdPolicy):
    """Stop once the normalised energy score is above a threshold.

    The score is σ(log Σ_c exp z_c), one minus that of He et al. 2025 (COSEE, arXiv 2412.13236), so that a surer answer
    has more of it, as with `Confidence`. It looks at the size of the logits, which a softmax forgets.

    Args:
        threshold: In [0, 1].
    """

    threshold: float
    needs = frozenset({"output"})
    knob = Knob("threshold", "above")

    def __post_init__(self) -> None:
        check_unit("threshold", self.threshold)

    def check(self, setting: Setting) -> None:
        super().check(setting)
        if setting.task not in (None, "classification", "custom"):
            raise _refusal(self, f"the task {setting.task!r}")

    def statistic(self, step: StepView, state: Tree) -> tuple[Tensor, Tree]:
        if step.output.dim() != 2 or step.output.shape[-1] < 2:
            raise _refusal(self, f"outputs of shape {tuple(step.output.shape)}")
        return energy(step.output), state


def _refusal(policy: ThresholdPolicy, got: str) -> ArgumentError:
    return ArgumentError(
        "policy",
        expected=f"class logits (batch, classes ≥ 2) under {type(policy).__name__}",
        got=got,
        remedy="One number has no entropy; use policies.Patience with a tolerance, or a policy on the hazard.",
    )
