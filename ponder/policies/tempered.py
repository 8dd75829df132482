"""A policy that sees calibrated outputs: each step's logits divided by its temperature."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

from ponder._utils.numerics import at_least_float32
from ponder._utils.validation import check_real
from ponder.errors import ArgumentError
from ponder.policies.base import ModelSpec, PolicyWrapper, StepView, registry

__all__ = ["Temperatures", "Tempered"]

_REMEDY = "Fit them: ponder.calibration.fit_temperatures(trajectory)."


class Temperatures(tuple[float, ...]):
    """Temperatures that know on which rows they were fitted; otherwise a tuple of numbers as any.

    Args:
        values: One number a step.
        fitted_on: Some of the rows, as `Gate` has them.

    Example:
        >>> from ponder.policies.tempered import Temperatures
        >>> fitted = Temperatures((1.5, 2.0), fitted_on=((0, 0.25),))
        >>> fitted, policies.Tempered(policies.Confidence(0.8), fitted).fitted_on
        ((1.5, 2.0), ((0, 0.25),))
    """

    fitted_on: tuple[tuple[float, ...], ...]

    def __new__(cls, values: Iterable[float], fitted_on: tuple[tuple[float, ...], ...] = ()) -> Self:
        made = super().__new__(cls, values)
        made.fitted_on = fitted_on
        return made


@registry.register("tempered")
@dataclass(frozen=True)
class Tempered(PolicyWrapper):
    """The policy inside, on outputs divided by a temperature that belongs to the step (Guo et al. 2017).

    The outputs that the model gives are not changed: the temperatures are for deciding only.

    Args:
        policy: A policy on the output: entropy, confidence, margin, or a combination with one.
        temperatures: One positive number a step, for example from `ponder.calibration.fit_temperatures`; or one for
            all steps. Those that were fitted know on which rows (`Temperatures`), also as the field of this policy; a
            tuple of your own was fitted on nothing that is known.

    Example:
        >>> record = Trajectory(torch.tensor([[[0.0, 0.5], [0.0, 2.0], [0.0, 4.0]]]), None, torch.arange(1))
        >>> record.replay(policies.Tempered(policies.Confidence(0.8), (2.0,))).exit_step  # outputs ÷ 2
        tensor([3])
    """

    temperatures: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        fitted_on = getattr(self.temperatures, "fitted_on", ())
        object.__setattr__(self, "temperatures", Temperatures(map(float, self.temperatures), fitted_on))
        if not self.temperatures:
            raise ArgumentError("temperatures", expected="at least one", got="none", remedy=_REMEDY)
        for temperature in self.temperatures:
            check_real("temperatures", temperature, open_low=True, remedy=_REMEDY)

    @property
    def fitted_on(self) -> tuple[tuple[float, ...], ...]:
        """Some of the rows on which the temperatures were fitted, as `Gate` has them."""
        kept: tuple[tuple[float, ...], ...] = getattr(self.temperatures, "fitted_on", ())
        return kept

    def to_dict(self) -> dict[str, Any]:
        """As that of other policies, and the rows that the temperatures know under ``"fitted_on"``."""
        return {**super().to_dict(), "fitted_on": [list(row) for row in self.fitted_on]}

    @classmethod
    def decode(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Fields as `to_dict` gave them, also those of before, which know no rows."""
        made = super().decode(fields)
        fitted_on, temperatures = made.pop("fitted_on", ()), made.get("temperatures")
        if fitted_on and isinstance(temperatures, tuple):  # the constructor refuses what is no tuple
            made["temperatures"] = Temperatures(temperatures, fitted_on)
        return made

    def check(self, spec: ModelSpec) -> None:
        super().check(spec)
        if len(self.temperatures) not in (1, spec.num_steps):
            raise ArgumentError(
                "temperatures",
                expected=f"one, or one for each of the model's {spec.num_steps} steps",
                got=len(self.temperatures),
                remedy="Fit them on a trajectory of this model.",
            )

    def transform(self, step: StepView) -> StepView:
        if "output" not in step.readings:
            return step
        output = at_least_float32(step.output)
        by_step = torch.tensor(self.temperatures, dtype=output.dtype, device=output.device)
        own = by_step if len(by_step) == 1 else by_step[step.index - 1]
        scaled = output / own.reshape(-1, *[1] * (output.dim() - 1))
        return replace(step, readings={**step.readings, "output": scaled})
