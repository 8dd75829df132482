"""Contract suites for users' exit policies and backbones; a check raises if a rule is broken.

No test runner is needed, and `import ponder` does not import this module.

Example:
    >>> from ponder.testing import check_backbone, check_policy
    >>> check_policy(policies.Quantile(0.5))
        >>> model = PonderWrapper(
        ...     nn.Linear(8, 8), 4, head=nn.Linear(8, 3), policy=policies.Confidence(0.6)
        ... )
    >>> check_backbone(model, torch.randn(6, 8))
"""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ponder._utils.modes import evaluating
from ponder._utils.trees import (
    Tree,
    alike,
    check_rows,
    first_tensor,
    map_tensors,
    take_rows,
    tensors,
)
from ponder.calibration.families import family_of
from ponder.errors import PonderError
from ponder.inference import StreamEngine
from ponder.model.heads import LambdaHead
from ponder.policies.base import ExitPolicy, LastStep, PolicyBatch, StepView, all_within
from ponder.running.loop import Answers
from ponder.tasks import task_named
from ponder.trajectory import Trajectory
from ponder.wrapper import PonderWrapper

__all__ = ["ContractError", "check_backbone", "check_policy"]

_ROWS = 12
_LENGTH = 4
_WIDTH = 8
_TOLERANCES = {torch.float64: 1e-7, torch.float32: 1e-4}
_COMPARISONS = ("gt", "ge", "lt", "le", "greater", "less", "greater_equal", "less_equal")


class ContractError(PonderError, AssertionError):
    """A rule of a contract is broken."""


def check_policy(
    policy: ExitPolicy,
    *,
    task: str | None = "classification",
    num_steps: int = 6,
    context: Mapping[str, Tensor] | None = None,
) -> None:
    """Check that a policy keeps its contract.

    The rules: it is registered and comes back from JSON, pickle and deepcopy; `decide` is pure and
    reads the readings in `needs`; states have the batch first; a row's exit depends on the row
    alone, and not on padding; finite outputs, however large, never lead to NaN; running a model,
    replaying its trajectory and streaming its rows (which mixes rows at different steps) give the
    same exits; one pass of `scores` gives the exits at every threshold.

    A policy may draw random numbers in `init` and nowhere else. The caller's generators are left as
    they are.

    Args:
        policy: The policy, with hyper-parameters that make some rows exit early and others late.
        task: Name of the task that it is tried on, or None.
        num_steps: N of the models that it is tried on.
        context: Values that a policy reads of the context of a call, by name, `(values, …)`; rows
            draw from them.

    Raises:
        ContractError: A rule is broken.
    """
    samples = _Samples(task, num_steps, context or {})
    with _private_randomness(), torch.no_grad():
        samples.trajectory(_ROWS, 1.0).check(policy)
        copies = (
            ExitPolicy.from_dict(policy.to_dict()),
            pickle.loads(pickle.dumps(policy)),
            copy.deepcopy(policy),
        )
        _require(
            all(copied == policy for copied in copies),
            f"copies are {copies}; keep everything in fields",
        )
        for scale in (0.3, 1.0, 3.0):
            run = samples.trajectory(_ROWS, scale)
            _check_rows_alone(policy, run)
            _check_scores(policy, run)
            _check_exits(samples.case(policy), policy, "read nothing but the step and the state")
        _check_extremes(policy, samples.trajectory(3, 1.0))


