"""The member of a family that has a given mean on N steps.

A family's own parameter is a rate, or the mean of the distribution before it is cut; what a model meets is cut to
1..N, and its mean lies elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, overload

import torch

from ponder._utils.bisection import bisect
from ponder._utils.validation import check_int
from ponder.errors import ArgumentError, ArgumentTypeError, PonderError
from ponder.priors.base import MeanParameter, Prior, registry

__all__ = ["for_mean"]

P = TypeVar("P", bound=Prior)
_WIDEST = 512.0  # of the search; e^512 is still far from overflow


@overload
def for_mean(family: str, mean: float, num_steps: int, **fixed: Any) -> Prior: ...
@overload
def for_mean(family: type[P], mean: float, num_steps: int, **fixed: Any) -> P: ...
def for_mean(family: type[Prior] | str, mean: float, num_steps: int, **fixed: Any) -> Prior:
    """The prior of `family` whose mean over 1..`num_steps` is `mean`, found by bisection in float64.

    Args:
        family: A class of priors, or its registered name, that declares a `mean_parameter`: geometric, poisson and
            normal do.
        mean: The expected step that is wanted; for these three any between 1 and `num_steps`, ends excluded.
        num_steps: N.
        fixed: The family's other hyper-parameters (`std` of normal).

    Raises:
        ArgumentError: The family declares no such parameter, or does not reach the mean; the message says what it
            reaches.
        ArgumentTypeError: `family` is no family of priors, or `fixed` does not fit it.

    Example:
        >>> prior = for_mean("normal", 3.0, num_steps=12, std=4.0)
        >>> round(prior.mean, 2), round(prior(12).mean.item(), 4)
        (-1.78, 3.0)
    """
    check_int("num_steps", num_steps, remedy="Pass the number of steps.")
    build = _builder(family, fixed)

    def mean_at(u: float) -> float:
        return build(u)(num_steps, dtype=torch.float64).mean.item()

    low, high = _bracket(mean_at, mean)
    reached = sorted((mean_at(low), mean_at(high)))
    if not (reached[0] < mean < reached[1] or reached[0] == mean == reached[1]):
        raise ArgumentError(
            "mean",
            expected=f"a number in ({reached[0]:.6g}, {reached[1]:.6g}), which the family reaches on {num_steps} steps",
            got=mean,
            remedy="Ask for another mean, or choose another family.",
        )
    if reached[0] == reached[1]:  # one step: every member has the mean
        return build(0.0)
    rising = mean_at(low) < mean_at(high)
    return build(bisect(lambda u: (mean_at(u) < mean) == rising, low, high)[1])


def _builder(family: type[Prior] | str, fixed: dict[str, Any]) -> Callable[[float], Prior]:
    """A function from a real number to the member whose mean parameter it is, once mapped to the open interval."""
    factory = registry.find(family) if isinstance(family, str) else family
    name = family if isinstance(family, str) else getattr(family, "__name__", repr(family))
    if not (isinstance(factory, type) and issubclass(factory, Prior)):
        raise ArgumentTypeError(
            "family",
            expected="a class of priors, or its registered name",
            got=repr(family),
            remedy="Pass priors.Geometric, say, without building it.",
        )
    parameter = factory.mean_parameter
    if parameter is None:
        raise ArgumentError(
            "family",
            expected="a family that declares which parameter moves its mean",
            got=name,
            remedy="Choose geometric, poisson or normal, or set mean_parameter = priors.MeanParameter(…) on its class.",
        )

    def build(u: float) -> Prior:
        try:
            return factory(**{parameter.name: _value(parameter, u)}, **fixed)
        except TypeError as error:
            if isinstance(error, PonderError):
                raise
            raise ArgumentTypeError(
                f"arguments of {name}",
                expected=f"all hyper-parameters but {parameter.name!r}",
                got=repr(fixed),
                remedy=f"({error})",
            ) from error

    return build


def _value(parameter: MeanParameter, u: float) -> float:
    """A rising map of the real numbers to the open interval of the parameter."""
    low, high = parameter.low, parameter.high
    if math.isinf(low) and math.isinf(high):
        return math.sinh(u)
    if math.isinf(high):
        value = low + math.exp(u)
    elif math.isinf(low):
        value = high - math.exp(-u)
    else:
        value = low + (high - low) * (math.exp(u) / (1 + math.exp(u)) if u < 0 else 1 / (1 + math.exp(-u)))
    return min(max(value, math.nextafter(low, high)), math.nextafter(high, low))


def _bracket(mean_at: Callable[[float], float], mean: float) -> tuple[float, float]:
    """An interval, doubled until the means at its ends enclose `mean` or nothing wider can be computed."""
    widest = width = 1.0
    while width <= _WIDEST:
        ends = mean_at(-width), mean_at(width)
        if not all(map(math.isfinite, ends)):
            break
        widest = width
        if min(ends) < mean < max(ends):
            break
        width *= 2
    return -widest, widest
