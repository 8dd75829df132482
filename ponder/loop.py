"""The one loop: it advances rows step by step, asks the policy, and lets finished rows leave at once.

Training, inference and replay are the same loop over different sources. A `Source` holds the rows that are still
running and answers for the step they stand at; `ModelSource` computes (and only what is asked for),
`trajectory.RecordedSource` looks up what a full-depth run recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ponder.errors import ArgumentError, NonFiniteError
from ponder.heads import LambdaHead, PerStep
from ponder.policies.base import Batch, ExitPolicy, StepView
from ponder.precision import at_least_float32
from ponder.readouts import ReadoutCall
from ponder.rows import Tree, all_rows, check_rows, take_rows, tensors, unwrap
from ponder.steps import Steps

__all__ = ["Exits", "ModelSource", "Parts", "Record", "Source", "run"]


@dataclass(frozen=True)
class Exits:
    """What left the loop, in the order of the batch.

    Args:
        outputs: The head's outputs at each row's exit, `(batch, …)`.
        exit_step: The step at which each row left, `(batch,)` long, 1-based.
    """

    outputs: Tensor
    exit_step: Tensor


class Source(Protocol):
    """The rows still running, at the step they stand at."""

    def advance(self, step: int) -> None:
        """Bring all running rows to `step`."""

    def features(self) -> Tensor:
        """Features of the running rows, `(rows, …)`."""

    def output(self) -> Tensor:
        """Outputs of the running rows, `(rows, …)`."""

    def hazard_logit(self) -> Tensor:
        """Hazard logits of the running rows, `(rows,)`, at least float32."""

    def output_of(self, index: Tensor | None) -> Tensor:
        """Outputs of the rows `index` among the running (None: all), computed for no others."""

    def keep(self, index: Tensor) -> None:
        """Go on with the rows `index` among the running."""


class Record(Protocol):
    """Told of every step by the loop, before anyone leaves."""

    def add(self, source: Source) -> None:
        """Take what is wanted of the step at which `source` stands."""


def run(source: Source, policy: ExitPolicy, batch: Batch, record: Record | None = None) -> Exits:
    """Run all rows of a batch to their exits.

    Args:
        source: The rows. An empty batch must not come here.
        policy: Who decides; it has been checked against the model.
        batch: Who the rows are, and how many steps there are.
        record: Told of every step, for a policy that lets nobody leave early.

    Returns:
        Outputs and exit steps, in the order of the batch.
    """
    rows, state = all_rows(batch.size, batch.device), policy.init(batch)
    log_survival = torch.zeros(batch.size, device=batch.device)
    left: list[tuple[Tensor, Tensor, int]] = []
    for step in range(1, batch.num_steps + 1):
        source.advance(step)
        if record is not None:
            record.add(source)
        if step == batch.num_steps:
            break
        view, log_survival = _look(source, policy.needs, step, batch, rows, log_survival)
        mask, state = policy.decide(view, state)
        check_rows("policy state", state, rows.shape[0])
        leaving, staying = _split(policy, mask, rows)
        if leaving is None:
            continue
        if staying is None:
            break
        left.append((rows[leaving], source.output_of(leaving), step))
        rows, state, log_survival = take_rows((rows, state, log_survival), staying)
        source.keep(staying)
    left.append((rows, source.output_of(None), step))
    return _in_order(left, batch.size)


def _look(
    source: Source, needs: frozenset[str], step: int, batch: Batch, rows: Tensor, log_survival: Tensor
) -> tuple[StepView, Tensor]:
    """What the policy sees, and log P(not stopped by the end of this step)."""
    readings: dict[str, Tensor] = {}
    if "hazard" in needs:
        logit = source.hazard_logit()
        readings["hazard"], readings["survival"] = logit.sigmoid(), log_survival.exp()
        log_survival = log_survival.to(logit.dtype) + F.logsigmoid(-logit)
        readings["cdf"] = -torch.expm1(log_survival)
    if "output" in needs:
        readings["output"] = source.output()
    if "features" in needs:
        readings["features"] = source.features()
    return StepView(torch.full_like(rows, step), batch.num_steps, readings, batch.task), log_survival


def _split(policy: ExitPolicy, mask: Tensor | bool, rows: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Positions that leave and that stay; None where there are none. One synchronisation, or none for a bool."""
    if isinstance(mask, bool):
        return (rows, None) if mask else (None, rows)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != rows.shape:
        got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ArgumentError(
            f"exit mask of {policy!r}",
            expected=f"bool, shape {tuple(rows.shape)}: one answer for each running row",
            got=got,
            remedy="Compare per row, and reduce over every dimension but the first.",
        )
    order = torch.argsort(mask, stable=True)
    stays = int(rows.shape[0] - mask.sum())
    return order[stays:] if stays < rows.shape[0] else None, order[:stays] if stays else None


