"""Contract suites for exit policies and backbones of your own: each returns None, or raises what says which rule broke.

No test runner is needed, and `import ponder` does not import this module.

Example:
    >>> from ponder.testing import check_backbone, check_policy
    >>> check_policy(policies.Quantile(0.5))
    >>> model = PonderWrapper(nn.Linear(8, 8), num_steps=4, head=nn.Linear(8, 3), policy=policies.Confidence(0.6))
    >>> check_backbone(model, torch.randn(6, 8))
"""

from __future__ import annotations

import copy
import math
import pickle
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ponder._utils.modes import evaluating
from ponder._utils.trees import Tree, alike, check_rows, map_tensors, take_rows, tensors
from ponder.calibration.families import family_of
from ponder.errors import PonderError
from ponder.inference import StreamEngine
from ponder.model.heads import LambdaHead
from ponder.model.loop import Exits
from ponder.policies.base import ExitPolicy, LastStep, PolicyBatch, StepView, all_within
from ponder.saving import load, save
from ponder.tasks import task_named
from ponder.trajectory import Trajectory
from ponder.wrapper import PonderWrapper

__all__ = ["ContractError", "check_backbone", "check_policy"]

_ROWS, _LENGTH, _WIDTH = 12, 4, 8
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

    The rules: it is registered and comes back from JSON, pickle and deepcopy; `decide` is pure and reads what `needs`
    declares; states have the batch first; a row's exit depends on the row alone, and not on padding; finite outputs,
    however large, never lead to NaN; running a model, replaying its trajectory and streaming its rows, where rows at
    different steps share a batch, give the same exits; one pass of `scores` gives those under every threshold.

    A policy may draw random numbers in `init` and nowhere else. The caller's generators are left as they are.

    Args:
        policy: The policy, with hyper-parameters that make some rows exit early and others late.
        task: Name of the task that it is tried on, or None.
        num_steps: N of the models that it is tried on.
        context: Values that a policy reads of the context of a call, by name, `(values, …)`; rows draw from them.

    Raises:
        ContractError: A rule is broken.
    """
    samples = _Samples(task, num_steps, context)
    with _private_randomness(), torch.no_grad():
        samples.trajectory(_ROWS, 1.0).check(policy)
        copies = (ExitPolicy.from_dict(policy.to_dict()), pickle.loads(pickle.dumps(policy)), copy.deepcopy(policy))
        _require(all(copied == policy for copied in copies), f"copies are {copies}; keep everything in fields")
        for scale in (0.3, 1.0, 3.0):
            run = samples.trajectory(_ROWS, scale)
            _check_rows_alone(policy, run)
            _check_scores(policy, run)
            _check_run(policy, samples)
        _check_extremes(policy, samples.trajectory(3, 1.0))
        _check_padding(policy, samples.trajectory(_ROWS, 1.0))


@dataclass(frozen=True)
class _Samples:
    """Trajectories and a model that a policy is tried on."""

    task: str | None
    num_steps: int
    context: Mapping[str, Tensor] | None

    @property
    def outputs(self) -> tuple[int, ...]:
        """The shape of the outputs of a row at a step."""
        task = task_named(self.task)
        if task.per_position:
            return (_LENGTH, 3 if task.per_token else 2)
        return (1 if task.numbers else 3,)

    def context_of(self, rows: int) -> dict[str, Tensor] | None:
        """Draw the context of some rows."""
        given = self.context
        return None if given is None else {name: v[torch.randint(len(v), (rows,))] for name, v in given.items()}

    def trajectory(self, rows: int, scale: float) -> Trajectory:
        """Draw hazards, outputs and features; every third row hardly changes its answer, so that it can settle."""
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

    def model(self, policy: ExitPolicy) -> PonderWrapper:
        """Build one shared step with heads whose weights make the exits differ, in float64."""
        step = nn.Sequential(nn.Linear(_WIDTH, _WIDTH), nn.Tanh())
        head = nn.Sequential(nn.Linear(_WIDTH, math.prod(self.outputs)), nn.Unflatten(1, self.outputs))
        hazards = LambdaHead(_WIDTH, layers=2, history=2)
        for module in (step, head, hazards):
            for weight in module.parameters():
                nn.init.normal_(weight, std=0.6)
        options: dict[str, Any] = {"lambda_head": hazards, "policy": policy, "task": self.task}
        return PonderWrapper(step, self.num_steps, head=head, **options).eval().double()


def _walk(policy: ExitPolicy, run: Trajectory, state: Tree) -> tuple[Tensor, list[Tree]]:
    """Ask about every row at every step but the last.

    Returns:
        The exit masks, `(rows, N − 1)`, and the states before and after each step.
    """
    masks, states = list[Tensor](), [state]
    for _, view in zip(range(1, run.num_steps), run.views(policy.needs), strict=False):
        mask, state = _decided(policy, view, states[-1])
        mask = torch.full(view.index.shape, mask) if isinstance(mask, bool) else mask
        fits = mask.dtype == torch.bool and mask.shape == view.index.shape
        _require(fits, f"the exit mask of {len(run)} rows is {mask.dtype} {tuple(mask.shape)}; give one bool a row")
        check_rows("state", (state, mask), len(run))
        masks.append(mask)
        states.append(state)
    return torch.stack(masks, 1), states


def _decided(policy: ExitPolicy, view: StepView, state: Tree) -> tuple[Tensor | bool, Tree]:
    """Return what a policy decides, the second time that it is asked."""
    given = (state, dict(view.readings), view.index, policy.__dict__)
    before = copy.deepcopy(given)
    first, second = copy.deepcopy(policy.decide(view, state)), policy.decide(view, state)
    _require(alike(given, before), "decide changed in place what it was given; make new tensors: state + 1")
    _require(alike(first, second), "two calls of decide gave different answers; draw random numbers in init")
    return second


def _check_rows_alone(policy: ExitPolicy, run: Trajectory) -> None:
    """Compare a row's masks and states among all rows with those in another company or order."""
    start = policy.init(run.batch)
    draws = not alike(start, policy.init(run.batch))
    masks, states = _walk(policy, run, start)
    for rows in (torch.randperm(_ROWS), torch.tensor([3]), torch.arange(_ROWS - 1, 0, -3), torch.tensor([5, 5, 2, 5])):
        some = run.map(itemgetter(rows))
        part, own = _walk(policy, some, take_rows(start, rows) if draws else policy.init(some.batch))
        _require(
            torch.equal(part, masks[rows]) and alike(own, [take_rows(state, rows) for state in states], 1e-4),
            f"rows {rows.tolist()} exit in another way as a batch of their own; reduce over every dimension but the "
            "first, and use no statistic of the batch",
        )


