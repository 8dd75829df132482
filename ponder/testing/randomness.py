"""Random numbers that leave the caller's generators as they were."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import torch

__all__ = ["generator", "private_randomness"]


@contextlib.contextmanager
def private_randomness(seed: int) -> Iterator[None]:
    """The global generators of PyTorch (CPU) and Python, seeded inside and restored behind.

    What is checked may draw from them; it must not change what the caller draws next.
    """
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    try:
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        yield
    finally:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)


def generator(seed: int) -> torch.Generator:
    """A generator of its own, on the CPU."""
    return torch.Generator().manual_seed(seed)
