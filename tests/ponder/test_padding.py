"""Declared lengths: batches get narrower as their longest rows exit, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder import policies, readouts
from ponder.parts.padding import Along, Padding, check_masks, real_positions
from tests.ponder.checks import refused
from tests.ponder.test_loop import Appointed
from tests.toys import LENGTH, NUM_STEPS, WIDTH, make_toy, wrap

TORCH = Padding(mask="src_key_padding_mask", real=False)


def test_lengths_are_the_last_real_positions() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]])
    assert Padding().lengths({"attention_mask": mask}).tolist() == [2, 3, 4]
    assert TORCH.lengths({"src_key_padding_mask": mask == 0}).tolist() == [2, 3, 4]
    assert Padding().lengths({}) is None
    assert Padding().lengths({"attention_mask": mask[:, None]}) is None


def test_trimming_gives_views() -> None:
    padding = Padding(context={"bias": Along((-2, -1)), "ids": Along()})
    hidden = (torch.zeros(2, 4, 8), torch.zeros(2, 8))
    context = {
        "attention_mask": torch.ones(2, 4),
        "bias": ponder.Shared(torch.zeros(1, 4, 4)),
        "ids": [torch.zeros(2, 4), None],
        "other": torch.zeros(2, 4),
    }
    (states, summary), trimmed = padding.trim(hidden, context, 3)
    assert states.shape == (2, 3, 8)
    assert states.data_ptr() == hidden[0].data_ptr()
    assert summary is hidden[1]
    assert trimmed["attention_mask"].shape == (2, 3)
    assert trimmed["bias"].value.shape == (1, 3, 3)
    assert trimmed["ids"][0].shape == (2, 3)
    assert trimmed["other"].shape == (2, 4)


def widths_of(model: ponder.PonderWrapper, run: Any) -> list[tuple[int, int]]:
    seen: list[tuple[int, int]] = []
    hook = model.steps.fns[0].register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[:2])))
    run()
    hook.remove()
    return seen


@pytest.mark.parametrize("pooled", [True, False])
def test_a_batch_is_as_wide_as_its_longest_running_row(pooled: bool) -> None:
    toy = make_toy("transformer")
    padding = Padding(mask="src_key_padding_mask", real=False, pooled=pooled)
    model = wrap(toy, padding=padding).eval()
    inputs, _ = toy.batch(4)
    mask = torch.arange(LENGTH) >= torch.tensor([[4], [1], [3], [2]])
    ids, call = torch.tensor([1, 4, 2, 9]), {"policy": Appointed(), "src_key_padding_mask": mask}
    expected = wrap(make_toy("transformer")).eval()(inputs, row_ids=ids, **call)
    seen = widths_of(model, lambda: model(inputs, row_ids=ids, **call))
    out = model(inputs, row_ids=ids, **call)
    assert out.exit_step.tolist() == expected.exit_step.tolist() == [1, 4, 2, NUM_STEPS]
    torch.testing.assert_close(out.outputs, expected.outputs)
    assert seen == ([(4, 4), (3, 3), (2, 2), (2, 2), (1, 2)] if pooled else [(4, 4), (3, 4), (2, 4), (2, 4), (1, 4)])


def test_a_batch_without_a_mask_keeps_its_width() -> None:
    toy = make_toy("transformer")
    model = wrap(toy, padding=TORCH).eval()
    inputs, _ = toy.batch(2)
    seen = widths_of(model, lambda: model(inputs, policy=Appointed(), row_ids=torch.tensor([1, 9])))
    assert seen == [(2, LENGTH)] + [(1, LENGTH)] * (NUM_STEPS - 1)


def test_training_keeps_the_width() -> None:
    toy = make_toy("transformer")
    model = wrap(toy, padding=TORCH).train()
    inputs, context = toy.batch(6)
    assert widths_of(model, lambda: model(inputs, **context)) == [(6, LENGTH)] * NUM_STEPS


def test_gradients_flow_through_a_batch_that_got_narrower() -> None:
    def step(hidden: Tensor, attention_mask: Tensor) -> Tensor:
        return hidden * 2

    model = ponder.PonderWrapper(
        step, 3, head=nn.Identity(), readout=readouts.mean, policy=policies.FixedStep(1), padding=Padding()
    ).eval()
    inputs = torch.ones(2, 3, WIDTH, requires_grad=True)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    out = model(inputs, policy=Appointed(), row_ids=torch.tensor([1, 3]), attention_mask=mask)
    out.outputs.sum().backward()
    torch.testing.assert_close(inputs.grad[:, :, 0], torch.tensor([[2 / 3] * 3, [8.0, 0, 0]]))


def test_a_float_mask_says_what_a_whole_one_says() -> None:
    hidden, mask = torch.tensor([[[1.0], [1.0], [100.0]]]), torch.tensor([[1, 1, 0]])
    for given in (mask, mask.bool(), mask.float(), mask.half()):
        assert readouts.Pooled(None, readouts.mean)(hidden, attention_mask=given).item() == 1.0
        assert real_positions({"attention_mask": given}).tolist() == [[True, True, False]]
        check_masks({"attention_mask": given})
        with refused("attention_mask", "none in rows [0]"):
            check_masks({"attention_mask": given * 0})
    added = torch.tensor([[0.0, 0.0, -torch.inf]])
    assert real_positions({"src_key_padding_mask": added}).tolist() == [[True, True, False]]
    with refused("attention_mask", "0 where it is padding", "four dimensions"):
        check_masks({"attention_mask": added})
