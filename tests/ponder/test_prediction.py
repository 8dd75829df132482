"""`predict` gives what a call of the model gives, in any batches; and says which example is bad."""

from __future__ import annotations

import random
import sys
import threading
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import ponder
from ponder import policies
from ponder.inference.examples import _rows_of
from ponder.inference.prediction import Predictions
from ponder.parts.padding import Along, Padding
from ponder.parts.tasks import task_named
from ponder.policies import Bernoulli, FixedStep, LastStep, Quantile
from tests.ponder.checks import Bomb, Explosion, assert_unchanged, refused, snapshot
from tests.ponder.examples import POLICIES, Example, in_turn, make_policy
from tests.ponder.streaming.driving import examples_of
from tests.toys import LENGTH, NUM_STEPS, TOYS, WIDTH, make_toy, wrap

ROWS = 11


def assert_same(found: Predictions, out: Any) -> None:
    assert found.exit_step.tolist() == out.exit_step.tolist()
    torch.testing.assert_close(found.outputs, out.outputs, atol=1e-5, rtol=1e-5)
    assert not found.outputs.is_inference()


def lengthy(**parts: Any) -> tuple[ponder.PonderWrapper, Tensor, Tensor]:
    """A model that declares lengths, inputs, and their padding mask."""
    padding = Padding(mask="src_key_padding_mask", real=False, pooled="readout" not in parts)
    inputs, context = make_toy("transformer").batch(ROWS, seed=1)
    return wrap(make_toy("transformer"), padding=padding, **parts).eval(), inputs, context["src_key_padding_mask"]


@pytest.mark.parametrize(("name", "case"), in_turn(POLICIES, list(TOYS), 3))
def test_exits_and_outputs_are_the_models(name: str, case: Example) -> None:
    toy = make_toy(name)
    model = wrap(toy, task=case.task, policy=make_policy(case)).eval()
    inputs, context = toy.batch(ROWS, seed=3)
    assert_same(model.predict(examples_of(inputs, context), batch_size=4), model(inputs, **context))


@given(
    st.randoms(use_true_random=False),
    st.one_of(st.none(), st.integers(1, 12)),
    st.sampled_from([None, 1, LENGTH, 3 * LENGTH]),
    st.booleans(),
    st.booleans(),
)
def test_neither_batches_nor_lengths_change_anything(
    rng: random.Random, batch_size: int | None, max_tokens: int | None, sort: bool, with_masks: bool
) -> None:
    model, inputs, mask = lengthy()
    seen: list[tuple[int, int]] = []
    model.steps.fns[0].register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[:2])))
    rows: list[Any] = []
    for row, padded in zip(inputs, mask, strict=True):
        trimmed = rng.random() < 0.5 or not with_masks
        rows.append(row[~padded] if trimmed else (row, {"src_key_padding_mask": padded}))
    options = {"batch_size": batch_size, "max_tokens": max_tokens, "sort_by_length": sort}
    found = model.predict(rows, policy=Bernoulli(2), **options)
    assert all(count <= (batch_size or 32) for count, _ in seen)
    if max_tokens is not None and not with_masks:
        assert all(count == 1 or count * length <= max_tokens for count, length in seen)
    if with_masks is False and sort and batch_size == 1:
        assert sum(count * length for count, length in seen) == (found.exit_step * (~mask).sum(1)).sum()
    assert_same(found, model(inputs, policy=Bernoulli(2), src_key_padding_mask=mask))


def test_short_rows_cost_what_they_contain() -> None:
    model, inputs, mask = lengthy(policy=LastStep())
    seen: list[int] = []
    model.steps.fns[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[0] * args[0].shape[1]))
    by_length: dict[int, int] = {}
    for length in (~mask).sum(1).tolist():
        by_length[length] = by_length.get(length, 0) + 1
    rows = [row[~padded] for row, padded in zip(inputs, mask, strict=True)]
    twice = [rows[position] for position in (*range(ROWS), *range(ROWS))]  # pairs of one length, far apart
    model.predict(twice, batch_size=2)
    assert sum(seen) == NUM_STEPS * 2 * sum(length * count for length, count in by_length.items())
    seen.clear()
    model.predict(twice, batch_size=2, sort_by_length=False)
    assert sum(seen) > NUM_STEPS * 2 * sum(length * count for length, count in by_length.items())


