"""Streams: each row is answered once, fails alone, and nothing hangs; who shares a step stands in tests/matrices."""

from __future__ import annotations

import contextlib
import queue
import threading
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest
import torch

import ponder
from ponder import policies
from ponder.errors import PonderError
from tests.toys import sequence_model, sizes_of, token_ids

SURE = policies.Confidence(0.55)


@pytest.mark.parametrize("shared", [False, True])
def test_each_row_is_answered_once_as_predict_answers_it(shared: bool) -> None:
    model = sequence_model(shared=shared)
    rows = token_ids(150)
    expected = ponder.predict(model, rows, policy=SURE)
    sizes_of(model)
    with ponder.StreamEngine(model, SURE, max_batch=16, max_waiting=64) as engine:
        answers = list(engine.run(rows))
    keys = [key for key, _ in answers]
    assert sorted(keys) == list(range(150))
    for key, answer in answers:
        assert answer.exit_step == expected.exit_step[key]
        torch.testing.assert_close(answer.outputs[0], expected.outputs[key])
    sizes = [rows for rows, _ in sizes_of(model)]
    assert sum(sizes) == expected.exit_step.sum() == engine.stats.row_steps
    assert max(sizes) <= 16
    assert len(sizes) == engine.stats.steps
    assert (engine.stats.done, engine.stats.waiting, engine.stats.running) == (150, 0, 0)


def test_token_answers_are_as_long_as_their_rows() -> None:
    model = sequence_model("token_classification")
    rows = token_ids(20)
    expected = ponder.predict(model, rows, policy=policies.Patience(1))
    with ponder.StreamEngine(model, policies.Patience(1), max_batch=4) as engine:
        for key, answer in engine.run(rows):
            assert answer.exit_step == expected.exit_step[key]
            torch.testing.assert_close(answer.outputs[0], expected.outputs[key, : len(rows[key])])


class Breaking(policies.ExitPolicy):
    """Raises for rows that say so."""

    needs = frozenset({"context"})

    def decide(self, step: policies.StepView, state: Any) -> tuple[Any, Any]:
        if bool(step.context["breaks"].any()):
            raise ValueError("it breaks")
        return step.index >= step.context["budget"], state


def test_a_row_that_fails_fails_alone() -> None:
    model = sequence_model()
    rows = token_ids(30)
    context = {"breaks": torch.arange(30) % 7 == 3, "budget": torch.arange(30) % 4 + 1}
    with ponder.StreamEngine(model, Breaking(), max_batch=8) as engine:
        own = [{name: values[row] for name, values in context.items()} for row in range(30)]
        futures = [
            engine.submit(row, policy_context=given) for row, given in zip(rows, own, strict=True)
        ]
        bad = engine.submit("no numbers", policy_context={"breaks": False, "budget": 1})
        assert bad.exception() is not None
    for given, future in zip(own, futures, strict=True):
        if given["breaks"]:
            assert isinstance(future.exception(), ValueError)
        else:
            assert future.result().exit_step == given["budget"]


class Gate:
    """Holds the engine in its next step until it is opened."""

    def __init__(self, model: ponder.PonderWrapper) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()
        model.steps.fns[0].register_forward_pre_hook(self)

    def __call__(self, *_: Any) -> None:
        self.reached.set()
        self.opened.wait(60)


def test_a_row_at_which_the_stem_fails_fails_alone() -> None:
    model, rows = (
        sequence_model(),
        [torch.tensor([5, 6, 7])] * 6,
    )  # of one length, so that all waiting ones are one batch
    gate = Gate(model)
    with ponder.StreamEngine(model, policies.FixedStep(1), max_batch=8) as engine:
        first = engine.submit(rows[0])
        gate.reached.wait(60)
        futures = [engine.submit(row) for row in rows[1:3]]
        bad = engine.submit(torch.tensor([99, 99, 99]))  # beyond the vocabulary
        futures += [engine.submit(row) for row in rows[3:]]
        gate.opened.set()
        assert [future.result(60).exit_step for future in (first, *futures)] == [1] * 6
        assert isinstance(bad.exception(60), IndexError)


class Budget(policies.ExitPolicy):
    """Lets a row exit at the step of its budget."""

    needs = frozenset({"context"})

    def decide(self, step: policies.StepView, state: Any) -> tuple[Any, Any]:
        return step.index >= step.context["budget"], state


def test_a_row_that_goes_deep_alone_is_not_passed_over_for_ever() -> None:
    """While rows keep arriving that exit at step 1, there are always more of them."""
    model, (row, *_) = sequence_model(), token_ids(1)
    submitted = [0]
    seen = list[int]()
    futures = list[Future[Any]]()

    def arrive(*_: Any) -> None:
        for _ in range(4 if submitted[0] < 2000 else 0):
            submitted[0] += 1
            futures.append(engine.submit(row, policy_context={"budget": 1}))

    model.steps.fns[0].register_forward_pre_hook(arrive)
    with ponder.StreamEngine(model, Budget(), max_batch=4) as engine:
        deep = engine.submit(row, policy_context={"budget": 4})
        deep.add_done_callback(lambda _: seen.append(submitted[0]))
        for _ in range(100):
            futures.append(engine.submit(row, policy_context={"budget": 1}))
        assert deep.result(60).exit_step == 4
    assert seen[0] < 2000


def test_places_are_bounded_and_waiting_rows_can_be_cancelled() -> None:
    model, (row, *_) = sequence_model(), token_ids(1)
    gate = Gate(model)
    engine = ponder.StreamEngine(model, policies.FixedStep(1), max_batch=1, max_waiting=1)
    running = engine.submit(row)
    gate.reached.wait(60)
    waiting = engine.submit(row)
    with pytest.raises(queue.Full):
        engine.submit(row, timeout=0)
    assert waiting.cancel()
    gate.opened.set()
    engine.close()
    assert running.result(60).exit_step == 1
    assert engine.stats.cancelled == 1
    with pytest.raises(PonderError, match="closed"):
        engine.submit(row)


def test_closing_with_cancel_ends_every_row() -> None:
    model = sequence_model()
    rows = token_ids(12)
    gate = Gate(model)
    engine = ponder.StreamEngine(model, policies.LastStep(), max_batch=2)
    futures = [engine.submit(row) for row in rows]
    gate.reached.wait(60)
    closing = threading.Thread(target=engine.close, kwargs={"cancel": True})
    closing.start()
    with contextlib.suppress(PonderError):  # it is closed; the gate opens after that
        while True:
            engine.submit(rows[0])
    gate.opened.set()
    closing.join()
    assert all(future.done() for future in futures)
    with pytest.raises((CancelledError, PonderError)):
        futures[-1].result(0)


def test_callbacks_may_submit() -> None:
    model = sequence_model()
    rows = token_ids(5)
    chained: Future[Any] = Future()
    with ponder.StreamEngine(model, policies.FixedStep(1), max_waiting=1) as engine:

        def submit_next(done: Future[Any]) -> None:
            engine.submit(rows[1]).add_done_callback(
                lambda future: chained.set_result(future.result().exit_step)
            )

        engine.submit(rows[0]).add_done_callback(submit_next)
        assert chained.result(60) == 1


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(ponder.errors.ArgumentError, match=r"model\.eval\(\)"):
        ponder.StreamEngine(sequence_model().train())