@dataclass(frozen=True)
class _Samples:
    """Trajectories and a model that a policy is tried on."""

    task: str | None
    num_steps: int
    context: Mapping[str, Tensor]

    @property
    def outputs(self) -> tuple[int, ...]:
        """The shape of the outputs of a row at a step."""
        task = task_named(self.task)
        if task.per_position:
            return (_LENGTH, 3 if task.per_token else 2)
        return (1 if task.numbers else 3,)

    def context_of(self, rows: int) -> dict[str, Tensor] | None:
        """Draw the context of some rows."""
        return {name: v[torch.randint(len(v), (rows,))] for name, v in self.context.items()} or None

    def trajectory(self, rows: int, scale: float) -> Trajectory:
        """Draw hazards, outputs and features; every third row hardly changes its answer."""
        steps = (rows, self.num_steps)
        outputs = torch.randn(*steps, *self.outputs).double() * scale
        outputs[::3] = outputs[::3, :1] + 0.05 * torch.randn(*steps, *self.outputs)[::3]
        mask = torch.arange(_LENGTH) < torch.randint(1, _LENGTH + 1, (rows, 1))
        return Trajectory(
            outputs,
            torch.randn(steps).double() * scale,
            torch.randint(-(2**62), 2**62, (rows,)),
            torch.randn(*steps, _WIDTH).double(),
            task=self.task,
            mask=mask if task_named(self.task).per_position else None,
            policy_context=self.context_of(rows),
        )

    def case(self, policy: ExitPolicy) -> _Case:
        """Build one shared step with heads whose weights make the exits differ, in float64."""
        step = nn.Sequential(nn.Linear(_WIDTH, _WIDTH), nn.Tanh())
        head = nn.Sequential(
            nn.Linear(_WIDTH, math.prod(self.outputs)), nn.Unflatten(1, self.outputs)
        )
        hazards = LambdaHead(_WIDTH, layers=2, history=2)
        for module in (step, head, hazards):
            for weight in module.parameters():
                nn.init.normal_(weight, std=0.6)
        options: dict[str, Any] = {"lambda_head": hazards, "policy": policy, "task": self.task}
        model = PonderWrapper(step, self.num_steps, head=head, **options).eval().double()
        return _Case(model, torch.randn(_ROWS, _WIDTH).double(), {}, self.context_of(_ROWS))


def _walk(policy: ExitPolicy, run: Trajectory, state: Tree) -> Tensor:
    """Call `decide` twice for every step but the last; return the exit masks, `(rows, N − 1)`."""
    masks = list[Tensor]()
    for _, view in zip(range(1, run.num_steps), run.views(policy.needs), strict=False):
        given = (state, dict(view.readings), view.index, policy.__dict__)
        before = copy.deepcopy(given)
        first, (mask, state) = copy.deepcopy(policy.decide(view, state)), policy.decide(view, state)
        _require(
            alike(given, before),
            "decide changed in place what it was given; make new tensors: state + 1",
        )
        _require(
            alike(first, (mask, state)),
            "two calls of decide gave different answers; draw random numbers in init",
        )
        mask = torch.full(view.index.shape, mask) if isinstance(mask, bool) else mask
        fits = mask.dtype == torch.bool and mask.shape == view.index.shape
        _require(
            fits,
            f"the exit mask of {len(run)} rows is {mask.dtype} {tuple(mask.shape)}; give one bool "
            "a row",
        )
        check_rows("state", (state, mask), len(run))
        masks.append(mask)
    return torch.stack(masks, 1)


def _check_rows_alone(policy: ExitPolicy, run: Trajectory) -> None:
    """Compare a row's exit masks in different batches, orders and amounts of padding."""
    start = policy.init(run.batch)
    masks = _walk(policy, run, start)
    for rows in (
        torch.randperm(_ROWS),
        torch.tensor([3]),
        torch.arange(_ROWS - 1, 0, -3),
        torch.tensor([5, 5, 2, 5]),
    ):
        some = run.map(itemgetter(rows))
        own = take_rows(start, rows) if _draws(policy, run) else policy.init(some.batch)
        _require(
            torch.equal(_walk(policy, some, own), masks[rows]),
            f"rows {rows.tolist()} exit differently as a batch of their own; reduce over all "
            "dimensions but the first, and use no statistic of the batch",
        )
    if run.mask is not None:
        other = torch.where(
            run.mask[:, None, :, None], run.outputs, 5.0 * torch.randn_like(run.outputs)
        )
        _require(
            torch.equal(_walk(policy, replace(run, outputs=other), start), masks),
            "outputs at padding change exits; compare answers by step.task.same(…, mask=step.mask)",
        )


def _draws(policy: ExitPolicy, run: Trajectory) -> bool:
    return not alike(policy.init(run.batch), policy.init(run.batch))


