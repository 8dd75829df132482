"""Steps that change their hidden state in place give what steps that make a new one give."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder import policies

WIDTH, STEPS, ROWS = 6, 6, 200


class Doubling(nn.Module):
    """h ← tanh(W h) · 1.5, in place or not."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.linear, self.in_place = nn.Linear(WIDTH, WIDTH), in_place
        nn.init.normal_(self.linear.weight, std=0.6)

    def forward(self, hidden: Tensor) -> Tensor:
        update = torch.tanh(self.linear(hidden.flatten(1)[:, :WIDTH])) * 1.5
        update = update.reshape(-1, *([1] * (hidden.dim() - 2)), WIDTH)
        if self.in_place:
            hidden.mul_(0.5)
            hidden.add_(update)
            return hidden
        return hidden * 0.5 + update


@dataclass(frozen=True)
class Settled(policies.ExitPolicy):
    """Exits where the features moved little since the step before: keeps them as its state."""

    distance: float = 1.8
    needs = frozenset({"features"})

    def init(self, batch: policies.PolicyBatch) -> Tensor:
        return torch.full((batch.size, WIDTH), torch.inf)

    def decide(self, step: Any, state: Tensor) -> tuple[Tensor, Tensor]:
        features = step.features
        return (features - state).norm(dim=-1) < self.distance, features


@dataclass(frozen=True)
class SameAnswer(policies.ExitPolicy):
    """Exits where the outputs moved little: keeps them as its state."""

    distance: float = 1.5
    needs = frozenset({"output"})

    def init(self, batch: policies.PolicyBatch) -> Tensor:
        return torch.full((batch.size, WIDTH), torch.inf)

    def decide(self, step: Any, state: Tensor) -> tuple[Tensor, Tensor]:
        return (step.output - state).norm(dim=-1) < self.distance, step.output


POLICIES = (policies.Quantile(0.5), policies.Patience(2), Settled(), SameAnswer(), policies.Entropy(1.6).after(2))
HEADS = {"linear": lambda: nn.Linear(WIDTH, WIDTH), "identity": nn.Identity}  # the latter's outputs are the state
READOUTS = {"the state itself": None, "a view": ponder.readouts.first_token}


def models(head: str, readout: str, history: int) -> list[ponder.PonderWrapper]:
    """The same model with steps in place and with steps that are not."""
    made = []
    for in_place in (True, False):
        torch.manual_seed(0)
        hazards = ponder.LambdaHead(WIDTH, layers=2, history=history)
        for weight in hazards.parameters():
            nn.init.normal_(weight, std=0.8)
        model = ponder.PonderWrapper(
            Doubling(in_place),
            STEPS,
            head=HEADS[head](),
            lambda_head=hazards,
            readout=READOUTS[readout],
            task="classification",
        )
        made.append(model.eval())
    return made