def _in_order(left: list[tuple[Tensor, Tensor, int]], batch: int) -> Exits:
    """Put what left at different steps back into the order of the batch."""
    if len(left) == 1:
        rows, outputs, step = left[0]
        return Exits(outputs, torch.full_like(rows, step))
    order = torch.argsort(torch.cat([rows for rows, _, _ in left]))
    steps = torch.cat([torch.full_like(rows, step) for rows, _, step in left])
    return Exits(torch.cat([outputs for _, outputs, _ in left])[order], steps[order])


@dataclass(frozen=True)
class Parts:
    """The parts of a wrapped model that the loop calls.

    Args:
        steps: The steps.
        readout: Hidden state to features.
        head: Features to outputs, shared or `PerStep`.
        lambda_head: Concatenated features to hazard logits, or None.
        check_finite: Whether to look for NaN and infinity after every step.
    """

    steps: Steps
    readout: ReadoutCall
    head: nn.Module
    lambda_head: Any
    check_finite: bool = False


@dataclass
class ModelSource:
    """Rows whose steps are computed; features, outputs and hazards once, and only when asked for.

    Args:
        parts: The model.
        hidden: h_0, the stem's output, for the whole batch.
        context: What every step is called with, besides the hidden state.
        use_hazard: Whether hazards will be asked for (then the past features that they read are kept).
    """

    parts: Parts
    hidden: Tree
    context: Mapping[str, Any]
    use_hazard: bool
    step: int = 0
    _past: list[Tensor] = field(default_factory=list)
    _cache: dict[str, Tensor] = field(default_factory=dict)
    _rows: Tensor | None = None

    def __post_init__(self) -> None:
        if self.parts.check_finite:
            self._rows = torch.arange(check_rows("hidden", self.hidden))
        head: LambdaHead | None = self.parts.lambda_head
        if self.use_hazard and head is not None and head.history > 1:
            features = self.features()
            first = features if head.initial == "stem" else torch.zeros_like(features)
            self._past = [first] * (head.history - 1)
            self._cache.clear()

    def advance(self, step: int) -> None:
        """See `Source.advance`."""
        if self.step > 0 and self._past:
            self._past = [self.features(), *self._past[:-1]]
        self._cache.clear()
        self.step = step
        rows = check_rows("hidden", self.hidden)
        self.hidden = self.parts.steps(step, self.hidden, **unwrap(self.context))
        check_rows(f"hidden state returned by step {step}", self.hidden, rows)
        if self._rows is not None:
            _check_finite(self.hidden, step, self._rows)

    def features(self) -> Tensor:
        """See `Source.features`."""
        if "features" not in self._cache:
            self._cache["features"] = self.parts.readout(self.hidden, self.context)
        return self._cache["features"]

    def output(self) -> Tensor:
        """See `Source.output`."""
        if "output" not in self._cache:
            self._cache["output"] = self._head(self.features())
        return self._cache["output"]

    def hazard_logit(self) -> Tensor:
        """See `Source.hazard_logit`."""
        if "hazard" not in self._cache:
            logit: Tensor = self.parts.lambda_head(torch.cat([self.features(), *self._past], dim=-1))
            self._cache["hazard"] = at_least_float32(logit)
        return self._cache["hazard"]

    def output_of(self, index: Tensor | None) -> Tensor:
        """See `Source.output_of`."""
        if index is None:
            return self.output()
        if "output" in self._cache:
            return self._cache["output"][index]
        if "features" in self._cache:
            return self._head(self._cache["features"][index])
        return self._head(self.parts.readout(take_rows(self.hidden, index), take_rows(self.context, index)))

    def keep(self, index: Tensor) -> None:
        """See `Source.keep`."""
        self.hidden, self.context, self._past = take_rows((self.hidden, self.context, self._past), index)
        self._cache = {"features": self._cache["features"][index]} if self._past else {}
        if self._rows is not None:
            self._rows = self._rows[index.cpu()]

    def _head(self, features: Tensor) -> Tensor:
        head = self.parts.head
        outputs: Tensor = head(features, self.step) if isinstance(head, PerStep) else head(features)
        return outputs


def _check_finite(hidden: Tree, step: int, rows: Tensor) -> None:
    for path, tensor in tensors(hidden, "hidden"):
        if tensor.is_floating_point():
            bad = ~tensor.unsqueeze(-1).flatten(1).isfinite().all(1)  # one number a row is a state too
            if bool(bad.any()):
                raise NonFiniteError(
                    f"step {step} produced NaN or infinity in {path}, rows {rows[bad.cpu()].tolist()} of the "
                    f"batch. Look at these inputs, the learning rate, or the precision."
                )
