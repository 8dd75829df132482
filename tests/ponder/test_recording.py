"""`model.record`: a data set at full depth, in its order, so that replaying gives what predicting gives."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

import ponder
from ponder import policies
from ponder.inference.recording import record
from ponder.parts.padding import Padding
from ponder.policies import Bernoulli, ExitPolicy, StepView
from tests.ponder.checks import assert_unchanged, refused, snapshot
from tests.ponder.streaming.driving import examples_of
from tests.toys import LENGTH, NUM_STEPS, TOYS, WIDTH, make_toy, wrap

ROWS = 11


@pytest.mark.parametrize("name", TOYS)
def test_it_is_what_unroll_gives_for_the_whole_batch(name: str) -> None:
    toy = make_toy(name)
    model = wrap(toy).eval()
    inputs, context = toy.batch(ROWS, seed=3)
    labels = torch.arange(ROWS) % 3
    found = model.record(examples_of(inputs, context), labels=labels, batch_size=4, keep_features=True)
    whole = model.unroll(inputs, labels=labels, keep_features=True, **context)
    assert found.row_ids.tolist() == list(range(ROWS))
    assert torch.equal(found.labels, labels)
    for tensor, expected in ((found.outputs, whole.outputs), (found.hazard_logits, whole.hazard_logits)):
        torch.testing.assert_close(tensor, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.features, whole.features, atol=1e-5, rtol=1e-5)
    assert not found.outputs.is_inference()
    assert not found.training


def test_rows_may_have_ids_of_their_own() -> None:
    model, rows = wrap(make_toy("shared")).eval(), torch.randn(ROWS, WIDTH)
    found = model.record(rows, first_row=100, batch_size=4)
    assert found.row_ids.tolist() == list(range(100, 100 + ROWS))
    drawn = found.replay(Bernoulli(0)).exit_step
    assert torch.equal(drawn, ponder.predict(model, rows, policy=Bernoulli(0), first_row=100).exit_step)
    assert not torch.equal(drawn, ponder.predict(model, rows, policy=Bernoulli(0)).exit_step)
    with refused("first_row", "-1"):
        model.record(rows, first_row=-1)


def lengthy(**parts: Any) -> tuple[ponder.PonderWrapper, list[Tensor], Tensor]:
    """A model that declares lengths, rows of several lengths, and these."""
    padding = Padding(mask="src_key_padding_mask", real=False, pooled="readout" not in parts)
    inputs, context = make_toy("transformer").batch(ROWS, seed=1)
    model = wrap(make_toy("transformer"), padding=padding, **parts)
    lengths = (~context["src_key_padding_mask"]).sum(1)
    return model, [row[:length] for row, length in zip(inputs, lengths, strict=True)], lengths


@given(
    st.randoms(use_true_random=False),
    st.integers(1, 12),
    st.booleans(),
    st.sampled_from([Bernoulli(0), policies.Patience(1), policies.Quantile(0.5), policies.Entropy(0.9)]),
)
def test_replay_is_predict(rng: random.Random, batch_size: int, sort: bool, policy: ExitPolicy) -> None:
    model, rows, _ = lengthy()
    rng.shuffle(rows)
    options: Any = {"batch_size": batch_size, "sort_by_length": sort}
    exits = model.record(rows, **options).replay(policy)
    found = model.predict(rows, policy=policy)
    assert exits.exit_step.tolist() == found.exit_step.tolist()
    torch.testing.assert_close(exits.outputs, found.outputs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("how", ["argument", "list", "examples", "collator"])
@pytest.mark.parametrize("policy", [Bernoulli(0), policies.Patience(1), policies.Voting(2)], ids=repr)
def test_answers_for_every_token(how: str, policy: ExitPolicy) -> None:
    model, rows, lengths = lengthy(
        task="token_classification", readout=ponder.readouts.identity, halting_readout=ponder.readouts.mean
    )
    of_rows = [torch.arange(len(row)) % 3 for row in rows]
    whole = torch.full((ROWS, LENGTH), -100)
    for row, own in enumerate(of_rows):
        whole[row, : len(own)] = own
    if how == "argument":
        found = model.record(rows, labels=whole, batch_size=3)
    elif how == "list":
        found = model.record(rows, labels=[own.tolist() for own in of_rows], batch_size=3)
    elif how == "examples":
        found = model.record([(row, {"labels": own}) for row, own in zip(rows, of_rows, strict=True)], batch_size=3)
    else:

        def collate(batch: list[int]) -> Any:
            longest = max(len(rows[row]) for row in batch)
            padded = torch.zeros(len(batch), longest, WIDTH)
            mask = torch.ones(len(batch), longest, dtype=torch.bool)
            for place, row in enumerate(batch):
                padded[place, : len(rows[row])], mask[place, : len(rows[row])] = rows[row], False
            return padded, {"src_key_padding_mask": mask, "labels": whole[batch, :longest]}

        found = model.record(list(range(ROWS)), collate=collate, batch_size=3)
    assert torch.equal(found.labels, whole[:, : int(lengths.max())])
    assert found.mask.sum(1).tolist() == lengths.tolist()
    exits, predicted = found.replay(policy), model.predict(rows, policy=policy, batch_size=4)
    assert exits.exit_step.tolist() == predicted.exit_step.tolist()
    torch.testing.assert_close(exits.outputs, predicted.outputs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("how", ["argument", "examples"])
@pytest.mark.parametrize("change", [-1, 2])
def test_labels_of_more_or_fewer_tokens_than_a_row_has_are_refused(how: str, change: int) -> None:
    """They were filled up with −100, or cut off, in silence: labels of words stood beside tokens."""
    model, rows, lengths = lengthy(task="token_classification", readout=ponder.readouts.identity)
    labels = [torch.zeros(len(row), dtype=torch.long) for row in rows]
    wrong = int(lengths.argmax())
    labels[wrong] = torch.zeros(len(rows[wrong]) + change, dtype=torch.long)
    with refused(f"dataset[{wrong}]", f"labels: expected one for each of the row's {len(rows[wrong])}", "-100"):
        if how == "argument":
            model.record(rows, labels=labels, batch_size=3)
        else:
            model.record([(row, {"labels": own}) for row, own in zip(rows, labels, strict=True)], batch_size=3)


@dataclass(frozen=True)
class Budget(ExitPolicy):
    """Each row leaves at the step that its own budget allows."""

    needs = frozenset({"context"})

    def decide(self, step: StepView, state: Any) -> tuple[Tensor | bool, Any]:
        return step.index >= step.context["budget"], state


@pytest.mark.parametrize("sort", [True, False])
def test_what_policies_read_of_each_row(sort: bool) -> None:
    model, rows, _ = lengthy()
    budgets = {"budget": torch.arange(ROWS) % NUM_STEPS + 1}
    options: Any = {"batch_size": 3, "policy_context": budgets, "sort_by_length": sort}
    found = model.record(rows, **options)
    assert found.replay(Budget()).exit_step.tolist() == budgets["budget"].tolist()
    assert model.predict(rows, policy=Budget(), **options).exit_step.tolist() == budgets["budget"].tolist()
    with refused("policy_context", "None"):
        model.predict(rows[:1], policy=Budget())
    for size in (ROWS - 1, ROWS + 1):
        with pytest.raises(ponder.PonderError, match="policy_context"):
            model.predict(rows, policy=Budget(), policy_context={"budget": torch.ones(size)}, sort_by_length=sort)
    with refused("policy_context", "list", type_error=True):
        model.record(rows, policy_context=[1, 2])


def test_in_training_mode_dropout_is_off_and_modes_come_back() -> None:
    model = ponder.PonderWrapper(
        nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5)), num_steps=4, head=nn.Linear(WIDTH, 3)
    ).train()
    model.head.eval()
    before, data = snapshot(model), torch.randn(9, WIDTH)
    one, other = model.record(data), model.record(data, batch_size=2)
    assert_unchanged(before, model)
    torch.testing.assert_close(one.outputs, other.outputs)
    assert not one.training
    assert not one.outputs.requires_grad
    assert one.labels is None


def test_what_is_refused() -> None:
    model, rows, _ = lengthy()
    with refused("dataset", "none"):
        model.record([])
    with refused("model", type_error=True):
        record(nn.Linear(2, 2), rows)
    for labels in (torch.zeros(ROWS - 1), torch.zeros(ROWS + 2)):
        with refused("labels", f"{len(labels)} rows"):
            model.record(rows, labels=labels)
    with refused("dataset[2]", "classes 0"):
        model.record(rows, labels=[9 if row == 2 else 0 for row in range(ROWS)])
    some = [(row, {"labels": 1}) if place % 2 else row for place, row in enumerate(rows)]
    with pytest.raises(ponder.PonderError, match="labels for every example"):
        model.record(some, batch_size=ROWS, sort_by_length=False)
    with refused("batch_size", "0"):
        model.record(rows, batch_size=0)


def test_labels_that_are_names_are_refused() -> None:
    toy = make_toy("shared")
    model = wrap(toy).eval()
    inputs, context = toy.batch(4)
    rows = [(inputs[row], {"labels": "yes", **{k: v[row] for k, v in context.items()}}) for row in range(4)]
    with refused("dataset[0]", "labels", "a number", "Map names of classes"):
        model.record(rows)
    assert len(model.predict(rows)) == 4  # which needs none


def test_labels_are_read_by_position() -> None:
    """A column of pandas that was shuffled has an index that says otherwise."""
    pandas = pytest.importorskip("pandas")
    model, inputs = wrap(make_toy("shared")).eval(), make_toy("shared").batch(4)[0]
    column = pandas.Series([0, 1, 2, 0]).iloc[::-1]
    for labels in (column, column.iloc[:].rename("answer"), iter([0, 2, 1, 0]), column.to_numpy()):
        found = model.record(inputs, labels=labels).labels
        assert found is not None
        assert found.tolist() == [0, 2, 1, 0]


class Labels(torch.utils.data.Dataset[int]):
    """Has a length and places, and is no iterable."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, place: int) -> int:
        return [0, 2, 1, 0][place]


