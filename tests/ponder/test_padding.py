"""Declared lengths: batches get narrower as their longest rows exit, and nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
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


def test_the_masks_that_all_know_keep_their_meaning() -> None:
    with refused("real", "1 for a mask called 'attention_mask'"):
        Padding(mask="attention_mask", real=False)  # readouts.mean would average the padding
    with refused("real", "False for a mask called 'src_key_padding_mask'"):
        Padding(mask="src_key_padding_mask")
    assert Padding(mask="ignored", real=False).lengths({"ignored": torch.tensor([[0, 0, 1]])}).tolist() == [2]


@pytest.mark.parametrize("padding", [None, Padding(pooled=True)], ids=["undeclared", "declared"])
def test_a_stem_that_loses_the_mask_that_the_readout_reads_is_told_so(padding: Padding | None) -> None:
    def losing(inputs: Tensor, attention_mask: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return inputs, {"scale": ponder.Shared(2.0)}

    def handing_on(inputs: Tensor, attention_mask: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return inputs, {"scale": ponder.Shared(2.0), "attention_mask": attention_mask}

    def resampled(inputs: Tensor, attention_mask: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return inputs[:, :2], {"scale": ponder.Shared(2.0)}

    def model(stem: Any, readout: Any = readouts.mean) -> ponder.PonderWrapper:
        def step(hidden: Tensor, scale: float, attention_mask: Tensor | None = None) -> Tensor:
            return hidden * scale

        head = nn.Linear(WIDTH, 3)
        return ponder.PonderWrapper(step, 2, head=head, stem=stem, readout=readout, padding=padding).eval()

    inputs, mask = torch.randn(2, 4, WIDTH), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    with pytest.warns(UserWarning, match="a context without 'attention_mask'.*takes padding for real"):
        model(losing)(inputs, attention_mask=mask)
    with pytest.warns(UserWarning, match="takes padding for real"):
        model(losing).unroll(inputs, attention_mask=mask)
    if padding is not None:
        row = inputs[0], {"attention_mask": torch.tensor([1, 0, 1, 0])}
        with pytest.warns(UserWarning, match="takes padding for real"), ponder.StreamEngine(model(losing)) as engine:
            engine.submit(row).result()
    model(losing)(inputs, attention_mask=torch.ones_like(mask))  # nothing is lost
    model(losing, readouts.first_token)(inputs, attention_mask=mask)
    model(handing_on)(inputs, attention_mask=mask)
    if padding is None:
        model(resampled)(inputs, attention_mask=mask)


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


class WithSlots(nn.Module):
    """Tokens read memory slots, and these read the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.write = (nn.MultiheadAttention(WIDTH, 2, batch_first=True) for _ in range(2))

    def forward(self, hidden: tuple[Tensor, Tensor], attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        tokens, slots = hidden
        tokens = tokens + self.read(tokens, slots, slots)[0]
        return tokens, slots + self.write(slots, tokens, tokens, key_padding_mask=attention_mask == 0)[0]


class Slots(nn.Module):
    """The stem: memory slots beside the tokens."""

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(1, slots, WIDTH))

    def forward(self, inputs: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        return inputs, self.first.expand(len(inputs), -1, -1)


def model_with_slots(slots: int, padding: Padding | None) -> ponder.PonderWrapper:
    torch.manual_seed(0)
    return ponder.PonderWrapper(
        WithSlots(),
        3,
        stem=Slots(slots),
        readout=lambda hidden, attention_mask: readouts.mean(hidden[0], attention_mask),
        head=nn.Linear(WIDTH, 3),
        padding=padding,
        policy=Appointed(),
    ).eval()


@pytest.mark.parametrize("slots", [2, 4, 7])
def test_a_part_of_the_state_without_a_length_is_neither_cropped_nor_filled_up(slots: int) -> None:
    """Trap: any tensor of three dimensions taken for one whose second is as long as the text."""
    inputs, lengths = torch.randn(3, 4, WIDTH, generator=torch.Generator().manual_seed(1)), torch.tensor([4, 3, 2])
    mask, ids = (torch.arange(4) < lengths[:, None]).long(), torch.tensor([1, 2, 9])
    model = model_with_slots(slots, Padding(hidden=(Along(), None)))
    expected = model_with_slots(slots, None)(inputs, attention_mask=mask, row_ids=ids)
    out = model(inputs, attention_mask=mask, row_ids=ids)
    torch.testing.assert_close(out.outputs, expected.outputs)
    rows = [(row, text[:length]) for row, text, length in zip(ids.tolist(), inputs, lengths.tolist(), strict=True)]
    with ponder.StreamEngine(model, max_batch=2) as engine:
        answers = dict(engine.run(rows, keyed=True))
    torch.testing.assert_close(torch.stack([answers[row].output for row in ids.tolist()]), expected.outputs)


@pytest.mark.parametrize("slots", [2, 7])
def test_a_part_of_the_state_that_is_no_sequence_is_refused_where_nothing_says_so(slots: int) -> None:
    inputs, model = torch.randn(2, 4, WIDTH), model_with_slots(slots, Padding())
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with refused("hidden[1]", "4 positions in dimension 1", "hidden=(Along(), None)"):
        model(inputs, attention_mask=mask, row_ids=torch.tensor([1, 9]))
    with ponder.StreamEngine(model) as engine, refused("hidden[1]", "hidden=(Along(), None)"):
        engine.submit(inputs[0]).result()


class Prefixed(nn.Module):
    """The stem: vectors in front of the tokens, and then every `stride`-th of all; `mask` hands on which are left."""

    def __init__(self, front: int, stride: int, mask: bool = True) -> None:
        super().__init__()
        self.stride, self.mask = stride, mask
        self.front = nn.Parameter(torch.randn(1, front, WIDTH))

    def forward(self, inputs: Tensor, attention_mask: Tensor) -> Any:
        hidden = torch.cat([self.front.expand(len(inputs), -1, -1), inputs], 1)[:, :: self.stride]
        front = attention_mask.new_ones(len(inputs), self.front.shape[1])
        left = torch.cat([front, attention_mask], 1)[:, :: self.stride]
        return hidden, ({"attention_mask": left} if self.mask else {})


def mixing(hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    return torch.tanh(hidden + readouts.mean(hidden, attention_mask)[:, None])


def model_behind(stem: nn.Module) -> ponder.PonderWrapper:
    parts: dict[str, Any] = {"readout": readouts.mean, "padding": Padding(), "policy": Appointed()}
    return ponder.PonderWrapper(mixing, 3, stem=stem, head=nn.Identity(), **parts).eval()


@pytest.mark.parametrize(("front", "stride"), [(1, 1), (0, 2), (3, 2), (6, 2)])
def test_a_stem_may_hand_the_steps_a_mask_of_other_lengths(front: int, stride: int) -> None:
    """Trap: lengths of what the stem was given, by which states of other lengths are refused, or cropped."""
    torch.manual_seed(0)
    model, lengths = model_behind(Prefixed(front, stride)), [6, 5, 3, 1]
    rows = [torch.randn(length, WIDTH) for length in lengths]
    inputs, mask = nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.arange(6) < torch.tensor(lengths)[:, None]
    for ids in ([1, 9, 2, 9], [9, 1, 9, 2]):
        row_ids = torch.tensor(ids)
        out = model(inputs, attention_mask=mask.long(), row_ids=row_ids).outputs
        keyed = [(number, row) for number, row in zip([1, 2, 9, 10], rows, strict=True)]
        with ponder.StreamEngine(model, max_batch=3) as engine:
            streamed = dict(engine.run(keyed, keyed=True))
        for position, row in enumerate(rows):
            whole = torch.ones(1, len(row), dtype=torch.long)
            alone = model(row[None], attention_mask=whole, row_ids=row_ids[position, None]).outputs[0]
            torch.testing.assert_close(out[position], alone)
            number = keyed[position][0]
            alone = model(row[None], attention_mask=whole, row_ids=torch.tensor([number])).outputs[0]
            torch.testing.assert_close(streamed[number].output, alone)


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("task", ["token_classification", "span"])
@pytest.mark.parametrize(("front", "stride"), [(1, 1), (3, 2)])
def test_answers_at_positions_that_a_stem_made_are_not_cut_at_those_of_the_inputs(
    front: int, stride: int, task: Any, mask: bool
) -> None:
    """Trap: the last positions of every row were overwritten, and recorded as padding."""
    torch.manual_seed(0)
    model = ponder.PonderWrapper(
        mixing,
        3,
        stem=Prefixed(front, stride, mask),
        head=nn.Linear(WIDTH, 2),
        lambda_head=ponder.LambdaHead(WIDTH),
        readout=readouts.identity,
        halting_readout=readouts.mean,
        task=task,
        padding=Padding(pooled=False),
    ).eval()
    rows = [torch.randn(length, WIDTH) for length in ([5, 5, 3, 4] if mask else [5, 5])]
    predicted, trajectory = ponder.predict(model, rows), model.record(rows)
    replayed = trajectory.replay(model.policy).outputs
    for place, row in enumerate(rows):
        alone = model(row[None], attention_mask=torch.ones(1, len(row), dtype=torch.long)).outputs[0]
        for found in (predicted.outputs[place], replayed[place]):
            torch.testing.assert_close(found[: len(alone)], alone)
            assert bool((found[len(alone) :] == (-1e4 if task == "span" else 0)).all())
        assert trajectory.mask is None or trajectory.mask[place].sum() == len(alone)
    assert (trajectory.mask is None) == (not mask)
    if mask and task == "token_classification":  # by what is real, and no padding beside it
        sure = predicted.outputs[0, : (5 + front + stride - 1) // stride].softmax(-1).amax(-1).amin()
        policy = policies.Confidence(float(sure) - 0.05)
        alone = [int(ponder.predict(model, [row], policy=policy).exit_step) for row in rows]
        assert ponder.predict(model, rows, policy=policy).exit_step.tolist() == alone
        assert trajectory.replay(policy).exit_step.tolist() == alone


def test_a_state_of_other_lengths_without_a_mask_is_refused_in_streams() -> None:
    remedies = "{'attention_mask': mask}", "ponder.Padding(hidden=None)"
    model = model_behind(Prefixed(1, 1, mask=False))
    with ponder.StreamEngine(model) as engine, refused("hidden", "4 positions in dimension 1", *remedies):
        engine.submit(torch.randn(4, WIDTH)).result()


def test_a_state_of_other_lengths_without_a_mask_is_not_cropped_in_a_batch() -> None:
    """Trap: the lengths of what the stem was given cut real positions off behind what it put in front, in silence."""
    torch.manual_seed(0)
    model, row_ids = model_behind(Prefixed(3, 1, mask=False)), torch.tensor([1, 9, 9])  # the longest leaves first
    inputs, mask = torch.randn(3, 6, WIDTH), torch.arange(6) < torch.tensor([6, 4, 2])[:, None]
    out = model(inputs, attention_mask=mask.long(), row_ids=row_ids)
    model.padding = None
    torch.testing.assert_close(out.outputs, model(inputs, attention_mask=mask.long(), row_ids=row_ids).outputs)


def test_rows_are_no_shorter_where_the_mask_of_the_stem_is_as_wide() -> None:
    """A stem that turns the mask round, say, for steps that want it so."""
    given, padding = {"attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]])}, Padding()
    turned = {"attention_mask": given["attention_mask"] == 0}
    assert padding.lengths_of_stem(turned, given).tolist() == [3, 3]
    assert padding.lengths_of_stem(given, given) is padding.lengths_of_stem({}, given) is None


def test_lengths_are_said_of_every_part_of_a_state() -> None:
    state = {"tokens": torch.zeros(2, 4, 8), "slots": (torch.zeros(2, 3, 8), torch.zeros(2, 9, 8)), "at": 3.5}
    trimmed, _ = Padding(hidden={"slots": None, "tokens": Along(), "at": None}).trim(state, {}, 3)
    assert trimmed["tokens"].shape == (2, 3, 8)
    assert [slots.shape[1] for slots in trimmed["slots"]] == [3, 9]
    assert Padding(hidden=None).trim(state, {}, 3)[0]["tokens"].shape == (2, 4, 8)
    for hidden, got in (({"tokens": Along()}, "['tokens']"), ((Along(), None), "[0, 1]")):
        with refused("padding.hidden", "'slots'", got, "like the hidden state"):
            Padding(hidden=hidden).trim(state, {}, 3)
    with refused("padding.hidden", "for hidden", "[0]"):
        Padding(hidden=(Along(),)).trim(state["tokens"], {}, 3)


@pytest.mark.parametrize("hidden", [1, (Along(), 2), {"tokens": Along(), "slots": "none"}])
def test_parts_of_a_state_have_lengths_or_none(hidden: Any) -> None:
    with refused("hidden", "an Along or None", type_error=True):
        ponder.Padding(hidden=hidden)


class Mixing(nn.Module):
    """A step that reads the mean over real positions, by a mask of one name or the other."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, hidden: Tensor, real: Tensor | None = None) -> Tensor:
        if real is None:
            return torch.tanh(self.linear(hidden))
        weights = real.float()[..., None]
        return torch.tanh(self.linear(hidden) + (hidden * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True))


@pytest.mark.parametrize("readout", [readouts.mean, readouts.last, readouts.Pooled(None, readouts.last)])
@pytest.mark.parametrize("halting", [None, readouts.mean, readouts.Pooled(readouts.identity, readouts.mean)])
def test_readouts_leave_padding_out_by_a_mask_of_any_name(readout: Any, halting: Any) -> None:
    """The trap: `readouts.mean` knows two names of masks, and took the padding of all others for positions."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"readout": readout, "padding": ponder.Padding(mask="real"), "head": nn.Linear(8, 3)}
    if halting is not None:
        options |= {"halting_readout": halting, "lambda_head": ponder.LambdaHead(8)}
    model = ponder.PonderWrapper([Mixing() for _ in range(3)], **options).eval()
    rows = [torch.randn(length, 8) for length in (3, 9, 5, 7)]
    policies_read = [policies.Confidence(0.4)] + ([] if halting is None else [policies.Quantile(0.4)])
    for policy in policies_read:
        together, alone = (model.predict(rows, batch_size=size, policy=policy) for size in (4, 1))
        assert torch.equal(together.exit_step, alone.exit_step)
        torch.testing.assert_close(together.outputs, alone.outputs)
        with ponder.StreamEngine(model, policy) as engine:
            streamed = [out.output for _, out in engine.run(rows, ordered=True)]
        torch.testing.assert_close(torch.stack(streamed), alone.outputs)
    with refused("real", "at least one real position", "none in rows [1]"):
        model(torch.randn(2, 4, 8), real=torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]]))


def test_a_mask_that_the_stem_makes_itself_is_that_of_policies_too() -> None:
    """Trap: the usual stem of a dict hands on a mask, and answers at the padding decided when its rows leave."""

    def stem(batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return batch["states"], {"attention_mask": batch["mask"]}

    torch.manual_seed(0)
    step = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())

    class Masked(nn.Module):
        """A step that takes the mask."""

        def __init__(self) -> None:
            super().__init__()
            self.step = step

        def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
            return 1.5 * self.step(hidden)

    model = ponder.PonderWrapper(
        Masked(), 6, head=nn.Linear(WIDTH, 3), stem=stem, readout=readouts.identity, task="token_classification"
    ).eval()
    states = 3.0 * torch.randn(40, 8, WIDTH)
    mask = (torch.arange(8) < 3).long().expand(40, 8)
    narrow, wide = {"states": states[:, :3], "mask": mask[:, :3]}, {"states": states, "mask": mask}
    for policy in (policies.Patience(1), policies.Confidence(0.4), policies.Converged(2.0, on="features")):
        expected = model(narrow, policy=policy).exit_step.tolist()
        assert len(set(expected)) > 1, policy
        assert model(wide, policy=policy).exit_step.tolist() == expected, policy
        with ponder.StreamEngine(model, policy, max_batch=8) as engine:
            rows = [{name: part[row] for name, part in wide.items()} for row in range(40)]
            assert [future.result().exit_step for future in [engine.submit(row) for row in rows]] == expected, policy
    assert torch.equal(model.unroll(wide).mask, mask.bool())
    assert torch.equal(model.positions_of(wide, {}, states), mask.bool())


def test_a_mask_of_scores_that_a_stem_makes_says_nothing_of_positions() -> None:
    def stem(states: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return states, {"attention_mask": torch.zeros(states.shape[:2])}  # to be added: nothing is padding

    class Step(nn.Module):
        """A step that takes it."""

        def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
            return torch.tanh(hidden + attention_mask.unsqueeze(-1))

    model = ponder.PonderWrapper(
        Step(), 3, head=nn.Linear(WIDTH, 3), stem=stem, readout=readouts.identity, task="token_classification"
    ).eval()
    assert model(torch.randn(4, 5, WIDTH), policy=policies.Confidence(0.999)).exit_step.tolist() == [3] * 4
    assert model.unroll(torch.randn(4, 5, WIDTH)).mask is None


def test_a_mask_by_a_name_that_the_readout_does_not_know_is_told() -> None:
    class Step(nn.Module):
        """A step that honours its mask."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)

        def forward(self, hidden: Tensor, pad_mask: Tensor) -> Tensor:
            return self.linear(hidden) * ~pad_mask.unsqueeze(-1)

    states, padded = torch.randn(2, 5, WIDTH), torch.arange(5) >= torch.tensor([[5], [2]])
    model = ponder.PonderWrapper(Step(), 3, head=nn.Linear(WIDTH, 3), readout=readouts.mean).eval()
    with pytest.warns(UserWarning, match="given 'pad_mask', which it does not know: it takes padding for real"):
        model(states, pad_mask=padded)
    model(states[:1], pad_mask=padded[:1])  # no padding
    example = {"states": states, "pad_mask": padded}
    for readout in (None, "mean", "last"):
        with pytest.warns(UserWarning, match="given 'pad_mask', which it does not know"):
            ponder.PonderWrapper.from_recipe(
                Step(), "vanilla", num_outputs=3, example=example, num_steps=3, readout=readout
            )

    def own(hidden: Tensor, pad_mask: Tensor) -> Tensor:
        return readouts.mean(hidden, src_key_padding_mask=pad_mask)

    made = ponder.PonderWrapper.from_recipe(
        Step(), "vanilla", num_outputs=3, example=example, num_steps=3, readout=own
    ).eval()
    both, alone = made(states, pad_mask=padded), made(states[1:, :2], pad_mask=padded[1:, :2])
    torch.testing.assert_close(both.outputs[1:], alone.outputs)


class Told(nn.Module):
    """An encoder whose argument for padding is called as no mask that is known."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True) for _ in range(2))

    def forward(self, states: Tensor, padded: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            states = layer(states, src_key_padding_mask=padded)
        return states


@pytest.mark.parametrize("task", ["classification", "token_classification"])
def test_a_mask_of_an_unknown_name_is_told_of_a_captured_module_too(task: Any) -> None:
    """Trap: a stem that gives a context of its own was asked about two names alone, and answered nothing."""
    states, padded = torch.randn(3, 5, WIDTH), torch.arange(5) >= torch.tensor([[5], [2], [3]])
    example = {"states": states, "padded": torch.zeros_like(padded)}
    model = ponder.PonderWrapper.from_recipe(Told().eval(), "vanilla", num_outputs=2, example=example, task=task).eval()
    who = "The readout" if task == "classification" else "What looks at answers, as policies and records do,"
    with pytest.warns(UserWarning, match=f"{who} leaves padding out by a mask .* given 'padded', which it does not"):
        model(states, padded=padded)
    with pytest.warns(UserWarning, match="given 'padded'"):
        model.unroll(states, padded=padded)
    model(states, padded=torch.zeros_like(padded))  # no padding
    model(states)
    if task == "classification":
        model.readout = readouts.ReadoutCall(readouts.first_token)
        model(states, padded=padded)  # nothing is pooled


def test_a_mask_of_an_unknown_name_that_the_stem_loses_is_told() -> None:
    def losing(inputs: Tensor, padded: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return inputs * ~padded.unsqueeze(-1), {}

    def naming(inputs: Tensor, padded: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return inputs * ~padded.unsqueeze(-1), {"attention_mask": ~padded}

    def step(hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return torch.tanh(hidden)

    def model(stem: Any, **options: Any) -> ponder.PonderWrapper:
        return ponder.PonderWrapper(step, 2, stem=stem, head=nn.Linear(WIDTH, 3), **options).eval()

    states, padded = torch.randn(2, 5, WIDTH), torch.arange(5) >= torch.tensor([[5], [2]])
    tokens: Any = {"readout": readouts.identity, "task": "token_classification"}
    for options in ({"readout": readouts.mean}, tokens):
        with pytest.warns(UserWarning, match=r"given 'padded', which it does not know.*{'attention_mask': mask}"):
            model(losing, **options)(states, padded=padded)
        model(naming, **options)(states, padded=padded)  # the stem names it as it is known
    with (
        pytest.warns(UserWarning, match="given 'padded'"),
        ponder.StreamEngine(model(losing, readout=readouts.mean)) as engine,
    ):
        engine.submit((states[1], {"padded": padded[1]})).result()
    ready = Padding(mask="padded", real=False)
    pooled = readouts.Pooled(None, readouts.mean, ready)

    def handing(inputs: Tensor, padded: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return inputs, {"padded": padded}

    def masked(hidden: Tensor, padded: Tensor) -> Tensor:
        return torch.tanh(hidden)

    told = ponder.PonderWrapper(masked, 2, stem=handing, readout=pooled, head=nn.Linear(WIDTH, 3)).eval()
    both, alone = told(states, padded=padded), told(states[1:, :2], padded=padded[1:, :2])
    torch.testing.assert_close(both.outputs[1:], alone.outputs)


def test_a_captured_module_knows_its_mask_by_the_name_that_pytorch_gives_it() -> None:
    class Attending(nn.Module):
        """An encoder that calls its mask as `nn.MultiheadAttention` does."""

        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

        def forward(self, states: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
            return self.encoder(states, src_key_padding_mask=key_padding_mask)

    torch.manual_seed(0)
    states, padded = torch.randn(2, 5, 8), torch.arange(5) >= torch.tensor([[5], [2]])
    model = ponder.PonderWrapper.from_recipe(
        Attending().eval(), "deebert", num_outputs=3, example={"states": states, "key_padding_mask": padded}
    ).eval()
    both, alone = model(states, key_padding_mask=padded), model(states[1:, :2], key_padding_mask=padded[1:, :2])
    torch.testing.assert_close(both.outputs[1:], alone.outputs)


def test_a_padding_that_is_declared_later_is_that_of_what_pools() -> None:
    """Trap: what `from_recipe` pools with knew no mask but two, and was told of no other; the warning was gone."""
    states, padded = torch.randn(2, 5, 8), torch.arange(5) >= torch.tensor([[5], [2]])
    real = ~padded
    model = ponder.PonderWrapper.from_recipe(
        [Mixing(), Mixing()], "deebert", num_outputs=3, example={"states": states[1:, :2], "real": real[1:, :2]}
    ).eval()
    model.padding = Padding(mask="real")
    both, alone = model(states, real=real), model(states[1:, :2], real=real[1:, :2])
    torch.testing.assert_close(both.outputs[1:], alone.outputs)


@pytest.mark.parametrize("padding", [None, Padding()], ids=["undeclared", "declared"])
def test_a_mask_of_pairs_under_the_name_of_one_of_positions_leaves_nothing_out(padding: Padding | None) -> None:
    def stem(states: Tensor, attention_mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return states, {"attention_mask": torch.where(attention_mask[:, None, None] == 1, 0.0, -1e4)}

    def step(hidden: Tensor, attention_mask: Tensor) -> Tensor:
        return torch.tanh(hidden + attention_mask.amax())

    def model(readout: Any) -> ponder.PonderWrapper:
        return ponder.PonderWrapper(
            step, 2, stem=stem, readout=readout, padding=padding, head=nn.Linear(WIDTH, 3)
        ).eval()

    states, mask = torch.randn(2, 4, WIDTH), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    for pool in (readouts.mean, readouts.last):
        with pytest.warns(UserWarning, match="takes padding for real"):
            model(readouts.Pooled(None, pool))(states, attention_mask=mask)
        with refused("attention_mask", "(batch, length)", "shape (2, 1, 1, 4)"):
            model(pool)(states[1:].expand(2, -1, -1), attention_mask=torch.ones_like(mask))


def test_a_readout_of_ones_own_may_read_a_mask_of_pairs() -> None:
    def stem(states: Tensor, attention_mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return states, {"attention_mask": torch.where(attention_mask[:, None, None] == 1, 0.0, -1e4)}

    def step(hidden: Tensor, attention_mask: Tensor) -> Tensor:
        return torch.tanh(hidden + attention_mask.amax())

    def own(hidden: Tensor, attention_mask: Tensor) -> Tensor:
        real = attention_mask[:, 0, 0] == 0
        return (hidden * real.unsqueeze(-1)).sum(1) / real.sum(1, keepdim=True)

    model = ponder.PonderWrapper(step, 2, stem=stem, readout=own, head=nn.Linear(WIDTH, 3)).eval()
    model(torch.randn(2, 4, WIDTH), attention_mask=torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]))  # without a warning


def test_masks_that_are_no_tensors_are_named() -> None:
    model = ponder.PonderWrapper(
        [lambda hidden, attention_mask: hidden] * 2, head=nn.Linear(4, 2), readout=ponder.readouts.mean
    ).eval()
    pair = torch.ones(2, 3), torch.ones(2, 3)  # of which its own steps and readout know what they are
    two = ponder.PonderWrapper(
        [lambda hidden, attention_mask: hidden] * 2, head=nn.Linear(4, 2), readout=ponder.readouts.first_token
    ).eval()
    assert two(torch.randn(2, 3, 4), attention_mask=pair).outputs.shape == (2, 2)
    mask = [[1, 1, 0], [1, 1, 1]]
    for given in (mask, np.array(mask)):
        with refused("attention_mask", "a tensor, (batch, length)", "return_tensors", type_error=True):
            model(torch.randn(2, 3, 4), attention_mask=given)
