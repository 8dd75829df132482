"""`StreamEngine`: a stream of examples through a model, with every step as full as the stream allows."""

from __future__ import annotations

import itertools
import queue
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor

from ponder._utils.checks import check_choice, check_int
from ponder.errors import ArgumentError, PonderError
from ponder.inference.cohorts import Cohort, Exited, Stepper, join, longest_first, started, taken
from ponder.inference.examples import Example, ExampleReader, can_regroup, examples_in, fitting
from ponder.policies.base import ExitPolicy, PolicyBatch

__all__ = ["StreamEngine", "StreamOutput", "StreamStats"]


@dataclass(frozen=True, eq=False)
class StreamOutput:
    """The answer to one example.

    Args:
        output: The head's output at the exit, without a batch dimension.
        exit_step: The step at which the row exited, 1-based.
    """

    output: Tensor
    exit_step: int


@dataclass(frozen=True)
class StreamStats:
    """A snapshot of an engine.

    Args:
        steps: Number of batched steps.
        row_steps: Rows that they carried, added up.
        occupancy: row_steps / (steps · max_batch), in [0, 1].
        waiting: Rows before their first step.
        running: Rows between their first step and their exit.
        done: Rows that were answered.
        failed: Rows that ended in an error of their own.
        cancelled: Rows whose future was cancelled.
        latency: Quantiles 0.5, 0.95, 0.99 of the seconds from submission to answer, over the last 4,096 answers.

    Example:
        >>> with ponder.StreamEngine(model, policies.FixedStep(2), max_batch=10) as engine:
        ...     answers = list(engine.run(inputs[:20]))
        >>> engine.stats.done, engine.stats.row_steps
        (20, 40)
    """

    steps: int
    row_steps: int
    occupancy: float
    waiting: int
    running: int
    done: int
    failed: int
    cancelled: int
    latency: dict[float, float]


