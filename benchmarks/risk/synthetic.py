"""Trajectories whose risk is known in closed form."""

from __future__ import annotations

import torch

import ponder

__all__ = ["LAST_ERROR", "draw", "true_mean_exit_step", "true_risk"]

LAST_ERROR = 0.1


def draw(rows: int, generator: torch.Generator) -> ponder.Trajectory:
    """Rows of a two-step model with two classes.

    Step 1 stops with hazard s ~ U(0, 1) and is wrong with probability (1 − s)/2; step 2 is wrong with probability 0.1,
    whatever s is and whatever step 1 said.
    """
    sure = torch.rand(rows, generator=generator)
    labels = torch.randint(2, (rows,), generator=generator)
    wrong = torch.rand(rows, 2, generator=generator) < torch.stack([(1 - sure) / 2, torch.full((rows,), LAST_ERROR)], 1)
    answers = labels.unsqueeze(1) ^ wrong.long()
    return ponder.Trajectory(
        outputs=torch.nn.functional.one_hot(answers, 2).float(),
        hazard_logits=torch.stack([sure.logit(eps=1e-7), torch.zeros(rows)], dim=1),
        row_ids=torch.arange(rows),
        labels=labels,
        task="classification",
    )


def true_risk(risk: str, q: float | None, *, signed: bool = True) -> float:
    """The risk of Q-exit at q; of full depth where q is None.

    A row leaves at step 1 where s > q, so every risk is an integral over s from q to 1.

    Args:
        risk: ``"disagreement"``, ``"error"`` or ``"error_gap"``.
        q: The threshold.
        signed: Whether an error that the early exit avoids counts as −1 in the gap, or as 0.
    """
    out = 0.0 if q is None else 1.0 - q
    early = out**2 / 4  # ∫ (1 − s)/2
    if risk == "disagreement":
        return early * (1 - LAST_ERROR) + (out - early) * LAST_ERROR
    if risk == "error":
        return early + (1 - out) * LAST_ERROR
    return early - out * LAST_ERROR if signed else early * (1 - LAST_ERROR)


def true_mean_exit_step(q: float | None) -> float:
    """Mean exit step of Q-exit at q."""
    return 2.0 if q is None else 2.0 - (1.0 - q)
