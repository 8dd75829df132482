"""Models as users first write them: both readings are told, wrong shapes are found at the door, the index is given."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder import policies
from ponder.errors import NonFiniteError
from tests.ponder.checks import refused

WIDTH, STEPS = 4, 5


def test_a_sequential_is_told_both_readings() -> None:
    # Trap: num_steps=12 for a Sequential of 12 blocks runs 144 blocks.
    blocks = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(12)))
    with refused("num_steps", "None") as caught:
        ponder.PonderWrapper(blocks, head=nn.Linear(WIDTH, 2))
    for word in ("list(blocks)", "each of its 12 modules one step", "applies all 12 of them, as one shared step"):
        assert word in str(caught.value)
    assert ponder.PonderWrapper(list(blocks), head=nn.Linear(WIDTH, 2)).num_steps == 12
    with refused("num_steps") as caught:
        ponder.PonderWrapper(nn.Linear(WIDTH, WIDTH), head=nn.Linear(WIDTH, 2))
    assert "two ways" not in str(caught.value)


def layer(batch_first: bool = True) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.0, batch_first=batch_first)


@pytest.mark.parametrize("as_list", [False, True])
def test_a_whole_encoder_is_refused_in_favour_of_its_layers(as_list: bool) -> None:
    encoder = nn.TransformerEncoder(layer(), 3, enable_nested_tensor=False)
    parts: dict[str, Any] = {"head": nn.Linear(WIDTH, 2), "readout": ponder.readouts.mean}
    with refused("steps", "TransformerEncoder of 3 layers", "encoder.layers"):
        ponder.PonderWrapper([encoder] if as_list else encoder, None if as_list else 3, **parts)
    model = ponder.PonderWrapper(encoder.layers, **parts).eval()
    x = torch.randn(2, 6, WIDTH)
    trajectory = model.unroll(x)
    torch.testing.assert_close(trajectory.outputs[:, -1], model.head(encoder.eval()(x).mean(1)))


@pytest.mark.parametrize("wrap", [lambda made: made, lambda made: nn.Sequential(made, nn.Identity())])
def test_layers_with_the_length_first_are_refused(wrap: Callable[[nn.Module], nn.Module]) -> None:
    # Trap: a layer with batch_first=False attends over the rows of the batch, in silence.
    with refused("steps", "batch_first=False", "batch_first=True"):
        ponder.PonderWrapper(wrap(layer(batch_first=False)), 3, head=nn.Linear(WIDTH, 2), readout=ponder.readouts.mean)
    ponder.PonderWrapper(wrap(layer()), 3, head=nn.Linear(WIDTH, 2), readout=ponder.readouts.mean)


class WithExtra(nn.Module):
    """A step that returns more than the hidden state."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.linear, self.form = nn.Linear(WIDTH, WIDTH), form

    def forward(self, hidden: Tensor) -> Any:
        after = torch.tanh(self.linear(hidden))
        extra = after.square().mean()  # belongs to the whole batch
        return {"pair": (after, extra), "dict": {"hidden": after, "extra": extra}, "none": after}[self.form]


@pytest.mark.parametrize(("form", "state"), [("pair", 0), ("dict", "hidden")])
def test_steps_that_return_more(form: str, state: int | str) -> None:
    torch.manual_seed(0)
    step, head, x = WithExtra(form), nn.Linear(WIDTH, 3), 3 * torch.randn(8, WIDTH)
    nn.init.normal_(head.weight, std=2.0)
    nn.init.normal_(step.linear.weight)
    for training in (False, True):
        plain = ponder.PonderWrapper(step, STEPS, head=head).train(training)
        with refused("step 1", "tuple of 2" if form == "pair" else "dict of 2", "state="):
            plain(x)
    made = ponder.Steps([step], schedule=[0] * STEPS, state=state)
    model = ponder.PonderWrapper(made, head=head, policy=policies.Confidence(0.8)).eval()
    found = model(x)
    step.form = "none"
    expected = ponder.PonderWrapper(step, STEPS, head=head, policy=policies.Confidence(0.8)).eval()(x)
    assert torch.equal(found.outputs, expected.outputs)
    assert torch.equal(found.exit_step, expected.exit_step)
    assert 1 <= int(found.exit_step.min()) < STEPS


