"""Products of bfloat16 in float32 are those of bfloat16, and nothing else is touched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks import bf16
from benchmarks.bf16 import FloatProducts, quick_products


class Attending(nn.Module):
    """A product of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.into(x)
        weights = torch.matmul(hidden, hidden.transpose(1, 2)).softmax(-1)
        attended = torch.bmm(weights.to(hidden.dtype), hidden) + hidden @ hidden.transpose(1, 2) @ hidden
        attended = attended + nn.functional.scaled_dot_product_attention(hidden, hidden, hidden)
        return self.out(attended)


def gradients(model: nn.Module, x: Tensor, quick: bool) -> list[Tensor]:
    """Answers and gradients under autocast."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        if quick:
            with FloatProducts():
                answers = model(x)
        else:
            answers = model(x)
    assert answers.dtype == torch.bfloat16
    answers.float().square().mean().backward()
    return [answers.float().detach(), *[weight.grad.clone() for weight in model.parameters()]]  # type: ignore[union-attr]


def test_answers_and_gradients_are_those_of_bfloat16_to_its_rounding() -> None:
    torch.manual_seed(0)
    model, x = Attending(), torch.randn(4, 6, 16)
    for slow, quick in zip(gradients(model, x, False), gradients(model, x, True), strict=True):
        assert float((slow - quick).norm() / slow.norm()) < 0.02


def test_a_product_is_one_of_rounded_factors() -> None:
    x, y = torch.full((1, 1), 1.0 + 2.0**-9), torch.ones(1, 1)
    with torch.autocast("cpu", torch.bfloat16), FloatProducts():
        assert float(x @ y) == 1.0  # and not 1.00195…, which float32 can tell


@pytest.mark.parametrize("dtype", [torch.float16, None])
def test_other_precisions_are_left_alone(dtype: torch.dtype | None) -> None:
    x = torch.randn(3, 3)
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        plain = x @ x
        with FloatProducts():
            assert torch.equal(x @ x, plain)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_what_autocast_does_not_round_is_not_rounded(dtype: torch.dtype) -> None:
    x = torch.arange(4).reshape(2, 2).to(dtype) * 257
    with torch.autocast("cpu", torch.bfloat16), FloatProducts():
        assert (x @ x).dtype == dtype
        assert torch.equal(x @ x, torch.tensor([[2, 3], [6, 11]]).to(dtype) * 257**2)


@pytest.mark.parametrize(
    ("machine", "capability", "needed"),
    [("x86_64", "AVX2", True), ("AMD64", "DEFAULT", True), ("x86_64", "AVX512", False), ("aarch64", "DEFAULT", False)],
)
def test_it_is_for_machines_without_quick_products(
    machine: str, capability: str, needed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bf16.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert isinstance(quick_products(True), FloatProducts) == needed
    assert not isinstance(quick_products(False), FloatProducts)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert not isinstance(quick_products(True), FloatProducts)
