"""The one loop: it advances rows step by step, asks the policy, and lets finished rows exit at once.

A `ModelSource` holds the rows that are still running, and computes what is asked for at the step they stand at. `run`
takes one batch from its first step to its last, `unroll` takes all rows through every step, and a stream calls the same
`ask` with rows at different depths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder._utils.trees import Tree, check_rows, first_tensor, take_rows, unwrap
from ponder.errors import ArgumentError
from ponder.model.heads import LambdaHead, PerStep
from ponder.model.readouts import mean
from ponder.objectives import Depth
from ponder.policies.base import ExitPolicy, PolicyBatch, StepView
from ponder.tasks import fits_positions

__all__ = ["Exits", "ModelSource", "Running", "ask", "call_stem", "run", "unroll"]


@dataclass(frozen=True, eq=False)
class Exits:
    """The outputs and the exit step of each row, in the order of the batch or the data set.

    Args:
        outputs: The head's outputs at each row's exit, `(rows, …)`.
        exit_step: The step at which each row exits, `(rows,)` long, 1-based.

    Example:
        >>> exits = trajectory.replay(policies.Confidence(0.9))
        >>> exits.exit_step[:4], exits.outputs.shape
        (tensor([1, 2, 3, 1]), torch.Size([300, 3]))
    """

    outputs: Tensor
    exit_step: Tensor

    def __len__(self) -> int:
        return len(self.exit_step)


def call_stem(
    stem: Callable[..., Tree] | None, inputs: Tree, context: Mapping[str, Any]
) -> tuple[Tree, Mapping[str, Any], int]:
    """Call the stem, the identity where None, and return h_0, the context of the steps, and the number of rows.

    A pair whose second item is a dict is read as (hidden, context).
    """
    hidden = inputs if stem is None else stem(inputs, **(unwrap(context) if context else {}))
    if (
        stem is not None
        and isinstance(hidden, tuple)
        and len(hidden) == 2
        and isinstance(hidden[1], dict)
    ):
        hidden, context = hidden
    size = check_rows("inputs" if stem is None else "hidden state returned by the stem", hidden)
    if context:
        check_rows("context", context, size)
    return hidden, context, size


@dataclass
class ModelSource:
    """The running rows, whose steps are computed: features, outputs and hazards once, when asked for."""

    parts: Any  # a `ponder.PonderWrapper`
    hidden: Tree  # h_0 at first
    context: Mapping[str, Any]  # arguments of every step besides the hidden state
    use_hazard: bool  # whether hazards will be asked for, and past features are kept
    step: int = 0
    past: Tensor | None = (
        None  # what the Lambda head read of the last step, `(rows, …)`, where it has a history
    )
    mask: Tensor | None = (
        None  # `(rows, length)` bool, where outputs or features have positions: no padding
    )
    policy_context: Mapping[str, Tensor] = field(default_factory=dict)
    at: Sequence[int] | None = (
        None  # the step of each row after `advance`, where they differ (in a stream)
    )
    _cache: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = (
            self.parts
        )  # looked up once a call: the attributes of a module that are modules are slow to find
        self.run_step: Callable[..., Tree] = parts.steps.forward
        """From the number of a step, the hidden state and the context to the hidden state after that step."""
        self._head, self.lambda_head, self._readout = parts.head, parts.lambda_head, parts.readout
        self.heads = list(parts.head.heads) if isinstance(parts.head, PerStep) else None
        self.device = (
            self.hidden if isinstance(self.hidden, Tensor) else first_tensor(self.hidden)
        ).device
        self._bind_context()
        head = self.lambda_head
        if (
            self.past is None
            and self.use_hazard
            and isinstance(head, LambdaHead)
            and head.history > 1
        ):
            past = torch.cat([self.halting()] * head.history, dim=-1)
            self.past = past if head.initial == "stem" else torch.zeros_like(past)

    def advance(self, step: int) -> None:
        """Bring all running rows to `step`."""
        self._cache.clear()
        self.step = step
        at = None if self.at is None else torch.tensor(self.at, device=self.device)
        self.hidden = self.run_step(step, self.hidden, at, **self._call)

    def features(self) -> Tensor:
        """Return the features of the running rows, `(rows, …)`."""
        if "features" not in self._cache:
            self._cache["features"] = self._read(self.hidden)
        return self._cache["features"]

    def output(self) -> Tensor:
        """Return the outputs of the running rows, `(rows, …)`."""
        if "output" not in self._cache:
            if "features" not in self._cache:  # in line, since it is what most steps do
                self._cache["features"] = self._read(self.hidden)
            self._cache["output"] = self.answer(self._cache["features"])
        return self._cache["output"]

    def output_of(self, index: Tensor) -> Tensor:
        """Return the outputs of the rows `index` among the running; the head is called for no others."""
        rows = torch.as_tensor(index, device=self.device)
        return (
            self._cache["output"][rows]
            if "output" in self._cache
            else self.answer(self.features()[rows], rows)
        )

    def hazard_logit(self) -> Tensor:
        """Return the hazard logits of the running rows, `(rows,)`, at least float32."""
        if "hazard" not in self._cache:
            read = self.halting()
            logit: Tensor = self.lambda_head(read).reshape(-1)
            self.past = None if self.past is None else read
            self._cache["hazard"] = logit.to(torch.promote_types(logit.dtype, torch.float32))
        return self._cache["hazard"]

    def halting(self) -> Tensor:
        """Return what the Lambda head reads: features, newest first; of positions a `LambdaHead` reads the mean."""
        now = self.features()
        if now.dim() > 2 and isinstance(self.lambda_head, LambdaHead):
            now = mean(now, self.mask)
        return now if self.past is None else torch.cat([now, self.past[:, : -now.shape[1]]], -1)

    def keep(self, index: Tensor) -> None:
        """Go on with the rows `index` among the running; row numbers are given on the host."""
        parts = (self.hidden, self.context, self.past, self.mask, self.policy_context)
        parts = take_rows(parts, torch.as_tensor(index, device=self.device))
        self.hidden, self.context, self.past, self.mask, self.policy_context = parts
        if self.context:
            self._bind_context()

    def answer(self, features: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the outputs of the running `rows` (None: all) from their features."""
        if self.heads is None:
            outputs = self._head(features)
        elif self.at is None:
            outputs = self.heads[self.step - 1](features)
        else:
            outputs = self._head(
                features, self.at if rows is None else [self.at[row] for row in rows.tolist()]
            )
        if not isinstance(outputs, Tensor) or outputs.shape[:1] != features.shape[:1]:
            expected = f"one tensor with the batch first, ({features.shape[0]}, …)"
            got = (
                f"shape {tuple(outputs.shape)}"
                if isinstance(outputs, Tensor)
                else type(outputs).__name__
            )
            remedy = (
                "Return one tensor; concatenate several answers, and take them apart in the task."
            )
            raise ArgumentError("outputs of the head", expected=expected, got=got, remedy=remedy)
        return outputs

    def _bind_context(self) -> None:
        """Make what steps and the readout are called with; it serves as long as the rows stay."""
        self._call = unwrap(self.context) if self.context else {}
        self._read = self._readout.bind(self._call)


