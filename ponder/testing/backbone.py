"""The contract of backbones: an encoder in a `PonderWrapper`, tried on inputs of its own."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from ponder._utils.modes import evaluating
from ponder._utils.trees import Tree, alike, check_rows, distance, map_tensors, take_rows, tensors
from ponder.engine.loop import Exits
from ponder.errors import ArgumentError, ArgumentTypeError, PonderError
from ponder.inference.batching import BatchLimits
from ponder.inference.streaming.batch_queues import BatchQueues
from ponder.inference.streaming.cohort import join
from ponder.inference.streaming.request_queue import RequestQueue
from ponder.inference.streaming.requests import Request
from ponder.inference.streaming.stepper import Stepper
from ponder.parts.padding import real_positions
from ponder.policies import ExitPolicy, FixedStep, LastStep, PolicyBatch, StepView
from ponder.serialization import load, save
from ponder.testing.contract import ContractError, require
from ponder.testing.randomness import private_randomness
from ponder.testing.snapshot import differences, snapshot
from ponder.trajectory import Trajectory
from ponder.wrapper import PonderWrapper

__all__ = ["check_backbone"]

_TOLERANCES = {torch.float64: 1e-7, torch.float32: 1e-4}
_HALF = 0.05


def check_backbone(model: PonderWrapper, inputs: Tree, **context: Any) -> None:
    """Check that an encoder works in a wrapper; return None, or raise what says which rule broke.

    The rules: with no early exit the outputs are those of `unroll`; a row's outputs do not depend on the other rows or
    their order; rows that leave at any steps, the longest or the last first, get what the full-depth run had there
    (replay = run), and no step is computed for a row that has left; so do rows of a stream, which meet rows at other
    steps and of other lengths; a batch may be of one row or of none; an exception leaves nothing behind; what learns is
    a parameter of its module; saving and loading keep the outputs (where safetensors is there and the policy, prior and
    objective have names).

    The model comes back in the modes and with the weights that it had, and so do the caller's random generators.

    Args:
        model: The wrapped encoder. It is tried in evaluation mode.
        inputs: Inputs of at least two rows, all different.
        context: Context of the call, as for the model.

    Raises:
        ContractError: A rule is broken.

    Example:
        >>> from ponder.testing import check_backbone
        >>> model = ponder.PonderWrapper(nn.Linear(8, 8), num_steps=4, head=nn.Linear(8, 3))
        >>> check_backbone(model, torch.randn(6, 8))
    """
    if not isinstance(model, PonderWrapper):
        raise ArgumentTypeError(
            "model", expected="a PonderWrapper", got=type(model).__name__, remedy="Wrap the encoder first."
        )
    size = check_rows("inputs", inputs)
    if size < 2:
        raise ArgumentError("inputs", expected="two rows or more", got=size, remedy="Pass a batch of some examples.")
    check_rows("context", context, size)
    _check_different((inputs, context), size)
    case = _Case(model, inputs, context, size)
    with private_randomness(0, case.device), evaluating(model), torch.no_grad():
        whole = case.unroll(torch.arange(size))
        _check_identity(case, whole)
        _check_rows_alone(case, whole)
        for policy in (_Staggered(), FixedStep((model.num_steps + 1) // 2), model.policy):
            _check_leaving(case, whole, f"with {policy}", policy)
        for first, order in case.orders():
            _check_leaving(case, whole, f"when {first} leaves first", _InTurn(order))
        _check_stream(case, whole)
        _check_count(case)
        _check_empty(case, whole)
        _check_exception(case)
        _check_weights_are_parameters(case)
        _check_copies(case)


def _check_different(given: Tree, size: int) -> None:
    """Refuse rows that are equal: what goes from one to another would not be seen."""
    seen: dict[tuple[bytes, ...], int] = {}
    for row in range(size):
        own = tuple(
            tensor[row].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            for _, tensor in tensors(given)
        )
        if own in seen:
            raise ArgumentError(
                "inputs",
                expected="rows that are all different, or what goes from one to another is not seen",
                got=f"row {row} equal to row {seen[own]}",
                remedy="Pass a batch of other examples, torch.randn(6, …), say.",
            )
        seen[own] = row


@dataclass(frozen=True)
class _Staggered(ExitPolicy):
    """Row r leaves at step 1 + r mod N: all depths in one batch, without a threshold that rounding could cross."""

    def init(self, batch: PolicyBatch) -> Tree:
        return {"exit": 1 + batch.row_ids % batch.num_steps}

    def decide(self, step: StepView, state: Tree) -> tuple[Tensor | bool, Tree]:
        return step.index >= state["exit"], state


@dataclass(frozen=True)
class _InTurn(ExitPolicy):
    """Row r leaves after `order[r]` steps, or after the last."""

    order: tuple[int, ...]

    def init(self, batch: PolicyBatch) -> Tree:
        return {"exit": torch.tensor(self.order, device=batch.device)[batch.row_ids]}

    def decide(self, step: StepView, state: Tree) -> tuple[Tensor | bool, Tree]:
        return step.index >= state["exit"], state


@dataclass(frozen=True)
class _Case:
    """The model with its inputs, and any of their rows."""

    model: PonderWrapper
    inputs: Tree
    context: dict[str, Any]
    size: int

    @property
    def device(self) -> torch.device:
        return next(tensor.device for _, tensor in tensors(self.inputs))

    def unroll(self, rows: Tensor) -> Trajectory:
        inputs, context = take_rows((self.inputs, self.context), self._on_device(rows))
        with private_randomness(2, self.device):  # another seed than for running: noise in the model must show
            reads = "features" in self.model.policy.needs  # stages of several widths have no features to keep
            return self.model.unroll(inputs, row_ids=rows, keep_features=reads, **context)

    def run(self, policy: ExitPolicy, rows: Tensor | None = None) -> Exits:
        rows = torch.arange(self.size) if rows is None else rows
        inputs, context = take_rows((self.inputs, self.context), self._on_device(rows))
        with private_randomness(1, self.device):
            out = self.model(inputs, policy=policy, row_ids=rows, **context)
        return Exits(out.outputs, out.exit_step)

    def streamed(self, policy: ExitPolicy) -> list[tuple[Tensor, int]]:
        """Each row's outputs and exit step in a stream of two rows a step, whose turns are taken here, in no thread."""
        waiting, stepper = RequestQueue(self.size), Stepper(self.model, None)
        queues = BatchQueues(stepper.schedule, waiting, BatchLimits(rows=2, tokens=None), max_skips=4)
        for row in range(self.size):
            example = map_tensors(itemgetter(row), (self.inputs, self.context))
            waiting.put(Request(stepper.reader.read(example, row), policy, row, 0.0), block=False, timeout=None)
        exits: dict[int, tuple[Tensor, int]] = {}
        with private_randomness(1, self.device):
            while (key := queues.next()) is not None:
                cohorts, admitted = queues.leave(key)
                cohort = join([*cohorts, *([stepper.begin(admitted)] if admitted else [])], stepper.padding)
                after = stepper.step(cohort)
                if after.staying is not None:
                    queues.enter(after.staying)
                for position, output in zip(after.leaving, () if after.outputs is None else after.outputs, strict=True):
                    exits[cohort.requests[position].row_id] = output, cohort.steps[position] + 1
        return [exits[row] for row in range(self.size)]

    def orders(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Orders in which rows leave, one a step: which goes first, and for each row when."""
        turns = torch.arange(self.size).flip(0)
        yield "the last row", tuple((1 + turns).tolist())
        real = real_positions(self.context) if self.model.padding is None else None
        lengths = self.model.padding.lengths(self.context) if self.model.padding is not None else None
        if real is not None:
            lengths = (real.long() * torch.arange(1, real.shape[1] + 1, device=real.device)).amax(1).cpu()
        if lengths is not None:
            yield "the longest row", tuple((1 + lengths.argsort(descending=True).argsort()).tolist())

    def _on_device(self, rows: Tensor) -> Tensor:
        return rows.to(self.device)


def _check_identity(case: _Case, whole: Trajectory) -> None:
    full = case.run(LastStep())
    n = case.model.num_steps
    same = alike(full.outputs, whole.outputs[:, -1], _tolerance(full.outputs))  # of all steps, a head is called once
    require(
        same and full.exit_step.tolist() == [n] * case.size,
        "the backbone",
        "with LastStep() the outputs are those of the last step of unroll",
        f"they differ by {distance(full.outputs, whole.outputs[:, -1])}",
        "Keep no state in the parts, draw no random numbers in evaluation mode, and set that mode on modules that "
        "the wrapper does not own.",
    )


def _check_rows_alone(case: _Case, whole: Trajectory) -> None:
    for rows in (torch.arange(case.size).flip(0), torch.tensor([case.size - 1]), torch.tensor([0, 0, 1])):
        part = case.unroll(rows)
        for name, got, there in (
            ("outputs", part.outputs, whole.outputs),
            ("hazard logits", part.hazard_logits, whole.hazard_logits),
        ):
            if got is None or there is None:
                continue
            expected = there[rows.to(there.device)]
            require(
                alike(got, expected, _tolerance(got)),
                "the backbone",
                "a row's outputs do not depend on the other rows, their number or their order",
                f"{name} of rows {rows.tolist()} as a batch differ by {distance(got, expected)}",
                "Use no statistic of the batch (BatchNorm in training mode, a sum over dimension 0), and pass what "
                "belongs to a row as context, batch first.",
            )


def _check_replay(case: _Case, whole: Trajectory, policy: ExitPolicy) -> None:
    ran = case.run(policy)
    allowed = [_replayed(whole, policy, shift) for shift in (0.0, 1e-4, -1e-4)]
    for row, step in enumerate(ran.exit_step.tolist()):
        steps = {int(exits.exit_step[row]) for exits in allowed}  # a statistic at its threshold may fall on either side
        expected = whole.outputs[row, step - 1]
        require(
            step in steps and alike(ran.outputs[row], expected, _tolerance(expected)),
            "the backbone",
            "running with a policy gives what replaying the full-depth run gives",
            f"row {row} left at step {step} under {policy}, where the replay has {sorted(steps)}; its outputs "
            f"differ by {distance(ran.outputs[row], expected)} from those of the full-depth run at that step",
            "Every tensor of the hidden state and of the context must be per example, or marked with ponder.Shared; "
            "and ponder.Padding must say which have a length, since batches get narrower.",
        )


def _check_leaving(case: _Case, whole: Trajectory, how: str, policy: ExitPolicy) -> None:
    try:
        _check_replay(case, whole, policy)
    except ContractError:
        raise
    except Exception as error:
        raise ContractError(
            "the backbone",
            "rows may leave in any order",
            f"{type(error).__name__} {how}: {error}",
            "Where the longest rows leave, batches get narrower: declare every tensor that has a length in "
            "ponder.Padding, shared ones too, or no padding at all.",
        ) from error


def _check_stream(case: _Case, whole: Trajectory) -> None:
    rule, policy = "a row of a stream gets what it gets in a batch, whichever rows it meets there", _Staggered()
    padding = case.model.padding
    if padding is not None and case.context.get(padding.mask) is not None and padding.lengths(case.context) is None:
        return  # no stream takes masks of pairs of positions
    try:
        exits = case.streamed(policy)
    except Exception as error:
        raise ContractError(
            "the backbone",
            rule,
            f"{type(error).__name__}: {error}",
            "Say in ponder.Padding what has a length, and let a row's context not depend on the other rows.",
        ) from error
    expected = _replayed(whole, policy, 0.0)
    for row, (output, step) in enumerate(exits):
        own = expected.outputs[row]
        if padding is not None and output.dim():
            own = own[: len(output)]  # outputs that have a length are those of the row without its padding
        require(
            step == int(expected.exit_step[row]) and alike(output, own, _tolerance(own)),
            "the backbone",
            rule,
            f"the outputs of row {row}, which left at step {step}, differ by {distance(output, own)}",
            "Rows of a batch may be at several steps: read index of each, not index[0]. They may be of several "
            "lengths: say in ponder.Padding what has one, in the state and the context, and what stands at padding.",
        )


def _replayed(whole: Trajectory, policy: ExitPolicy, shift: float) -> Exits:
    def shifted(tensor: Tensor) -> Tensor:
        return tensor * (1 + shift) + shift if tensor.is_floating_point() else tensor

    with private_randomness(1, whole.outputs.device):
        return whole.map(shifted).replay(policy)


def _check_count(case: _Case) -> None:
    rows: list[int] = []

    def count(_: Any, args: tuple[Any, ...]) -> None:
        rows.append(check_rows("hidden", args[1]))

    hook = case.model.steps.register_forward_pre_hook(count)
    try:
        exits = case.run(_Staggered()).exit_step
    finally:
        hook.remove()
    require(
        sum(rows) == int(exits.sum()),
        "the backbone",
        "a step is computed for the rows that are still running and for no others",
        f"{sum(rows)} rows went through steps where {int(exits.sum())} had to",
        "Let the hidden state have one row per example throughout.",
    )


def _check_empty(case: _Case, whole: Trajectory) -> None:
    none = torch.arange(0)
    try:
        exits, trajectory = case.run(LastStep(), none), case.unroll(none)
    except Exception as error:
        raise ContractError(
            "the backbone",
            "a batch may have no rows",
            f"{type(error).__name__}: {error}",
            "Let the stem and the head take (0, …), and steps where they change the width.",
        ) from error
    shapes = (exits.outputs.shape, exits.exit_step.shape, trajectory.outputs.shape[:2])
    require(
        shapes == ((0, *whole.outputs.shape[2:]), (0,), (0, case.model.num_steps)),
        "the backbone",
        "a batch may have no rows",
        f"outputs {tuple(shapes[0])}, exit_step {tuple(shapes[1])}",
        "Let the head give (0, …) for no rows.",
    )


class _Explosion(Exception):  # noqa: N818 (never seen outside)
    """Raised inside the model, on purpose."""


def _check_exception(case: _Case) -> None:
    before, expected = snapshot(case.model), case.run(_Staggered())

    def explode(_: Any, args: tuple[Any, ...]) -> None:
        if args[0] == case.model.num_steps:
            raise _Explosion

    hook = case.model.steps.register_forward_pre_hook(explode)
    try:
        with contextlib.suppress(_Explosion):
            case.run(LastStep())
    finally:
        hook.remove()
    left = differences(before, case.model)
    again = case.run(_Staggered())
    same = torch.equal(expected.exit_step, again.exit_step) and torch.equal(expected.outputs, again.outputs)
    require(
        same and not left,
        "the backbone",
        "calls and exceptions leave nothing behind",
        f"changed: {', '.join(left)}" if left else "the next call gave other outputs",
        "Keep what belongs to a call in the hidden state and the context, not on a module.",
    )


def _check_weights_are_parameters(case: _Case) -> None:
    own, known = vars(nn.Module()), {id(weight) for weight in case.model.parameters()}
    hidden = [
        f"{name or 'the model'}: {attribute}"
        for name, module in case.model.named_modules()
        for attribute, value in vars(module).items()
        if attribute not in own
        and any(tensor.requires_grad and tensor.is_leaf and id(tensor) not in known for _, tensor in tensors(value))
    ]
    require(
        not hidden,
        "the backbone",
        "what learns is a parameter of its module",
        f"plain attributes hold tensors with gradients, which are not saved: {', '.join(hidden)}",
        "Use nn.Parameter as an attribute, or nn.ParameterList, nn.ParameterDict.",
    )


def _check_copies(case: _Case) -> None:
    expected = case.run(_Staggered())
    twin = copy.deepcopy(case.model)
    ways = ["copy.deepcopy"] + (["saving and loading"] if _can_be_saved(case.model) else [])
    for way in ways:
        if way != "copy.deepcopy":
            for weight in twin.state_dict().values():
                weight.zero_()
            with tempfile.TemporaryDirectory() as folder:
                save(case.model, folder)
                load(twin, folder)
        got = _Case(twin, case.inputs, case.context, case.size).run(_Staggered())
        require(
            torch.equal(got.outputs, expected.outputs) and torch.equal(got.exit_step, expected.exit_step),
            "the backbone",
            "copies give the same outputs",
            f"outputs differ by {distance(got.outputs, expected.outputs)} after {way}",
            "Register weights as parameters and buffers (persistent ones) of the modules that the wrapper is given.",
        )


def _can_be_saved(model: PonderWrapper) -> bool:
    if find_spec("safetensors") is None:
        return False
    try:
        model.settings()
    except PonderError:
        return False  # a policy, prior or objective without a name
    return True


def _tolerance(tensor: Tensor) -> float:
    return _TOLERANCES.get(tensor.dtype, _HALF)