class StreamEngine:
    """Answer examples as they come, each at the step where the policy lets it exit.

    Rows at different depths share one batch wherever they need the same weights next: as rows exit, waiting ones take
    their places, so that every step runs full, with rows of similar length. An example is as for `ponder.predict`. A
    row that fails (bad input, a policy that raises for it) fails alone.

    Args:
        model: A `PonderWrapper` in evaluation mode; it stays so, and keeps its weights, while the engine is open.
        policy: The exit policy; the model's own where None.
        num_steps: Number of steps, as for a call of the model.
        max_batch: Rows of a step at most.
        max_tokens: Positions of a step at most, padding included; None for any number.
        max_waiting: Rows that may wait for a place before `submit` blocks.

    Example:
        >>> model = PonderWrapper(nn.Linear(8, 8), num_steps=4, head=nn.Linear(8, 3)).eval()
        >>> with ponder.StreamEngine(model, max_batch=2) as engine:
        ...     steps = {key: out.exit_step for key, out in engine.run(torch.randn(5, 8))}
        >>> sorted(steps.items())
        [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    """

    def __init__(
        self,
        model: Any,
        policy: ExitPolicy | None = None,
        *,
        num_steps: int | None = None,
        max_batch: int = 64,
        max_tokens: int | None = None,
        max_waiting: int = 1024,
    ) -> None:
        check_int("max_batch", max_batch)
        check_int("max_waiting", max_waiting)
        if model.training:
            raise ArgumentError(
                "model", expected="a model in evaluation mode", got="training mode", remedy="Call model.eval() first."
            )
        stepper = Stepper(model, model.checked(policy, num_steps), num_steps or model.num_steps)
        if "group" in stepper.policy.needs:
            raise ArgumentError(
                "policy",
                expected="a policy that decides on each row alone, since a stream deals rows one by one",
                got=repr(stepper.policy),
                remedy="Hand whole groups to ponder.predict, or whole queries to CrossEncoder.rank.",
            )
        self._reads_context = "context" in stepper.policy.needs
        self._numbers, self._max_waiting = itertools.count(), max_waiting
        self._worker = _Worker(
            stepper, ExampleReader(model.padding, one_length=not can_regroup(model)), max_batch, max_tokens, max_waiting
        )
        self._thread = threading.Thread(target=self._worker.work, name="ponder-stream", daemon=True)
        self._thread.start()
        self._finalizer = weakref.finalize(self, self._worker.close, cancel=True)

    def submit(
        self,
        example: Any,
        *,
        row_id: int | None = None,
        policy_context: Mapping[str, Tensor] | None = None,
        timeout: float | None = None,
    ) -> Future[StreamOutput]:
        """Hand in one example; any thread may call this, and so may a done-callback of a future.

        Args:
            example: Inputs, or (inputs, context), of one row.
            row_id: Identity of the row, for seeded sampling; the number of the submission where None.
            policy_context: Values that the policy reads of the row, by name, without a batch dimension.
            timeout: Seconds to wait for a place where `max_waiting` rows wait already; None for any time.

        Returns:
            The future of a `StreamOutput`, or of the row's own error. `cancel` takes effect until it is answered.

        Raises:
            queue.Full: There was no place.
            PonderError: The engine is closed.
        """
        number = next(self._numbers)
        if self._reads_context and policy_context is None:
            raise ArgumentError(
                "policy_context",
                expected="the values that the policy reads of the row",
                got="None",
                remedy="Pass submit(example, policy_context={'budget': torch.tensor(3.0)}), say.",
            )
        given = {name: torch.as_tensor(value)[None] for name, value in (policy_context or {}).items()}
        request = _Request(number if row_id is None else int(row_id), number, policy_context=given)
        try:
            request.example = self._worker.reader.read(example)
        except Exception as error:
            request.future.set_exception(error)
            return request.future
        # Nothing could free a place on the thread that answers, where done-callbacks run.
        self._worker.put(request, threading.current_thread() is not self._thread, timeout)
        return request.future

    def run(
        self,
        examples: Iterable[Any],
        *,
        errors: Literal["raise", "return"] = "raise",
        policy_context: Mapping[str, Tensor] | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """Answer all examples of an iterable, which is read only as far ahead as rows may wait and run.

        Args:
            examples: The examples; the row id of each is its position.
            errors: ``"raise"`` the error of a row that failed, or ``"return"`` it in the place of its output.
            policy_context: Values that policies read, by name: tensors with a row for each example.

        Returns:
            An iterator over pairs (position, `StreamOutput`), in the order of completion.
        """
        check_choice("errors", errors, ("raise", "return"))
        return self._answers(examples_in(examples), errors, policy_context)

    def _answers(
        self, examples: Iterator[Any], errors: str, policy_context: Mapping[str, Tensor] | None
    ) -> Iterator[tuple[int, Any]]:
        done: queue.SimpleQueue[int] = queue.SimpleQueue()
        futures: dict[int, Future[StreamOutput]] = {}
        position, ahead, more = 0, 2 * self._max_waiting, True
        try:
            while more or futures:
                while more and len(futures) < ahead and done.empty():
                    example = next(examples, _END)
                    more = example is not _END
                    if more:
                        given = {name: value[position] for name, value in (policy_context or {}).items()} or None
                        futures[position] = self.submit(example, row_id=position, policy_context=given)
                        futures[position].add_done_callback(partial(_report, done, position))
                        position += 1
                if futures:
                    ended = done.get()
                    future = futures.pop(ended)
                    error = future.exception()
                    if error is not None and errors == "raise":
                        raise error
                    yield ended, future.result() if error is None else error
        finally:
            for future in futures.values():
                future.cancel()

    @property
    def stats(self) -> StreamStats:
        """The counts, the occupancy and the latencies so far."""
        return self._worker.stats()

    def close(self, *, cancel: bool = False) -> None:
        """Take no more rows, and return when the others are answered; or cancel those."""
        self._worker.close(cancel=cancel)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; after an error, cancel what is not answered."""
        self.close(cancel=kind is not None)


def _report(done: queue.SimpleQueue[int], position: int, _: Future[StreamOutput]) -> None:
    done.put(position)


_POOL = 4  # batches that a queue collects under load, so that rows of similar length stand together
_END: Any = object()
_Key = tuple[int, Hashable, object]
"""The rows that may share a step: its weights, the kind of the rows, and whether their policy state has begun."""


@dataclass(eq=False)
class _Request:
    row_id: int
    number: int
    example: Example = field(default_factory=lambda: Example(None, {}))
    policy_context: dict[str, Tensor] = field(default_factory=dict)
    future: Future[StreamOutput] = field(default_factory=Future)
    submitted: float = field(default_factory=time.monotonic)


class _Worker:
    """The thread's work. It holds no reference to the engine, so that one that is forgotten ends."""

    def __init__(
        self, stepper: Stepper, reader: ExampleReader, max_batch: int, max_tokens: int | None, max_waiting: int
    ) -> None:
        self.reader, self._stepper = reader, stepper
        self._max_batch, self._max_tokens, self._max_waiting = max_batch, max_tokens, max_waiting
        self._max_running = 2 * _POOL * max_batch * len(set(stepper.schedule))
        self._max_skips = 4 * _POOL * len(set(stepper.schedule))
        self._changed = threading.Condition()
        self._waiting: dict[Hashable, list[_Request]] = {}
        self._queues: dict[_Key, list[Cohort]] = {}
        self._skips: Counter[_Key] = Counter()
        self._closed = self._cancelled = False
        self._steps = self._row_steps = 0
        self._ends: Counter[str] = Counter()
        self._latencies: deque[float] = deque(maxlen=4096)
        nobody = PolicyBatch(torch.zeros(0, dtype=torch.long), stepper.num_steps, stepper.model.task)
        self._fresh = started(stepper.policy.init(nobody))

    def put(self, request: _Request, block: bool, timeout: float | None) -> None:
        """Let a request wait for its first step."""
        with self._changed:
            if block and not self._changed.wait_for(lambda: self._closed or self._has_place(), timeout):
                raise queue.Full
            if self._closed:
                raise PonderError("the StreamEngine is closed: it takes no more rows.")
            self._waiting.setdefault(request.example.signature, []).append(request)
            self._changed.notify_all()

    def close(self, *, cancel: bool) -> None:
        """Take no more rows; cancel those that are not answered, if asked."""
        with self._changed:
            self._closed, self._cancelled = True, self._cancelled or cancel
            self._changed.notify_all()

    def work(self) -> None:
        """Run steps until the engine is closed and every row is answered."""
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or self._waiting or self._queues)
                    if self._cancelled or (self._closed and not self._waiting and not self._queues):
                        break
                    key = self._next()
                    admitted = self._admit(key)
                    self._changed.notify_all()
                with torch.no_grad():
                    self._run(key, admitted)
            self._end_all(None)
        except BaseException as error:
            self._end_all(error)
            raise

    def stats(self) -> StreamStats:
        """Return a snapshot."""
        with self._changed:
            waiting, running = self._count_waiting(), self._count_running()
            seconds = torch.tensor(list(self._latencies), dtype=torch.float64)
            return StreamStats(
                steps=self._steps,
                row_steps=self._row_steps,
                occupancy=self._row_steps / (self._steps * self._max_batch) if self._steps else 0.0,
                waiting=waiting,
                running=running,
                done=self._ends["done"],
                failed=self._ends["failed"],
                cancelled=self._ends["cancelled"],
                latency={q: float(seconds.quantile(q)) for q in (0.5, 0.95, 0.99) if len(seconds)},
            )

    def _next(self) -> _Key:
        """Return the queue to run: one that was passed over too often, else the fullest, the deepest of equals."""
        first, rows = self._stepper.schedule[0], Counter[_Key]()
        for key, cohorts in self._queues.items():
            rows[key] = sum(map(len, cohorts))
        if self._count_running() < self._max_running:
            for signature, requests in self._waiting.items():
                rows[first, signature, self._fresh] += len(requests)
        chosen = max(
            rows, key=lambda key: (self._skips[key] >= self._max_skips, min(rows[key], _POOL * self._max_batch), key[0])
        )
        self._skips = Counter({key: self._skips[key] + 1 for key in rows if key != chosen})
        return chosen

    def _admit(self, key: _Key) -> list[_Request]:
        """Take waiting rows into a queue that stands before the first step, as many as a batch has places."""
        weights, signature, begun = key
        waiting = self._waiting.get(signature, [])
        room = self._max_batch - sum(map(len, self._queues.get(key, ())))
        if weights != self._stepper.schedule[0] or begun != self._fresh or not waiting or room < 1:
            return []
        waiting.sort(key=lambda request: -request.example.length)
        oldest = min(range(len(waiting)), key=lambda place: waiting[place].number)
        start = _window(oldest, len(waiting), room, self._max_tokens)
        lengths = [request.example.length for request in waiting[start : start + room]]
        taken = waiting[start : start + fitting(lengths, room, self._max_tokens)]
        del waiting[start : start + len(taken)]
        if not waiting:
            del self._waiting[signature]
        alive = [request for request in taken if request.future.set_running_or_notify_cancel()]
        self._ends["cancelled"] += len(taken) - len(alive)
        return alive

    def _run(self, key: _Key, admitted: Sequence[_Request]) -> None:
        """Take one batch of a queue one step further."""
        cohorts = self._queues.pop(key, [])
        if admitted:
            cohorts += self._begin(admitted)
        if sum(map(len, cohorts)) > self._max_batch or (cohorts and self._max_tokens is not None):
            cohorts, rest = _oldest(cohorts, self._max_batch, self._max_tokens)
            self._queues.update({key: rest} if rest else {})
        if cohorts:
            self._step(key[1], cohorts)

    def _begin(self, requests: Sequence[_Request]) -> list[Cohort]:
        """Run the stem; where it raises, for halves of the rows, down to the one that fails."""
        try:
            examples = [request.example for request in requests]
            given = {
                name: torch.cat([request.policy_context[name] for request in requests])
                for name in requests[0].policy_context
            }
            ids = [request.row_id for request in requests]
            return [self._stepper.begin(self.reader, examples, requests, ids, given or None)]
        except Exception as error:
            if len(requests) == 1:
                self._fail(requests[0], error)
                return []
            half = len(requests) // 2
            return self._begin(requests[:half]) + self._begin(requests[half:])

    def _step(self, signature: Hashable, cohorts: Sequence[Cohort]) -> None:
        """Run one step; where it raises, for halves of the rows, down to the one that fails."""
        try:
            joined = join(cohorts, self._stepper.padding)
            exited, after = self._stepper.step(joined)
        except Exception as error:
            whole = [(cohort, place) for cohort in cohorts for place in range(len(cohort))]
            if len(whole) == 1:
                self._fail(cohorts[0].rows[0], error)
                return
            for half in (whole[: len(whole) // 2], whole[len(whole) // 2 :]):
                self._step(signature, [cohort.take([place]) for cohort, place in half])
            return
        self._steps, self._row_steps = self._steps + 1, self._row_steps + len(joined)
        if after is not None:
            begun = started(after.running.state)
            for weights in sorted({self._stepper.schedule[step] for step in after.steps}):
                places = [n for n, step in enumerate(after.steps) if self._stepper.schedule[step] == weights]
                part = after if len(places) == len(after) else after.take(places)
                self._queues.setdefault((weights, signature, begun), []).append(part)
        if exited is not None:
            self._answer(exited)

    def _answer(self, exited: Exited) -> None:
        now = time.monotonic()
        for request, output, step in zip(exited.rows, exited.outputs.unbind(0), exited.steps, strict=True):
            self._ends["done"] += 1
            self._latencies.append(now - request.submitted)
            request.future.set_result(StreamOutput(output.clone(), step))

    def _fail(self, request: _Request, error: BaseException) -> None:
        self._ends["failed"] += 1
        request.future.set_exception(error)

    def _end_all(self, error: BaseException | None) -> None:
        """End what is not answered: cancelled, or with the error that ended the thread."""
        with self._changed:
            self._closed = True
            rows = [row for cohorts in self._queues.values() for cohort in cohorts for row in cohort.rows]
            waiting = [request for requests in self._waiting.values() for request in requests]
            self._queues, self._waiting = {}, {}
            self._changed.notify_all()
        for request in (*rows, *waiting):
            if error is None and request.future.cancel():
                request.future.set_running_or_notify_cancel()
                self._ends["cancelled"] += 1
            else:
                with suppress(Exception):  # cancelled at the same moment
                    request.future.set_exception(error or PonderError("the StreamEngine was closed."))

    def _has_place(self) -> bool:
        return self._count_waiting() < self._max_waiting

    def _count_waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    def _count_running(self) -> int:
        return sum(len(cohort) for cohorts in list(self._queues.values()) for cohort in cohorts)


def _oldest(cohorts: Sequence[Cohort], max_batch: int, max_tokens: int | None) -> tuple[list[Cohort], list[Cohort]]:
    """Split the rows of a queue into a batch, the oldest row with those nearest to its length, and the rest."""
    rows = longest_first(cohorts)
    oldest = min(range(len(rows)), key=lambda at: cohorts[rows[at][1]].rows[rows[at][2]].number)
    start = _window(oldest, len(rows), max_batch, max_tokens)
    end = start + fitting([-length for length, _, _ in rows[start : start + max_batch]], max_batch, max_tokens)
    return taken(cohorts, rows[start:end]), taken(cohorts, rows[:start] + rows[end:])


def _window(place: int, rows: int, size: int, max_tokens: int | None) -> int:
    """Return where a batch begins that holds the row at `place` among rows sorted by length.

    Batches are cut at multiples of their size, since windows around one row leave gaps that later ones have to span.
    """
    return place if max_tokens else max(min(place // size * size, rows - size), 0)
