"""What `ponder.fit` tells when it is done."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["EpochReport", "FitReport", "StageReport"]


@dataclass(frozen=True)
class EpochReport:
    """What one epoch of training came to.

    Args:
        epoch: Its number in its stage, from 1.
        loss: Mean training loss over the batches.
        expected_steps: Mean of the halting distribution in training; None without a Lambda head, and where the
            objective draws the steps or ends before the last.
        score: Score on the held-out data at the exits, the higher the better; None where there were none.
        exit_step: Mean exit step on the held-out data, likewise.
        score_of_steps: The mean of the scores of all steps there, where it chooses the epoch (`fit(select=…)`); else
            None.

    Example:
        >>> EpochReport(epoch=1, loss=0.7, score=0.81, exit_step=3.2).score
        0.81
    """

    epoch: int
    loss: float
    expected_steps: float | None = None
    score: float | None = None
    exit_step: float | None = None
    score_of_steps: float | None = None

    @property
    def chooses(self) -> float | None:
        """The score by which the epoch is compared with others."""
        return self.score if self.score_of_steps is None else self.score_of_steps


@dataclass(frozen=True)
class StageReport:
    """One stage of the recipe.

    Args:
        objective: The objective, as JSON.
        trained: What was trained, as `ponder.recipes.Stage.train`.
        epochs: Each epoch that ran.
        best_epoch: The epoch whose weights were kept: the best on held-out data, or the last.
        seconds: How long it took.
        mixed: Score on the held-out data once the weights of that epoch were mixed with those before the stage; None
            where nothing was mixed (`ponder.recipes.Stage.mixing`), or there were no such data.

    Example:
        >>> epochs = EpochReport(1, loss=0.7, score=0.81), EpochReport(2, loss=0.5, score=0.84)
        >>> StageReport(objectives.FinalStep().to_dict(), "all", epochs, best_epoch=2, seconds=60.0).best.score
        0.84
    """

    objective: dict[str, Any]
    trained: str
    epochs: tuple[EpochReport, ...]
    best_epoch: int
    seconds: float
    mixed: float | None = None

    @property
    def best(self) -> EpochReport:
        """The epoch whose weights were kept."""
        return self.epochs[self.best_epoch - 1]


@dataclass(frozen=True)
class FitReport:
    """All stages. `str(report)` is a short table.

    Args:
        stages: Each stage, in order.
        metric: What the score is; None without held-out data.

    Example:
        >>> epochs = (EpochReport(1, loss=0.7, score=0.81),)
        >>> stage = StageReport(objectives.FinalStep().to_dict(), "all", epochs, 1, 60.0)
        >>> print(FitReport((stage,), metric="accuracy"))
        stage 1 of 1: final-step, 60 s
          epoch 1: loss 0.7000, accuracy 0.8100  (kept)
    """

    stages: tuple[StageReport, ...]
    metric: str | None

    @property
    def score(self) -> float | None:
        """The held-out score of the model as it is now."""
        last = self.stages[-1]
        return last.best.score if last.mixed is None else last.mixed

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def __str__(self) -> str:
        lines = []
        for number, stage in enumerate(self.stages, start=1):
            lines.append(f"stage {number} of {len(self.stages)}: {stage.objective['name']}, {stage.seconds:.0f} s")
            for epoch in stage.epochs:
                told = [f"loss {epoch.loss:.4f}"]
                told += [] if epoch.expected_steps is None else [f"expected step {epoch.expected_steps:.2f}"]
                told += [] if epoch.score is None else [f"{self.metric} {epoch.score:.4f}"]
                told += [] if epoch.exit_step is None else [f"exit step {epoch.exit_step:.2f}"]
                told += [] if epoch.score_of_steps is None else [f"mean of all steps {epoch.score_of_steps:.4f}"]
                kept = "  (kept)" if epoch.epoch == stage.best_epoch else ""
                lines.append(f"  epoch {epoch.epoch}: {', '.join(told)}{kept}")
            if stage.mixed is not None:
                lines.append(f"  mixed with the weights before: {self.metric} {stage.mixed:.4f}")
        return "\n".join(lines)
