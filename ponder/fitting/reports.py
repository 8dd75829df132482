"""`EpochReport` and `FitReport`: the results of a training."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EpochReport", "FitReport"]


@dataclass(frozen=True)
class EpochReport:
    """Result of one epoch of training.

    Args:
        stage: Number of the stage, from 1.
        epoch: Number of the epoch in its stage, from 1.
        loss: Mean training loss over the batches.
        score: Score on the held-out data, the higher the better; None without such data.
        exit_step: Mean exit step there.
        kept: Whether its weights were kept at the end of the stage: the best on held-out data, or
            the last.
    """

    stage: int
    epoch: int
    loss: float
    score: float | None = None
    exit_step: float | None = None
    kept: bool = False


@dataclass(frozen=True)
class FitReport:
    """Results of all epochs of a training. `str(report)` is a short table.

    Args:
        epochs: Each epoch of each stage, in order.

    Example:
        >>> from ponder.training import EpochReport, FitReport
        >>> print(FitReport((EpochReport(1, 1, loss=0.7, score=0.81, exit_step=3.2, kept=True),)))
        stage 1, epoch 1: loss 0.7000, score 0.8100 at step 3.20 (kept)
    """

    epochs: tuple[EpochReport, ...]

    @property
    def score(self) -> float | None:
        """The held-out score of the weights that were kept last."""
        return next(epoch.score for epoch in reversed(self.epochs) if epoch.kept)

    def __str__(self) -> str:
        lines = []
        for epoch in self.epochs:
            line = f"stage {epoch.stage}, epoch {epoch.epoch}: loss {epoch.loss:.4f}"
            if epoch.score is not None:
                line += f", score {epoch.score:.4f} at step {epoch.exit_step:.2f}"
            if epoch.kept:
                line += " (kept)"
            lines.append(line)
        return "\n".join(lines)
