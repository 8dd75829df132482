"""`predict` and `record`: whole data sets, in the order of the data, and no step of a row too many."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import ponder
from ponder import policies
from ponder.errors import ArgumentError
from tests.inference.toys import CLASSES, build, sequences, sizes_of

SURE = policies.Confidence(0.55)


def alone(model: ponder.PonderWrapper, rows: list[Tensor], policy: policies.ExitPolicy) -> Any:
    """What calls of the model with one row each give."""
    calls = [
        model(row[None], attention_mask=torch.ones(1, len(row)), policy=policy) for row in rows
    ]
    return torch.cat([call.exit_step for call in calls]), [call.outputs[0] for call in calls]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    "policy", [SURE, policies.Patience(1), policies.FixedStep(2), policies.LastStep()], ids=str
)
def test_answers_and_exits_are_those_of_each_row_alone(
    shared: bool, policy: policies.ExitPolicy
) -> None:
    model, rows = build(shared=shared), sequences(70)
    found = ponder.predict(model, rows, policy=policy, batch_size=8)
    steps, outputs = alone(model, rows, policy)
    assert found.exit_step.tolist() == steps.tolist()
    torch.testing.assert_close(found.outputs, torch.stack(outputs))
    replayed = model.record(rows, batch_size=8).replay(policy)
    assert replayed.exit_step.tolist() == steps.tolist()
    torch.testing.assert_close(replayed.outputs, found.outputs)


def test_small_batches_are_merged_and_no_row_runs_a_step_too_many() -> None:
    model, rows = build(), sequences(200)
    exits = ponder.predict(model, rows, policy=SURE, batch_size=16).exit_step
    assert 1 < exits.double().mean() < 4  # some exit early and some late
    sizes = sizes_of(model)
    assert sum(size for size, _ in sizes) == exits.sum()
    full = sum(math.ceil(int((exits > step).sum()) / 16) for step in range(4))
    # Neighbours that fit into one batch are one; without merging there would be 13 batches a step.
    assert full <= len(sizes) <= 1.3 * full < 4 * 13
    positions = sum(len(row) * step for row, step in zip(rows, exits.tolist(), strict=True))
    assert sum(size * length for size, length in sizes) <= 1.25 * positions


def test_a_batch_is_bounded_by_rows_and_by_positions() -> None:
    model = build()
    ponder.predict(model, sequences(60), batch_size=16, max_tokens=40, policy=policies.LastStep())
    sizes = sizes_of(model)
    assert max(rows for rows, _ in sizes) <= 16
    assert max(rows * length for rows, length in sizes) <= 40


def test_labels_of_tokens_and_blanks_stand_where_a_row_ends() -> None:
    model, rows = build("token_classification"), sequences(9)
    labels = [torch.arange(len(row)) % CLASSES for row in rows]
    record = model.record(
        [(row, {"labels": label}) for row, label in zip(rows, labels, strict=True)], batch_size=4
    )
    found = ponder.predict(model, rows, batch_size=4, policy=policies.LastStep())
    torch.testing.assert_close(record.outputs[:, -1], found.outputs)
    for place, (row, label) in enumerate(zip(rows, labels, strict=True)):
        assert record.labels[place].tolist() == [
            *label.tolist(),
            *[-100] * (record.labels.shape[1] - len(row)),
        ]
        assert not found.outputs[place, len(row) :].any()
        torch.testing.assert_close(
            found.outputs[place, : len(row)], alone(model, [row], policies.LastStep())[1][0]
        )


def wrapped() -> ponder.PonderWrapper:
    torch.manual_seed(0)
    parts = {"head": nn.Linear(4, 2), "lambda_head": ponder.LambdaHead(4)}
    return ponder.PonderWrapper(
        nn.Linear(4, 4), num_steps=3, policy=policies.Bernoulli(3), **parts
    ).eval()


def test_every_kind_of_data_set_gives_the_same() -> None:
    model, rows = wrapped(), torch.randn(10, 4)
    expected = model(rows)
    pairs = [(row, {"labels": 1}) for row in rows]
    kinds: list[Any] = [rows, list(rows), (row for row in rows), rows.tolist(), rows.numpy(), pairs]
    kinds += [DataLoader(list(rows), batch_size=3), DataLoader(list(rows), batch_size=None)]
    for kind in kinds:
        found = ponder.predict(model, kind, batch_size=4)
        assert found.exit_step.tolist() == expected.exit_step.tolist()
        torch.testing.assert_close(found.outputs, expected.outputs)
    assert len(ponder.predict(model, [])) == 0


def test_rows_have_ids_of_their_own_by_which_sampling_is_drawn() -> None:
    model, rows = wrapped(), torch.randn(1, 4).expand(40, 4)
    ids = torch.arange(100, 140)
    found = ponder.predict(model, rows, row_ids=ids, batch_size=7).exit_step
    assert (
        found.tolist()
        == model(rows, row_ids=ids).exit_step.tolist()
        != model(rows).exit_step.tolist()
    )
    record = model.record(rows, row_ids=ids)
    assert record.row_ids.tolist() == ids.tolist()
    assert record.replay(model.policy).exit_step.tolist() == found.tolist()


def test_labels_are_taken_from_the_call_or_from_the_examples() -> None:
    model, rows, labels = wrapped(), torch.randn(5, 4), [0, 1, 1, 0, 1]
    by_call = model.record(rows, labels=labels, batch_size=2)
    by_row = model.record(
        [(row, {"labels": label}) for row, label in zip(rows, labels, strict=True)]
    )
    assert by_call.labels.tolist() == by_row.labels.tolist() == labels
    with pytest.raises(ArgumentError, match="labels of every example, or of none"):
        model.record([(rows[0], {"labels": 1}), rows[1]])


def test_progress_counts_every_row_once_and_modes_are_restored() -> None:
    model, counted = wrapped().train(), list[int]()
    ponder.predict(model, torch.randn(50, 4), batch_size=8, progress=counted.append)
    assert sum(counted) == 50
    assert model.training
    model.record(torch.randn(50, 4), batch_size=8, progress=counted.append)
    assert sum(counted) == 100


def test_an_example_that_cannot_be_read_is_named() -> None:
    with pytest.raises(ArgumentError, match="a sequence") as caught:
        ponder.predict(build(), [torch.tensor([1, 2]), torch.tensor(3)])
    assert "in dataset[1]" in caught.value.__notes__
    with pytest.raises(ArgumentError, match="one a row"):
        ponder.predict(wrapped(), {"input_ids": torch.zeros(2, 4)})


def test_sampled_exits_of_a_stream_are_those_of_a_call() -> None:
    model, inputs = wrapped(), torch.randn(30, 4)
    with ponder.StreamEngine(model) as engine:
        found = {row: answer.exit_step for row, answer in engine.run(inputs)}
    assert [found[row] for row in range(30)] == model(inputs).exit_step.tolist()


def test_the_loader_of_training_is_taken_by_predict_and_record() -> None:
    inputs, labels = torch.randn(6, 8), torch.arange(6) % 3
    model = ponder.PonderWrapper([torch.nn.Linear(8, 8)] * 2, head=torch.nn.Linear(8, 3)).eval()
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=4)
    torch.testing.assert_close(
        ponder.predict(model, loader).outputs, ponder.predict(model, inputs).outputs
    )
    assert model.record(loader).labels.tolist() == labels.tolist()
