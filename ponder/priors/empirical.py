r"""A prior counted on what a model does: the share of examples whose answer is settled at each step.

    p(n) = (c_n + s) / (Σ_m c_m + s N)

with c_n the examples settled at step n and s the smoothing (additive smoothing).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from ponder._utils.validation import check_choice, check_real
from ponder.errors import ArgumentError
from ponder.parts.recording import Recording, check_evaluated
from ponder.parts.tasks import hard_labels
from ponder.priors.base import registry
from ponder.priors.tabulated import Tabulated

__all__ = ["Empirical"]

_RULES = ("stays_right", "stays_same")


@registry.register("empirical")
@dataclass(frozen=True)
class Empirical(Tabulated):
    """The prior whose probabilities p(n) were counted by `fit`.

    Args:
        probabilities: Non-negative and summing to 1; as many as the model has steps.

    Example:
        >>> outputs = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]])  # says class 1, then class 0 twice
        >>> trajectory = ponder.Trajectory(outputs, None, torch.tensor([0]), task="classification")
        >>> Empirical.fit(trajectory, rule="stays_same", smoothing=0.5)
        Empirical(probabilities=(0.2, 0.6, 0.2))
    """

    @classmethod
    def fit(
        cls,
        trajectory: Recording,
        rule: Literal["stays_right", "stays_same"] = "stays_right",
        smoothing: float = 1.0,
    ) -> Self:
        """Count at which step the answers of a full-depth run are settled.

        Answers are the largest output in classification, the set of outputs > 0 in multilabel.

        Args:
            trajectory: What `PonderWrapper.unroll` recorded, or several joined with `Trajectory.cat`.
            rule: ``"stays_right"``: the first step from which on the answer is right to the end (an example that is
                wrong at the end counts for the last step). ``"stays_same"``: the first step from which on the
                answer is the last step's; needs no labels.
            smoothing: Added to the count of every step, > 0, so that no step is excluded.

        Raises:
            ArgumentError: No rows, a run of training mode, no labels where the rule needs them, an unknown rule, or
                another task.
        """
        check_choice("rule", rule, _RULES)
        check_real("smoothing", smoothing, open_low=True)
        if not len(trajectory):
            raise ArgumentError(
                "trajectory", expected="at least one row", got="none", remedy="Unroll the model on examples first."
            )
        check_evaluated(trajectory)
        settled = _settled(_holds(trajectory, rule))
        counts = torch.bincount(settled - 1, minlength=trajectory.num_steps).to("cpu", torch.float64) + smoothing
        return cls(tuple((counts / counts.sum()).tolist()))


def _holds(trajectory: Recording, rule: str) -> Tensor:
    """Whether the answer of each step is what the rule asks for, `(batch, steps)` bool."""
    outputs, labels, task = trajectory.outputs, trajectory.labels, trajectory.meaning
    numbers = trajectory.task is None and (outputs.shape[-1] < 2 or (labels is not None and labels.is_floating_point()))
    if outputs.dim() != 3 or not task.comparable or task.per_token or numbers:
        raise ArgumentError(
            "trajectory",
            expected="one answer an example: the task 'classification' or 'multilabel'",
            got=f"outputs of shape {tuple(outputs.shape)} and the task {trajectory.task!r}",
            remedy="Name the task when you build the model, or count the steps yourself and pass them to Categorical.",
        )
    if rule == "stays_same":
        return trajectory.agreement()
    shape = task.predictions(outputs[:, 0]).shape
    hard = hard_labels(labels) if labels is not None and task.one_class else labels
    if labels is None or hard is None or hard.shape != shape:
        raise ArgumentError(
            "trajectory",
            expected=f"labels {tuple(shape)} for the rule 'stays_right'",
            got="none" if labels is None else f"shape {tuple(labels.shape)}",
            remedy="Pass labels=… to unroll, or fit with rule='stays_same'.",
        )
    return trajectory.correct()


def _settled(holds: Tensor) -> Tensor:
    """The step, 1-based `(batch,)`, from which on `holds` `(batch, steps)` is true; the last where it never is."""
    num_steps = holds.shape[1]
    length_of_end = holds.flip(1).long().cumprod(1).sum(1)
    return (num_steps - length_of_end + 1).clamp(max=num_steps)
