"""`StreamEngine`: a stream of examples through a model, with steps as full as the stream allows.

`submit` puts a row into the list of waiting rows. One thread (`_work`) takes the rest in turns:

    choose a queue: the rows that need the same weights next
    admit waiting rows if it is the queue before the first step, and run their stem
    take the oldest rows of the queue, with others of similar length, one step further
    answer the rows that exit, and put the others into their next queues
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ponder._utils.arrays import concatenate_rows, select_rows
from ponder._utils.checks import check_int
from ponder.errors import ArgumentError, PonderError
from ponder.inference.batches import begin, join
from ponder.inference.examples import (
    DataSet,
    Example,
    ExampleReader,
    SteppedModule,
    UserExample,
    examples_in,
)
from ponder.model.source import ModelSource
from ponder.policies.base import ExitPolicy, PolicyBatch, PolicyState
from ponder.running.chunk import cut
from ponder.running.depths import ask_at_depths
from ponder.running.loop import Answers
from ponder.running.readings import RowState, read_step
from ponder.running.source import Ints

__all__ = ["StreamEngine", "StreamStats"]

_FULL = 4
"""Batches from which on a queue takes no new rows, and runs before shallower ones."""


class _Key(NamedTuple):
    """The rows that may share a step.

    Args:
        weights: The number of the step's weights.
        kind: What the examples have in common; see `Example.signature`.
    """

    weights: int
    kind: Hashable


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
        failed: Rows that ended in an error.
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

    Rows at different depths share one batch if they need the same weights next. As rows exit,
    waiting ones take their places, so that every step runs full, with rows of similar length.
    Examples are as for `ponder.predict`. A row that fails (bad input, a policy that raises for it)
    fails alone.

    Args:
        model: A `PonderWrapper` in evaluation mode. It must keep its mode and its weights while the
            engine is open.
        policy: The exit policy. By default the model's.
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
                expected="a policy that decides on each row alone, as a stream does",
                got=repr(self._policy),
                remedy="Pass whole groups to ponder.predict, or queries to CrossEncoder.rank.",
            )
        self._reader = ExampleReader(model)
        self._num_steps = num_steps or model.num_steps
        self._together = self._policy.exit_of_all(self._num_steps)
        # The weights of each step.
        self._schedule: Sequence[int] = model.steps.schedule_of(self._num_steps)
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
        no_rows = torch.zeros(0, dtype=torch.long)
        self._no_batch = PolicyBatch(no_rows, self._num_steps, model.spec.task)
        self._thread = threading.Thread(target=self._work, name="ponder-stream", daemon=True)
        self._thread.start()

    def submit(
        self,
        example: UserExample,
        *,
        row_id: int | None = None,
        policy_context: Mapping[str, Tensor] | None = None,
        timeout: float | None = None,
    ) -> Future[Answers]:
        """Submit one example; any thread may call this, and so may a done-callback of a future.

        Args:
            example: Inputs, or (inputs, context), of one row.
            row_id: Identity of the row, for seeded sampling. By default the number of the
                submission.
            policy_context: Values of the row that the policy reads, by name, without a batch
                dimension.
            timeout: Seconds to wait for a place if `max_waiting` rows wait already; None for any
                time.

        Returns:
            The future of the `Answers` of one row, outputs `(1, …)` and exit step `(1,)`, or of
            its error. It can be cancelled until it is answered.

        Raises:
            queue.Full: There was no place in time.
            PonderError: The engine is closed.
        """
        number = next(self._numbers)
        reader = self._reader
        context = {
            name: reader.placed(torch.as_tensor(value)[None])
            for name, value in (policy_context or {}).items()
        }
        if row_id is None:
            row_id = number
        row = _Row(int(row_id), number, context)
        try:
            row.example = reader.read(example)
            reader.refuse_masks([row.example])
            row.length = row.example.length
        except Exception as error:
            row.future.set_exception(error)
            return row.future
        kind: Hashable = row.example.signature
        if not reader.regroups:  # rows of one length alone share a batch
            kind = (kind, row.example.length)
        with self._changed:
            # Done-callbacks run on the thread that answers: if it waited, no place would get free.
            if threading.current_thread() is not self._thread and not self._changed.wait_for(
                lambda: self._closed or self._count_waiting() < self._max_waiting, timeout
            ):
                raise queue.Full
            if self._closed:
                raise PonderError("the StreamEngine is closed: it takes no more rows.")
            self._waiting.setdefault(kind, []).append(row)
            self._changed.notify_all()
        return row.future

    def run(self, examples: DataSet) -> Iterator[tuple[int, Answers]]:
        """Answer all examples of an iterable, which is read only so far ahead as rows may wait.

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
                while len(positions) < 2 * self._max_waiting and done.empty():
                    position, example = next(numbered, (-1, None))
                    if position < 0:
                        break
                    future = self.submit(example, row_id=position)
                    positions[future] = position
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
            occupancy = 0.0
            if self._steps:
                occupancy = self._row_steps / (self._steps * self._max_batch)
            return StreamStats(
                steps=self._steps,
                row_steps=self._row_steps,
                occupancy=occupancy,
                waiting=self._count_waiting(),
                running=self._count_running(),
                done=self._ends["done"],
                failed=self._ends["failed"],
                cancelled=self._ends["cancelled"],
                latency={q: float(seconds.quantile(q)) for q in (0.5, 0.95, 0.99) if len(seconds)},
            )

    def close(self, *, cancel: bool = False) -> None:
        """Take no more rows, and return once the others are answered or, if asked, cancelled."""
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
        """Close; after an error, cancel the rows that are not answered."""
        self.close(cancel=kind is not None)

    def _work(self) -> None:
        """Run steps until the engine is closed and every row is answered."""
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or self._waiting or self._queues)
                    if self._cancelled or not (self._waiting or self._queues):
                        break
                    key = self._next_key()
                    admitted = self._admit(key)
                    self._changed.notify_all()
                with torch.no_grad():
                    self._run(key, admitted)
            self._end_all(None)
        except BaseException as error:
            self._end_all(error)
            raise

    def _next_key(self) -> _Key:
        """Return the queue to run.

        A queue that was passed over too often comes first, then the fullest, of equal ones the
        deepest. If no row waits, the shallowest runs: its rows then join those of the next one.
        """
        rows = Counter({key: len(queue) for key, queue in self._queues.items()})
        if self._count_running() < self._max_running:
            for kind, waiting in self._waiting.items():
                rows[_Key(self._schedule[0], kind)] += len(waiting)

        def rank(key: _Key) -> tuple[bool, int, int]:
            passed_over = self._skips[key] >= self._max_skips
            if not self._waiting:
                return passed_over, 0, -key.weights
            return passed_over, min(rows[key], _FULL * self._max_batch), key.weights

        chosen = max(rows, key=rank)
        self._skips = Counter({key: self._skips[key] + 1 for key in rows if key != chosen})
        return chosen

    def _admit(self, key: _Key) -> list[_Row]:
        """Take waiting rows for the queue before the first step, the oldest among them."""
        is_first = key.weights == self._schedule[0]
        waiting = self._waiting.get(key.kind, [])
        room = min(self._max_batch, _FULL * self._max_batch - len(self._queues.get(key, ())))
        if not is_first or not waiting or room < 1:
            return []
        chosen, rest = self._split_oldest(waiting, room)
        self._waiting[key.kind] = rest
        if not rest:
            del self._waiting[key.kind]
        alive = [row for row in chosen if row.future.set_running_or_notify_cancel()]
        self._ends["cancelled"] += len(chosen) - len(alive)
        return alive

    def _split_oldest(self, rows: list[_Row], most: int) -> tuple[list[_Row], list[_Row]]:
        """Split rows into a batch with the oldest, and others of similar length, and the rest."""
        longest_first = sorted(rows, key=lambda row: (-row.length, row.number))
        numbers = [row.number for row in longest_first]
        oldest = numbers.index(min(numbers))
        lengths = [row.length for row in longest_first]
        batches = cut(lengths, most, self._max_tokens)
        with_oldest = next(batch for batch in batches if oldest < batch.stop)
        rest = longest_first[: with_oldest.start] + longest_first[with_oldest.stop :]
        return longest_first[with_oldest], rest

    def _run(self, key: _Key, admitted: list[_Row]) -> None:
        """Take a batch of a queue one step further."""
        rows = self._queues.pop(key, [])
        if admitted:
            rows += self._begin(admitted)
        if rows:
            batch, rest = self._split_oldest(rows, self._max_batch)
            if rest:
                self._queues[key] = rest
            self._step(key.kind, batch)

    def _begin(self, rows: list[_Row]) -> list[_Row]:
        """Run the stem, and return the rows for which it ran; if it raises, try each row alone."""
        try:
            source, lengths = begin(self._reader, [row.example for row in rows], self._policy.needs)
            source.policy_context = {
                name: torch.cat([row.policy_context[name] for row in rows])
                for name in rows[0].policy_context
            }
            ids = self._reader.placed(torch.tensor([row.row_id for row in rows]))
            batch = _Batch(source, RowState.start(ids, self._policy.needs))
        except Exception as error:
            if len(rows) > 1:
                return [each for row in rows for each in self._begin([row])]
            self._fail(rows[0], error)
            return []
        for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            row.batch = batch
            row.place = place
            row.length = length
        return rows

    def _step(self, kind: Hashable, rows: list[_Row]) -> None:
        """Take rows a step further, and answer those that exit; if it raises, try each alone."""
        try:
            result = self._advance(rows)
        except Exception as error:
            if len(rows) == 1:
                self._fail(rows[0], error)
            else:
                for row in rows:
                    self._step(kind, [row])
            return
        self._steps += 1
        self._row_steps += len(rows)
        exited: list[_Row] = []
        for place, row in enumerate(result.rows):
            row.batch = result.batch
            row.place = place
            row.step += 1
            if result.exits[place]:
                exited.append(row)
            else:
                key = _Key(self._schedule[row.step], kind)
                self._queues.setdefault(key, []).append(row)
        if result.outputs is not None:
            self._answer(exited, result.outputs)

    def _advance(self, rows: list[_Row]) -> _StepResult:
        """Join rows into one batch, and run a step of it; the rows themselves are not changed."""
        ordered, batch = _joined(rows)
        source = batch.source
        steps = [row.step + 1 for row in ordered]
        source.at = None
        if min(steps) != max(steps):
            source.at = steps
        source.advance(steps[0])
        exits = self._decide(batch, np.array(steps))
        exiting = np.flatnonzero(exits)
        outputs = None
        if len(exiting) == len(ordered):
            outputs = source.output()
        elif len(exiting):
            outputs = source.output_of(exiting)
        return _StepResult(ordered, batch, exits.tolist(), outputs)

    def _decide(self, batch: _Batch, steps: Ints) -> NDArray[np.bool_]:
        """Return which rows exit, `(rows,)` bool, and keep the state of the others."""
        last = self._together or self._num_steps
        exits: NDArray[np.bool_] = steps == last
        if self._together is not None or exits.all():
            return exits
        view, batch.rows = read_step(batch.source, self._policy.needs, batch.rows, self._no_batch)
        decision = ask_at_depths(self._policy, view, batch.state, steps)
        batch.state = decision.state
        exits |= decision.exits
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
        """End the rows that are not answered: cancel them, or set the error of the thread."""
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
                with suppress(Exception):  # it may be cancelled at this moment
                    row.future.set_exception(error or PonderError("the StreamEngine was closed."))

    def _count_waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    def _count_running(self) -> int:
        return sum(map(len, list(self._queues.values())))