class Running(NamedTuple):
    """The state of the running rows besides their hidden states: a tree, batch first."""

    step: Tensor  # that each row has finished, `(rows,)` long; 0 before the first
    state: Tree  # of the policy
    log_survival: (
        Tensor | None
    )  # log P(not stopped so far), `(rows,)`, where the policy reads hazards

    @classmethod
    def start(cls, policy: ExitPolicy, batch: PolicyBatch) -> Running:
        """Return the state of rows before their first step."""
        step = torch.zeros_like(batch.row_ids)
        return cls(step, policy.init(batch), step.float() if "hazard" in policy.needs else None)


def run(source: ModelSource, policy: ExitPolicy, batch: PolicyBatch) -> Exits:
    """Run all rows of a batch to their exits, under a policy that has been checked against the model."""
    num_steps, device = batch.num_steps, batch.row_ids.device
    if not batch.row_ids.shape[0]:  # the last head, on h_0, gives the outputs a shape
        source.step = num_steps
        return Exits(source.output(), torch.zeros_like(batch.row_ids))
    running, rows = Running.start(policy, batch), None
    exited: list[tuple[int, Tensor, Tensor]] = []
    together = policy.exit_of_all(
        num_steps
    )  # such a run is one graph for torch.compile: nothing depends on the rows
    for step in range(1, num_steps + 1):
        source.advance(step)
        if step == (together or num_steps):
            break
        if together is not None:
            continue
        mask, running = ask(source, policy, running, batch)
        if isinstance(mask, bool):
            if mask:
                break
            continue
        exiting, remaining = mask.nonzero().flatten(), (~mask).nonzero().flatten()
        rows = torch.arange(mask.shape[0]) if rows is None else rows
        exited.append((step, rows[exiting], source.output_of(exiting)))
        rows, running = rows[remaining], take_rows(running, remaining.to(device))
        source.keep(remaining)
    outputs = source.output()
    if rows is None:
        return Exits(outputs, torch.full(batch.row_ids.shape, step, device=device))
    steps, numbers, answers = zip(*exited, (step, rows, outputs), strict=True)
    order = torch.argsort(torch.cat(numbers))
    exit_step = torch.tensor(steps).repeat_interleave(torch.tensor(list(map(len, numbers))))
    return Exits(torch.cat(answers)[order.to(device)], exit_step[order].to(device))