def _check_scores(policy: ExitPolicy, run: Trajectory) -> None:
    """Compare the exits under several thresholds, read from one pass, with those of replays."""
    if sum(part.tunable is not None for part in all_within(policy)) != 1:
        return
    family = family_of(policy, None, run)
    places = family.late_first()[:: max(1, len(family.values) // 7)]
    with _private_randomness():
        read = torch.cat([torch.as_tensor(steps) for _, steps in family.exit_steps(run, places)])
    each = torch.stack(
        [_replayed(run, family.build(family.values[place])).exit_step for place in places]
    )
    _require(
        torch.equal(read, each),
        f"mean exits are {read.double().mean(1).tolist()} by scores and "
        f"{each.double().mean(1).tolist()} by replay; let statistic and state not depend on the "
        "threshold, and let a wrapper change readiness as it changes decide",
    )


class _NanWatch(TorchFunctionMode):
    """Refuses comparisons with NaN, which answer False."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__.strip("_") in _COMPARISONS:
            nan = any(bool(leaf.isnan().any()) for _, leaf in tensors(args))
            _require(
                not nan,
                "large outputs led to NaN; compute in float32, by log_softmax, not by exp",
            )
        return func(*args, **(kwargs or {}))


def _check_extremes(policy: ExitPolicy, base: Trajectory) -> None:
    """Try hazard logits and outputs of ±10⁴ and 0, all alike and rising, on three rows."""
    sign = torch.tensor([1.0, -1.0, 0.0])
    by_row = 1e4 * sign.view(3, *[1] * (base.outputs.dim() - 1)).expand_as(base.outputs)
    rising = torch.linspace(0.0, 1.0, base.outputs.shape[-1])
    for dtype in (torch.float32, torch.float16):
        for outputs, logits in ((by_row, 1e4 * sign), (by_row * rising, -1e4 * sign)):
            run = replace(
                base,
                outputs=outputs.to(dtype),
                hazard_logits=logits[:, None].expand(3, base.num_steps),
            )
            with _NanWatch():
                _walk(policy, run, policy.init(run.batch))


def check_backbone(model: PonderWrapper, inputs: Tree, **context: Any) -> None:
    """Check that an encoder works in a wrapper.

    The rules: the batch comes first; nothing is written in place; with `LastStep` the outputs are
    those of `unroll`, in every call; a row's outputs do not depend on the other rows or their
    order; rows that exit at any step, the longest or the last first, have the outputs of the
    full-depth run there; so do rows of a stream, among rows at other steps and of other lengths.

    Args:
        model: The wrapped encoder. It is tried in evaluation mode, and keeps its modes and weights.
        inputs: Inputs of at least two rows, all different.
        context: Context of the call, as for the model.

    Raises:
        ContractError: A rule is broken.
    """
    check_rows("context", (inputs, context), check_rows("inputs", inputs))
    case = _Case(model, inputs, context)
    with _private_randomness(), evaluating(model):
        before = copy.deepcopy((inputs, context))
        whole = case.unroll()
        full = case.run(LastStep()).outputs
        again = case.run(LastStep()).outputs
        _require(
            alike((inputs, context), before),
            "inputs were written in place; write hidden + update, not hidden +=",
        )
        _require(
            _close(full, whole.outputs[:, -1]) and torch.equal(full, again),
            f"outputs are {_apart(full, whole.outputs[:, -1])} from unroll, {_apart(full, again)} "
            "between calls; keep no state in modules, write nothing in place, and draw no random "
            "numbers in evaluation mode",
        )
        _check_company(case, whole)
        for policy in case.orders():
            _check_exits(
                case,
                policy,
                "every tensor of the hidden state and of the context must be per example, or "
                "marked with ponder.Shared; steps must read index of each row, and ponder.Padding "
                "must declare the tensors with a length",
            )


@dataclass(frozen=True)
class _Case:
    """A model with the inputs, the context and the policy's context of some rows."""

    model: PonderWrapper
    inputs: Tree
    context: Mapping[str, Any]
    policy_context: Mapping[str, Tensor] | None = None

    def __len__(self) -> int:
        return len(first_tensor(self.inputs))

    def rows(self, index: Tensor) -> _Case:
        """Return the case of some of the rows."""
        return _Case(
            self.model, *take_rows((self.inputs, self.context, self.policy_context), index)
        )

    def unroll(self, keep_features: bool = False) -> Trajectory:
        given: dict[str, Any] = {
            "policy_context": self.policy_context,
            "keep_features": keep_features,
        }
        return self.model.unroll(self.inputs, **given, **self.context)

    def run(self, policy: ExitPolicy) -> Answers:
        with _private_randomness():
            out: Answers = self.model(
                self.inputs, policy=policy, policy_context=self.policy_context, **self.context
            )
        return out

    def stream(self, policy: ExitPolicy) -> list[Any]:
        """Return the answers of rows that were handed in one by one."""
        with StreamEngine(self.model, policy=policy, max_batch=3) as engine:
            futures = []
            for row in range(len(self)):
                example, given = map_tensors(
                    itemgetter(row), ((self.inputs, self.context), self.policy_context)
                )
                futures.append(engine.submit(example, row_id=row, policy_context=given))
        return [future.result() for future in futures]

    def orders(self) -> list[_InTurn]:
        """Return policies with exits at all steps, with the last or the longest row first."""
        turns = torch.arange(len(self))
        padding = self.model.padding
        orders = [1 + turns % self.model.num_steps, 1 + turns.flip(0)]
        real = None if padding is None else padding.positions(self.context)
        if real is not None:
            orders.append(1 + real.sum(1).argsort(descending=True).argsort())
        return [_InTurn(tuple(order.tolist())) for order in orders]


@dataclass(frozen=True)
class _InTurn(ExitPolicy):
    """Row r exits at the step `order[r]`, or at the last."""

    order: tuple[int, ...]

    def init(self, batch: PolicyBatch) -> Tree:
        return {"exit": torch.tensor(self.order, device=batch.row_ids.device)[batch.row_ids]}

    def decide(self, step: StepView, state: Tree) -> tuple[Tensor | bool, Tree]:
        return step.index >= state["exit"], state


def _check_company(case: _Case, whole: Trajectory) -> None:
    for rows in (
        torch.arange(len(case)).flip(0),
        torch.tensor([len(case) - 1]),
        torch.tensor([0, 0, 1]),
    ):
        part = case.rows(rows).unroll()
        for got, expected in (
            (part.outputs, whole.outputs),
            (part.hazard_logits, whole.hazard_logits),
        ):
            _require(
                got is None or expected is None or _close(got, expected[rows]),
                f"outputs of rows {rows.tolist()} differ as a batch of their own; put the batch "
                "first, use no statistic of the batch, and pass values of a row as context",
            )


def _check_exits(case: _Case, policy: ExitPolicy, remedy: str) -> None:
    """Compare running a model, and a stream of its rows, with replaying its full-depth run."""
    whole = case.unroll("features" in policy.needs)
    expected = _replayed(whole, policy)
    ran = case.run(policy)
    _require(
        torch.equal(ran.exit_step, expected.exit_step) and _close(ran.outputs, expected.outputs),
        f"exits are {ran.exit_step.tolist()} by running, {expected.exit_step.tolist()} by replay, "
        f"of outputs {_apart(ran.outputs, expected.outputs)} apart; {remedy}",
    )
    for row, answer in enumerate([] if _draws(policy, whole) else case.stream(policy)):
        step = int(expected.exit_step[row])
        own = expected.outputs[row]
        own = own[: len(answer.outputs[0])] if case.model.padding is not None and own.dim() else own
        _require(
            answer.exit_step == step and _close(answer.outputs[0], own),
            f"row {row} exits at step {int(answer.exit_step)} in a stream and at {step} by replay, "
            f"with outputs {_apart(answer.outputs[0], own)} apart; {remedy}",
        )


def _replayed(trajectory: Trajectory, policy: ExitPolicy) -> Answers:
    with _private_randomness():
        return trajectory.replay(policy)


def _close(one: Tensor, other: Tensor) -> bool:
    return alike(one, other, _TOLERANCES.get(one.dtype, 0.05))


def _apart(one: Tensor, other: Tensor) -> str:
    if one.shape == other.shape:
        return f"{float((one - other).abs().max()):.3g}"
    return f"{one.shape}, {other.shape}"


@contextmanager
def _private_randomness() -> Iterator[None]:
    """Run a block from one seed, and restore the caller's random generators."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def _require(holds: bool, broken: str) -> None:
    if not holds:
        raise ContractError(f"The contract is broken: {broken}.")
