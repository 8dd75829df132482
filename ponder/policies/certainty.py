"""Policies on the certainty of the head: entropy (DeeBERT, FastBERT), confidence, margin, energy.

If an example has an answer at each of its positions (token classification), it exits once its
least certain position is certain enough; padding does not count. Logits may be NumPy arrays or
tensors.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from ponder._utils.arrays import at_least_float32, namespace, sigmoid, softmax, weighted
from ponder._utils.checks import check_real
from ponder.errors import ArgumentError
from ponder.policies.base import (
    Array,
    ModelSpec,
    PolicyState,
    StepView,
    Threshold,
    ThresholdPolicy,
)

__all__ = [
    "SIGNALS",
    "Confidence",
    "Energy",
    "Entropy",
    "Margin",
    "OfClasses",
    "class_logits",
    "confidence",
    "energy",
    "margin",
    "negative_entropy",
]


def confidence(logits: Array) -> Array:
    """Return the probability of the most probable class, `(…)`, of class logits `(…, classes)`."""
    return namespace(logits).amax(softmax(logits), -1)


def margin(logits: Array) -> Array:
    """Return the difference of the two highest class probabilities, `(…)`."""
    probabilities = softmax(logits)
    if namespace(logits) is np:
        two = np.partition(probabilities, -2, axis=-1)
        return two[..., -1] - two[..., -2]
    best, second = probabilities.topk(2, dim=-1).values.unbind(-1)
    return best - second


def negative_entropy(logits: Array) -> Array:
    """Return the negative entropy of the class probabilities, Σ p log p, in [−log(classes), 0]."""
    probabilities = softmax(logits)
    xp = namespace(logits)
    # 0 log 0 = 0: the surest rows have zeros, and their entropy would be NaN.
    logarithms = xp.log(xp.where(probabilities > 0, probabilities, 1.0))
    return weighted(probabilities, logarithms).sum(-1)


def energy(logits: Array) -> Array:
    """Return the normalised energy score of COSEE, turned to grow with certainty, in [0, 1].

    The score of the paper (He et al. 2025) is 1 / (1 + Σ_c exp z_c). This is one minus it, σ(log
    Σ_c exp z_c). It is NaN if a logit is +∞: an overflow is not certainty.
    """
    logits = at_least_float32(logits)
    xp = namespace(logits)
    top = xp.amax(logits, -1)
    return sigmoid(top + xp.log(xp.exp(logits - top[..., None]).sum(-1)))


SIGNALS: Mapping[str, Callable[[Array], Array]] = MappingProxyType(
    {
        "confidence": confidence,
        "margin": margin,
        "negative_entropy": negative_entropy,
        "energy": energy,
    }
)
"""Certainties of a class by name. All grow with certainty and are finite for finite logits."""


class OfClasses(ThresholdPolicy):
    """Base of the policies that read the logits of classes at every step."""

    needs = frozenset({"output"})

    def check(self, spec: ModelSpec) -> None:
        super().check(spec)
        if not spec.task.classes:
            raise _no_classes(self, f"the task {spec.task.name!r}")


class _Certainty(OfClasses):
    """Exit once the class probabilities are certain enough."""

    tunable = Threshold("threshold", "above")
    threshold: float

    def __post_init__(self) -> None:
        check_real("threshold", self.threshold, 0.0, 1.0)

    @abstractmethod
    def measure(self, logits: Array) -> Array:
        """Return the statistic, `(…,)`, of class logits `(…, classes)`, in at least float32."""

    def statistic(self, step: StepView, state: PolicyState) -> tuple[Array, PolicyState]:
        value = self.measure(class_logits(self, step))
        if value.ndim == 1:
            return value, state
        # The least sure position decides: the lowest certainty, or the highest entropy.
        xp = namespace(value)
        if self.tunable.higher_exits_later:
            least_sure = xp.amin
            surest = math.inf
        else:
            least_sure = xp.amax
            surest = -math.inf
        if step.mask is not None:
            value = xp.where(step.mask, value, surest)
        return least_sure(value, 1), state


@dataclass(frozen=True)
class Entropy(_Certainty):
    r"""Stop once the entropy of the answer, −Σ p log p, is below a threshold (DeeBERT).

    See Xin et al. 2020.

    Args:
        threshold: The entropy below which a row exits, in nats, ≥ 0; or, with `normalize`, in [0,
            1].
        normalize: Divide by log(classes), FastBERT's "uncertainty" (Liu et al. 2020, Eq. 7).

    Example:
        >>> scores = torch.tensor([[[0.0, 0.5], [0.0, 2.0], [0.0, 4.0]]])
        >>> record = Trajectory(scores, None, torch.arange(1))
        >>> record.replay(policies.Entropy(0.4)).exit_step
        tensor([2])
        >>> record.replay(policies.Entropy(0.95, normalize=True)).exit_step  # of log(classes)
        tensor([2])
    """

    threshold: float
    normalize: bool = False
    tunable = Threshold(
        "threshold", "below", high=lambda num_steps, width: max(1.0, math.log(width))
    )

    def __post_init__(self) -> None:
        highest = 1.0 if self.normalize else math.inf
        check_real("threshold", self.threshold, 0.0, highest)

    def measure(self, logits: Array) -> Array:
        entropy = -negative_entropy(logits)
        if not self.normalize:
            return entropy
        return entropy / math.log(logits.shape[-1])


@dataclass(frozen=True)
class Confidence(_Certainty):
    """Stop once the most probable class has more than a threshold of the probability.

    Args:
        threshold: The probability above which a row exits, in [0, 1].

    Example:
        >>> scores = torch.tensor([[[0.0, 0.5], [0.0, 2.0], [0.0, 4.0]]])
        >>> record = Trajectory(scores, None, torch.arange(1))
        >>> record.outputs.softmax(-1).amax(-1)
        tensor([[0.6225, 0.8808, 0.9820]])
        >>> record.replay(policies.Confidence(0.8)).exit_step
        tensor([2])
    """

    threshold: float
    measure = staticmethod(confidence)


@dataclass(frozen=True)
class Margin(_Certainty):
    """Stop once the two highest class probabilities differ by more than a threshold.

    Args:
        threshold: Difference of probabilities, in [0, 1].

    Example:
        >>> scores = torch.tensor([[[0.0, 0.5], [0.0, 2.0], [0.0, 4.0]]])
        >>> record = Trajectory(scores, None, torch.arange(1))
        >>> record.replay(policies.Margin(0.7)).exit_step
        tensor([2])
    """

    threshold: float
    measure = staticmethod(margin)


@dataclass(frozen=True)
class Energy(_Certainty):
    """Stop once the normalised energy score is above a threshold.

    The score is σ(log Σ_c exp z_c), one minus that of He et al. 2025 (COSEE, arXiv 2412.13236), so
    that it grows with certainty, as `Confidence` does. It depends on the size of the logits, which
    a softmax discards.

    Args:
        threshold: The score above which a row exits, in [0, 1].

    Example:
        >>> scores = torch.tensor([[[0.0, 0.5], [0.0, 2.0], [0.0, 4.0]]])
        >>> record = Trajectory(scores, None, torch.arange(1))
        >>> record.replay(policies.Energy(0.85)).exit_step
        tensor([2])
    """

    threshold: float
    measure = staticmethod(energy)


def class_logits(policy: ThresholdPolicy, step: StepView) -> Array:
    """Return the outputs of a step, if they are logits of two or more classes."""
    output = step.output
    if not step.task.fits(output):
        raise _no_classes(policy, f"outputs of shape {tuple(output.shape)}")
    return output


def _no_classes(policy: ThresholdPolicy, got: str) -> ArgumentError:
    expected = f"class logits (batch, classes ≥ 2) under {type(policy).__name__}"
    remedy = (
        "Without classes use policies.Patience (with a tolerance for numbers), or a policy on the "
        "hazard."
    )
    return ArgumentError("policy", expected=expected, got=got, remedy=remedy)