@pytest.mark.parametrize(("form", "state"), [("pair", 7), ("pair", "hidden"), ("dict", "h")])
def test_a_state_that_is_not_there_is_named(form: str, state: int | str) -> None:
    model = ponder.PonderWrapper(ponder.Steps([WithExtra(form)], state=state), head=nn.Linear(WIDTH, 3)).eval()
    with refused("state", f"state={state!r}"):
        model(torch.randn(2, WIDTH))


class DictHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 3)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        return {"logits": self.linear(features)}


@pytest.mark.parametrize("call", ["train", "eval", "unroll", "stream"])
def test_heads_with_answers_in_a_dict_are_refused(call: str) -> None:
    model = ponder.PonderWrapper(nn.Linear(WIDTH, WIDTH), STEPS, head=DictHead()).train(call == "train")
    x = torch.randn(3, WIDTH)
    with refused("outputs of the head", "dict", "one tensor"):
        if call == "unroll":
            model.unroll(x)
        elif call == "stream":
            with ponder.StreamEngine(model) as engine:
                engine.submit(x[0]).result()
        else:
            model(x)


class Universal(nn.Module):
    """A step with an embedding of its own number, as a Universal Transformer has."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.embedding = nn.Linear(WIDTH, WIDTH), nn.Embedding(STEPS + 1, WIDTH)

    def forward(self, hidden: Tensor, index: Tensor) -> Tensor:
        assert index.shape == hidden.shape[:1]
        assert index.dtype == torch.long
        return torch.tanh(2 * self.linear(hidden) + self.embedding(index))


@pytest.mark.parametrize("size", [1, 7, 40])
def test_steps_are_told_their_index_in_a_batch_an_unroll_and_a_stream(size: int) -> None:
    torch.manual_seed(0)
    step = Universal()
    head = nn.Linear(WIDTH, 3)
    nn.init.normal_(head.weight)
    steps = ponder.Steps([step], schedule=[0] * STEPS, index=True)
    policy = policies.Confidence(0.7)
    model = ponder.PonderWrapper(steps, head=head, policy=policy, task="classification").eval()
    x = torch.randn(size, WIDTH)
    with torch.inference_mode():
        exits, outputs = [], []
        for row in x:  # a plain loop over the rows and steps
            hidden = row[None]
            for number in range(1, STEPS + 1):
                hidden = step(hidden, torch.tensor([number]))
                output = head(hidden)
                if number == STEPS or float(output.softmax(-1).max()) > 0.7:
                    break
            exits.append(number)
            outputs.append(output[0])
        batch, trajectory = model(x), model.unroll(x)
        with ponder.StreamEngine(model, max_batch=5) as engine:
            tickets = [engine.submit(row) for row in x]
            streamed = [ticket.result() for ticket in tickets]
    assert size == 1 or len(set(exits)) > 2
    assert batch.exit_step.tolist() == exits
    assert trajectory.replay(policy).exit_step.tolist() == exits
    assert [int(answer.exit_step) for answer in streamed] == exits
    for found in (batch.outputs, torch.stack([answer.output.flatten() for answer in streamed])):
        torch.testing.assert_close(found, torch.stack(outputs), atol=1e-6, rtol=1e-5)


def test_misspelt_arguments_of_a_call_are_refused() -> None:
    model = ponder.PonderWrapper(lambda hidden, **context: hidden + 1, 3, head=nn.Linear(WIDTH, 3))
    x, labels = torch.randn(2, WIDTH), torch.tensor([0, 1])
    for name, meant in (("label", "labels"), ("lables", "labels"), ("polcy", "policy"), ("row_id", "row_ids")):
        for call in (model.train(), model.eval(), model.eval().unroll):
            with refused(name, "none of them names") as caught:
                call(x, **{name: labels})
            assert f"Did you mean {meant!r}?" in str(caught.value)
    assert model.eval()(x, gain=labels).outputs.shape == (2, 3)  # no near miss of any name


def test_names_that_nothing_takes_are_refused() -> None:
    model = ponder.PonderWrapper(lambda hidden, scale=None: hidden + 1, 3, head=nn.Linear(WIDTH, 3)).eval()
    x = torch.randn(2, WIDTH)
    with refused("idx", "none of them names", "nothing would read it"):
        model(x, idx=torch.arange(2))
    with refused("scales", "Did you mean 'scale'?"):
        model(x, scales=torch.ones(2))
    assert model(x, scale=torch.ones(2)).outputs.shape == (2, 3)


def test_a_name_that_a_step_spells_out_is_no_misspelling() -> None:
    def step(hidden: Tensor, label: Tensor) -> Tensor:
        return hidden + label[:, None]

    model = ponder.PonderWrapper(step, 3, head=nn.Linear(WIDTH, 3)).eval()
    assert model(torch.randn(2, WIDTH), label=torch.tensor([0, 1])).outputs.shape == (2, 3)


def test_misspelt_arguments_of_the_constructor_are_refused() -> None:
    with pytest.raises(TypeError, match="polcy"):
        ponder.PonderWrapper(nn.Linear(2, 2), 3, head=nn.Linear(2, 2), polcy=None)  # type: ignore[call-arg]


def test_print_shows_policy_prior_and_objective() -> None:
    model = ponder.PonderWrapper(
        nn.Linear(WIDTH, WIDTH), STEPS, head=nn.Linear(WIDTH, 2), lambda_head=ponder.LambdaHead(WIDTH)
    )
    shown = repr(model)
    for part in (model.policy, model.prior, model.objective):
        assert repr(part) in shown


def test_what_a_stem_was_given_as_shared_stays_shared() -> None:
    # Trap: the stem saw the bare value, handed it on, and with as many rows as the batch it was cut with these.
    class Adding(nn.Module):
        def forward(self, hidden, table):
            return hidden + table.sum(0)

    model = ponder.PonderWrapper(
        Adding(), 3, head=nn.Linear(4, 2), stem=lambda inputs, table: (inputs, {"table": table}), task="classification"
    ).eval()
    inputs, table = torch.stack([torch.full((4,), 40.0), torch.zeros(4)]), ponder.Shared(torch.ones(2, 4))
    policy = policies.Confidence(0.97)
    run, recorded = model(inputs, table=table, policy=policy), model.unroll(inputs, table=table).replay(policy)
    torch.testing.assert_close(run.outputs, recorded.outputs)
    assert model(inputs[:1], table=table).outputs.shape == (1, 2)


def test_features_that_get_positions_on_the_way_are_refused() -> None:
    # Trap: the record of all steps left out those before, and its last step was another.
    class Spreading(nn.Module):
        def forward(self, hidden):
            return hidden[:, None].expand(-1, 3, -1) if hidden.dim() == 2 else hidden

    steps = [nn.Linear(4, 4), Spreading(), Spreading()]
    model = ponder.PonderWrapper(steps, head=nn.Linear(4, 2), readout=ponder.readouts.identity).eval()
    with refused("features of the readout", "(2, 4) and (2, 3, 4)"):
        model.unroll(torch.zeros(2, 4))


def test_complex_states_are_looked_at_too() -> None:
    model = ponder.PonderWrapper(
        lambda hidden: hidden * complex(float("nan")), 2, head=nn.Linear(4, 2), readout=torch.real, check_finite=True
    ).eval()
    with pytest.raises(NonFiniteError, match="step 1"):
        model(torch.zeros(2, 4, dtype=torch.complex64))


def test_a_state_may_be_a_defaultdict() -> None:
    state = collections.defaultdict(list, {"own": torch.zeros(2, 4)})
    model = ponder.PonderWrapper(lambda hidden: hidden, 2, head=nn.Linear(4, 2), readout=lambda hidden: hidden["own"])
    assert model.eval()(state).outputs.shape == (2, 2)


def test_what_policies_read_of_rows_is_a_dict_of_tensors() -> None:
    """The trap: of a list nothing leaves with the rows, so that each was judged by the budget of another."""
    model = ponder.PonderWrapper(nn.Linear(4, 4), num_steps=3, head=nn.Linear(4, 2)).eval()
    budgets = [1.0, 2.0, 3.0]
    for given in (
        {"budget": budgets},
        {"budget": np.array(budgets)},
        {"pair": (torch.tensor(budgets), torch.tensor(budgets))},
        torch.tensor(budgets),
    ):
        for call in (model, model.unroll):
            with refused("policy_context", "a dict of tensors", type_error=True):
                call(torch.randn(3, 4), policy_context=given)  # type: ignore[operator]


def test_flags_are_flags() -> None:
    for name in ("checkpoint_steps", "check_finite"):
        with refused(name, "True or False", type_error=True):
            ponder.PonderWrapper(nn.Linear(4, 4), num_steps=3, head=nn.Linear(4, 2), **{name: "no"})
