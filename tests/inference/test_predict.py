"""`predict` and `record`: whole data sets, in the order of the data, and no step of a row too many."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import ponder
from ponder import policies
from ponder.errors import ArgumentError
from tests.toys import CLASSES, sequence_model, sizes_of, token_ids

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
    model = sequence_model(shared=shared)
    rows = token_ids(70)
    found = ponder.predict(model, rows, policy=policy, batch_size=8)
    steps, outputs = alone(model, rows, policy)
    assert found.exit_step.tolist() == steps.tolist()
    torch.testing.assert_close(found.outputs, torch.stack(outputs))
    replayed = model.record(rows, batch_size=8).replay(policy)
    assert replayed.exit_step.tolist() == steps.tolist()
    torch.testing.assert_close(replayed.outputs, found.outputs)


def test_small_batches_are_merged_and_no_row_runs_a_step_too_many() -> None:
    model = sequence_model()
    rows = token_ids(200)
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
    model = sequence_model()
    ponder.predict(model, token_ids(60), batch_size=16, max_tokens=40, policy=policies.LastStep())
    sizes = sizes_of(model)
    assert max(rows for rows, _ in sizes) <= 16
    assert max(rows * length for rows, length in sizes) <= 40


def test_labels_of_tokens_and_blanks_stand_where_a_row_ends() -> None:
    model = sequence_model("token_classification")
    rows = token_ids(9)
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
    model = wrapped()
    rows = torch.randn(10, 4)
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
    model = wrapped()
    rows = torch.randn(1, 4).expand(40, 4)
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
    model = wrapped()
    rows = torch.randn(5, 4)
    labels = [0, 1, 1, 0, 1]
    by_call = model.record(rows, labels=labels, batch_size=2)
    by_row = model.record(
        [(row, {"labels": label}) for row, label in zip(rows, labels, strict=True)]
    )
    assert by_call.labels.tolist() == by_row.labels.tolist() == labels
    with pytest.raises(ArgumentError, match="labels of every example, or of none"):
        model.record([(rows[0], {"labels": 1}), rows[1]])


def test_progress_counts_every_row_once_and_modes_are_restored() -> None:
    model = wrapped().train()
    counted = list[int]()
    ponder.predict(model, torch.randn(50, 4), batch_size=8, progress=counted.append)
    assert sum(counted) == 50
    assert model.training
    model.record(torch.randn(50, 4), batch_size=8, progress=counted.append)
    assert sum(counted) == 100


def test_an_example_that_cannot_be_read_is_named() -> None:
    with pytest.raises(ArgumentError, match="a sequence") as caught:
        ponder.predict(sequence_model(), [torch.tensor([1, 2]), torch.tensor(3)])
    assert "in dataset[1]" in caught.value.__notes__
    with pytest.raises(ArgumentError, match="one a row"):
        ponder.predict(wrapped(), {"input_ids": torch.zeros(2, 4)})


def test_sampled_exits_of_a_stream_are_those_of_a_call() -> None:
    model = wrapped()
    inputs = torch.randn(30, 4)
    with ponder.StreamEngine(model) as engine:
        found = {row: answer.exit_step for row, answer in engine.run(inputs)}
        numbers = range(100, 130)
        futures = [engine.submit(row, row_id=n) for n, row in zip(numbers, inputs, strict=True)]
        numbered = [int(future.result().exit_step) for future in futures]
    assert [found[row] for row in range(30)] == model(inputs).exit_step.tolist()
    assert numbered == model(inputs, row_ids=torch.tensor(numbers)).exit_step.tolist()


class Masked(nn.Module):
    """A stem that takes a mask, whose mean over real positions the answer is of."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, dict[str, Any]]:
        real = torch.ones_like(x[..., :1]) if mask is None else mask.unsqueeze(-1)
        return (self.linear(x) * real).sum(1) / real.sum(1), {}  # the steps take no mask


def masked(task: str | None = None) -> tuple[Any, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    steps = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)]
    model = ponder.PonderWrapper(steps, stem=Masked(), head=nn.Linear(8, 3), task=task)
    mask = (torch.arange(5) < torch.tensor([[2], [5], [3], [4], [1], [5]])).float()
    return model.eval(), torch.randn(6, 5, 8), mask, torch.arange(6) % 3


