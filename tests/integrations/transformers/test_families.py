"""Every family of encoders, from a tiny random one: wrapped, it computes what it did, or is refused as documented."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder.integrations.transformers import PonderForSequenceClassification, adapter_for, families
from ponder.integrations.transformers.examples import example_for
from ponder.integrations.transformers.families import (
    FAMILIES,
    Family,
    Holds,
    _page,
    supported,
    tiny_encoder,
    what_holds,
)
from ponder.policies import ExitPolicy, LastStep, PolicyBatch, StepView

PAGE = Path(__file__).parents[3] / "docs" / "families.md"
HELD = {row.name: row for row in supported()}


def _order(family: Family) -> int:
    held = HELD[family.name]
    of_text = held.reads == "input_ids" and held.how in ("layers", "between") and not held.further
    return 2 if held.refused else 0 if of_text else 1


# Pytest runs the tests of a family one after the other where all lists begin alike.
IN_ORDER = sorted(FAMILIES, key=_order)
WRAPPED = [family for family in IN_ORDER if _order(family) < 2]
TEXT = [family for family in IN_ORDER if _order(family) == 0]
pytestmark = pytest.mark.usefixtures("quick_captures")


@pytest.fixture(autouse=True)
def _private_randomness() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


@dataclass(frozen=True)
class Found:
    """What holds for a family, and the encoder and the adapter of which it was found."""

    holds: Holds
    encoder: Any
    adapter: Any


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest, quick_captures: None) -> Found:
    """Each encoder is made and captured once."""
    kept: dict[str, Any] = {}

    def keeping(name: str, make: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def made(given: Any) -> Any:
            kept[name] = make(given)
            return kept[name]

        return made

    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setattr(families, "tiny_encoder", keeping("encoder", tiny_encoder))
        patch.setattr(families, "adapter_for", keeping("adapter", adapter_for))
        holds = what_holds(request.param)
    return Found(holds, kept["encoder"], kept.get("adapter"))


@dataclass(frozen=True)
class FirstRowsFirst(ExitPolicy):
    """Row r leaves at step r + 1: the longest rows come first."""

    def init(self, batch: PolicyBatch) -> Any:
        return {"exit": batch.row_ids + 1}

    def decide(self, step: StepView, state: Any) -> tuple[Tensor | bool, Any]:
        return step.index >= state["exit"], state


def other_batches(encoder: Any) -> list[dict[str, Any]]:
    """Other rows than those that were learned from; of texts, also without a mask and with one that hides nothing."""
    example = example_for(encoder)
    first = next(iter(example))
    rows = torch.tensor([0, 2, 1])
    values = example[first]
    if values.is_floating_point():
        return [{first: values.flip(-1)}]
    shuffled = {name: value[rows] for name, value in example.items()} | {first: values.roll(1, 1)[rows]}
    whole = {name: value for name, value in shuffled.items() if name != "attention_mask"}
    if "attention_mask" not in example:
        return [shuffled]
    long = {name: value.repeat_interleave(5, 1)[:, :44] for name, value in shuffled.items()}
    return [shuffled, whole, {**whole, "attention_mask": torch.ones_like(example["attention_mask"])}, long]


@pytest.mark.parametrize("found", IN_ORDER, ids=lambda family: family.name, indirect=True)
def test_what_is_documented_holds(found: Found) -> None:
    assert found.holds == HELD[found.holds.name]


@pytest.mark.parametrize("found", WRAPPED, ids=lambda family: family.name, indirect=True)
@torch.no_grad()
def test_a_wrapped_encoder_computes_what_it_computes(found: Found) -> None:
    encoder, adapter = found.encoder, found.adapter
    name = next(name for name in ("pooler", "mean") if adapter.has_readout(name))
    model = ponder.PonderWrapper(
        adapter.steps(),
        stem=adapter.stem,
        readout=adapter.readout(name),
        padding=adapter.padding(),
        head=nn.Identity(),
    ).eval()
    takes = inspect.signature(encoder.forward).parameters
    constants = {"use_cache": False} if "use_cache" in takes else {}  # a cache changes the last bits
    for batch in other_batches(encoder):
        first, *others = batch
        named = {key: batch[key] for key in others}
        plain = encoder(**batch, **constants)
        if name == "pooler":
            expected = plain.pooler_output
        elif plain.last_hidden_state.dim() == 4:
            expected = plain.last_hidden_state.mean((2, 3))
        else:
            expected = ponder.readouts.mean(plain.last_hidden_state, attention_mask=batch.get("attention_mask"))
        whole = model(batch[first], policy=LastStep(), **named)
        assert torch.equal(whole.outputs, expected), "full depth is the plain encoder"
        every = model.unroll(batch[first], **named).outputs
        out = model(batch[first], policy=FirstRowsFirst(), **named)
        assert out.exit_step.tolist() == [1, 2, 3]
        scale = float(every.abs().max())
        torch.testing.assert_close(out.outputs, every[range(3), range(3)], atol=1e-4 * scale, rtol=0)


@pytest.mark.parametrize("found", TEXT, ids=lambda family: family.name, indirect=True)
def test_every_family_of_text_trains_and_answers(found: Found) -> None:
    model = PonderForSequenceClassification.from_encoder(found.encoder, "palbert", num_labels=3)
    example = example_for(model.encoder)
    batch = {name: example[name] for name in ("input_ids", "attention_mask") if name in example}
    out = model.train()(**batch, labels=torch.tensor([0, 2, 1]))
    out.loss.backward()
    assert out.step_logits.shape == (3, model.ponder.num_steps, 3)
    untrained = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert len(untrained) < len(list(model.parameters())) / 2
    with torch.no_grad():
        assert model.eval()(**batch).logits.shape == (3, 3)


def test_seventy_families_and_more_go_through_from_encoder() -> None:
    assert len({family.model_type for family in TEXT}) >= 70


def test_seventy_families_and_more_are_wrapped_and_what_is_refused_could_not_be() -> None:
    assert len({family.model_type for family in WRAPPED}) >= 70
    for row in HELD.values():
        if row.refused:
            assert "keep the shape of the hidden state" in row.refused or "draws random numbers" in row.refused


def test_the_page_is_what_was_found() -> None:
    assert PAGE.read_text(encoding="utf-8") == _page(supported()), (
        "run python -m ponder.integrations.transformers.families"
    )