def _check_scores(policy: ExitPolicy, trajectory: Trajectory) -> None:
    """Compare the exits under several thresholds, read from one pass, with those of replays."""
    if policy.tunable is None and sum(part.tunable is not None for part in all_within(policy)) != 1:
        return
    family = family_of(policy, None, trajectory)
    places = family.late_first()[:: max(1, len(family.values) // 7)]
    with _private_randomness():
        read = torch.cat([torch.as_tensor(steps) for _, steps in family.exit_steps(trajectory, places)])
    built = [family.build(family.values[place]) for place in places]
    each = torch.stack([_replayed(trajectory, one).exit_step for one in built])
    means = [steps.double().mean(1).tolist() for steps in (read, each)]
    _require(
        torch.equal(read, each),
        f"mean exits are {means[0]} by scores and {means[1]} by replay; let statistic and state not depend on the "
        "threshold, and let a wrapper change readiness as it changes decide",
    )
    _require(
        bool((each.diff(dim=0) <= 0).all()),
        f"mean exits are {means[1]} where they were to fall; declare how the statistic of an exit stands to the "
        "threshold: Threshold(field, 'above' | 'below' …)",
    )


class _NanWatch(TorchFunctionMode):
    """Notices comparisons with NaN, which answer False."""

    seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__.strip("_") in _COMPARISONS:
            self.seen = self.seen or _has_nan(args)
        return func(*args, **(kwargs or {}))


def _has_nan(tree: Tree) -> bool:
    return any(bool(leaf.isnan().any()) for _, leaf in tensors(tree))


def _check_extremes(policy: ExitPolicy, base: Trajectory) -> None:
    """Try hazard logits and outputs of ±10⁴ and 0, in three precisions, on three rows."""
    sign = torch.tensor([1.0, -1.0, 0.0])
    by_row = sign.view(3, *[1] * (base.outputs.dim() - 1)).expand_as(base.outputs)
    ramp = torch.linspace(0.0, 1e4, base.outputs.shape[-1]).expand_as(base.outputs)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for outputs, logits in ((1e4 * by_row, 1e4 * sign), (by_row * ramp, -1e4 * sign), (0.0 * ramp, 0.0 * sign)):
            run = replace(base, outputs=outputs.to(dtype), hazard_logits=logits[:, None].expand(3, base.num_steps))
            with _NanWatch() as watch:
                _, states = _walk(policy, run, policy.init(run.batch))
            _require(
                not watch.seen and not _has_nan(states),
                f"{dtype} outputs up to {float(outputs.abs().max()):g} led to NaN; compute in float32, by log_softmax "
                "or logsigmoid instead of raw exponentials",
            )


def _check_padding(policy: ExitPolicy, run: Trajectory) -> None:
    if run.mask is not None:
        other = torch.where(run.mask[:, None, :, None], run.outputs, 5.0 * torch.randn_like(run.outputs))
        _require(
            torch.equal(_replayed(replace(run, outputs=other), policy).exit_step, _replayed(run, policy).exit_step),
            "outputs at padding change exits; compare answers by step.task.same(…, mask=step.mask)",
        )


def _check_run(policy: ExitPolicy, samples: _Samples) -> None:
    """Compare running a model, and a stream of its rows, with replaying its full-depth run."""
    model, inputs = samples.model(policy), torch.randn(_ROWS, _WIDTH).double()
    context = samples.context_of(_ROWS)
    whole = model.unroll(inputs, keep_features=True, policy_context=context)
    expected, draws = _replayed(whole, policy), not alike(policy.init(whole.batch), policy.init(whole.batch))
    with _private_randomness():
        out = model(inputs, policy_context=context)
    with StreamEngine(model, max_batch=3) as engine:
        futures = [
            engine.submit(inputs[row], row_id=row, policy_context=map_tensors(itemgetter(row), context))
            for row in range(_ROWS)
        ]
    streamed = [future.result().exit_step for future in futures]
    exits = (out.exit_step.tolist(), expected.exit_step.tolist(), streamed)
    _require(
        exits[0] == exits[1] and (draws or exits[1] == exits[2]) and alike(out.outputs, expected.outputs, 1e-7),
        f"exits are {exits[0]} by running, {exits[1]} by replay and {exits[2]} in a stream; read nothing but the step "
        "and the state",
    )


def check_backbone(model: PonderWrapper, inputs: Tree, **context: Any) -> None:
    """Check that an encoder works in a wrapper.

    The rules: the batch comes first; nothing is written in place; with `LastStep` the outputs are those of `unroll`, in
    every call; a row's outputs do not depend on the other rows or their order; rows that exit at any step, the longest
    or the last first, get what the full-depth run had there, and no step is computed for a row that has exited; so do
    rows of a stream, which meet rows at other steps and of other lengths; a copy that reads a save answers the same.

    Args:
        model: The wrapped encoder. It is tried in evaluation mode, and keeps its modes and weights.
        inputs: Inputs of at least two rows, all different.
        context: Context of the call, as for the model.

    Raises:
        ContractError: A rule is broken.
    """
    case = _Case(model, inputs, context, check_rows("inputs", inputs))
    check_rows("context", (inputs, context), case.size)
    with _private_randomness(), evaluating(model):
        before = copy.deepcopy((inputs, context))
        whole = case.unroll(torch.arange(case.size))
        full, again = case.run(LastStep()).outputs, case.run(LastStep()).outputs
        _require(alike((inputs, context), before), "inputs were written in place; write hidden + update, not hidden +=")
        _require(
            _close(full, whole.outputs[:, -1]) and torch.equal(full, again),
            f"outputs are {_apart(full, whole.outputs[:, -1])} from unroll, {_apart(full, again)} between calls; "
            "keep no state in modules, write nothing in place, and draw no random numbers in evaluation mode",
        )
        _check_company(case, whole)
        for policy in (*case.orders(), model.policy):
            _check_exits(case, whole, policy)
        _check_stream(case, whole)
        _check_copies(case)


@dataclass(frozen=True)
class _InTurn(ExitPolicy):
    """Row r exits at the step `order[r]`, or at the last."""

    order: tuple[int, ...]

    def init(self, batch: PolicyBatch) -> Tree:
        return {"exit": torch.tensor(self.order, device=batch.row_ids.device)[batch.row_ids]}

    def decide(self, step: StepView, state: Tree) -> tuple[Tensor | bool, Tree]:
        return step.index >= state["exit"], state


@dataclass(frozen=True)
class _Case:
    """A model with its inputs, and any of their rows."""

    model: PonderWrapper
    inputs: Tree
    context: dict[str, Any]
    size: int

    def unroll(self, rows: Tensor) -> Trajectory:
        inputs, context = take_rows((self.inputs, self.context), rows)
        features = "features" in self.model.policy.needs
        return self.model.unroll(inputs, row_ids=rows, keep_features=features, **context)

    def run(self, policy: ExitPolicy) -> Exits:
        with _private_randomness():
            out = self.model(self.inputs, policy=policy, **self.context)
        return Exits(out.outputs, out.exit_step)

    def orders(self) -> list[_InTurn]:
        """Return policies under which rows exit at all steps, the last row first, and the longest row first."""
        turns, padding = torch.arange(self.size), self.model.padding
        orders = [1 + turns % self.model.num_steps, 1 + turns.flip(0)]
        real = None if padding is None else padding.positions(self.context)
        if real is not None:
            orders.append(1 + real.sum(1).argsort(descending=True).argsort())
        return [_InTurn(tuple(order.tolist())) for order in orders]


def _check_company(case: _Case, whole: Trajectory) -> None:
    for rows in (torch.arange(case.size).flip(0), torch.tensor([case.size - 1]), torch.tensor([0, 0, 1])):
        part = case.unroll(rows)
        for got, expected in ((part.outputs, whole.outputs), (part.hazard_logits, whole.hazard_logits)):
            _require(
                got is None or expected is None or _close(got, expected[rows]),
                f"outputs of rows {rows.tolist()} are others as a batch of their own; put the batch first, use no "
                "statistic of the batch, and pass what belongs to a row as context",
            )


def _check_exits(case: _Case, whole: Trajectory, policy: ExitPolicy) -> None:
    """Compare exits with the full-depth run; a statistic at its threshold may fall on either side by rounding."""
    counted: list[int] = []

    def count(module: nn.Module, given: tuple[Any, ...]) -> None:
        counted.append(check_rows("hidden", given[0]))

    hooks = [step.register_forward_pre_hook(count) for step in case.model.steps.fns]
    try:
        ran = case.run(policy)
    finally:
        for hook in hooks:
            hook.remove()
    allowed = torch.stack([_replayed(_shifted(whole, shift), policy).exit_step for shift in (0.0, 1e-4, -1e-4)])
    expected = whole.outputs[torch.arange(case.size), ran.exit_step - 1]
    _require(
        bool((allowed == ran.exit_step).any(0).all()) and _close(ran.outputs, expected),
        f"under {policy} rows exit at {ran.exit_step.tolist()}, where the full-depth run has {allowed[0].tolist()}, "
        f"and outputs are {_apart(ran.outputs, expected)} apart; every tensor of the hidden state and of the context "
        "must be per example, or marked with ponder.Shared, and ponder.Padding must say which have a length",
    )
    _require(
        sum(counted) == int(ran.exit_step.sum()),
        f"{sum(counted)} rows went through steps, not {int(ran.exit_step.sum())}; give hidden one row per example",
    )


def _check_stream(case: _Case, whole: Trajectory) -> None:
    policy = case.orders()[0]
    examples = [map_tensors(itemgetter(row), (case.inputs, case.context)) for row in range(case.size)]
    expected = whole.replay(policy)
    with StreamEngine(case.model, policy=policy, max_batch=2) as engine:
        futures = [engine.submit(example, row_id=row) for row, example in enumerate(examples)]
    for row, answer in enumerate(future.result() for future in futures):
        own = expected.outputs[row]
        own = own[: len(answer.output)] if case.model.padding is not None and own.dim() else own
        _require(
            answer.exit_step == int(expected.exit_step[row]) and _close(answer.output, own),
            f"row {row} of a stream, which exited at step {answer.exit_step}, is {_apart(answer.output, own)} from "
            "the batch; steps must read index of each row, and ponder.Padding say what has a length",
        )


def _check_copies(case: _Case) -> None:
    policy = case.orders()[0]
    expected, twin = case.run(policy), copy.deepcopy(case.model)
    with tempfile.TemporaryDirectory() as folder:
        save(case.model, Path(folder) / "model.safetensors")
        for weight in twin.parameters():
            weight.zero_()
        load(Path(folder) / "model.safetensors", into=twin)
    got = replace(case, model=twin).run(policy)
    _require(
        torch.equal(got.outputs, expected.outputs) and torch.equal(got.exit_step, expected.exit_step),
        f"a copy's outputs are {_apart(got.outputs, expected.outputs)} apart; register weights as parameters and "
        "buffers of the modules that the wrapper is given",
    )


def _shifted(trajectory: Trajectory, shift: float) -> Trajectory:
    return trajectory.map(lambda x: x * (1 + shift) + shift if x.is_floating_point() else x)


def _replayed(trajectory: Trajectory, policy: ExitPolicy) -> Exits:
    with _private_randomness():
        return trajectory.replay(policy)


def _close(one: Tensor, other: Tensor) -> bool:
    return alike(one, other, _TOLERANCES.get(one.dtype, 0.05))


def _apart(one: Tensor, other: Tensor) -> str:
    return f"{float((one - other).abs().max()):.3g}" if one.shape == other.shape else f"{one.shape}, {other.shape}"


@contextmanager
def _private_randomness() -> Iterator[None]:
    """Start from one seed, and leave the caller's generators as they are."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def _require(holds: bool, broken: str) -> None:
    if not holds:
        raise ContractError(f"The contract is broken: {broken}.")
