"""What goes wrong in a stream goes wrong for one row: nothing is lost, and nothing is answered twice."""

from __future__ import annotations

import gc
import queue
import threading
from concurrent.futures import CancelledError
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import ponder
from ponder import policies
from ponder.errors import ArgumentError, PonderError
from ponder.inference.streaming import StreamEngine
from ponder.policies import ExitPolicy, LastStep, Patience, PolicyBatch, StepView
from tests.ponder.checks import Bomb, Explosion, refused
from tests.ponder.streaming.driving import Drive, assert_same, examples_of
from tests.ponder.test_loop import Appointed
from tests.toys import NUM_STEPS, TOYS, WIDTH, make_toy, wrap

PATIENCE = 30  # seconds after which a test gives up on a thread


class Gate(nn.Module):
    """A step that waits until the test lets it through."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.opened = threading.Event(), threading.Event()

    def forward(self, hidden: Tensor) -> Tensor:
        self.reached.set()
        assert self.opened.wait(PATIENCE)
        return hidden + 1


def gated(**limits: Any) -> tuple[Gate, StreamEngine]:
    """An engine that holds its first batch in its first step."""
    gate = Gate()
    engine = StreamEngine(ponder.PonderWrapper(gate, 3, head=nn.Identity()).eval(), **limits)
    return gate, engine


# Errors of rows


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("call", [1, 150])
def test_a_step_that_raises_once_costs_no_answer(name: str, call: int) -> None:
    toy = make_toy(name)
    model = wrap(toy).eval()
    bomb = Bomb(model.steps.fns[0])
    model.steps.fns[0] = bomb
    inputs, context = toy.batch(40)
    expected = model(inputs, policy=LastStep(), **context)
    bomb.arm(call)
    drive = Drive(model, LastStep(), max_batch=2)
    examples = examples_of(inputs, context)
    while bomb.calls < call:
        for row, example in enumerate(examples):
            drive.add(example, row_id=row)
        drive.turns()
    assert_same([request.future.result(0) for request in drive.requests[:40]], expected)
    assert all(request.future.result(0).exit_step == NUM_STEPS for request in drive.requests)


class Fragile(ExitPolicy):
    """Raises in `where` for the rows with these ids; the others leave at the step that is their id modulo 5."""

    def __init__(self, where: str, *bad: int) -> None:
        self.where, self.bad = where, torch.tensor(bad)

    def init(self, batch: PolicyBatch) -> Any:
        self._look(batch.row_ids, "init")
        return batch.row_ids

    def decide(self, step: StepView, state: Any) -> tuple[Tensor | bool, Any]:
        self._look(state[step.index == 2], "decide")
        if self.where == "mask" and bool(torch.isin(state, self.bad).any()):
            return torch.zeros(len(state)), state
        return step.index >= state % 5, state

    def _look(self, rows: Tensor, where: str) -> None:
        if where == self.where and bool(torch.isin(rows, self.bad).any()):
            raise Explosion(rows.tolist())


@pytest.mark.parametrize("name", ["shared", "stacked", "scheduled", "gru-cell"])
@pytest.mark.parametrize(("where", "kind"), [("init", Explosion), ("decide", Explosion), ("mask", ArgumentError)])
def test_a_row_that_the_policy_cannot_bear_fails_alone(name: str, where: str, kind: type[Exception]) -> None:
    toy = make_toy(name)
    inputs, context = toy.batch(23)
    model = wrap(toy).eval()
    drive = Drive(model, Fragile(where, 3, 14), max_batch=8)
    for example in examples_of(inputs, context):
        drive.add(example)
    drive.turns()
    for row, request in enumerate(drive.requests):
        if row in (3, 14):
            with pytest.raises(kind):
                request.future.result(0)
        else:
            assert drive.step_of(request) == max(row % 5, 1)
    stats = drive.metrics.snapshot(waiting=0, running=drive.scheduler.running, max_batch=8)
    assert (stats.done, stats.failed, stats.running) == (21, 2, 0)


class Picky(nn.Module):
    """A stem that cannot read negative numbers."""

    def forward(self, inputs: Tensor) -> Tensor:
        if bool((inputs < 0).any()):
            raise Explosion
        return inputs


def test_bad_inputs_fail_alone() -> None:
    model = wrap(make_toy("shared"), stem=Picky()).eval()
    rows: list[Any] = list(torch.rand(9, WIDTH))
    rows[2] = -rows[2]
    rows[4] = torch.rand(WIDTH + 1)
    rows[5] = "hello"
    rows[7] = rows[7].double()
    rows[8] = (rows[8], {"attention_mask": torch.zeros(4, dtype=torch.long)})
    with StreamEngine(model) as engine:
        answers = dict(engine.run(rows, errors="return"))
        assert [type(answers[row]) for row in (2, 4, 5, 7, 8)] == [
            Explosion,
            RuntimeError,
            ponder.errors.ArgumentError,
            RuntimeError,
            ponder.errors.ArgumentError,
        ]
        assert all(isinstance(answers[row], ponder.StreamOutput) for row in (0, 1, 3, 6))
        with pytest.raises(Explosion):
            list(engine.run(rows[:3]))
        assert len(list(engine.run(rows[:2]))) == 2, "the engine goes on"


def test_an_iterable_that_raises_is_heard() -> None:
    def stream() -> Any:
        yield torch.rand(WIDTH)
        raise Explosion

    with StreamEngine(wrap(make_toy("shared")).eval()) as engine, pytest.raises(Explosion):
        list(engine.run(stream()))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_worker_dies_all_rows_hear_of_it() -> None:
    class Fatal(ExitPolicy):
        def decide(self, step: StepView, state: Any) -> tuple[Tensor | bool, Any]:
            raise SystemExit

    engine = StreamEngine(wrap(make_toy("shared"), policy=Fatal()).eval(), max_batch=2)
    futures = []
    for row in torch.rand(9, WIDTH):
        try:
            futures.append(engine.submit(row))
        except PonderError:  # it is dead by now
            break
    assert all(isinstance(future.exception(PATIENCE), SystemExit) for future in futures)
    engine.close()
    assert isinstance(engine.failure, SystemExit)
    with pytest.raises(PonderError, match="ended with SystemExit"):
        engine.submit(torch.rand(WIDTH))


# Closing


def test_closing_answers_what_was_accepted() -> None:
    gate, engine = gated(max_batch=2)
    futures = [engine.submit(torch.zeros(1)) for _ in range(7)]
    gate.opened.set()
    engine.close()
    assert [future.result(0).output.tolist() for future in futures] == [[3.0]] * 7
    engine.close()
    with pytest.raises(PonderError, match="closed"):
        engine.submit(torch.zeros(1))
    with pytest.raises(PonderError, match="closed"):
        engine.submit("no row at all")
    with pytest.raises(PonderError, match="closed"):
        list(engine.run([torch.zeros(1)]))


@pytest.mark.parametrize("how", ["close", "error"])
def test_a_shutdown_in_the_middle_cancels_what_is_not_answered(how: str) -> None:
    gate, engine = gated(max_batch=2)
    futures = [engine.submit(torch.zeros(1)) for _ in range(7)]
    assert gate.reached.wait(PATIENCE)
    opener = threading.Thread(target=lambda: engine._abort.wait(PATIENCE) and gate.opened.set())
    opener.start()
    if how == "close":
        engine.close(cancel=True)
    else:
        with pytest.raises(Explosion), engine:
            raise Explosion
    opener.join()
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(0)
    stats = engine.stats
    assert (stats.cancelled, stats.waiting, stats.running) == (7, 0, 0)


def test_an_engine_that_is_forgotten_ends() -> None:
    engine = StreamEngine(wrap(make_toy("shared")).eval())
    engine.submit(torch.rand(WIDTH)).result(PATIENCE)
    worker = engine._worker
    del engine
    gc.collect()
    worker.join(PATIENCE)
    assert not worker.is_alive()


def test_rows_of_an_engine_that_is_forgotten_are_told_so() -> None:
    gate, engine = gated()
    future, abort = engine.submit(torch.zeros(1)), engine._abort
    assert gate.reached.wait(PATIENCE)
    opener = threading.Thread(target=lambda: abort.wait(PATIENCE) and gate.opened.set())
    opener.start()
    del engine
    gc.collect()
    with pytest.raises(PonderError, match="Keep it until then"):
        future.result(PATIENCE)
    opener.join()


# A full queue


def test_a_full_queue_refuses_or_blocks() -> None:
    gate, engine = gated(max_batch=1, max_waiting=2)
    first = engine.submit(torch.zeros(1))
    assert gate.reached.wait(PATIENCE)
    waiting = [engine.submit(torch.zeros(1)) for _ in range(2)]
    assert (engine.stats.waiting, engine.stats.running) == (2, 1)
    for patience in ({"block": False}, {"timeout": 0.0}):
        with pytest.raises(queue.Full):
            engine.submit(torch.zeros(1), **patience)
    blocked: list[Any] = []
    caller = threading.Thread(target=lambda: blocked.append(engine.submit(torch.zeros(1))))
    caller.start()
    gate.opened.set()
    caller.join(PATIENCE)
    assert [future.result(PATIENCE).exit_step for future in (first, *waiting, *blocked)] == [3] * 4
    engine.close()


def test_closing_frees_who_waits_for_a_place() -> None:
    gate, engine = gated(max_batch=1, max_waiting=1)
    engine.submit(torch.zeros(1))
    assert gate.reached.wait(PATIENCE)
    engine.submit(torch.zeros(1))
    refusals: list[Exception] = []

    def call() -> None:
        try:
            engine.submit(torch.zeros(1))
        except PonderError as error:
            refusals.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    closer = threading.Thread(target=engine.close)
    closer.start()
    caller.join(PATIENCE)
    assert len(refusals) == 1
    gate.opened.set()
    closer.join(PATIENCE)


# Cancelling and deadlines


@pytest.mark.parametrize("name", ["shared", "stacked"])
def test_cancelled_rows_free_their_slots(name: str) -> None:
    drive = Drive(wrap(make_toy(name)).eval(), LastStep(), max_batch=3)
    requests = [drive.add(row) for row in torch.rand(7, WIDTH)]
    drive.turns(2)
    assert requests[1].future.cancel(), "it runs"
    assert requests[5].future.cancel(), "it waits"
    drive.turns()
    assert [request.future.cancelled() for request in requests] == [row in (1, 5) for row in range(7)]
    assert all(drive.step_of(request) == NUM_STEPS for row, request in enumerate(requests) if row not in (1, 5))
    assert not requests[0].future.cancel(), "it is answered"
    if name == "shared":
        assert drive.metrics.row_steps == 5 * NUM_STEPS + 2
    assert dict(drive.metrics.ends) == {"done": 5, "cancelled": 2}


@pytest.mark.parametrize("name", ["shared", "stacked", "scheduled", "tuple-state"])
@pytest.mark.parametrize("per_step", [True, False])
def test_at_its_deadline_a_row_is_answered_from_the_step_it_has_reached(name: str, per_step: bool) -> None:
    toy = make_toy(name)
    head = ponder.PerStep(nn.Linear(WIDTH, 3) for _ in range(NUM_STEPS)) if per_step else nn.Linear(WIDTH, 3)
    model = wrap(toy, head=head).eval()
    inputs, context = toy.batch(4)
    outputs = model.unroll(inputs, **context).outputs
    drive = Drive(model, LastStep(), max_batch=4)
    for example, deadline in zip(examples_of(inputs, context), (None, 2.0, 3.0, 9.0), strict=True):
        drive.add(example, deadline=deadline)
    for now in range(1, 10):
        drive.now = float(now)
        drive.scheduler.turn()
    answers = [request.future.result(0) for request in drive.requests]
    assert [(answer.exit_step, answer.timed_out) for answer in answers] == [
        (NUM_STEPS, False),
        (1, True),
        (2, True),
        (NUM_STEPS, False),
    ]
    for row, answer in enumerate(answers):
        torch.testing.assert_close(answer.output, outputs[row, answer.exit_step - 1])


def test_a_deadline_before_the_first_step_is_an_error() -> None:
    drive = Drive(wrap(make_toy("shared")).eval(), Appointed(), max_batch=1)
    first, second = (drive.add(row, row_id=3, deadline=2.0) for row in torch.rand(2, WIDTH))
    drive.now = 1.0
    drive.turns(1)
    drive.now = 5.0
    drive.turns()
    assert drive.step_of(first) == 1
    with pytest.raises(TimeoutError, match="before the first step"):
        second.future.result(0)
    assert dict(drive.metrics.ends) == {"timed_out": 2}


def test_deadlines_of_answered_rows_are_forgotten() -> None:
    drive = Drive(wrap(make_toy("shared")).eval(), policies.FixedStep(1), max_batch=8)
    for row in torch.rand(400, WIDTH):
        drive.add(row, deadline=1e9)
        drive.turns(1)
    drive.turns()
    drive.turns()
    assert len(drive.scheduler._deadlines) <= 66


def test_a_deadline_whose_answer_cannot_be_computed_fails_alone() -> None:
    class Choosy(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            if bool((features < 0).any()):
                raise Explosion
            return features

    model = ponder.PonderWrapper(nn.Identity(), 5, head=Choosy()).eval()
    drive = Drive(model, Appointed(), max_batch=4)
    good, bad = drive.add(torch.ones(1), 5, deadline=1.5), drive.add(-torch.ones(1), 5, deadline=1.5)
    drive.turns(1)
    drive.now = 2.0
    drive.turns()
    assert drive.step_of(good) == 1
    with pytest.raises(Explosion):
        bad.future.result(0)


def test_a_deadline_in_a_model_that_loses_rows_fails_those_rows_alone() -> None:
    model = ponder.PonderWrapper(nn.Identity(), 5, head=nn.Identity(), readout=lambda hidden: hidden[:1]).eval()
    drive = Drive(model, policies.LastStep(), max_batch=4)
    rows = [drive.add(torch.ones(2), deadline=1.5) for _ in range(2)]
    drive.turns(1)
    drive.now = 2.0
    drive.turns()
    for row in rows:
        error = row.future.exception(0)
        assert error is None or "a row for each" in str(error)
    assert drive.scheduler.running == 0


# What is refused


def test_what_an_engine_refuses() -> None:
    model = wrap(make_toy("shared"))
    with refused("model", "training"):
        StreamEngine(model)
    model.eval()
    with refused("model", type_error=True):
        StreamEngine(nn.Linear(2, 2))
    for limit in ("max_batch", "max_waiting", "max_skips"):
        for value in (0, -1, 1.5, True):
            with refused(limit, repr(value)):
                StreamEngine(model, **{limit: value})
    with refused("max_tokens", "128"):
        StreamEngine(model, max_tokens=128)
    with refused("patience", "5"):
        StreamEngine(model, Patience(5))
    with refused("policy", type_error=True):
        StreamEngine(model, "patience")


def test_no_row_is_taken_after_the_last_sweep_of_an_engine_that_is_closed() -> None:
    """One that came between would wait for ever: the thread that answers has gone."""
    _, engine = gated()
    close, aborted = engine._queue.close, list[bool]()

    def watched(*given: Any) -> None:
        aborted.append(engine._abort.is_set())
        close(*given)

    engine._queue.close = watched
    engine.close(cancel=True)
    assert aborted == [False]


class Indexed(Dataset[Tensor]):
    """A data set of five rows over a longer table: Python reads on past its length until an IndexError comes."""

    def __init__(self) -> None:
        self.table = torch.randn(100, WIDTH)

    def __len__(self) -> int:
        return 5

    def __getitem__(self, place: int) -> Tensor:
        return self.table[place]


def test_a_data_set_is_read_to_its_length_and_a_loader_by_its_rows() -> None:
    model, rows = wrap(make_toy("shared")).eval(), Indexed()
    with StreamEngine(model) as engine:
        told = dict(engine.run(rows))
        assert sorted(told) == list(range(5))
        of_loader = dict(engine.run(DataLoader(rows, batch_size=2)))
        keyed = dict(engine.run([("a", rows[0])], keyed=True))
    expected = ponder.predict(model, rows)
    for found in (told, of_loader):
        assert torch.allclose(torch.stack([found[row].output for row in range(5)]), expected.outputs, atol=1e-6)
    assert list(keyed) == ["a"]


def test_another_word_for_errors_is_refused_before_anything_runs() -> None:
    with StreamEngine(wrap(make_toy("shared")).eval()) as engine, refused("errors", "raise", "'Raise'"):
        engine.run([torch.zeros(3)], errors="Raise")  # type: ignore[arg-type]


def test_a_loader_that_draws_its_order_takes_no_budgets() -> None:
    """The trap: budgets go to the rows by position, and the loader gives these in another order."""
    rows = [torch.randn(WIDTH) for _ in range(6)]
    model = ponder.PonderWrapper(nn.Linear(WIDTH, WIDTH), 3, head=nn.Linear(WIDTH, 2)).eval()
    budgets = {"budget": torch.arange(6)}
    with StreamEngine(model) as engine:
        with refused("dataset", "in the order of its data set", "RandomSampler"):
            engine.run(DataLoader(rows, batch_size=2, shuffle=True), policy_context=budgets)
        with pytest.warns(UserWarning, match="draws the order of its data"):
            assert len(list(engine.run(DataLoader(rows, batch_size=2, shuffle=True)))) == 6
        assert len(list(engine.run(DataLoader(rows, batch_size=2), policy_context=budgets))) == 6
