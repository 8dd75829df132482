"""A policy driven by hand over recorded steps, with every answer looked at."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

from ponder._utils.trees import Tree, alike, check_rows, take_rows
from ponder.errors import ArgumentError, PonderError
from ponder.policies import ExitPolicy, PolicyBatch, StepView
from ponder.testing.contract import ContractError, require
from ponder.testing.samples import readings_of
from ponder.trajectory import Trajectory

__all__ = ["PolicyDriver"]

T = TypeVar("T")
_PROVIDED = {
    "hazard": ("hazard", "cdf", "survival"),
    "output": ("output",),
    "features": ("features",),
    "context": ("context",),
}


class PolicyDriver:
    """Asks a policy as the loop does, but takes nobody out, and lets rows be at different steps.

    Args:
        policy: The policy.
        trajectory: What it decides on.
        what: What that is, for messages.
        watch: Entered around every call of the policy.
    """

    def __init__(
        self,
        policy: ExitPolicy,
        trajectory: Trajectory,
        what: str = "random float64 outputs",
        watch: AbstractContextManager[Any] | None = None,
    ) -> None:
        self.policy, self.trajectory, self.what = policy, trajectory, what
        self.watch = watch or nullcontext()
        self.num_steps = trajectory.num_steps
        named = [name for need in policy.needs for name in _PROVIDED[need]]
        self._readings = {name: value for name, value in readings_of(trajectory).items() if name in named}
        self._context = trajectory.policy_context if "context" in policy.needs else None

    def all_rows(self) -> Tensor:
        """The row numbers, `(rows,)`."""
        return torch.arange(len(self.trajectory))

    def batch(self, rows: Tensor) -> PolicyBatch:
        """The batch of those rows, as `init` sees it."""
        return PolicyBatch(self.trajectory.row_ids[rows], self.num_steps, self.trajectory.meaning)

    def init(self, rows: Tensor) -> Tree:
        """The state before the first step."""
        batch = self.batch(rows)
        before = batch.row_ids.clone()
        state = self._ask("init", lambda: self.policy.init(batch))
        require(
            torch.equal(batch.row_ids, before),
            self.policy,
            "init changes nothing that it is given",
            "it changed batch.row_ids in place",
            "Work on a copy.",
        )
        self._check_state(state, len(rows), "init")
        return state

    def view(self, rows: Tensor, at: Tensor) -> StepView:
        """What the policy sees of `rows` at the steps `at`."""
        readings = _Readings({name: value[rows, at - 1] for name, value in self._readings.items()})
        mask, context = take_rows((self.trajectory.mask, self._context), rows)
        return _View(at, self.num_steps, readings, self.trajectory.meaning, mask, context)

    def decide(self, state: Tree, rows: Tensor, at: Tensor) -> tuple[Tensor, Tree]:
        """Mask `(rows,)` and new state; mask and state are checked for their form."""
        view = self.view(rows, at)
        mask, state = self.ask(view, state)
        return torch.full(rows.shape, mask) if isinstance(mask, bool) else mask, state

    def ask(self, view: StepView, state: Tree) -> tuple[Tensor | bool, Tree]:
        """The answer to one view, checked for its form."""
        where = f"decide at step {view.index.tolist()[0]}"
        answer = self._ask(where, lambda: self.policy.decide(view, state), view)
        require(
            isinstance(answer, tuple) and len(answer) == 2,
            self.policy,
            "decide returns the exit mask and the new state",
            f"{type(answer).__name__}",
            "Return mask, state (or mask, None).",
        )
        mask, new = answer
        form = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        require(
            isinstance(mask, bool)
            or (isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == view.index.shape),
            self.policy,
            "the exit mask is bool, one for each running row, or a plain bool",
            f"{form} for {len(view.index)} rows",
            "Compare per row, and reduce over every dimension but the first.",
        )
        self._check_state(new, len(view.index), where)
        return mask, new

    def walk(self, rows: Tensor, state: Tree) -> tuple[Tensor, list[Tree]]:
        """Masks `(rows, N − 1)`, and the states before and after each step, with all rows side by side.

        Args:
            rows: Who walks.
            state: Their state before the first step.
        """
        states = [state]
        masks = []
        for step in range(1, self.num_steps):
            mask, new = self.decide(states[-1], rows, torch.full_like(rows, step))
            masks.append(mask)
            states.append(new)
        return torch.stack(masks, 1) if masks else torch.zeros(len(rows), 0, dtype=torch.bool), states

    def _ask(self, where: str, call: Callable[[], T], view: StepView | None = None) -> T:
        before = copy.deepcopy(self.policy.__dict__)
        try:
            with self.watch:
                answer = call()
        except Exception as error:
            self._check_needs(view, error)
            raise ContractError(
                self.policy,
                "a policy answers wherever the model is finite",
                f"{where}, {self.what}: {type(error).__name__}: {error}",
                "Refuse what cannot work in check(spec), before any batch.",
            ) from error
        self._check_needs(view, None)
        if not _kept(before, self.policy.__dict__):
            raise ContractError(
                self.policy,
                "a policy keeps nothing on itself",
                f"{where} changed its attributes from {before} to {self.policy.__dict__}",
                "Carry what changes in the state, which decide takes and returns.",
            )
        return answer

    def _check_needs(self, view: StepView | None, error: Exception | None) -> None:
        missing = view.readings.missing if view is not None and isinstance(view.readings, _Readings) else []
        if not missing:
            return
        need = next(need for need, names in _PROVIDED.items() if missing[0] in names)
        seen = str(error) if isinstance(error, PonderError) else f"it reads step.{missing[0]}"
        raise ContractError(
            self.policy,
            "what decide reads is declared in needs",
            seen,
            f"Set needs = frozenset({{{need!r}, …}}) on the class: now it is {sorted(self.policy.needs)}.",
        ) from error

    def _check_state(self, state: Tree, rows: int, where: str) -> None:
        try:
            check_rows("state", (state, torch.empty(rows)), rows)
        except ArgumentError as error:
            raise ContractError(
                self.policy,
                "every tensor of a state has the batch first",
                f"after {where}, {error.argument.replace('[0]', '', 1)} has {error.got}, with {rows} rows",
                "Keep one row per example; a number for all rows may be a plain Python number.",
            ) from error


def _kept(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether attributes are what they were when they were copied; what cannot change is its own copy."""
    same = {name for name, value in now.items() if name in before and before[name] is value}
    old, new = ({name: value for name, value in of.items() if name not in same} for of in (before, now))
    return alike(old, new)


class _View(StepView):
    """A view that remembers when its context was asked for and is not there."""

    @property
    def context(self) -> Mapping[str, Tensor]:
        """See `StepView.context`."""
        if self.policy_context is None and isinstance(self.readings, _Readings):
            self.readings.missing.append("context")
        return super().context


class _Readings(dict[str, Tensor]):
    """Readings that remember what was asked for and is not there."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__(values)
        self.missing: list[str] = []

    def __contains__(self, name: Any) -> bool:
        if not super().__contains__(name):
            self.missing.append(str(name))
            return False
        return True