def batch(readout: str) -> Tensor:
    shape = (ROWS, WIDTH) if readout == "the state itself" else (ROWS, 3, WIDTH)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("history", [1, 2, 3])
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("head", HEADS)
def test_batch_unroll_and_replay(head: str, readout: str, history: int) -> None:
    # Trap: features of the step before are a view of the state, which this step has changed.
    changing, plain = models(head, readout, history)
    inputs = batch(readout)
    with torch.inference_mode():
        expected = plain.unroll(inputs.clone(), keep_features=True)
        found = changing.unroll(inputs.clone(), keep_features=True)
        for name, tensor in expected.tensors().items():
            assert torch.equal(found.tensors()[name], tensor), name
        for policy in POLICIES:
            wanted, run = plain(inputs.clone(), policy=policy), changing(inputs.clone(), policy=policy)
            replayed = found.replay(policy)
            assert len(wanted.exit_step.unique()) > 1, policy
            for exits in (run, replayed):
                assert torch.equal(exits.exit_step, wanted.exit_step), policy
                torch.testing.assert_close(exits.outputs, wanted.outputs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_a_stream(head: str) -> None:
    changing, plain = models(head, "the state itself", 2)
    inputs = batch("the state itself")[:40]
    for policy in (policies.Quantile(0.5), Settled()):
        with torch.inference_mode():
            wanted = plain(inputs.clone(), policy=policy)
            with ponder.StreamEngine(changing, policy, max_batch=7) as engine:
                answers = [future.result() for future in [engine.submit(row.clone()) for row in inputs]]
        assert [answer.exit_step for answer in answers] == wanted.exit_step.tolist()
        torch.testing.assert_close(torch.stack([answer.output for answer in answers]), wanted.outputs)


class Once(nn.Module):
    """A step in place that fails, after it has changed the state, on batches of more than one row."""

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.step, self.armed = step, True

    def forward(self, hidden: Tensor) -> Tensor:
        after = self.step(hidden)
        if self.armed and len(hidden) > 1:
            raise RuntimeError("no memory, say")
        return after


def test_an_export(tmp_path: Path) -> None:
    """Trap: a step was compared with its graph on what it had already changed, and refused for its conditions."""
    torch.manual_seed(0)
    model = ponder.PonderWrapper(Doubling(in_place=True), 3, head=nn.Linear(WIDTH, 2), task="classification").eval()
    inputs = torch.randn(9, WIDTH)
    ponder.export.onnx(model, tmp_path, example=inputs[:2])
    found, policy = ponder.export.OnnxModel(tmp_path), policies.Confidence(0.6)
    expected = model(inputs, policy=policy)
    assert len(set(expected.exit_step.tolist())) > 1
    answered = found.predict(inputs.numpy(), policy=policy)
    assert answered.exit_step.tolist() == expected.exit_step.tolist()
    torch.testing.assert_close(torch.as_tensor(answered.outputs), expected.outputs.detach(), atol=1e-5, rtol=1e-5)


def test_a_stream_that_tries_again_row_by_row() -> None:
    # Trap: the step that is tried again runs on a state that its first attempt has changed.
    changing, plain = models("linear", "the state itself", 2)
    changing.steps.fns[0] = Once(changing.steps.fns[0])
    inputs = batch("the state itself")[:20]
    with torch.inference_mode():
        wanted = plain(inputs.clone())
        with ponder.StreamEngine(changing, max_batch=8) as engine:
            answers = [future.result() for future in [engine.submit(row.clone()) for row in inputs]]
    assert [answer.exit_step for answer in answers] == wanted.exit_step.tolist()
    torch.testing.assert_close(torch.stack([answer.output for answer in answers]), wanted.outputs)


class FirstOfTwo(Doubling):
    """The same on the first of a pair."""

    def __init__(self) -> None:
        super().__init__(in_place=True)

    def forward(self, hidden: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return super().forward(hidden[0]), hidden[1]


def first(hidden: tuple[Tensor, Tensor]) -> Tensor:
    return hidden[0]


STEMS: dict[str, Any] = {
    "none": None,
    "identity": nn.Identity(),
    "pair": lambda inputs: (inputs, {}),
    "view": lambda inputs: inputs.view(ROWS, WIDTH),
    "part": lambda inputs: inputs[:, :WIDTH],
    "in a tuple": lambda inputs: (inputs, inputs * 2),
}


@pytest.mark.parametrize("stem", STEMS)
def test_the_callers_inputs_are_not_changed(stem: str) -> None:
    """h_0 is what the caller passed, or looks at its memory."""
    step, readout = (FirstOfTwo(), first) if stem == "in a tuple" else (Doubling(in_place=True), None)
    changing = ponder.PonderWrapper(step, STEPS, head=nn.Linear(WIDTH, 3), stem=STEMS[stem], readout=readout).eval()
    inputs = batch("the state itself")
    before = inputs.clone()
    with torch.inference_mode():
        changing(inputs)
        changing.unroll(inputs)
    assert torch.equal(inputs, before)


def test_inputs_without_plain_memory_pass_through_a_stem() -> None:
    weight = torch.randn(WIDTH, WIDTH)
    model = ponder.PonderWrapper(
        Doubling(in_place=True), STEPS, head=nn.Linear(WIDTH, 3), stem=lambda inputs: torch.sparse.mm(inputs, weight)
    ).eval()
    dense = torch.eye(WIDTH)
    found = model(dense.to_sparse(), policy=policies.LastStep()).outputs
    torch.testing.assert_close(found, model(dense, policy=policies.LastStep()).outputs)


class Table(nn.Module):
    """A stem whose second state is rows of a table that it keeps: as many as the batch has, or one for all."""

    def __init__(self, rows: int, kind: str) -> None:
        super().__init__()
        if kind == "weight":
            self.start = nn.Parameter(torch.zeros(rows, WIDTH), requires_grad=False)
        else:
            self.register_buffer("start", torch.zeros(rows, WIDTH))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        if len(self.start) == len(inputs):
            return inputs, self.start
        return inputs, self.start.expand(len(inputs), -1) if len(self.start) == 1 else self.start[: len(inputs)]


class Counting(nn.Module):
    """Adds its second state, which grows in place."""

    def forward(self, hidden: tuple[Tensor, Tensor], memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
        state, count = hidden
        count.add_(1)
        return state + count, count


@pytest.mark.parametrize("kind", ["weight", "buffer"])
@pytest.mark.parametrize(("rows", "table"), [(ROWS, 2 * ROWS), (ROWS, ROWS), (ROWS, 1), (1, 1)])
def test_a_table_of_the_stem_is_not_changed(rows: int, table: int, kind: str) -> None:
    # Trap: the second call answered otherwise than the first, and the table was saved so.
    stem, head = Table(table, kind), nn.Linear(WIDTH, 3)
    model = ponder.PonderWrapper(Counting(), STEPS, head=head, stem=stem, readout=first).eval()
    for without_gradients in (torch.no_grad, torch.inference_mode):
        with without_gradients():
            once, twice = (model(torch.zeros(rows, WIDTH)).outputs for _ in range(2))
        assert torch.equal(once, twice)
        assert not stem.start.any()


def test_the_context_is_not_changed() -> None:
    model = ponder.PonderWrapper(
        Counting(), STEPS, head=nn.Linear(WIDTH, 3), stem=lambda inputs, memory: (inputs, memory), readout=first
    ).eval()
    memory = torch.zeros(ROWS, WIDTH)
    with torch.no_grad():
        model(torch.zeros(ROWS, WIDTH), memory=memory)
    assert not memory.any()


def _reader(part: str, in_place: bool) -> ponder.PonderWrapper:
    """A model of which one part begins with a ReLU, in place or not."""
    torch.manual_seed(3)
    relu = nn.ReLU(inplace=in_place)
    head: nn.Module = nn.Linear(WIDTH, 3)
    lambda_head: nn.Module = nn.Linear(WIDTH, 1)
    readout: Any = None
    if part == "head":
        head = nn.Sequential(relu, head)
    elif part == "one head a step":
        head = ponder.PerStep(nn.Sequential(nn.ReLU(inplace=in_place), nn.Linear(WIDTH, 3)) for _ in range(STEPS))
    elif part == "Lambda head":
        lambda_head = nn.Sequential(relu, lambda_head)
    else:
        readout = nn.Sequential(relu, nn.Linear(WIDTH, WIDTH))
    return ponder.PonderWrapper(
        Doubling(in_place=False), STEPS, head=head, lambda_head=lambda_head, readout=readout, task="classification"
    ).eval()


@pytest.mark.parametrize("part", ["head", "one head a step", "Lambda head", "readout"])
def test_a_part_that_reads_and_begins_with_a_relu_in_place(part: str) -> None:
    """The trap: it changed the state, at steps that were read, so that runs and replays were two models."""
    model, plain = _reader(part, in_place=True), _reader(part, in_place=False)
    inputs = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(4)) * 3
    with torch.inference_mode():
        record, wanted = (each.unroll(inputs.clone(), keep_features=True) for each in (model, plain))
        for name, tensor in wanted.tensors().items():
            torch.testing.assert_close(record.tensors()[name], tensor, msg=name)
        for policy in (policies.LastStep(), policies.FixedStep(3), policies.Confidence(0.6), policies.Quantile(0.7)):
            run, replayed = model(inputs.clone(), policy=policy), wanted.replay(policy)
            assert torch.equal(run.exit_step, replayed.exit_step), policy
            torch.testing.assert_close(run.outputs, replayed.outputs, atol=1e-6, rtol=1e-5)