@pytest.mark.parametrize("name", ["shared", "dict-state", "transformer"])
def test_any_data_set(name: str) -> None:
    toy = make_toy(name)
    model = wrap(toy).eval()
    inputs, context = toy.batch(ROWS)
    examples = examples_of(inputs, context)

    class Indexed(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return ROWS

        def __getitem__(self, position: int) -> Any:
            return examples[position]

    expected = model(inputs, **context)
    for data in (examples, tuple(examples), iter(examples), (example for example in examples), Indexed()):
        assert_same(model.predict(data, batch_size=3), expected)
    unlimited = ponder.predict(model, examples, sort_by_length=False, batch_size=1)
    assert_same(unlimited, expected)
    assert len(unlimited) == ROWS


def test_without_sorting_a_stream_is_read_as_it_is_needed() -> None:
    model = wrap(make_toy("shared")).eval()
    behind: list[int] = []
    read = 0

    def stream() -> Any:
        nonlocal read
        for row in torch.randn(10, WIDTH):
            read += 1
            yield row

    model.head.register_forward_hook(lambda *_: behind.append(read))
    model.predict(stream(), batch_size=2, sort_by_length=False, policy=LastStep())
    assert behind == [3, 5, 7, 9, 10]  # one row ahead, to see where the batch ends


def test_lists_arrays_and_labels() -> None:
    pytest.importorskip("numpy")
    toy = make_toy("shared-context")
    model = wrap(toy).eval()
    ids, context = toy.batch(ROWS)
    expected = model(ids, **context)
    as_lists = [
        (row.tolist(), {"attention_mask": mask.tolist(), "labels": torch.tensor(9)})
        for row, mask in zip(ids, context["attention_mask"], strict=True)
    ]
    assert_same(model.predict(as_lists), expected)
    as_arrays = [
        (row.numpy(), {"attention_mask": mask.numpy()})
        for row, mask in zip(ids, context["attention_mask"], strict=True)
    ]
    assert_same(model.predict(as_arrays, batch_size=5), expected)


def test_a_collator() -> None:
    model, inputs, mask = lengthy()
    sizes: list[list[int]] = []

    def collate(rows: list[dict[str, Any]]) -> tuple[Tensor, dict[str, Tensor]]:
        sizes.append([row["id"] for row in rows])
        ids = [row["id"] for row in rows]
        return inputs[ids], {"src_key_padding_mask": mask[ids], "labels": torch.zeros(len(ids))}

    rows = [{"id": row} for row in range(ROWS)]
    found = model.predict(rows, collate=collate, batch_size=4)
    assert_same(found, model(inputs, src_key_padding_mask=mask))
    batches = [size for size in sizes if size != sizes[0]][-3:]
    lengths = (~mask).sum(1)
    in_turn = [int(lengths[row]) for batch in batches for row in batch]
    assert in_turn == sorted(in_turn, reverse=True)
    sizes.clear()
    model.predict(rows, collate=collate, batch_size=4, sort_by_length=False)
    assert sizes == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    shared = wrap(make_toy("shared")).eval()
    assert_same(shared.predict([0, 1, 2], collate=lambda rows: inputs[rows, 0]), shared(inputs[:3, 0]))


def test_answers_for_every_position_are_padded() -> None:
    model, inputs, mask = lengthy(task="token_classification", readout=ponder.readouts.identity)
    policy = FixedStep(2)
    rows = [row[~padded] for row, padded in zip(inputs, mask, strict=True)]
    found = model.predict(rows, batch_size=2, policy=policy)
    whole = model(inputs, policy=policy, src_key_padding_mask=mask).outputs
    longest = int((~mask).sum(1).max())
    assert found.outputs.shape == (ROWS, longest, 3)
    for row, length in enumerate((~mask).sum(1).tolist()):
        torch.testing.assert_close(found.outputs[row, :length], whole[row, :length], atol=1e-5, rtol=1e-5)


class OfFirst(nn.Module):
    """A head that pools by itself: one answer a row, of five numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 5)

    def forward(self, features: Tensor) -> Tensor:
        answer: Tensor = self.linear(features[:, 0])
        return answer


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_an_answer_a_row_has_no_padding(task: Any) -> None:
    model, inputs, mask = lengthy(task=task, readout=ponder.readouts.identity, head=OfFirst())  # not pooled
    rows = [row[~padded] for row, padded in zip(inputs, mask, strict=True)]
    found = model.predict(rows, policy=FixedStep(2))
    torch.testing.assert_close(
        found.outputs, model(inputs, policy=FixedStep(2), src_key_padding_mask=mask).outputs, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("size", [-1, 1])
def test_an_example_has_one_length(size: int) -> None:
    """A mask of another length would cut the inputs, or make padding count."""
    model, inputs, _ = lengthy()
    mask = torch.zeros(LENGTH + size, dtype=torch.bool)
    rows = [inputs[0], (inputs[1], {"src_key_padding_mask": mask})]
    for run in (model.predict, model.record):
        with refused("dataset[1]", "src_key_padding_mask", f"as in the inputs ({LENGTH})", f"got {LENGTH + size}"):
            run(rows)
    with ponder.StreamEngine(model) as engine, refused("context['src_key_padding_mask']", "one length"):
        engine.submit(rows[1]).result(30)


class Squeezed(nn.Module):
    """One number a position, `(batch, length)`."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 1)

    def forward(self, features: Tensor) -> Tensor:
        answer: Tensor = self.linear(features).squeeze(-1)
        return answer


@pytest.mark.parametrize("batch_size", [1, 3])
def test_answers_at_positions_are_padded_where_no_task_says_so(batch_size: int) -> None:
    model, inputs, mask = lengthy(readout=ponder.readouts.identity, head=Squeezed(), policy=FixedStep(2))
    model.task = None
    rows = [row[~padded] for row, padded in zip(inputs, mask, strict=True)]
    found = model.predict(rows, batch_size=batch_size).outputs
    whole = model(inputs, src_key_padding_mask=mask).outputs[:, : found.shape[1]]
    torch.testing.assert_close(found, whole.masked_fill(mask[:, : found.shape[1]], 0.0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 32])
def test_numbers_at_positions_of_a_named_task_are_padded_too(batch_size: int) -> None:
    model, inputs, mask = lengthy(readout=ponder.readouts.identity, head=nn.Linear(WIDTH, 1), policy=FixedStep(2))
    model.task = task_named("regression")
    rows = [row[~padded] for row, padded in zip(inputs, mask, strict=True)]
    found = model.predict(rows, batch_size=batch_size).outputs
    whole = model(inputs, src_key_padding_mask=mask).outputs[:, : found.shape[1]]
    expected = whole.masked_fill(mask[:, : found.shape[1], None], 0.0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_as_many_classes_as_positions_are_classes() -> None:
    model, inputs, mask = lengthy(readout=ponder.readouts.identity, head=OfFirst(), policy=FixedStep(2))
    model.task = None
    model.head.linear = nn.Linear(WIDTH, LENGTH)
    rows = [row[~padded] for row, padded in zip(inputs, mask, strict=True)]
    expected = model(inputs, src_key_padding_mask=mask).outputs
    torch.testing.assert_close(model.predict(rows).outputs, expected, atol=1e-5, rtol=1e-5)


def test_a_mask_of_pairs_of_positions_has_no_lengths() -> None:
    model, inputs, _ = lengthy()
    pairs = torch.zeros(LENGTH, LENGTH, dtype=torch.bool)
    with refused("dataset[0]", "one number a position", "pairs of positions"):
        model.predict([(inputs[0], {"src_key_padding_mask": pairs})])


def test_inputs_may_have_no_length_where_masks_have() -> None:
    class Patches(nn.Module):
        def forward(self, inputs: Tensor, attention_mask: Tensor) -> Tensor:
            return inputs.unflatten(1, (4, 8))

    class Step(nn.Module):
        def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
            return hidden * attention_mask.unsqueeze(-1)

    model = ponder.PonderWrapper(
        Step(),
        3,
        stem=Patches(),
        head=nn.Linear(8, 2),
        readout=ponder.readouts.mean,
        padding=ponder.Padding(inputs=Along(())),
        task="classification",
    ).eval()
    inputs, mask = torch.randn(2, 32), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    rows = [(row, {"attention_mask": real}) for row, real in zip(inputs, mask, strict=True)]
    torch.testing.assert_close(model.predict(rows).outputs, model(inputs, attention_mask=mask).outputs)


def test_nothing_gives_nothing() -> None:
    for data in ([], iter(())):
        found = wrap(make_toy("shared")).predict(data)
        assert len(found) == len(found.outputs) == 0
        assert found.exit_step.dtype == torch.long


def test_modes_and_gradients_are_as_before() -> None:
    model = wrap(make_toy("shared")).train()
    model.head.eval()
    before = snapshot(model)
    found = model.predict(torch.randn(5, WIDTH))
    assert_unchanged(before, model)
    assert not found.outputs.requires_grad
    (found.outputs * nn.Parameter(torch.ones(3))).sum().backward()  # ordinary tensors
    bomb = wrap(make_toy("shared"))
    bomb.head = Bomb(bomb.head)
    bomb.train()
    before = snapshot(bomb)
    bomb.head.arm(1)
    with pytest.raises(Explosion):  # of no row's own: the next call works
        bomb.predict(torch.randn(3, WIDTH))
    bomb.head.disarm()
    assert_unchanged(before | {"attributes": snapshot(bomb)["attributes"]}, bomb)
    assert len(bomb.predict(torch.randn(3, WIDTH))) == 3


def test_a_bad_example_is_named() -> None:
    toy = make_toy("shared-context")
    model = wrap(toy).eval()
    ids, context = toy.batch(6)
    good = examples_of(ids, context)
    unknown = (torch.full((LENGTH,), 99), {"attention_mask": torch.ones(LENGTH, dtype=torch.long)})
    hidden = (ids[0], {"attention_mask": torch.zeros(LENGTH, dtype=torch.long)})
    for bad, words in ((unknown, "IndexError"), (hidden, "one real position"), ("text", "inputs with a tensor")):
        for options in ({}, {"batch_size": 1}, {"batch_size": 3, "sort_by_length": False}):
            with refused("dataset[4]", words):
                model.predict([*good[:4], bad, *good[5:]], **options)
    with refused("dataset[1]", "ValueError"):
        model.predict([good[0], ([[1], [2, 3]], {})])

    def breaks() -> Any:
        yield good[0]
        raise OSError("gone")

    with refused("dataset[1]", "gone"):
        model.predict(breaks())


def test_arguments() -> None:
    model = wrap(make_toy("shared"), lambda_head=None).eval()
    for name in ("batch_size", "max_tokens"):
        for value in (0, 1.5, True):
            with refused(name, str(value)):
                model.predict([], **{name: value})
    with refused("max_tokens", "8"):
        model.predict([], max_tokens=8)
    with refused("policy"):
        model.predict([], policy=Quantile(0.5))
    with refused("policy", type_error=True):
        model.predict([], policy="quantile")
    with refused("dtype", "torch.bfloat16", type_error=True):
        model.predict([], dtype="bfloat16")
    for batch in ({"inputs": torch.randn(3, WIDTH)}, 5):
        with refused("dataset", type_error=True):
            model.predict(batch)


@pytest.mark.parametrize("installed", ["rich", "tqdm", ""])
def test_progress(installed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if installed:
        pytest.importorskip(installed)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name == installed else None)
    model = wrap(make_toy("shared")).eval()
    rows = torch.randn(7, WIDTH)
    assert len(model.predict(rows, batch_size=3)) == 7
    assert capsys.readouterr() == ("", "")
    assert len(model.predict(rows, batch_size=3, progress=True)) == 7
    assert "7/7" in capsys.readouterr().err
    assert len(model.predict(iter(rows), progress=True)) == 7
    assert sys.stderr is not None


def test_bfloat16() -> None:
    model, inputs, mask = lengthy(policy=policies.Confidence(0.7))
    rows = [row[~padded] for row, padded in zip(inputs, mask, strict=True)]
    dtypes: list[torch.dtype] = []
    model.head.register_forward_hook(lambda _, __, out: dtypes.append(out.dtype))
    found = model.predict(rows, dtype=torch.bfloat16)
    assert set(dtypes) == {torch.bfloat16}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(inputs, src_key_padding_mask=mask)
    assert found.exit_step.tolist() == out.exit_step.tolist()
    torch.testing.assert_close(found.outputs.float(), out.outputs.detach().float(), atol=0.05, rtol=0.05)
    assert not torch.is_autocast_enabled("cpu")


# What a data set may be, and how it may fail


def rows_of(name: str, size: int = 10) -> tuple[Any, Any, Any]:
    """A model, the inputs of some rows, and their context."""
    toy = make_toy(name)
    return wrap(toy).eval(), *toy.batch(size)


@pytest.mark.parametrize(
    ("name", "workers"),
    [
        ("shared", 0),
        ("tuple-state", 0),
        ("shared-context", 0),
        pytest.param("shared-context", 2, marks=pytest.mark.slow),
    ],
)
def test_a_data_loader_is_answered_row_by_row(name: str, workers: int) -> None:
    model, inputs, context = rows_of(name)
    expected = model(inputs, **context)
    examples = examples_of(inputs, context) if context else [example for example, _ in examples_of(inputs, context)]
    for batch_size in (3, 1, None):
        loader = DataLoader(examples, batch_size=batch_size, num_workers=workers)  # type: ignore[arg-type]
        assert_same(model.predict(loader), expected)
        assert_same(model.predict(loader, batch_size=4, sort_by_length=False), expected)


def test_a_data_loader_of_padded_batches() -> None:
    model, inputs, mask = lengthy()
    expected = model(inputs, src_key_padding_mask=mask)
    rows = [row[~padded] for row, padded in zip(inputs, mask, strict=True)]

    def collate(batch: list[Tensor]) -> Any:
        padded = nn.utils.rnn.pad_sequence(batch, batch_first=True)
        lengths = torch.tensor([len(row) for row in batch])
        return padded, {
            "src_key_padding_mask": torch.arange(padded.shape[1]) >= lengths[:, None],
            "labels": torch.zeros(len(batch), dtype=torch.long),
        }

    seen: list[tuple[int, int]] = []
    model.steps.fns[0].register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[:2])))
    assert_same(model.predict(DataLoader(rows, batch_size=4, collate_fn=collate), batch_size=1), expected)
    assert sum(length for _, length in seen) == int((expected.exit_step * (~mask).sum(1)).sum()), "no padding is left"