@dataclass(eq=False)
class _Batch:
    """Rows that went through a step together.

    Rows that exited keep their places in it, until the others join another batch.

    Args:
        source: The hidden states of the rows.
        rows: What the loop carries for each row.
        state: The state of the policy, of the rows that have finished a step, which come first.
    """

    source: ModelSource
    rows: RowState
    state: PolicyState = None


@dataclass(eq=False)
class _Row:
    """A submitted row.

    Args:
        row_id: Its identity, for seeded sampling.
        number: The number of its submission.
        policy_context: The values that the policy reads, with a batch dimension.
        example: The example.
        batch: The batch that holds its states.
        place: Its place there.
        step: The step that it has finished.
        length: Its length without padding.
        future: The future of its answer.
        submitted: When it was submitted.
    """

    row_id: int
    number: int
    policy_context: dict[str, Tensor]
    example: Example = field(init=False)
    batch: _Batch = field(init=False)
    place: int = 0
    step: int = 0
    length: int = 0
    future: Future[Answers] = field(default_factory=Future)
    submitted: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, eq=False)
class _StepResult:
    """A step of a batch.

    Args:
        rows: The rows in their order in the batch.
        batch: The batch after the step.
        exits: Whether each row exits.
        outputs: The outputs of the rows that exit; None if no row does.
    """

    rows: list[_Row]
    batch: _Batch
    exits: list[bool]
    outputs: Tensor | None


def _joined(rows: Sequence[_Row]) -> tuple[list[_Row], _Batch]:
    """Join rows of several batches to one; return them in their order there, and the batch.

    Rows before their first step come last.
    """
    rows_of_batch: dict[_Batch, list[_Row]] = {}
    for row in sorted(rows, key=lambda row: (row.step == 0, row.place)):
        rows_of_batch.setdefault(row.batch, []).append(row)
    in_order: list[_Row] = []
    sources: list[tuple[ModelSource, list[int]]] = []
    between: list[RowState] = []
    states: list[PolicyState] = []
    for batch, of_batch in rows_of_batch.items():
        places = [row.place for row in of_batch]
        index = torch.tensor(places, device=batch.source.device)
        in_order += of_batch
        sources.append((batch.source, places))
        between.append(batch.rows.keep(index))
        if of_batch[0].step:
            states.append(select_rows(batch.state, index))
    longest = max(row.length for row in rows)
    state = concatenate_rows(states) if states else None
    return in_order, _Batch(join(sources, longest), concatenate_rows(between), state)
