"""Alternating training: the last step's loss and that of all steps take turns (BERxiT)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ponder._utils.validation import check_type
from ponder.objectives.base import Composite, Objective, Unrolled, check_same_steps, registry
from ponder.objectives.progress import Progress

__all__ = ["Alternating"]


@registry.register("alternating")
@dataclass(frozen=True)
class Alternating(Composite):
    """`even` at the even steps of the optimiser, `odd` at the odd ones, counted from 0.

    BERxiT (Xin et al. 2021, "BERxiT: Early Exiting for BERT with Better Fine-Tuning and Extension to Regression",
    Section 3.1) alternates the loss of the last classifier with the sum of all N, so that the last one is trained as
    well as without early exits: ``Alternating(FinalStep(), N * DeepSupervision("uniform"))``, since deep supervision is
    a mean here; without N, the odd steps weigh as much as the even ones.

    Args:
        even: The objective of steps 0, 2, 4, ….
        odd: The objective of steps 1, 3, 5, ….

    Example:
        >>> model.objective = Alternating(objectives.FinalStep(), objectives.DeepSupervision("uniform"))
        >>> model.progress = ponder.Progress(step=1, total=100)  # an odd step of the optimiser: the loss of all steps
        >>> model.train()(inputs, labels=labels).loss.shape
        torch.Size([])
    """

    even: Objective
    odd: Objective

    def __post_init__(self) -> None:
        check_type("even", self.even, Objective)
        check_type("odd", self.odd, Objective)
        check_same_steps(self.even, self.odd)

    @property
    def parts(self) -> tuple[Objective, ...]:
        """Both."""
        return self.even, self.odd

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """What either reads, and how far training has come."""
        return super().needs | {"progress"}

    def at(self, progress: Progress | None) -> Objective:
        """The objective whose turn it is; both where nobody said how far training has come."""
        return self if progress is None else (self.odd if progress.step % 2 else self.even).at(progress)

    def per_example(self, unrolled: Unrolled) -> Tensor:
        assert unrolled.progress is not None  # `check_batch` saw to it
        return self.at(unrolled.progress).per_example(unrolled)
