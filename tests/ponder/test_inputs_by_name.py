"""Inputs in a dict: a mask among them is a mask, in calls, data sets, streams and measurements."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import ponder
from tests.ponder.checks import refused

WIDTH, LENGTHS = 16, [6, 4, 2]
STATES = torch.randn(3, 6, WIDTH, generator=torch.Generator().manual_seed(0))
PADDED = torch.arange(6) >= torch.tensor(LENGTHS)[:, None]
BATCH = {"src": STATES, "src_key_padding_mask": PADDED}


@pytest.fixture
def model() -> ponder.PonderWrapper:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    return ponder.PonderWrapper.from_recipe(encoder, "vanilla", num_outputs=3, example=BATCH).eval()


@pytest.fixture
def rows() -> list[dict[str, Tensor]]:
    return [{name: value[row, :length] for name, value in BATCH.items()} for row, length in enumerate(LENGTHS)]


@torch.no_grad()
def test_rows_of_several_lengths_are_padded_as_the_mask_says(model: Any, rows: list[dict[str, Tensor]]) -> None:
    alone = torch.cat([model({name: value[None] for name, value in row.items()}).outputs for row in rows])
    torch.testing.assert_close(model(BATCH).outputs, alone)
    torch.testing.assert_close(model.predict(rows).outputs, alone)
    torch.testing.assert_close(model.record(rows).outputs[:, -1], alone)
    with ponder.StreamEngine(model) as engine:
        answers = [engine.submit(row) for row in rows]
        torch.testing.assert_close(torch.stack([answer.result().output for answer in answers]), alone)


@torch.no_grad()
def test_batches_of_a_loader_are_answered_as_in_a_call(model: Any) -> None:
    places = [(slice(0, 2), slice(0, 6)), (slice(2, 3), slice(0, 3))]
    batches = [{name: value[rows, columns] for name, value in BATCH.items()} for rows, columns in places]
    loader = DataLoader([0, 1], batch_size=1, collate_fn=lambda chosen: batches[chosen[0]])
    own = torch.cat([model(batch).outputs for batch in batches])
    torch.testing.assert_close(model.predict(loader).outputs, own)


def test_costs_are_of_the_row_without_its_padding(model: Any) -> None:
    by_name = ponder.cost.measure_each(model, BATCH)
    apart = ponder.cost.measure_each(model, STATES, src_key_padding_mask=PADDED)
    assert [cost.plain for cost in by_name] == [cost.plain for cost in apart]


def test_a_row_of_padding_alone_is_refused(model: Any) -> None:
    hidden = {**BATCH, "src_key_padding_mask": torch.ones(3, 6, dtype=torch.bool)}
    with refused("src_key_padding_mask", "at least one real position"):
        model(hidden)
    with ponder.StreamEngine(model) as engine, refused("src_key_padding_mask", "at least one real position"):
        engine.submit({name: value[0] for name, value in hidden.items()}).result()


@pytest.mark.parametrize("count", [3, 8])
def test_labels_of_another_length_than_the_row_are_refused(count: int) -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = ponder.PonderWrapper.from_recipe(
        encoder, "vanilla", num_outputs=3, example=BATCH, task="token_classification"
    ).eval()
    row = {"src": STATES[0], "src_key_padding_mask": PADDED[0]}
    with refused("dataset[0]", "labels: expected one for each of the row's 6 positions", f"got {count}"):
        model.record([(row, {"labels": torch.zeros(count, dtype=torch.long)})])


class Ids(nn.Module):
    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return inputs["states"]


def test_a_stem_that_keeps_the_mask_among_its_inputs_is_told_so() -> None:
    layer = nn.Linear(WIDTH, WIDTH)
    model = ponder.PonderWrapper(
        layer, num_steps=2, stem=Ids(), head=nn.Linear(WIDTH, 2), readout=ponder.readouts.mean, task="classification"
    ).eval()
    with pytest.warns(UserWarning, match=r"without 'attention_mask' \(batch, length\), by which the readout"):
        model({"states": STATES, "attention_mask": (~PADDED).long()})
