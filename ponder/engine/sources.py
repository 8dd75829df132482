"""Rows whose steps are computed: the source that the loop asks when a model runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ponder._utils.numerics import at_least_float32
from ponder._utils.trees import Shared, Tree, check_rows, first_tensor, map_tensors, take_rows, tensors, unwrap
from ponder.errors import NonFiniteError
from ponder.parts.heads import PerStep, not_the_rows
from ponder.parts.padding import REAL, Padding
from ponder.parts.readouts import ReadoutCall, told
from ponder.parts.steps import Steps

__all__ = ["ModelParts", "ModelSource", "ask_stem", "call_stem"]


class ModelParts(Protocol):
    """The parts of a model that the loop calls; `engine.model.EarlyExitModel` has them."""

    steps: Steps
    readout: ReadoutCall
    halting_readout: ReadoutCall | None
    head: nn.Module
    lambda_head: Any
    check_finite: bool
    padding: Padding | None


def call_stem(
    stem: Callable[..., Tree] | None, inputs: Tree, context: Mapping[str, Any]
) -> tuple[Tree, Mapping[str, Any], int]:
    """Call the stem, which is the identity where None: h_0, the context of the steps, and the number of rows.

    Where h_0 is the inputs, the context, a weight or buffer of the stem, or a part of these or of anything else, it is
    a copy: a step may change its state in place, and these are not its own.
    """
    hidden, of_call = inputs, context
    if stem is not None:
        hidden, context = ask_stem(stem, inputs, context)
    if hidden is inputs:
        hidden = map_tensors(Tensor.clone, inputs)
    else:
        own = [*stem.buffers(recurse=False)] if isinstance(stem, nn.Module) else []  # all of one, which is no view
        hidden = _apart(hidden, (inputs, unwrap(of_call), own))
    size = check_rows("inputs" if stem is None else "hidden state returned by the stem", hidden)
    if context:
        check_rows("context", context, size)
    return hidden, context, size


def ask_stem(stem: Callable[..., Tree], inputs: Tree, context: Mapping[str, Any]) -> tuple[Tree, Mapping[str, Any]]:
    """What a stem gives: the hidden state, and the context of the steps, which is that of the call where it gives none.

    A pair whose second item is a dict is read as (hidden, context). A value of it that the stem was given in
    `ponder.Shared`, and hands on as it is, under its name, is shared again.
    """
    # A captured module has to know what has no rows.
    made = stem(inputs, **(context if getattr(stem, "takes_shared", False) else unwrap(context)))
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], dict)):
        return made, context
    hidden, after = made
    for name, given in context.items():
        if isinstance(given, Shared) and after.get(name) is given.value:
            after = {**after, name: given}
    return hidden, after


@dataclass
class ModelSource:
    """Rows whose steps are computed; features, outputs and hazards once, and only when asked for.

    Args:
        parts: The model.
        hidden: h_0, the stem's output, for the whole batch.
        context: What every step is called with, besides the hidden state.
        use_hazard: Whether hazards will be asked for (then the past features that they read are kept).
        step: The step at which the rows stand.
        lengths: The length of each row, `(rows,)` on the host, where it is known: the batch then gets narrower.
        past: Features of the steps before, newest first, as many as the Lambda head reads; None before the first step.
        mask: Which positions are no padding, `(rows, length)` bool, where outputs or features have positions.
        policy_context: What the caller gave for the policy, by name.
        at: The step at which each row stands after `advance`, where rows at different depths share a batch (a stream).
    """

    parts: ModelParts
    hidden: Tree
    context: Mapping[str, Any]
    use_hazard: bool
    step: int = 0
    lengths: Tensor | None = None
    past: list[Tensor] | None = None
    mask: Tensor | None = None
    policy_context: Mapping[str, Tensor] = field(default_factory=dict)
    at: Sequence[int] | None = None
    _cache: dict[str, Tensor] = field(default_factory=dict)
    _rows: Tensor | None = None
    _width: int | None = None

    def __post_init__(self) -> None:
        parts = self.parts  # looked up once a call: the attributes of a module that are modules are slow to find
        self.run_step: Callable[..., Tree] = parts.steps
        """From the number of a step, the hidden state and the context to the hidden state after that step."""
        self._head, self._lambda_head, self._padding = parts.head, parts.lambda_head, parts.padding
        self._readout, self._halting_readout = parts.readout, parts.halting_readout
        read = [
            each for each in (self._head, self._lambda_head, self._readout, self._halting_readout) if each is not None
        ]
        self._in_place = bool([part for each in read for part in each.modules() if getattr(part, "inplace", False)])
        padding = self._padding
        self._own_name = padding is not None and padding.mask not in REAL
        self._index_of_rows = self.at is not None and parts.steps.index
        if parts.check_finite:
            self._rows = torch.arange(first_tensor(self.hidden).shape[0])
        self._take_context()
        if self.past is None:
            self.past = self._before_the_first_step() if self.use_hazard else []

    def advance(self, step: int) -> None:
        """See `Source.advance`."""
        if self.step > 0 and self.past:
            self.past = self.next_past()
        self._cache.clear()
        self.step = step
        at = torch.tensor(self.at, device=first_tensor(self.hidden).device) if self._index_of_rows else None
        self.hidden = self.run_step(step, self.hidden, at, **self._call)
        if self._rows is not None:
            _check_finite(self.hidden, step, self._rows)

    def next_past(self) -> list[Tensor]:
        """The past of the next step: copies, since a step may change its hidden state in place."""
        return [self.lasting(self.halting_features()), *self.past[:-1]] if self.past else []

    def features(self) -> Tensor:
        """See `Readings.features`: a copy, since a policy may keep it, or change it in place."""
        return self.read_out().clone()

    def read_out(self) -> Tensor:
        """The features of this step, perhaps a view of the hidden state."""
        if "features" not in self._cache:
            hidden = map_tensors(Tensor.clone, self.hidden) if self._in_place else self.hidden
            self._cache["features"] = self._readout(hidden, self._read)
        return self._cache["features"]

    def halting_features(self) -> Tensor:
        """What the Lambda head reads of this step: the features, unless the model reads them out on their own."""
        if self._halting_readout is None:
            return self.read_out()
        if "halting_features" not in self._cache:
            hidden = map_tensors(Tensor.clone, self.hidden) if self._in_place else self.hidden
            self._cache["halting_features"] = self._halting_readout(hidden, self._halting_read)
        return self._cache["halting_features"]

    def output(self) -> Tensor:
        """See `Readings.output`."""
        if "output" not in self._cache:
            self._cache["output"] = self.lasting(self.answer(self.read_out()))
        return self._cache["output"]

    def hazard_logit(self) -> Tensor:
        """See `Readings.hazard_logit`."""
        if "hazard" not in self._cache:
            now = self.halting_features()
            read = torch.cat([now, *self.past], dim=-1) if self.past else now.clone() if self._in_place else now
            logit: Tensor = self._lambda_head(read)
            self._cache["hazard"] = at_least_float32(logit)
        return self._cache["hazard"]

    def output_of(self, index: Tensor | None) -> Tensor:
        """See `Source.output_of`."""
        if index is None:
            return self.output()
        rows = index.to(first_tensor(self.hidden).device)
        if "output" in self._cache:
            return self._cache["output"][rows]
        if "features" in self._cache:
            return self.answer(self._cache["features"][rows], index)
        read = self._readout.reads(self.context)
        if self._own_name:
            read = told(self._readout, read, self.context, self._padding)
        given = unwrap(take_rows(read, rows))
        return self.answer(self._readout(take_rows(self.hidden, rows), given), index)

    def keep(self, index: Tensor) -> None:
        """See `Source.keep`."""
        rows = index.to(first_tensor(self.hidden).device)
        if self.lengths is not None and self._padding is not None:
            self.lengths = self.lengths[index]
            length = int(self.lengths.max())
            if length != self._width:
                self.hidden, self.context = self._padding.trim(self.hidden, self.context, length)
                self._width = length
        kept = ("features", "halting_features") if self.past else ()  # which the past of the next step will hold
        self._cache = {name: value[rows] for name, value in self._cache.items() if name in kept}
        self.hidden = take_rows(self.hidden, rows)
        if self.context:
            self.context = take_rows(self.context, rows)
            self._take_context()
        if self.past:
            self.past = take_rows(self.past, rows)
        if self.mask is not None:
            self.mask = self.mask[rows]
        if self.policy_context:
            self.policy_context = take_rows(self.policy_context, rows)
        if self._rows is not None:
            self._rows = self._rows[index]

    def _before_the_first_step(self) -> list[Tensor]:
        head = self._lambda_head
        if head is None or head.history == 1:
            return []
        features = self.lasting(self.halting_features())
        self._cache.clear()
        return [features if head.initial == "stem" else torch.zeros_like(features)] * (head.history - 1)

    def lasting(self, tensor: Tensor) -> Tensor:
        """`tensor`, copied where it is a view of the hidden state, which the next step may change in place."""
        if torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return tensor.clone()  # no memory to look at; the compiler drops copies nobody needs
        hidden = self.hidden
        owners = [hidden] if isinstance(hidden, Tensor) else [own for _, own in tensors(hidden)]
        start = tensor.data_ptr()
        for owner in owners:
            memory = owner.untyped_storage()
            if 0 <= start - memory.data_ptr() < memory.nbytes():
                return tensor.clone()
        return tensor

    def _take_context(self) -> None:
        """Make what steps and readouts are called with; it serves as long as the rows stay."""
        self._call = unwrap(self.context)
        halting = self._halting_readout
        self._read = self._readout.reads(self._call)
        self._halting_read = {} if halting is None else halting.reads(self._call)
        if self._own_name:
            self._read = told(self._readout, self._read, self._call, self._padding)
            if halting is not None:
                self._halting_read = told(halting, self._halting_read, self._call, self._padding)

    def answer(self, features: Tensor, index: Tensor | None = None) -> Tensor:
        """The outputs of the rows `index` (None: all) from their features."""
        head: nn.Module = self._head
        features = features.clone() if self._in_place else features
        if not isinstance(head, PerStep):
            outputs = head(features)
        elif self.at is None:
            outputs = head(features, self.step)
        else:
            outputs = head(features, self.at if index is None else [self.at[row] for row in index.tolist()])
        if not isinstance(outputs, Tensor) or not outputs.dim() or outputs.shape[0] != features.shape[0]:
            raise not_the_rows(outputs, features.shape[0])
        return outputs


def _apart(hidden: Tree, given: Tree) -> Tree:
    """`hidden`, with copies of the tensors that share memory with what was given, or with any other tensor."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return map_tensors(Tensor.clone, hidden)  # no memory to look at; the compiler drops copies nobody needs
    memory = {_memory(tensor) for _, tensor in tensors(given)} - {None}
    return map_tensors(lambda own: own.clone() if _memory(own) in memory or _is_anothers(own) else own, hidden)


def _memory(tensor: Tensor) -> int | None:
    """Where the numbers of a plain tensor lie; None of a sparse or nested one, and of other classes."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and not tensor.is_mkldnn
    return tensor.untyped_storage().data_ptr() if plain else None


def _is_anothers(tensor: Tensor) -> bool:
    """Whether a plain tensor is a weight, or a view: rows of a table, say, or one row for all."""
    if isinstance(tensor, nn.Parameter) or tensor._is_view():
        return True
    return _memory(tensor) is not None and tensor.untyped_storage().nbytes() != tensor.nbytes


def _check_finite(hidden: Tree, step: int, rows: Tensor) -> None:
    for path, tensor in tensors(hidden, "hidden"):
        if tensor.is_floating_point() or tensor.is_complex():
            bad = ~tensor.unsqueeze(-1).flatten(1).isfinite().all(1)  # one number a row is a state too
            if bool(bad.any()):
                raise NonFiniteError(
                    f"step {step} produced NaN or infinity in {path}, rows {rows[bad.cpu()].tolist()} of the "
                    f"batch. Look at these inputs, the learning rate, or the precision."
                )