def test_pairs_with_a_label_are_refused_with_what_to_do() -> None:
    model, inputs, _ = rows_of("shared")
    pairs = TensorDataset(inputs, torch.zeros(10, dtype=torch.long))
    for data in (pairs, DataLoader(pairs, batch_size=4)):
        with refused("dataset[0]", "{'labels': label}"):
            model.predict(data)
    labelled = [(x, {"labels": y}) for x, y in pairs]
    assert_same(model.predict(DataLoader(labelled, batch_size=4)), model(inputs))
    pair_state, (position, velocity), _ = rows_of("tuple-state")
    assert_same(pair_state.predict(TensorDataset(position, velocity)), pair_state((position, velocity)))
    with refused("collate", "both"):
        model.predict(DataLoader(inputs), collate=torch.stack)


@pytest.mark.parametrize("sort", [True, False])
def test_a_stop_iteration_in_a_collator_does_not_end_the_data_set(sort: bool) -> None:
    model, inputs = wrap(make_toy("shared")).eval(), torch.randn(51, WIDTH)

    def collate(batch: list[int]) -> Tensor:
        if 40 in batch:
            next(iter(()))
        return inputs[batch]

    with refused("dataset[40]", "StopIteration"):
        model.predict(range(51), collate=collate, batch_size=8, sort_by_length=sort)

    def only_together(batch: list[int]) -> Tensor:
        return inputs[batch] if len(batch) < 3 else next(iter(()))

    with pytest.raises(ponder.PonderError, match="StopIteration"):
        model.predict(range(51), collate=only_together, batch_size=8, sort_by_length=sort)
    lengthier, rows, _ = lengthy()
    with refused("dataset[0]", "StopIteration"):
        lengthier.predict(rows, collate=lambda batch: next(iter(())))


