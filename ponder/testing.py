"""Contract suites for your own exit policies and backbones.

Each returns None, or raises a `ContractError` that names the broken rule. No test runner is needed,
and `import ponder` does not import this module.

`check_policy` draws trajectories and a small model (`_Samples`), and `check_backbone` takes your
model. Both compare a run, a stream and a replay of the same rows (`_check_exits`).

Example:
    >>> from ponder.testing import check_backbone, check_policy
    >>> check_policy(policies.Quantile(0.5))
    >>> heads = {"head": nn.Linear(8, 3), "policy": policies.Confidence(0.6)}
    >>> model = PonderWrapper(nn.Linear(8, 8), num_steps=4, **heads)
    >>> check_backbone(model, torch.randn(6, 8))
"""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
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
from ponder.model.batch import read_batch
from ponder.model.heads import LambdaHead
from ponder.policies.base import ExitPolicy, LastStep, StepView, all_within
from ponder.running.loop import Answers
from ponder.tasks import task_named
from ponder.trajectory import Trajectory
from ponder.wrapper import PonderWrapper

__all__ = ["ContractError", "check_backbone", "check_policy"]

_ROWS = 12
_LENGTH = 4  # positions of a row
_WIDTH = 8  # of features
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

    The rules:

    * The policy is registered, and equal to its copies by JSON, pickle and deepcopy.
    * `init` and `decide` read only what `needs` declares, and `decide` is pure.
    * `init` returns the whole state, with the batch first.
    * The exit of a row depends on this row alone, and not on padding.
    * Finite outputs, however large, never lead to NaN.
    * Running a model, replaying its trajectory, and streaming its rows (rows at different steps
      share a batch there) give the same exits.
    * One pass of `scores` gives the exits under every threshold.

    A policy may draw random numbers in `init` only. The random state of the caller is restored.

    Args:
        policy: The policy, with hyper-parameters that make some rows exit early and others late.
        task: Name of the task on which it is checked, or None.
        num_steps: N of the models on which it is checked.
        context: Values that a policy reads of the context of a call, by name, `(values, …)`; rows
            draw from them.

    Raises:
        ContractError: A rule is broken.
    """
    samples = _Samples(task, num_steps, context or {})
    with _private_randomness(), torch.no_grad():
        samples.trajectory(_ROWS, 1.0).check(policy)
        _check_copies(policy)
        for scale in (0.3, 1.0, 3.0):
            run = samples.trajectory(_ROWS, scale)
            _check_rows_alone(policy, run)
            _check_scores(policy, run)
            _check_exits(samples.case(policy), policy, "read nothing but the step and the state")
        _check_extremes(policy, samples.trajectory(3, 1.0))


def _check_copies(policy: ExitPolicy) -> None:
    copies = (
        ExitPolicy.from_dict(policy.to_dict()),
        pickle.loads(pickle.dumps(policy)),
        copy.deepcopy(policy),
    )
    equal = all(copied == policy for copied in copies)
    _require(equal, f"copies are {copies}; keep everything in fields")


@dataclass(frozen=True)
class _Samples:
    """Random trajectories, and a random model, on which a policy is checked."""

    task: str | None
    num_steps: int
    context: Mapping[str, Tensor]

    @property
    def outputs(self) -> tuple[int, ...]:
        """The shape of the outputs of a row at a step."""
        task = task_named(self.task)
        if task.per_token:
            return (_LENGTH, 3)
        if task.per_position:
            return (_LENGTH, 2)
        if task.numbers:
            return (1,)
        return (3,)

    def context_of(self, rows: int) -> dict[str, Tensor] | None:
        """Draw the context of some rows; None if the policy reads none."""
        drawn = {
            name: values[torch.randint(len(values), (rows,))]
            for name, values in self.context.items()
        }
        return drawn or None

    def trajectory(self, rows: int, scale: float) -> Trajectory:
        """Draw hazards, outputs and features.

        The answers of every third row hardly change from step to step, so that policies which wait
        for equal answers exit too.
        """
        steps = (rows, self.num_steps)
        outputs = torch.randn(*steps, *self.outputs).double() * scale
        outputs[::3] = outputs[::3, :1] + 0.05 * torch.randn(*steps, *self.outputs)[::3]
        mask = torch.arange(_LENGTH) < torch.randint(1, _LENGTH + 1, (rows, 1))
        return Trajectory(
            outputs=outputs,
            hazard_logits=torch.randn(steps).double() * scale,
            row_ids=torch.randint(-(2**62), 2**62, (rows,)),
            features=torch.randn(*steps, _WIDTH).double(),
            task=self.task,
            mask=mask if task_named(self.task).per_position else None,
            policy_context=self.context_of(rows),
        )

    def case(self, policy: ExitPolicy) -> _Case:
        """Build one shared step with heads whose weights make the exits differ, in float64."""
        step = nn.Sequential(nn.Linear(_WIDTH, _WIDTH), nn.Tanh())
        linear = nn.Linear(_WIDTH, math.prod(self.outputs))
        head = nn.Sequential(linear, nn.Unflatten(1, self.outputs))
        lambda_head = LambdaHead(_WIDTH, layers=2, history=2)
        for module in (step, head, lambda_head):
            for weight in module.parameters():
                nn.init.normal_(weight, std=0.6)
        model = PonderWrapper(
            step,
            self.num_steps,
            head=head,
            lambda_head=lambda_head,
            policy=policy,
            task=None if self.task is None else task_named(self.task),
        )
        inputs = torch.randn(_ROWS, _WIDTH).double()
        return _Case(model.eval().double(), inputs, {}, self.context_of(_ROWS))


def _walk(policy: ExitPolicy, run: Trajectory, state: Tree) -> Tensor:
    """Check each decision of a policy, and return the exit masks, `(rows, N − 1)`.

    All rows run to full depth. `decide` is called twice at every step but the last, since a pure
    function gives the same answer twice and does not change its arguments.
    """
    masks = list[Tensor]()
    structure = _structure(state)
    for view in islice(run.views(policy.needs), run.num_steps - 1):
        arguments = (state, dict(view.readings), view.index, policy.__dict__)
        before = copy.deepcopy(arguments)
        first = copy.deepcopy(policy.decide(view, state))
        mask, state = policy.decide(view, state)
        _require(
            alike(arguments, before),
            "the arguments of decide were changed in place; make new tensors: state + 1",
        )
        _require(
            alike(first, (mask, state)),
            "two calls of decide gave different answers; draw random numbers in init",
        )
        if isinstance(mask, bool):
            mask = torch.full(view.index.shape, mask)
        shape = tuple(mask.shape)
        _require(
            mask.dtype == torch.bool and mask.shape == view.index.shape,
            f"the exit mask of {len(run)} rows is {mask.dtype} {shape}; give one bool a row",
        )
        check_rows("state", (state, mask), len(run))
        _require(
            _structure(state) == structure,
            f"the state is {structure} before the first step and {_structure(state)} after it; "
            "return the whole state from init, which may read the first step",
        )
        masks.append(mask)
    return torch.stack(masks, 1)


def _first_state(policy: ExitPolicy, run: Trajectory) -> Tree:
    return policy.init(next(run.views(policy.needs)))


def _structure(state: Tree) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a state, by its place."""
    return {path: tuple(tensor.shape) for path, tensor in tensors(state, "state")}


