"""`exits-deep`: the encoder learns too, so that its early steps answer as full depth of what it was before.

Every step is taught by the frozen plain model (Hinton et al. 2015; Geng et al. 2021, RomeBERT): the loss is

    Σ_n n · KL(plain ‖ step n) ÷ Σ_n n,

in which later steps weigh more; where there is a label, the cross-entropy of every step with it is added to its KL.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ponder._utils.progress import progress_bar
from ponder.errors import NonFiniteError
from ponder.integrations.transformers.finetuned import FinetunedClassifier
from ponder.integrations.transformers.prediction import record_rows
from ponder.optim import may_fuse
from ponder.parts.tasks.base import IGNORED_LABEL
from ponder.parts.tasks.distilling import divergence

__all__ = ["answers_of", "check_finite", "train_encoder"]

_WARM_UP = 0.1  # of all updates


def answers_of(
    model: FinetunedClassifier, rows: Sequence[Mapping[str, Any]], batch_size: int
) -> tuple[Tensor, Tensor | None]:
    """What the plain model answers, `(rows, …)`, and which positions count, `(rows, length)`, where there are such."""
    plain = FinetunedClassifier(model.plain)
    with torch.no_grad():
        found = record_rows(plain, list(rows), batch_size=batch_size)  # type: ignore[arg-type]
    return found.outputs[:, -1], found.mask


def train_encoder(
    model: FinetunedClassifier,
    rows: Sequence[Mapping[str, Any]],
    answers: Tensor,
    epochs: int,
    lr: float,
    seed: int,
    batch_size: int,
    progress: bool,
) -> None:
    """Train encoder and early heads; dropout stays off, since what is learned is a function and not labels.

    Args:
        model: Its classifier learns.
        rows: Encodings.
        answers: What the plain model answers to each, `(rows, …)`.
        epochs: Passes.
        lr: Learning rate after a warm-up of a tenth of all updates; it falls to 0 in a straight line.
        seed: Seed of the order in which rows are learned.
        batch_size: Rows of an update.
        progress: Show a progress bar.

    Raises:
        NonFiniteError: A loss or gradient that is NaN or infinite.
    """
    model.classifier.requires_grad_(True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01, fused=may_fuse(model.parameters()))
    batches = -(-len(rows) // batch_size)
    total, generator = epochs * batches, torch.Generator().manual_seed(seed)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda done: min((done + 1) / (_WARM_UP * total + 1), (total - done) / total)
    )
    with progress_bar("encoder", total, shown=progress) as advance, torch.enable_grad():
        for _ in range(epochs):
            for places in torch.randperm(len(rows), generator=generator).split(batch_size):
                optimiser.zero_grad()  # first, since what was trained before may have left gradients
                loss = _loss(model, [rows[place] for place in places.tolist()], answers[places])
                loss.backward()
                check_finite("encoder", loss.detach(), torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
                optimiser.step()
                schedule.step()
                advance(1)
    optimiser.zero_grad()


def check_finite(what: str, loss: Tensor, norm: Tensor) -> None:
    """Refuse a step of the optimiser that is NaN or infinite, before it is made.

    Args:
        what: What learns.
        loss: The loss.
        norm: The norm of its gradient.
    """
    if not math.isfinite(float(loss) + float(norm)):
        raise NonFiniteError(
            f"{what}: expected a finite loss and gradient; got a loss of {float(loss):g}, a gradient of norm "
            f"{float(norm):g}. The weights are those before this step. Look for NaN and infinity in the model and the "
            "labels; a class that is never to be given can have a logit of -1e4 instead of minus infinity."
        )


def _loss(model: FinetunedClassifier, rows: list[Mapping[str, Any]], answers: Tensor) -> Tensor:
    lengths = [len(row[model.main_input_name]) for row in rows]
    tokens = model.main_input_name == "input_ids"
    told = model.ponder.padding is not None if tokens else all(row.get("attention_mask") is not None for row in rows)
    if len(set(lengths)) > 1 and not told:  # what would stand behind a shorter row is read as a part of it
        apart = [[place for place, own in enumerate(lengths) if own == length] for length in sorted(set(lengths))]
        of_length = [len(places) * _loss(model, [rows[place] for place in places], answers[places]) for places in apart]
        return torch.stack(of_length).sum() / len(rows)
    batch = model.collate(rows)
    labels = batch.pop("labels", None)
    outputs = model.unroll(**batch).outputs.float()  # (batch, steps, …)
    length = outputs.shape[2]  # of the batch, where there are answers at positions
    target = (answers[:, :length] if model.kind.task.per_position else answers).to(outputs)
    counted = torch.ones(outputs[:, 0, ..., 0].shape, dtype=torch.bool, device=outputs.device)
    if model.kind.task.per_position and "attention_mask" in batch:
        counted = batch["attention_mask"] != 0
    weights = torch.arange(1.0, model.num_steps + 1, device=outputs.device)
    losses = []
    for own in outputs.unbind(1):
        loss = divergence(own, target, 1.0, -1)[counted].mean()
        if labels is not None and bool((labels != IGNORED_LABEL).any()):  # the mean of none would be NaN
            loss = loss + F.cross_entropy(own.flatten(0, -2), labels.flatten(), ignore_index=IGNORED_LABEL)
        losses.append(loss)
    return (torch.stack(losses) * weights).sum() / weights.sum()