def test_several_threads_in_training_mode() -> None:
    layer = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5))
    model = ponder.PonderWrapper(layer, num_steps=3, head=nn.Linear(WIDTH, 3)).train()
    model.head.eval()
    data, before = torch.randn(40, WIDTH), snapshot(model)
    expected = model.predict(data).outputs
    found: list[Tensor] = []

    class Held(torch.utils.data.Dataset[Any]):
        """Waits at its 20th row, in the middle of the predictions, until it is let go."""

        def __init__(self) -> None:
            self.reached, self.released = threading.Event(), threading.Event()
            self.thread = threading.Thread(target=self.predict)

        def __len__(self) -> int:
            return 40

        def __getitem__(self, position: int) -> Tensor:
            if position == 20:
                self.reached.set()
                assert self.released.wait(30)
            return data[position]

        def predict(self) -> None:
            found.append(model.predict(self, batch_size=4, sort_by_length=False).outputs)

    first, second = Held(), Held()
    for held in (first, second):
        held.thread.start()
        assert held.reached.wait(30)
    first.released.set()
    first.thread.join(30)
    assert not model.training, "the second is not done"
    second.released.set()
    second.thread.join(30)
    for outputs in found:
        torch.testing.assert_close(outputs, expected)
    assert_unchanged({**before}, model)
    threads = [threading.Thread(target=lambda: found.append(model.predict(data).outputs)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 2 + 6
    assert all(torch.allclose(outputs, expected, atol=1e-6) for outputs in found)
    assert_unchanged(before, model)


def test_a_table_is_no_data_set() -> None:
    """The trap: a loop over a data frame gives the names of its columns."""
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(torch.zeros(3, WIDTH).numpy())
    model = wrap(make_toy("shared")).eval()
    with refused("dataset", "a sequence or iterable of examples", "DataFrame, a table", type_error=True):
        model.predict(table)
    with ponder.StreamEngine(model) as engine, refused("dataset", "DataFrame, a table", type_error=True):
        list(engine.run(table))


class Marked(nn.Module):
    """A step that adds one to rows with the mark "a"."""

    def forward(self, hidden: Tensor, mark: str | None = None) -> Tensor:
        return hidden + (1.0 if mark == "a" else 0.0)


def test_lists_of_words_are_taken_apart_by_rows() -> None:
    words = [["a", "b"], ["c", "d"]]
    made = (torch.zeros(2, 4), {"words": words})
    assert [row[1]["words"] for row in _rows_of(made)] == words
    collated = torch.utils.data.default_collate([(torch.zeros(4), {"words": each}) for each in words])
    assert [list(row[1]["words"]) for row in _rows_of(collated)] == words


def test_texts_of_a_loader_are_taken_apart_as_its_tensors_are() -> None:
    # Trap: every row was given the texts of its whole batch.
    model = ponder.PonderWrapper(Marked(), 1, head=nn.Identity()).eval()
    rows = [(torch.zeros(4), {"mark": mark}) for mark in "abca"]
    expected = torch.tensor([1.0, 0.0, 0.0, 1.0])
    for data in (rows, DataLoader(rows, batch_size=2), DataLoader(rows, batch_size=3)):  # type: ignore[arg-type]
        assert torch.equal(model.predict(data).outputs[:, 0], expected)