def test_labels_may_be_a_data_set() -> None:
    model, inputs = wrap(make_toy("shared")).eval(), make_toy("shared").batch(4)[0]
    for labels in (Labels(), torch.utils.data.Subset(Labels(), range(4))):
        found = model.record(inputs, labels=labels).labels
        assert found is not None
        assert found.tolist() == [0, 2, 1, 0]


@pytest.mark.parametrize("labels", [["no", "yes"] * 2, np.array(["no", "yes"] * 2), [None, None, "no", None]])
def test_names_of_classes_are_refused_wherever_they_stand(labels: Any) -> None:
    model, inputs = wrap(make_toy("shared")).eval(), make_toy("shared").batch(4)[0]
    with refused("dataset[2]" if labels[0] is None else "dataset[0]", "labels", "Map names of classes"):
        model.record(inputs, labels=labels)


@pytest.mark.parametrize("labels", [{"a": 1}, "text", 5])
def test_what_holds_no_labels(labels: Any) -> None:
    with refused("labels", "a value for each example", type_error=True):
        wrap(make_toy("shared")).record(make_toy("shared").batch(4)[0], labels=labels)


def test_labels_of_some_batches_are_those_of_none() -> None:
    model, inputs = wrap(make_toy("shared")).eval(), make_toy("shared").batch(4)[0]
    rows = [(row, {"labels": 1}) if place < 2 else row for place, row in enumerate(inputs)]
    with refused("labels", "labels for every example", "none for 2 of 4"):
        model.record(rows, batch_size=2, sort_by_length=False)


