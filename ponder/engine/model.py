"""`EarlyExitModel`: the one description of a model. Its parts, what it offers to policies, and how its rows run.

The loop, streams, costs and exports all read this class; `ponder.PonderWrapper` adds what training needs.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, Self

import torch
from torch import Tensor, nn

from ponder._utils.trees import Tree, check_given, first_tensor
from ponder._utils.validation import check_flag, check_int, check_type
from ponder._utils.weights import digest_of_weights
from ponder.engine.certificates import (
    certified_now,
    warn_of_certified_part,
    warn_of_foreign_certificate,
    warn_of_other_weights,
)
from ponder.engine.loop import Exits, run
from ponder.engine.sources import ModelSource, call_stem
from ponder.engine.unroll import no_exits
from ponder.errors import ArgumentError
from ponder.parts.callables import FunctionModule, as_module
from ponder.parts.heads import PerStep, as_head, as_lambda_head
from ponder.parts.padding import REAL, Padding, check_masks, named_in, real_positions, unknown_mask
from ponder.parts.readouts import Readout, ReadoutCall
from ponder.parts.steps import Step, Steps
from ponder.parts.tasks import Task, TaskName, as_task, task_named
from ponder.parts.tasks.custom import LossFunction, warn_of_own_weights
from ponder.policies import ExitPolicy, LastStep, ModelSpec, PolicyBatch, Quantile
from ponder.policies.certified import is_certified

__all__ = ["EarlyExitModel", "check_model"]

_INNER = frozenset({"args", "context", "hidden", "hidden_states", "input", "kwargs", "named", "self", "x"})
_ARGUMENTS = ("inputs", "labels", "policy", "row_ids", "policy_context", "keep_features", "num_steps")


class EarlyExitModel(nn.Module):
    """An encoder as stem, steps, readout and heads, whose rows leave where a policy lets them.

    Args:
        steps: One callable applied `num_steps` times, a sequence of callables, or `ponder.Steps`.
        num_steps: N; required for one shared step.
        head: Features to outputs; `ponder.PerStep` for one head a step.
        lambda_head: Features to hazard logits; None where nothing needs a hazard.
        policy: Who decides to exit; `Quantile(0.5)` with a Lambda head, `LastStep()` without, where None.
        stem: Inputs to hidden state, or to (hidden, context); the identity where None.
        readout: Hidden state to features; the identity for 2-D states where None.
        halting_readout: Hidden state to what the Lambda head reads, `(batch, width)`; the features where None.
        task: What outputs and labels mean.
        check_finite: Look for NaN and infinity after every step.
        padding: Where lengths lie in the model's tensors.
    """

    certified_for: str | None = None
    """Digest of the weights that the model had when its policy came with a certificate."""

    _told_of_weights: frozenset[frozenset[str]] = frozenset()  # for which the certificates of calls were given

    def __init__(
        self,
        steps: Steps | Step | Sequence[Step],
        num_steps: int | None = None,
        *,
        head: nn.Module,
        lambda_head: nn.Module | None = None,
        policy: ExitPolicy | None = None,
        stem: Callable[..., Tree] | None = None,
        readout: Readout | None = None,
        halting_readout: Readout | None = None,
        task: TaskName | LossFunction | Task | None = None,
        check_finite: bool = False,
        padding: Padding | None = None,
    ) -> None:
        super().__init__()
        self.steps = Steps.of(steps, num_steps)
        self.num_steps = self.steps.num_steps
        """N, the number of steps at full depth."""
        self.head = as_head(head, self.num_steps)
        self.lambda_head = None if lambda_head is None else as_lambda_head(lambda_head)
        self.stem = None if stem is None else as_module("stem", stem)
        self.readout = ReadoutCall(readout)
        self.halting_readout = None if halting_readout is None else ReadoutCall(halting_readout)
        self._task = as_task(task)
        warn_of_own_weights(self._task, self)
        check_flag("check_finite", check_finite)
        self.check_finite = check_finite
        self.padding = padding
        self._context_names, takes_any = _parameters([self.stem, *self.steps.fns])
        self._names_all = not takes_any or hasattr(self.stem, "argument_names")  # a captured module reads no others
        default = LastStep() if self.lambda_head is None else Quantile(0.5)
        self._policy = self.checked(default if policy is None else policy)  # weights may be loaded later

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what was pickled, also before the task was checked where it is assigned."""
        if "task" in state:
            state = {**state, "_task": state["task"]}
            del state["task"]
        super().__setstate__(state)  # type: ignore[no-untyped-call]

    def __setattr__(self, name: str, value: Any) -> None:
        """Assign as PyTorch does, but give a property what it is assigned, also where that is a module."""
        if isinstance(getattr(type(self), name, None), property):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def task(self) -> Task | None:
        """What outputs and labels mean; assigning another checks that the policy can read it, and the objective."""
        return self._task

    @task.setter
    def task(self, task: TaskName | LossFunction | Task | None) -> None:
        meant = as_task(task)
        warn_of_own_weights(meant, self)
        self.take_task(meant)

    def take_task(self, task: Task | None) -> None:
        """Take a task whose loss has been looked at; refuse one whose outputs the model's policy cannot read."""
        self._policy.check(replace(self.spec, task=task or task_named(None)))
        self._task = task

    @property
    def spec(self) -> ModelSpec:
        """What the model offers to policies."""
        return ModelSpec(self.num_steps, self._task or task_named(None), self.lambda_head is not None)

    def depth(self, num_steps: int | None) -> int:
        """The number of steps of a call: N, or what the call asks of a shared step.

        Raises:
            ArgumentError: It is no number of steps, or another than N where steps or heads are not shared.
        """
        if num_steps is None:
            return self.num_steps
        check_int("num_steps", num_steps, remedy="Pass num_steps=60, say, or None for the model's own number.")
        self.steps.schedule_of(num_steps)
        if isinstance(self.head, PerStep) and num_steps != self.num_steps:
            raise ArgumentError(
                "num_steps",
                expected=f"{self.num_steps}, or None: there is one head for each of these steps",
                got=num_steps,
                remedy="Share the head, as the step is shared: head=nn.Linear(…).",
            )
        return num_steps

    @property
    def policy(self) -> ExitPolicy:
        """The policy of calls that name none; assigning one checks it against the model.

        A certificate that is about other weights than those of the model is refused: it promises nothing here.
        """
        return self._policy

    @policy.setter
    def policy(self, policy: ExitPolicy) -> None:
        policy = self.checked(policy)
        self.certified_for = certified_now(policy, self)
        warn_of_certified_part(policy)
        self._policy = policy

    def weights_digest(self) -> str | None:
        """The SHA-256 of the weights that answers and exits come from, whatever the device.

        Returns:
            64 hexadecimal digits; None where they cannot be read, as those on the meta device or quantised ones.
        """
        return digest_of_weights(
            [self.stem, self.steps, self.readout, self.halting_readout, self.head, self.lambda_head]
        )

    def take_saved_policy(self, policy: ExitPolicy) -> None:
        """Take a policy that was saved with the weights that the model has now, with its certificate, if it has one."""
        self._policy = self.checked(policy)
        if is_certified(policy):
            self.certified_for = self.weights_digest()
            warn_of_other_weights(self)

    @contextmanager
    def temporary_policy(self, policy: ExitPolicy) -> Iterator[None]:
        """Another policy for the length of a block."""
        own, self._policy = self._policy, self.checked(policy)
        try:
            yield
        finally:
            self._policy = own

    def checked(self, policy: ExitPolicy | None, num_steps: int | None = None) -> ExitPolicy:
        """`policy`, or the model's own where None; an error where it cannot serve the model, or that many steps."""
        if policy is None and num_steps in (None, self.num_steps):
            return self._policy
        policy = self._policy if policy is None else policy
        check_type("policy", policy, ExitPolicy)
        policy.check(replace(self.spec, num_steps=self.depth(num_steps)))
        return policy

    def look_at_certificate(self, policy: ExitPolicy, *, once: bool = False) -> None:
        """Warn where a policy that a run names was certified for other weights.

        Args:
            policy: The policy.
            once: Whether to ask once alone for a certificate's weights, as in a call of one batch: all those of the
                model are read for that.
        """
        if not torch.compiler.is_compiling():
            told = warn_of_foreign_certificate(policy, self, self._told_of_weights if once else frozenset())
            if once and told != self._told_of_weights:
                self._told_of_weights = told

    def train(self, mode: bool = True) -> Self:
        """Switch modes as PyTorch does, but leave parts whose every parameter is frozen in evaluation mode.

        The dropout of a frozen encoder, and the running statistics of its BatchNorm, do not move. A stem, step or
        readout without parameters is as the encoder is. An encoder that was captured is one part, and so are the stem,
        each step and each head: what is frozen within one that is trained is in training mode.
        """
        super().train(mode)
        if not mode:
            return self
        heads = list(self.head.heads) if isinstance(self.head, PerStep) else [self.head]
        for part in (self.stem, *self.steps.fns, self.readout, *heads, self.halting_readout, self.lambda_head):
            if part is not None and _is_frozen(part):
                part.eval()
        encoder = [weight for part in (self.stem, *self.steps.fns) if part is not None for weight in part.parameters()]
        if encoder and not any(weight.requires_grad for weight in encoder):
            for part in (self.stem, *self.steps.fns, self.readout):
                if part is not None and next(part.parameters(), None) is None:  # dropout alone: a part of the encoder
                    part.eval()
        return self

    def exits(
        self,
        inputs: Tree,
        context: Mapping[str, Any],
        policy: ExitPolicy,
        *,
        row_ids: Tensor | None = None,
        policy_context: Mapping[str, Tensor] | None = None,
        num_steps: int | None = None,
    ) -> Exits:
        """Run every row to its exit. The policy, and the number of steps, have been checked (see `checked`).

        Args:
            inputs: What the stem takes.
            context: What the stem and the steps are called with besides.
            policy: Who decides.
            row_ids: Who each row is, `(batch,)` integers; the position where None.
            policy_context: What policies may read of each row, by name, `(batch, …)` each.
            num_steps: How many steps there are; N where None.
        """
        depth, needs = num_steps or self.num_steps, policy.needs
        source, batch = self.start(
            inputs,
            context,
            row_ids,
            policy_context,
            depth,
            use_hazard="hazard" in needs,
            use_features="features" in needs,
        )
        if "context" in needs and policy_context is None:
            raise ArgumentError(
                "policy_context",
                expected=f"what {policy!r} reads of each row",
                got="None",
                remedy="Pass model(inputs, policy_context={'budget': budgets}), say, a tensor with a row for each.",
            )
        return run(source, policy, batch) if batch.row_ids.shape[0] else no_exits(source, depth)

    def start(
        self,
        inputs: Tree,
        context: Mapping[str, Any],
        row_ids: Tensor | None,
        policy_context: Mapping[str, Tensor] | None,
        num_steps: int,
        *,
        use_hazard: bool,
        use_features: bool,
    ) -> tuple[ModelSource, PolicyBatch]:
        """The door: everything that is checked once a call; and the rows before their first step.

        Args:
            inputs: What the stem takes.
            context: What the stem and the steps are called with besides.
            row_ids: Who each row is; the position where None.
            policy_context: What policies may read of each row, or None.
            num_steps: How many steps there are; `depth` has looked at it.
            use_hazard: Whether hazards will be asked for.
            use_features: Whether features will be: these may have positions where outputs have none.
        """
        if context.keys() - self._context_names:
            self.check_names(context)
        named = context if isinstance(inputs, Tensor) else named_in(inputs, context)  # nearly always: one call less
        check_masks(named, self.padding)
        hidden, step_context, size = call_stem(self.stem, inputs, context)
        of_its_own = step_context is not context or named is not context
        if of_its_own or (self.padding is None and context and REAL.keys().isdisjoint(context)):
            self.warn_of_lost_mask(hidden, named, step_context)
        if policy_context is not None:
            check_given("policy_context", policy_context, size)
        task, padding = self._task or task_named(None), self.padding
        in_batches = size > 1 and not self.training and not torch.compiler.is_compiling()
        narrows = padding is not None and padding.pooled and in_batches and not task.per_position
        has_positions = task.per_position or (use_features and (padding is None or not padding.pooled))
        lengths = None
        if narrows and padding is not None:
            known = named if padding.mask in step_context else context  # steps that see no mask would see other rows
            lengths = padding.lengths_of_stem(step_context, known)
            lengths = padding.lengths(known) if lengths is None else lengths
            if step_context is not context and not padding.can_be_cut(hidden, step_context, known):
                lengths = None
        source = ModelSource(
            self,
            hidden,
            step_context,
            use_hazard and size > 0,
            lengths=lengths,
            mask=self.positions(named, step_context) if has_positions else None,
            policy_context=policy_context or {},
        )
        return source, PolicyBatch(_as_row_ids(row_ids, size, first_tensor(hidden).device), num_steps, task)

    def positions(self, context: Mapping[str, Any], of_stem: Mapping[str, Any] | None = None) -> Tensor | None:
        """Which positions are no padding, `(batch, length)` bool.

        Args:
            context: All that a call names, by whose mask this is known.
            of_stem: The context that the stem gave, which is asked where that one has no mask, or where the stem made
                other positions and hands on a mask of these. What is in floating point there is added to scores, and
                says something else.
        """
        find = real_positions if self.padding is None else self.padding.positions
        found = find(context)
        if of_stem is not None and (found is None or self.stem is not None):
            of_stem = {n: v for n, v in of_stem.items() if not isinstance(v, Tensor) or not v.is_floating_point()}
            own = find(of_stem)
            if found is None or (own is not None and own.shape[1] != found.shape[1]):
                found = own
        return found

    def positions_of(self, inputs: Tree, context: Mapping[str, Any], outputs: Tensor) -> Tensor | None:
        """The same of a call and what it answered, `(batch, length, …)`; the stem is run where the mask is its own."""
        named = named_in(inputs, context)
        found = self.positions(named)
        if self.stem is None or (found is not None and found.shape[1:] == outputs.shape[1:2]):
            return found
        with torch.no_grad():
            return self.positions(named, call_stem(self.stem, inputs, context)[1])

    def warn_of_lost_mask(self, hidden: Tree, context: Mapping[str, Any], step_context: Mapping[str, Any]) -> None:
        """Warn where padding will be read as real: the stem hands on no mask, or it is called as none that is known.

        Args:
            hidden: What the stem gave.
            context: All that the call names.
            step_context: The context that it hands to the steps and readouts.
        """
        names, state = REAL if self.padding is None else (self.padding.mask,), first_tensor(hidden)
        if any(getattr(step_context.get(name), "ndim", 0) == 2 for name in names):
            return
        read = [each for each in (self.readout, self.halting_readout) if each is not None and each.leaves_out_padding]
        at_positions = self._task is not None and self._task.per_position and not self.training  # policies ask
        if torch.compiler.is_compiling() or state.dim() < 3 or not (read or at_positions):
            return
        if self.padding is None and REAL.keys().isdisjoint(context):
            name = unknown_mask(context, state.shape[:2])
            if name is not None and (at_positions or not all(each.names(name) for each in read)):
                reader = "The readout leaves" if read else "What looks at answers, as policies and records do, leaves"
                _warn_of_unknown_mask(name, context[name], reader, name in step_context)
            return
        if any(name in step_context for name in names):  # a mask of pairs, say, which a readout of one's own may read
            read = [each for each in read if each.is_known]
        real = self.positions(context) if read else None
        if real is None or state.shape[:2] != real.shape or bool(real.all()):
            return  # states of another length are other positions
        mask = next(name for name in names if name in context)
        warnings.warn(
            f"The stem returns a context without {mask!r} (batch, length), by which the readout leaves padding out: it "
            f"takes padding for real. Let the stem return (hidden, {{{mask!r}: mask}}).",
            stacklevel=4,
        )

    def check_names(self, context: Mapping[str, Any]) -> None:
        """Refuse names that nothing reads, and such as are misspelt, where a stem or step takes any keyword.

        Args:
            context: What a call gives the stem and the steps besides the inputs.
        """
        for name in context.keys() - self._context_names:
            if name in _ARGUMENTS:
                raise ArgumentError(
                    name,
                    expected="names that the stem or a step takes, and no others, as context",
                    got=f"{name!r}, an argument of a call of the model that is not taken here",
                    remedy="Leave it out.",
                )
            known = [*_ARGUMENTS, *sorted(self._context_names - _INNER)]
            close = get_close_matches(name, known if self._names_all else _ARGUMENTS, n=1, cutoff=0.75)
            if close or self._names_all:
                remedy = f"Did you mean {close[0]!r}?" if close else "Leave it out: nothing would read it."
                if any(each.names(name) for each in (self.readout, self.halting_readout) if each is not None):
                    remedy = (
                        f"The readout reads it, and the steps do not: let them (and the stem) take {name}=None, and "
                        "use it where they mix positions."
                    )
                raise ArgumentError(
                    name,
                    expected="an argument of the call, or a name that the stem or a step takes",
                    got=f"{name!r}, which none of them names",
                    remedy=remedy,
                )
            self._context_names.add(name)  # looked at once


