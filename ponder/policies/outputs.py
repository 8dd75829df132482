"""Policies on how sure the head is of a class: entropy (DeeBERT, FastBERT), confidence, margin, energy.

Where an example has an answer at each of its positions (token classification), it leaves once its least sure position
is sure enough; padding does not count.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ponder._utils.trees import Tree
from ponder._utils.validation import check_flag, check_real
from ponder.errors import ArgumentError
from ponder.parts.signals import confidence, energy, margin, negative_entropy
from ponder.policies.base import ModelSpec, StepView, ThresholdPolicy, has_classes, registry
from ponder.policies.threshold import Threshold

__all__ = ["Confidence", "Energy", "Entropy", "Margin"]


class _Certainty(ThresholdPolicy):
    """Exit where the class probabilities are sure enough."""

    needs = frozenset({"output"})

    @abstractmethod
    def measure(self, logits: Tensor) -> Tensor:
        """The statistic, `(…,)`, of class logits `(…, classes)`, in at least float32."""

    def check(self, spec: ModelSpec) -> None:
        super().check(spec)
        if not has_classes(spec, self):
            raise self._refusal(f"the task {spec.task.name!r}", spec.task.numbers)

    def statistic(self, step: StepView, state: Tree) -> tuple[Tensor, Tree]:
        output = step.output
        if not step.task.fits(output):
            raise self._refusal(f"outputs of shape {tuple(output.shape)}", numbers=True)
        value = self.measure(output)
        if value.dim() == 1:
            return value, state
        unsure = -torch.inf if self.tunable.higher_exits_later else torch.inf
        if step.mask is not None:
            value = torch.where(step.mask, value, -unsure)
        return (value.amin(1) if self.tunable.higher_exits_later else value.amax(1)), state

    def _refusal(self, got: str, numbers: bool) -> ArgumentError:
        patience = "One number has no entropy; use policies.Patience with a tolerance" if numbers else "Use Patience"
        return ArgumentError(
            "policy",
            expected=f"class logits (batch, classes ≥ 2) under {type(self).__name__}",
            got=got,
            remedy=f"{patience}, or a policy on the hazard.",
        )


@registry.register("entropy")
@dataclass(frozen=True)
class Entropy(_Certainty):
    r"""Stop once the entropy of the answer, −Σ p log p, is below a threshold (DeeBERT, Xin et al. 2020).

    Args:
        threshold: The entropy below which a row leaves, in nats, ≥ 0; or, with `normalize`, in [0, 1].
        normalize: Divide by log(classes), FastBERT's "uncertainty" (Liu et al. 2020, Eq. 7).

    Example:
        >>> record = Trajectory(torch.tensor([[[0.0, 0.5], [0.0, 2.0], [0.0, 4.0]]]), None, torch.arange(1))
        >>> record.replay(policies.Entropy(0.4)).exit_step
        tensor([2])
        >>> record.replay(policies.Entropy(0.95, normalize=True)).exit_step  # as a share of log(classes)
        tensor([2])
    """

    threshold: float
    normalize: bool = False
    tunable = Threshold("threshold", "below", high=lambda num_steps, width: max(1.0, math.log(width)))

    def __post_init__(self) -> None:
        check_flag("normalize", self.normalize)
        check_real("threshold", self.threshold, 0.0, 1.0 if self.normalize else math.inf)

    def measure(self, logits: Tensor) -> Tensor:
        entropy = -negative_entropy(logits)
        return entropy / math.log(logits.shape[-1]) if self.normalize else entropy


@registry.register("confidence")
@dataclass(frozen=True)
class Confidence(_Certainty):
    """Stop once the most probable class has more than a threshold of the probability.

    Args:
        threshold: The probability above which a row leaves, in [0, 1].

    Example:
        >>> record = Trajectory(torch.tensor([[[0.0, 0.5], [0.0, 2.0], [0.0, 4.0]]]), None, torch.arange(1))
        >>> record.outputs.softmax(-1).amax(-1)
        tensor([[0.6225, 0.8808, 0.9820]])
        >>> record.replay(policies.Confidence(0.8)).exit_step
        tensor([2])
    """

    threshold: float
    tunable = Threshold("threshold", "above")

    def __post_init__(self) -> None:
        check_real("threshold", self.threshold, 0.0, 1.0)

    measure = staticmethod(confidence)


@registry.register("margin")
@dataclass(frozen=True)
class Margin(_Certainty):
    """Stop once the two most probable classes are further apart than a threshold.

    Args:
        threshold: Difference of probabilities, in [0, 1].

    Example:
        >>> record = Trajectory(torch.tensor([[[0.0, 0.5], [0.0, 2.0], [0.0, 4.0]]]), None, torch.arange(1))
        >>> record.replay(policies.Margin(0.7)).exit_step
        tensor([2])
    """

    threshold: float
    tunable = Threshold("threshold", "above")

    def __post_init__(self) -> None:
        check_real("threshold", self.threshold, 0.0, 1.0)

    measure = staticmethod(margin)


@registry.register("energy")
@dataclass(frozen=True)
class Energy(_Certainty):
    """Stop once the normalised energy score is above a threshold.

    The score is σ(log Σ_c exp z_c), one minus that of He et al. 2025 (COSEE, arXiv 2412.13236), so that a surer answer
    has more of it, as with `Confidence`. It looks at the size of the logits, which a softmax forgets.

    Args:
        threshold: The score above which a row leaves, in [0, 1].

    Example:
        >>> record = Trajectory(torch.tensor([[[0.0, 0.5], [0.0, 2.0], [0.0, 4.0]]]), None, torch.arange(1))
        >>> record.replay(policies.Energy(0.85)).exit_step
        tensor([2])
    """

    threshold: float
    tunable = Threshold("threshold", "above")

    def __post_init__(self) -> None:
        check_real("threshold", self.threshold, 0.0, 1.0)

    measure = staticmethod(energy)