def test_labels_by_position_want_the_order_of_the_data() -> None:
    model, data = wrap(make_toy("shared")).eval(), torch.randn(ROWS, WIDTH)
    labels = torch.arange(ROWS) % 3
    shuffled = DataLoader(data, batch_size=4, shuffle=True)
    drawn = DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 4, drop_last=False))
    for loader in (shuffled, drawn, Accelerator(cpu=True).prepare(DataLoader(data, batch_size=4, shuffle=True))):
        with refused("dataset", "RandomSampler"):
            model.record(loader, labels=labels)
    with refused("dataset", "draws its order"):
        model.predict(shuffled, policy_context={"budget": labels})
    with pytest.warns(UserWarning, match="The loader draws the order of its data"):
        model.predict(shuffled)
    expected = model.record(data, labels=labels).outputs
    in_bulk = DataLoader(data, batch_size=None, sampler=BatchSampler(SequentialSampler(data), 1, drop_last=False))
    for loader in (DataLoader(data, batch_size=4), DataLoader(data, 4, sampler=range(ROWS))):
        torch.testing.assert_close(model.record(loader, labels=labels).outputs, expected)
    assert len(model.record((rows[0] for rows in in_bulk), labels=labels)) == ROWS
    model.record(Accelerator(cpu=True).prepare(DataLoader(data, batch_size=4)), labels=labels)


class Keeping(nn.Module):
    """A step that makes a tensor on its first call, and keeps it."""

    kept: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        self.kept = torch.linspace(0.5, 1.0, 4) if self.kept is None else self.kept
        return hidden * self.kept


@pytest.mark.parametrize("call", ["record", "predict"])
def test_a_model_that_was_evaluated_first_can_be_trained(call: str) -> None:
    model = ponder.PonderWrapper(nn.Sequential(nn.Linear(4, 4), Keeping()), 2, head=nn.Linear(4, 2))
    getattr(model, call)(torch.randn(5, 4))
    model.train()(torch.randn(3, 4), labels=torch.tensor([0, 1, 1])).loss.backward()
