"""A `PonderWrapper` whose heads have the name that peft expects."""

from __future__ import annotations

from typing import Any, Protocol, cast

from torch import nn

from ponder.wrapper import PonderWrapper

__all__ = ["HeadsWrapper"]


class _Heads(Protocol):
    """The module of the heads, this package's or peft's."""

    head: nn.Module
    lambda_head: nn.Module | None


class HeadsWrapper(PonderWrapper):
    """A `PonderWrapper` whose heads are in one module, under a name that peft recognises.

    Beside its adapters, peft trains in full and saves the modules whose names end in ``classifier``
    or ``qa_outputs``. It replaces such a module by a wrapper, which holds a copy for each
    adapter and has the attributes of the active one. So heads are always read from there.

    Args:
        args: Arguments of `PonderWrapper`.
        heads_name: The name of the module with the heads.
        kwargs: Arguments of `PonderWrapper`.
    """

    def __init__(self, *args: Any, heads_name: str, **kwargs: Any) -> None:
        self.heads_name = heads_name  # the constructor of the base class assigns the heads
        super().__init__(*args, **kwargs)

    @property
    def head(self) -> nn.Module:
        """Features to outputs."""
        return self._heads.head

    @head.setter
    def head(self, head: nn.Module) -> None:
        self._heads.head = head

    @property
    def lambda_head(self) -> nn.Module | None:
        """Features to hazard logits; None without hazards."""
        return self._heads.lambda_head

    @lambda_head.setter
    def lambda_head(self, lambda_head: nn.Module | None) -> None:
        self._heads.lambda_head = lambda_head

    @property
    def _heads(self) -> _Heads:
        """The module with the heads, or peft's in its place."""
        if self.heads_name not in self._modules:
            self.add_module(self.heads_name, nn.Module())
        return cast(_Heads, self._modules[self.heads_name])
