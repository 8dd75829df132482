"""Batches as they are given: can they be iterated again, how many are there, may others be made of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from ponder.errors import ArgumentError, ArgumentTypeError

__all__ = ["check_loader", "empty_loader", "length_of", "may_be_rebuilt"]


def check_loader(argument: str, loader: Iterable[Any], remedy: str | None) -> None:
    """Refuse what cannot be iterated again and again, and what is empty."""
    if not isinstance(loader, Iterable) or isinstance(loader, Mapping | Tensor | Iterator):
        raise ArgumentTypeError(
            argument,
            expected="batches that can be iterated once an epoch: a DataLoader, or a list of batches",
            got=f"a {type(loader).__name__}" + (", which can be iterated once" if isinstance(loader, Iterable) else ""),
            remedy="Wrap the data set: torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=True).",
        )
    length = length_of(loader)
    if length == 0:
        raise empty_loader(argument)
    if length is None and remedy is not None:
        raise ArgumentError(
            argument,
            expected="batches that can be counted, by which the learning rates rise and fall",
            got=f"a {type(loader).__name__} without a length",
            remedy=f"Pass {remedy}.",
        )


def length_of(loader: Iterable[Any]) -> int | None:
    """How many batches there are; None where that is not known."""
    try:
        return len(loader) if isinstance(loader, Sized) else None
    except TypeError:  # of an iterable data set without a length
        return None


def may_be_rebuilt(loader: DataLoader[Any]) -> bool:
    """Whether another DataLoader of the same data set and sampler, as accelerate makes, gives the same batches."""
    home: str = type(loader).__iter__.__module__
    return home.partition(".")[0] in ("torch", "torchdata", "accelerate")


def empty_loader(argument: str) -> ArgumentError:
    """The error of an argument that has no batches."""
    return ArgumentError(
        argument, expected="at least one batch", got="none", remedy="Look at the data set, and at drop_last."
    )