class Rows(Dataset[Any]):
    """A data set in one form."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Any:
        return self.rows[place]


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "tuple": lambda x, mask, y: (x, mask, y),
    "a dict in the tuple": lambda x, mask, y: (x, {"mask": mask}, y),
    "a pair with a dict": lambda x, mask, y: (x, {"mask": mask, "labels": y}),
    "names": lambda x, mask, y: {"mask": mask, "labels": y, "x": x},
}


@pytest.mark.parametrize("form", FORMS)
def test_one_format_of_batches_for_fit_predict_record_and_a_call(form: str) -> None:
    model, x, mask, labels = masked()
    expected = model(x, mask=mask).outputs
    assert not torch.allclose(expected, model(x).outputs)  # the mask is read
    rows = Rows([FORMS[form](*row) for row in zip(x, mask, labels, strict=True)])
    loader = DataLoader(rows, batch_size=4)
    for data in (loader, rows):
        torch.testing.assert_close(ponder.predict(model, data).outputs, expected)
        recorded = model.record(data)
        torch.testing.assert_close(recorded.outputs[:, -1], expected)
        assert recorded.labels.tolist() == labels.tolist()
    with ponder.StreamEngine(model) as engine:
        answers = dict(engine.run(rows))
    streamed = torch.cat([answers[row].outputs for row in range(6)])
    torch.testing.assert_close(streamed, expected)

    again = copy.deepcopy(model)
    loss = again.train()(x[:4], mask[:4], labels=labels[:4]).loss
    report = ponder.fit(again, DataLoader(rows[:4], batch_size=4), epochs=1, lr=0.0, head_lr=None)
    torch.testing.assert_close(report.epochs[0].loss, loss.item())


def test_a_call_takes_context_by_position_and_inputs_by_name() -> None:
    model, x, mask, _ = masked()
    expected = model(x, mask=mask).outputs
    torch.testing.assert_close(model(x, mask).outputs, expected)
    torch.testing.assert_close(model(x=x, mask=mask).outputs, expected)
    torch.testing.assert_close(model.unroll(x, mask).outputs[:, -1], expected)
    for call in (lambda: model(x, mask, mask), lambda: model(mask=mask)):
        with pytest.raises(ponder.errors.ArgumentTypeError):
            call()


ROWS_WITH_A_MASK: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "booleans": lambda x, mask: DataLoader(TensorDataset(x, mask.bool())),
    "numbers": lambda x, mask: DataLoader(TensorDataset(x, mask.long()), batch_size=4),
    "lists": lambda x, mask: list(zip(x.tolist(), mask.long().tolist(), strict=True)),
}


def stream(model: Any, rows: Any) -> Any:
    with ponder.StreamEngine(model) as engine:
        return dict(engine.run(rows))


@pytest.mark.parametrize("form", ROWS_WITH_A_MASK)
@pytest.mark.parametrize("task", ["classification", "regression", "token_classification", None])
def test_a_mask_in_the_place_of_labels_is_refused(form: str, task: str | None) -> None:
    model, x, mask, labels = masked(task)
    for shown in (mask, 1 - mask):  # 1 at real positions, or at padding
        rows = ROWS_WITH_A_MASK[form](x, shown)
        for call in (type(model).record, ponder.predict, stream):
            with pytest.raises(ponder.errors.ArgumentError, match="look like a mask"):
                call(model, rows)
    tags = torch.tensor([[0, 1, 0, 0, 0], *mask[1:].tolist()]).long()
    for taken in (labels, torch.ones_like(tags), *([] if task == "classification" else [tags])):
        rows = list(zip(x, taken, strict=True))
        torch.testing.assert_close(ponder.predict(model, rows).outputs, model(x).outputs)


def test_record_and_predict_take_context_as_a_call_does() -> None:
    model, x, mask, _ = masked()
    expected = model(x, mask=mask).outputs
    for data, context in ((x, {"mask": mask}), ((x, {"mask": mask}), {})):
        recorded = model.record(data, **context)
        torch.testing.assert_close(recorded.outputs[:, -1], expected)
        torch.testing.assert_close(ponder.predict(model, data, **context).outputs, expected)
    for wrong in ({"bach_size": 3}, {"mask": mask[:2]}):
        with pytest.raises(ponder.errors.ArgumentTypeError, match="an option, or context"):
            model.record(x, **wrong)
    with pytest.raises(ponder.errors.ArgumentTypeError, match="with each example"):
        model.record(list(x), mask=mask)


def test_the_loader_of_training_is_taken_by_predict_and_record() -> None:
    inputs = torch.randn(6, 8)
    labels = torch.arange(6) % 3
    model = ponder.PonderWrapper([torch.nn.Linear(8, 8)] * 2, head=torch.nn.Linear(8, 3)).eval()
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=4)
    torch.testing.assert_close(
        ponder.predict(model, loader).outputs, ponder.predict(model, inputs).outputs
    )
    assert model.record(loader).labels.tolist() == labels.tolist()
