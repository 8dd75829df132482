"""`StreamEngine`: a stream of examples through a model, with every step as full as the stream allows."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from ponder._utils.checks import check_int
from ponder._utils.trees import Tree, take_rows
from ponder.errors import ArgumentError, PonderError
from ponder.inference.batches import begin, join
from ponder.inference.examples import Example, ExampleReader, SteppedModule, examples_in
from ponder.model.padding import join_rows
from ponder.model.source import ModelSource
from ponder.policies.base import ExitPolicy, PolicyBatch
from ponder.running.chunk import cut
from ponder.running.loop import Answers, ask
from ponder.running.readings import Reading, RowState, read_step

__all__ = ["StreamEngine", "StreamStats"]

_FULL = 4  # batches from which on a queue is run before the shallower ones, and takes no new rows
_Key = tuple[int, Hashable, object]
"""The rows that may share a step: its weights, the kind of the rows, and whether their policy state has begun."""


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
        latency: Quantiles 0.5, 0.95, 0.99 of the seconds from submission to answer, over the last
            4,096 answers.

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

    Rows at different depths share one batch wherever they need the same weights next: as rows exit,
    waiting ones take their places, so that every step runs full, with rows of similar length. An
    example is as for `ponder.predict`. A row that fails (bad input, a policy that raises for it)
    fails alone.

    Args:
        model: A `PonderWrapper` in evaluation mode; it stays so, and keeps its weights, while the
            engine is open.
        policy: The exit policy; the model's own where None.
        num_steps: Number of steps, as for a call of the model.
        max_batch: Rows of a step at most.
        max_tokens: Positions of a step at most, padding included; None for any number.
        max_waiting: Rows that may wait for a place before `submit` blocks.

    Example:
        >>> model = PonderWrapper(nn.Linear(8, 8), num_steps=4, head=nn.Linear(8, 3)).eval()
        >>> with ponder.StreamEngine(model, max_batch=2) as engine:
        ...     steps = {key: int(out.exit_step) for key, out in engine.run(torch.randn(5, 8))}
        >>> sorted(steps.items())
        [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    """

    def __init__(
        self,
        model: SteppedModule,
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
                "model",
                expected="a model in evaluation mode",
                got="training mode",
                remedy="Call model.eval() first.",
            )
        self._policy: ExitPolicy = model.checked(policy, num_steps)
        if "group" in self._policy.needs:
            raise ArgumentError(
                "policy",
                expected="a policy that decides on each row alone, since a stream deals rows one by one",
                got=repr(self._policy),
                remedy="Hand whole groups to ponder.predict, or whole queries to CrossEncoder.rank.",
            )
        self._reader = ExampleReader(model)
        self._num_steps = num_steps or model.num_steps
        self._together = self._policy.exit_of_all(self._num_steps)
        self._schedule: Sequence[int] = model.steps.schedule_of(self._num_steps)
        """Which weights each step needs."""
        self._max_batch = max_batch
        self._max_tokens = max_tokens
        self._max_waiting = max_waiting
        self._max_running = 8 * _FULL * max_batch
        self._max_skips = 4 * _FULL * len(set(self._schedule))
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._waiting: dict[Hashable, list[_Row]] = {}
        self._queues: dict[_Key, list[_Row]] = {}
        self._skips: Counter[_Key] = Counter()
        self._closed = self._cancelled = False
        self._steps = self._row_steps = 0
        self._ends: Counter[str] = Counter()
        self._latencies: deque[float] = deque(maxlen=4096)
        self._nothing = PolicyBatch(
            torch.zeros(0, dtype=torch.long), self._num_steps, model.spec.task
        )
        self._fresh = _begun(self._policy.init(self._nothing))
        self._thread = threading.Thread(target=self._work, name="ponder-stream", daemon=True)
        self._thread.start()

    def submit(
        self,
        example: Any,
        *,
        row_id: int | None = None,
        policy_context: Mapping[str, Tensor] | None = None,
        timeout: float | None = None,
    ) -> Future[Answers]:
        """Hand in one example; any thread may call this, and so may a done-callback of a future.

        Args:
            example: Inputs, or (inputs, context), of one row.
            row_id: Identity of the row, for seeded sampling; the number of the submission where
                None.
            policy_context: Values that the policy reads of the row, by name, without a batch
                dimension.
            timeout: Seconds to wait for a place where `max_waiting` rows wait already; None for any
                time.

        Returns:
            The future of the `Answers` of one row, outputs `(1, …)` and exit step `(1,)`, or of the
            row's own error. `cancel` takes effect until it is answered.

        Raises:
            queue.Full: There was no place.
            PonderError: The engine is closed.
        """
        number = next(self._numbers)
        reader = self._reader
        given = {
            name: reader.placed(torch.as_tensor(value)[None])
            for name, value in (policy_context or {}).items()
        }
        row = _Row(number if row_id is None else int(row_id), number, given)
        try:
            row.example = reader.read(example)
            row.length = row.example.length
        except Exception as error:
            row.future.set_exception(error)
            return row.future
        kind = (row.example.signature, 0 if reader.regroups else row.example.length)
        with self._changed:
            # Nothing could free a place on the thread that answers, where done-callbacks run.
            if threading.current_thread() is not self._thread and not self._changed.wait_for(
                lambda: self._closed or self._count_waiting() < self._max_waiting, timeout
            ):
                raise queue.Full
            if self._closed:
                raise PonderError("the StreamEngine is closed: it takes no more rows.")
            self._waiting.setdefault(kind, []).append(row)
            self._changed.notify_all()
        return row.future

    def run(self, examples: Iterable[Any]) -> Iterator[tuple[int, Answers]]:
        """Answer all examples of an iterable, which is read only as far ahead as rows may wait and run.

        Args:
            examples: The examples; the row id of each is its position.

        Returns:
            An iterator over pairs (position, `Answers` of one row), in the order of completion; a
            row that failed raises.
        """
        numbered = enumerate(examples_in(examples))
        done: queue.SimpleQueue[Future[Answers]] = queue.SimpleQueue()
        positions: dict[Future[Answers], int] = {}
        try:
            while True:
                while (
                    len(positions) < 2 * self._max_waiting
                    and done.empty()
                    and (given := next(numbered, None))
                ):
                    future = self.submit(given[1], row_id=given[0])
                    positions[future] = given[0]
                    future.add_done_callback(done.put)
                if not positions:
                    return
                future = done.get()
                yield positions.pop(future), future.result()
        finally:
            for future in positions:
                future.cancel()

    @property
    def stats(self) -> StreamStats:
        """The counts, the occupancy and the latencies so far."""
        with self._changed:
            seconds = torch.tensor(list(self._latencies), dtype=torch.float64)
            return StreamStats(
                steps=self._steps,
                row_steps=self._row_steps,
                occupancy=self._row_steps / (self._steps * self._max_batch) if self._steps else 0.0,
                waiting=self._count_waiting(),
                running=self._count_running(),
                done=self._ends["done"],
                failed=self._ends["failed"],
                cancelled=self._ends["cancelled"],
                latency={q: float(seconds.quantile(q)) for q in (0.5, 0.95, 0.99) if len(seconds)},
            )

    def close(self, *, cancel: bool = False) -> None:
        """Take no more rows, and return when the others are answered; or cancel those."""
        with self._changed:
            self._closed = True
            self._cancelled = self._cancelled or cancel
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; after an error, cancel what is not answered."""
        self.close(cancel=kind is not None)

    def _work(self) -> None:
        """Run steps until the engine is closed and every row is answered."""
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or self._waiting or self._queues)
                    if self._cancelled or not (self._waiting or self._queues):
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

    def _next(self) -> _Key:
        """Return the queue to run: one that was passed over too often, else the fullest, the deepest of equals.

        Where no row waits, the shallowest: its rows meet those before them, and go on as one batch.
        """
        rows = Counter({key: len(queue) for key, queue in self._queues.items()})
        if self._count_running() < self._max_running:
            for kind, waiting in self._waiting.items():
                rows[self._schedule[0], kind, self._fresh] += len(waiting)

        def rank(key: _Key) -> tuple[bool, int, int]:
            passed_over = self._skips[key] >= self._max_skips
            if not self._waiting:
                return passed_over, 0, -key[0]
            return passed_over, min(rows[key], _FULL * self._max_batch), key[0]

        chosen = max(rows, key=rank)
        self._skips = Counter({key: self._skips[key] + 1 for key in rows if key != chosen})
        return chosen

    def _admit(self, key: _Key) -> list[_Row]:
        """Take waiting rows into a queue that stands before the first step: the oldest, and others of its length."""
        weights, kind, begun = key
        waiting = self._waiting.get(kind, [])
        room = min(self._max_batch, _FULL * self._max_batch - len(self._queues.get(key, ())))
        if weights != self._schedule[0] or begun != self._fresh or not waiting or room < 1:
            return []
        chosen, rest = self._oldest(waiting, room)
        self._waiting[kind] = rest
        if not rest:
            del self._waiting[kind]
        alive = [row for row in chosen if row.future.set_running_or_notify_cancel()]
        self._ends["cancelled"] += len(chosen) - len(alive)
        return alive

    def _oldest(self, rows: list[_Row], most: int) -> tuple[list[_Row], list[_Row]]:
        """Return a batch with the oldest of some rows, and with others of similar length; and the rows besides."""
        rows = sorted(rows, key=lambda row: (-row.length, row.number))
        oldest = min(range(len(rows)), key=lambda place: rows[place].number)
        batches = cut([row.length for row in rows], most, self._max_tokens)
        batch = next(batch for batch in batches if oldest < batch.stop)
        return rows[batch], rows[: batch.start] + rows[batch.stop :]

    def _run(self, key: _Key, admitted: list[_Row]) -> None:
        """Take a batch of a queue one step further."""
        rows = self._queues.pop(key, []) + (self._begin(admitted) if admitted else [])
        if rows:
            rows, rest = self._oldest(rows, self._max_batch)
            self._queues.update({key: rest} if rest else {})
            self._step(key[1], rows)

    def _begin(self, rows: list[_Row]) -> list[_Row]:
        """Run the stem; where it raises, for each row alone. Return the rows for which it ran."""
        try:
            source, lengths = begin(self._reader, [row.example for row in rows], self._policy.needs)
            source.policy_context = {
                name: torch.cat([row.policy_context[name] for row in rows])
                for name in rows[0].policy_context
            }
            ids = self._reader.placed(torch.tensor([row.row_id for row in rows]))
            batch = _Batch(
                source, RowState.start(self._policy, replace(self._nothing, row_ids=ids))
            )
        except Exception as error:
            if len(rows) > 1:
                return [begun for row in rows for begun in self._begin([row])]
            self._fail(rows[0], error)
            return []
        for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            row.batch = batch
            row.place = place
            row.length = length
        return rows

    def _step(self, kind: Hashable, rows: list[_Row]) -> None:
        """Run one step; where it raises, for each row alone."""
        try:
            rows, batch = _joined(rows)
            steps = [row.step + 1 for row in rows]
            batch.source.at = steps if min(steps) != max(steps) else None
            batch.source.advance(steps[0])
            exits = self._ask(batch, steps)
            gone = exits.nonzero().flatten()
            source = batch.source
            if len(gone) == len(rows):
                outputs = source.output()
            elif len(gone):
                outputs = source.output_of(gone.numpy())
            else:
                outputs = None
        except Exception as error:
            for row in rows if len(rows) > 1 else ():
                self._step(kind, [row])
            if len(rows) == 1:
                self._fail(rows[0], error)
            return
        self._steps = self._steps + 1
        self._row_steps = self._row_steps + len(rows)
        begun = _begun(batch.running.policy)
        for place, (row, exit_here) in enumerate(zip(rows, exits.tolist(), strict=True)):
            row.batch = batch
            row.place = place
            row.step = steps[place]
            if not exit_here:
                self._queues.setdefault((self._schedule[row.step], kind, begun), []).append(row)
        if outputs is not None:
            self._answer([rows[place] for place in gone.tolist()], outputs)

    def _ask(self, batch: _Batch, steps: Sequence[int]) -> Tensor:
        """Return which rows exit, all at their last step among them, and note the state of the others."""
        last = self._together or self._num_steps
        running = batch.running
        exits = torch.tensor([step == last for step in steps])
        if self._together is not None or bool(exits.all()):
            return exits
        reading = read_step(batch.source, self._policy.needs, running, self._nothing)
        others = ~exits
        all_are_asked = not bool(exits.any())
        if not all_are_asked:
            asked = others.nonzero().flatten().to(running.step.device)
            reading = _rows_of(reading, asked)
            running = take_rows(running, asked)
        decision = ask(self._policy, reading.view, running.policy)
        after = RowState(reading.view.index, decision.state, reading.log_survival)
        exits[others] = torch.as_tensor(decision.exits)
        if not all_are_asked:  # rows that exit keep a place, with a state that is never read
            places = (others.cumsum(0) - 1).clamp(min=0).to(running.step.device)
            after = take_rows(after, places)
        batch.running = after
        return exits

    def _answer(self, rows: Sequence[_Row], outputs: Tensor) -> None:
        now = time.monotonic()
        for row, output in zip(rows, outputs.split(1), strict=True):
            self._ends["done"] += 1
            self._latencies.append(now - row.submitted)
            row.future.set_result(Answers(output.clone(), torch.tensor([row.step])))

    def _fail(self, row: _Row, error: BaseException) -> None:
        self._ends["failed"] += 1
        row.future.set_exception(error)

    def _end_all(self, error: BaseException | None) -> None:
        """End what is not answered: cancelled, or with the error that ended the thread."""
        with self._changed:
            self._closed = True
            rows = [
                row for queue in (*self._queues.values(), *self._waiting.values()) for row in queue
            ]
            self._queues = {}
            self._waiting = {}
            self._changed.notify_all()
        for row in rows:
            if error is None and row.future.cancel():
                row.future.set_running_or_notify_cancel()
                self._ends["cancelled"] += 1
            else:
                with suppress(Exception):  # cancelled at the same moment
                    row.future.set_exception(error or PonderError("the StreamEngine was closed."))

    def _count_waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    def _count_running(self) -> int:
        return sum(map(len, list(self._queues.values())))


@dataclass(eq=False)
class _Batch:
    """Rows that went through a step together; those that exited lie in it too, until the others join another."""

    source: ModelSource
    running: RowState


@dataclass(eq=False)
class _Row:
    row_id: int
    number: int  # of its submission
    policy_context: dict[str, Tensor]
    example: Example = field(init=False)
    batch: _Batch = field(init=False)  # where its states lie, at a place
    place: int = 0
    step: int = 0  # that it has finished
    length: int = 0
    future: Future[Answers] = field(default_factory=Future)
    submitted: float = field(default_factory=time.monotonic)


def _joined(rows: Sequence[_Row]) -> tuple[list[_Row], _Batch]:
    """Join rows of one or more batches to one, and return them in their order there."""
    parts: dict[_Batch, list[_Row]] = {}
    for row in sorted(rows, key=lambda row: row.place):
        parts.setdefault(row.batch, []).append(row)
    places = [[row.place for row in own] for own in parts.values()]
    source = join(
        list(zip([batch.source for batch in parts], places, strict=True)),
        max(row.length for row in rows),
    )
    running = [
        take_rows(batch.running, torch.tensor(own, device=source.device))
        for batch, own in zip(parts, places, strict=True)
    ]
    together = join_rows(running, sizes=list(map(len, places)), path="policy state")
    return [row for own in parts.values() for row in own], _Batch(source, together)


def _begun(state: Tree) -> object:
    """Return which parts of a policy's state have a value: rows that differ in this are asked in separate batches.

    A policy knows its first step by a state that is None as a whole; inside a mapping None is a
    value that is not there yet, and becomes zeros beside the values of others.
    """
    return tuple(map(_begun, state)) if isinstance(state, tuple) else state is not None


def _rows_of(reading: Reading, index: Tensor) -> Reading:
    """Return what a policy sees of some of the rows of a reading."""
    view, log_survival = reading
    taken = take_rows((view.index, view.readings, view.mask, view.policy_context), index)
    names = ("index", "readings", "mask", "policy_context")
    return Reading(
        replace(view, **dict(zip(names, taken, strict=True))), take_rows(log_survival, index)
    )
