"""A `PonderWrapper` whose heads have the name that peft expects."""

from __future__ import annotations

from typing import Any

from torch import nn

from ponder.wrapper import PonderWrapper

__all__ = ["HeadsWrapper"]


class HeadsWrapper(PonderWrapper):
    """A `PonderWrapper` whose heads are in one module, under a name that peft recognises.

    Beside its adapters, peft trains in full and saves the modules whose names end in ``classifier``
    or ``qa_outputs``. It replaces such a module by one of its own, which holds a copy for each
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
        head: nn.Module = self._heads.head
        return head

    @head.setter
    def head(self, head: nn.Module) -> None:
        self._heads.head = head

    @property
    def lambda_head(self) -> nn.Module | None:
        """Features to hazard logits; None without hazards."""
        lambda_head: nn.Module | None = self._heads.lambda_head
        return lambda_head

    @lambda_head.setter
    def lambda_head(self, lambda_head: nn.Module | None) -> None:
        self._heads.lambda_head = lambda_head

    @property
    def _heads(self) -> Any:
        """The module with the heads, or peft's in its place."""
        if self.heads_name not in self._modules:
            self.add_module(self.heads_name, nn.Module())
        return self._modules[self.heads_name]