def ask(
    source: ModelSource,
    policy: ExitPolicy,
    running: Running,
    batch: PolicyBatch,
    asked: Tensor | None = None,
) -> tuple[Tensor | bool, Running]:
    """Ask the policy about rows that have just finished a step before their last, `asked` where others are at theirs.

    Returns:
        The exit mask, `(rows,)` bool on the host (the one synchronisation of a step), or one bool where all rows exit
        or none; and the state of the rows after the step.
    """
    index, needs, log_survival, task = (
        running.step + 1,
        policy.needs,
        running.log_survival,
        batch.task,
    )
    readings: dict[str, Any] = {}
    if log_survival is not None:
        logit = source.hazard_logit()
        readings["hazard"], readings["survival"] = logit.sigmoid(), log_survival.exp()
        log_survival = log_survival.to(logit.dtype) + F.logsigmoid(-logit)
        readings["cdf"] = -torch.expm1(log_survival)
    if "output" in needs:
        outputs = source.output().clone()  # a policy that writes into it changes no answer
        readings["output"] = (
            outputs if source.mask is None else task.without_padding(outputs, source.mask)
        )
    if "features" in needs:
        readings["features"] = source.features().clone()
    context = source.policy_context if needs & {"context", "group"} else None
    mask, state = source.mask, running.state
    if (
        mask is not None
        and not task.per_position
        and not fits_positions(mask, readings.get("features"))
    ):
        mask = None
    if asked is not None:
        index, readings, mask, context, state, log_survival = take_rows(
            (index, readings, mask, context, state, log_survival), asked
        )
    exits, state = policy.decide(
        StepView(index, batch.num_steps, readings, task, mask, context), state
    )
    running = Running(index, state, log_survival)
    if isinstance(exits, bool):
        return exits, running
    if not isinstance(exits, Tensor) or exits.dtype != torch.bool or exits.shape != index.shape:
        expected = f"bool, shape ({len(index)},): one answer for each running row"
        got = (
            f"{exits.dtype} {tuple(exits.shape)}"
            if isinstance(exits, Tensor)
            else type(exits).__name__
        )
        remedy = "Compare per row, and reduce over every dimension but the first."
        raise ArgumentError(f"exit mask of {policy!r}", expected=expected, got=got, remedy=remedy)
    exits = exits.cpu()
    some = bool(exits.any())
    return exits if some and not bool(exits.all()) else some, running


def unroll(
    source: ModelSource, depth: Depth, *, keep_features: bool = False
) -> dict[str, Tensor | None]:
    """Run all steps for all rows and return `outputs`, `hazard_logits` and `features`, `(batch, steps, …)` or None.

    The steps of the warm-up come first, without a gradient and unrecorded. A shared head that reads pooled features,
    and the Lambda head, are called once with the rows of all steps, which takes less time.
    """
    with torch.no_grad():
        for _ in range(depth.warm_up):
            source.advance(source.step + 1)
            source.past = None if source.past is None else source.halting()
    if (
        depth.warm_up
    ):  # under autocast, the weights that were cast without a gradient would be used again
        torch.clear_autocast_cache()
    past, source.past = source.past, None  # the features of all steps will be here
    outputs: list[Tensor] = []  # torch.compile traces no list[Tensor]()
    features: list[Tensor] = []
    halting: list[Tensor] = []
    for _ in range(depth.steps):
        source.advance(source.step + 1)
        of_step = source._cache["features"] = source._read(source.hidden)
        has_positions = of_step.dim() > 2  # answers a token are many rows in one call already
        if source.heads is not None or has_positions:
            outputs.append(source.output())
        if source.use_hazard:
            halting.append((source.halting() if has_positions else of_step).clone())
        if keep_features or not outputs:
            features.append(of_step.clone())  # no view, by which the hidden state would stay alive
    stacked = torch.stack(features, dim=1) if features else None
    if stacked is not None and not outputs:
        answers = source.answer(stacked.flatten(0, 1)).unflatten(0, (-1, depth.steps))
    else:
        answers = torch.stack(outputs, dim=1)
    hazards = None
    if halting:
        read = torch.stack(halting, dim=1)
        if past is not None:  # the steps before, newest first, beside each step
            history = past.shape[1] // read.shape[2]
            read = torch.cat([past.unflatten(1, (history, -1)).flip(1)[:, 1:], read], dim=1)
            read = read.unfold(1, history, 1).flip(-1).transpose(2, 3).flatten(2)
        source._cache = {"features": read.flatten(0, 1)}
        hazards = source.hazard_logit().unflatten(0, (-1, depth.steps))
    return {
        "outputs": answers,
        "hazard_logits": hazards,
        "features": stacked if keep_features else None,
    }