def _is_frozen(part: nn.Module) -> bool:
    """Whether a part has parameters, none of which learns."""
    parameters = list(part.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def _warn_of_unknown_mask(name: str, mask: Tensor, reader: str, in_steps: bool) -> None:
    """Warn where a mask of a call says that there is padding, and is called as none that is known.

    Args:
        name: Its name.
        mask: The mask, `(batch, length)`.
        reader: Who leaves padding out, as the sentence begins.
        in_steps: Whether the steps' context has it.
    """
    if type(mask) is not Tensor or mask.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(mask):
        return  # nothing to look at
    if bool((mask == mask[:1, :1]).all()):
        return  # no padding
    remedy = f"or pass a ponder.Padding with mask={name!r} to the model"
    if not in_steps:
        remedy = "and let a stem of your own return (hidden, {'attention_mask': mask})"
    warnings.warn(
        f"{reader} padding out by a mask called {' or '.join(map(repr, REAL))}, and is given {name!r}, "
        f"which it does not know: it takes padding for real. Rename it, {remedy}.",
        stacklevel=5,
    )


def check_model(model: Any) -> None:
    """Refuse what is no `EarlyExitModel`, and say where it is in a model that holds one."""
    if isinstance(model, EarlyExitModel):
        return
    inside = isinstance(getattr(model, "ponder", None), EarlyExitModel)
    check_type("model", model, EarlyExitModel, remedy="Pass its wrapper, model.ponder." if inside else None)


def _as_row_ids(row_ids: Tensor | None, size: int, device: torch.device) -> Tensor:
    """The integers that tell rows apart, `(batch,)` long: the caller's, or the positions."""
    if row_ids is None:
        return torch.arange(size, device=device)
    if not isinstance(row_ids, Tensor) or row_ids.shape != (size,) or row_ids.is_floating_point():
        got = f"{row_ids.dtype} {tuple(row_ids.shape)}" if isinstance(row_ids, Tensor) else type(row_ids).__name__
        raise ArgumentError("row_ids", expected=f"integers, shape ({size},)", got=got, remedy="One id for each row.")
    return row_ids.to(device=device, dtype=torch.long)


def _parameters(parts: Sequence[nn.Module | None]) -> tuple[set[str], bool]:
    """The names of the parameters that the parts of a model spell out, and whether one of them takes any."""
    names: set[str] = set()
    takes_any = False
    for part in parts:
        if part is not None:
            names.update(getattr(part, "argument_names", ()))  # of a captured module, whose stem takes any
            call = part.fn if isinstance(part, FunctionModule) else part.forward
            try:
                parameters = inspect.signature(call).parameters
            except (TypeError, ValueError):  # a built-in function tells no signature
                takes_any = True
                continue
            names.update(parameters)
            takes_any = takes_any or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return names, takes_any