def _check_rows_alone(policy: ExitPolicy, run: Trajectory) -> None:
    """Compare the masks of rows with those in other batches, orders and paddings."""
    start = _first_state(policy, run)
    masks = _walk(policy, run, start)
    batches = (
        torch.randperm(_ROWS),
        torch.tensor([3]),
        torch.arange(_ROWS - 1, 0, -3),
        torch.tensor([5, 5, 2, 5]),
    )
    # Random states are copied, since another `init` would draw others.
    is_random = _is_random(policy, run)
    for rows in batches:
        part = run.map(itemgetter(rows))
        state = take_rows(start, rows) if is_random else _first_state(policy, part)
        _require(
            torch.equal(_walk(policy, part, state), masks[rows]),
            f"rows {rows.tolist()} exit in another way as a batch of their own; "
            "reduce over every dimension but the first, and use no statistic of the batch",
        )
    if run.mask is not None:
        noise = 5.0 * torch.randn_like(run.outputs)
        other = replace(run, outputs=torch.where(run.mask[:, None, :, None], run.outputs, noise))
        state = start if is_random else _first_state(policy, other)
        _require(
            torch.equal(_walk(policy, other, state), masks),
            "outputs at padding change exits; compare answers by step.task.same(…, mask=step.mask)",
        )


def _is_random(policy: ExitPolicy, run: Trajectory) -> bool:
    return not alike(_first_state(policy, run), _first_state(policy, run))


