"""Random numbers that leave the caller's generators as they were."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import torch

__all__ = ["generator", "private_randomness"]


@contextlib.contextmanager
def private_randomness(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """The global generators of PyTorch and Python, seeded inside and restored behind.

    What is checked may draw from them; it must not change what the caller draws next.

    Args:
        seed: Seed of all these generators.
        device: The device of the model, if not the CPU; the generators of all CUDA devices take part where it is one.
    """
    on_cuda = device is not None and device.type == "cuda"
    state = random.getstate()
    with torch.random.fork_rng(list(range(torch.cuda.device_count())) if on_cuda else []):
        try:
            torch.default_generator.manual_seed(seed)
            if on_cuda:
                torch.cuda.manual_seed_all(seed)
            random.seed(seed)
            yield
        finally:
            random.setstate(state)


def generator(seed: int) -> torch.Generator:
    """A generator that no other code draws from, on the CPU."""
    return torch.Generator().manual_seed(seed)