def _check_scores(policy: ExitPolicy, run: Trajectory) -> None:
    """Compare the exits under several thresholds, read from one pass, with those of replays."""
    if sum(part.tunable is not None for part in all_within(policy)) != 1:
        return
    family = family_of(policy, None, run)
    places = family.late_first()[:: max(1, len(family.values) // 7)]
    with _private_randomness():
        blocks = [torch.as_tensor(steps) for _, steps in family.exit_steps(run, places)]
    by_scores = torch.cat(blocks)
    replays = [_replayed(run, family.build(family.values[place])) for place in places]
    by_replay = torch.stack([replay.exit_step for replay in replays])
    _require(
        torch.equal(by_scores, by_replay),
        f"mean exits are {by_scores.double().mean(1).tolist()} by scores and "
        f"{by_replay.double().mean(1).tolist()} by replay; let statistic and state not depend on "
        "the threshold, and let a wrapper change readiness as it changes decide",
    )


class _NanWatch(TorchFunctionMode):
    """Mode in which a comparison with NaN is an error; it would be False, and so go unnoticed."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__.strip("_") in _COMPARISONS:
            has_nan = any(bool(leaf.isnan().any()) for _, leaf in tensors(args))
            _require(
                not has_nan,
                "large outputs led to NaN; compute in float32, "
                "by log_softmax or logsigmoid, not by exp",
            )
        return func(*args, **(kwargs or {}))


def _check_extremes(policy: ExitPolicy, base: Trajectory) -> None:
    """Try hazard logits and outputs of ±10⁴ and 0 on three rows.

    The outputs of a row are equal or rising.
    """
    sign = torch.tensor([1.0, -1.0, 0.0])
    equal = 1e4 * sign.view(3, *[1] * (base.outputs.dim() - 1)).expand_as(base.outputs)
    rising = equal * torch.linspace(0.0, 1.0, base.outputs.shape[-1])
    for dtype in (torch.float32, torch.float16):
        for outputs, logits in ((equal, 1e4 * sign), (rising, -1e4 * sign)):
            run = replace(
                base,
                outputs=outputs.to(dtype),
                hazard_logits=logits[:, None].expand(3, base.num_steps),
            )
            with _NanWatch():
                _walk(policy, run, _first_state(policy, run))


def check_backbone(model: PonderWrapper, inputs: Tree, *more: Any, **context: Any) -> None:
    """Check that an encoder works in a wrapper.

    The rules:

    * The batch comes first, and nothing is written in place.
    * With `LastStep` the outputs are those of `unroll`, in every call.
    * The outputs of a row do not depend on the other rows or their order.
    * Rows that exit at any step, in any order, have the outputs of the full-depth run there.
    * So have rows of a stream, in which rows at other steps and of other lengths share a batch.

    Args:
        model: The wrapped encoder. It is checked in evaluation mode; modes and weights are kept.
        inputs: Inputs of at least two rows, all different; or a batch: ``(x, {"mask": mask})``.
        more: Context by position, as for the model.
        context: Context by name, as for the model.

    Raises:
        ContractError: A rule is broken.
    """
    names = model.argument_names
    if isinstance(inputs, tuple) and isinstance(inputs[-1], Mapping):
        batch = read_batch(inputs, names)
        inputs = batch.inputs
        context = {**batch.context, **context}
    context = {**names.by_name(more), **context}
    check_rows("context", (inputs, context), check_rows("inputs", inputs))
    case = _Case(model, inputs, context)
    with _private_randomness(), evaluating(model):
        before = copy.deepcopy((inputs, context))
        unrolled = case.unroll()
        last = unrolled.outputs[:, -1]
        outputs = case.run(LastStep()).outputs
        again = case.run(LastStep()).outputs
        _require(
            alike((inputs, context), before),
            "inputs were written in place; write hidden + update, not hidden +=",
        )
        _require(
            _close(outputs, last) and torch.equal(outputs, again),
            f"outputs are {_distance(outputs, last)} from unroll, "
            f"{_distance(outputs, again)} between calls; keep no state in modules, "
            "write nothing in place, and draw no random numbers in evaluation mode",
        )
        _check_other_batches(case, unrolled)
        for policy in case.orders():
            _check_exits(
                case,
                policy,
                "every tensor of the hidden state and of the context must be per example, or "
                "marked with ponder.Shared; steps must read index of each row, and "
                "ponder.Padding must name what has a length",
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
            self.model,
            take_rows(self.inputs, index),
            take_rows(self.context, index),
            take_rows(self.policy_context, index),
        )

    def unroll(self, keep_features: bool = False) -> Trajectory:
        return self.model.unroll(
            self.inputs,
            policy_context=self.policy_context,
            keep_features=keep_features,
            **self.context,
        )

    def run(self, policy: ExitPolicy) -> Answers:
        with _private_randomness():
            answers: Answers = self.model(
                self.inputs, policy=policy, policy_context=self.policy_context, **self.context
            )
        return answers

    def stream(self, policy: ExitPolicy) -> list[Any]:
        """Return the answers of a stream to which rows are submitted one by one."""
        with StreamEngine(self.model, policy=policy, max_batch=3) as engine:
            futures = []
            for row in range(len(self)):
                example = map_tensors(itemgetter(row), (self.inputs, self.context))
                policy_context = map_tensors(itemgetter(row), self.policy_context)
                future = engine.submit(example, row_id=row, policy_context=policy_context)
                futures.append(future)
        return [future.result() for future in futures]

    def orders(self) -> list[_InTurn]:
        """Return policies with other orders of exits.

        Rows exit at all steps in turn; the last row first; and, with padding, the longest row
        first.
        """
        places = torch.arange(len(self))
        orders = [1 + places % self.model.num_steps, 1 + places.flip(0)]
        padding = self.model.padding
        positions = None if padding is None else padding.positions(self.context)
        if positions is not None:
            longest_first = positions.sum(1).argsort(descending=True)
            orders.append(1 + longest_first.argsort())
        return [_InTurn(tuple(order.tolist())) for order in orders]


@dataclass(frozen=True)
class _InTurn(ExitPolicy):
    """Row r exits at the step `order[r]`, or at the last."""

    order: tuple[int, ...]

    def init(self, first: StepView) -> Tree:
        return {"exit": torch.tensor(self.order, device=first.row_ids.device)[first.row_ids]}

    def decide(self, step: StepView, state: Tree) -> tuple[Tensor | bool, Tree]:
        return step.index >= state["exit"], state


def _check_other_batches(case: _Case, unrolled: Trajectory) -> None:
    """Compare the outputs of rows in another order, alone, and repeated."""
    batches = (
        torch.arange(len(case)).flip(0),
        torch.tensor([len(case) - 1]),
        torch.tensor([0, 0, 1]),
    )
    for rows in batches:
        part = case.rows(rows).unroll()
        same = _close(part.outputs, unrolled.outputs[rows])
        if part.hazard_logits is not None and unrolled.hazard_logits is not None:
            same = same and _close(part.hazard_logits, unrolled.hazard_logits[rows])
        _require(
            same,
            f"outputs of rows {rows.tolist()} are others as a batch of their own; put the batch "
            "first, use no statistic of the batch, and pass values of single rows as context",
        )


def _check_exits(case: _Case, policy: ExitPolicy, remedy: str) -> None:
    """Compare running a model, and a stream of its rows, with replaying its full-depth run."""
    unrolled = case.unroll("features" in policy.needs)
    expected = _replayed(unrolled, policy)
    answers = case.run(policy)
    same_exits = torch.equal(answers.exit_step, expected.exit_step)
    _require(
        same_exits and _close(answers.outputs, expected.outputs),
        f"exits are {answers.exit_step.tolist()} by running and "
        f"{expected.exit_step.tolist()} by replay, with a distance of "
        f"{_distance(answers.outputs, expected.outputs)} between outputs; {remedy}",
    )
    if _is_random(policy, unrolled):  # a stream draws for each row by itself
        return
    for row, answer in enumerate(case.stream(policy)):
        step = int(expected.exit_step[row])
        output = answer.outputs[0]
        wanted = expected.outputs[row]
        if case.model.padding is not None and wanted.dim():
            wanted = wanted[: len(output)]  # a stream pads rows to other lengths
        _require(
            answer.exit_step == step and _close(output, wanted),
            f"row {row} exits at step {int(answer.exit_step)} in a stream and at {step} by replay, "
            f"with a distance of {_distance(output, wanted)} between outputs; {remedy}",
        )


def _replayed(trajectory: Trajectory, policy: ExitPolicy) -> Answers:
    with _private_randomness():
        return trajectory.replay(policy)


def _close(one: Tensor, other: Tensor) -> bool:
    return alike(one, other, _TOLERANCES.get(one.dtype, 0.05))


def _distance(one: Tensor, other: Tensor) -> str:
    if one.shape != other.shape:
        return f"{one.shape}, {other.shape}"
    return f"{float((one - other).abs().max()):.3g}"


@contextmanager
def _private_randomness() -> Iterator[None]:
    """Start from one seed in the block, and restore the caller's random state after it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def _require(holds: bool, broken: str) -> None:
    if not holds:
        raise ContractError(f"The contract is broken: {broken}.")
