"""`StreamEngine`: a stream of examples through a model, with every step as full as the stream allows."""

from __future__ import annotations

import itertools
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

from ponder._utils.validation import check_type
from ponder.engine.model import EarlyExitModel
from ponder.errors import ArgumentError
from ponder.inference.collating import read_example
from ponder.inference.streaming.inbox import Inbox
from ponder.inference.streaming.rooms import Limits
from ponder.inference.streaming.scheduler import Scheduler
from ponder.inference.streaming.stats import Meter, StreamStats
from ponder.inference.streaming.stepper import Stepper
from ponder.inference.streaming.ticket import StreamOutput, Ticket
from ponder.policies import ExitPolicy

__all__ = ["StreamEngine"]


class StreamEngine:
    """Answers examples as they come, each at the step where the policy lets it exit.

    Rows at different depths share one batch wherever they need the same weights next: as rows exit, waiting ones take
    their slots, so that every step runs full. Rows of different lengths share a batch where the model declares its
    `ponder.Padding`; otherwise rows of one shape do.

    An example is the inputs of one row, or a pair (inputs, context) whose second item is a dict; tensors as in a data
    set, without a batch dimension. A row that fails (bad input, a policy that raises for it) fails alone.

    Args:
        model: The model, in evaluation mode. It must stay so, and keep its weights, while the engine is open.
        policy: Who decides; the model's own policy where None.
        num_steps: How many steps there are, where one shared step can run for longer than the model's own number.
        max_batch: Rows of a step.
        max_tokens: Positions of a step, padding included; needs a model with padding. None for any number.
        max_waiting: Rows that may wait for a slot before `submit` blocks.
        max_skips: How often a room (the rows that need the same weights next) may be passed over for fuller ones
            before it goes first; 4 for each room of the model where None.
        clock: Seconds, for deadlines and latencies.

    Raises:
        ArgumentError: A limit below 1, a model in training mode, or a policy that cannot serve the model.

    Example:
        >>> from torch import nn
        >>> model = PonderWrapper(nn.Linear(8, 8), num_steps=4, head=nn.Linear(8, 3)).eval()
        >>> with StreamEngine(model, max_batch=2) as engine:
        ...     steps = {key: out.exit_step for key, out in engine.run(torch.randn(5, 8))}
        >>> sorted(steps.items())
        [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    """

    def __init__(
        self,
        model: EarlyExitModel,
        policy: ExitPolicy | None = None,
        *,
        num_steps: int | None = None,
        max_batch: int = 64,
        max_tokens: int | None = None,
        max_waiting: int = 1024,
        max_skips: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_type("model", model, EarlyExitModel)
        num_steps = model.depth(num_steps)
        policy = model.checked(policy, num_steps)
        _check_mode(model)
        _check_limit("max_waiting", max_waiting)
        limits = _limits(model, max_batch, max_tokens, max_skips)
        device = next((parameter.device for parameter in model.parameters()), None)
        self._padding, self._clock, self._max_batch, self._max_waiting = model.padding, clock, max_batch, max_waiting
        self._meter, self._inbox = Meter(), Inbox(max_waiting)
        self._scheduler = Scheduler(Stepper(model, policy, device, num_steps), self._inbox, limits, self._meter, clock)
        self._numbers = itertools.count()
        self._abort = threading.Event()
        self._worker = threading.Thread(
            target=_work, args=(self._scheduler, self._abort), name="ponder-stream", daemon=True
        )
        self._worker.start()
        self._end = weakref.finalize(self, _end, self._inbox, self._abort, self._worker)

    def submit(
        self,
        example: Any,
        *,
        deadline: float | None = None,
        row_id: int | None = None,
        block: bool = True,
        timeout: float | None = None,
    ) -> Future[StreamOutput]:
        """Hand in one example. Any thread may call this.

        Args:
            example: Inputs, or (inputs, context), of one row.
            deadline: Seconds from now after which the row is answered from the step that it has finished, marked
                `timed_out`; with `TimeoutError` where it has finished none. None for no limit.
            row_id: Who the row is, for seeded sampling; the number of the submission where None.
            block: Wait where `max_waiting` rows are waiting already.
            timeout: Seconds to wait for a place; None for any time.

        Returns:
            The future of a `StreamOutput`, or of the row's own error. `cancel` takes effect until it is answered.

        Raises:
            queue.Full: There was no place.
            PonderError: The engine is closed.
        """
        now = self._clock()
        row_id = next(self._numbers) if row_id is None else row_id
        future: Future[StreamOutput] = Future()
        try:
            read = read_example(example, self._padding)
        except Exception as error:
            self._inbox.check_open()
            self._meter.end("failed", 0.0)
            future.set_exception(error)
            return future
        due = None if deadline is None else now + deadline
        ticket = Ticket(read, read.signature, read.length, row_id, now, due, future)
        self._inbox.put(ticket, block, timeout)
        self._scheduler.expect(ticket)
        future.add_done_callback(partial(_hear_of_cancelling, self._scheduler, ticket))
        return future

    def run(
        self,
        examples: Iterable[Any],
        *,
        keyed: bool = False,
        ordered: bool = False,
        errors: Literal["raise", "return"] = "raise",
    ) -> Iterator[tuple[Any, Any]]:
        """Answer all examples of an iterable, which is read only as far ahead as rows may wait and run.

        Args:
            examples: Examples; or pairs (key, example) where `keyed`.
            keyed: Whether keys come with the examples. Without, the key is the position. Row ids for seeded sampling
                are keys that are whole numbers, and positions else.
            ordered: In the order of the examples instead of the order of completion.
            errors: ``"raise"`` the error of a row that failed, or ``"return"`` it in the place of its output.

        Yields:
            Pairs (key, `StreamOutput`).
        """
        done: queue.SimpleQueue[tuple[int, Any, Future[StreamOutput]]] = queue.SimpleQueue()
        futures: dict[int, Future[StreamOutput]] = {}
        finished: dict[int, tuple[Any, Future[StreamOutput]]] = {}
        turn, ahead = 0, self._max_waiting + self._scheduler.crowd
        pairs = iter(examples) if keyed else enumerate(examples)
        try:
            for position in itertools.count():
                pair = next(pairs, None)
                if pair is not None:
                    key, example = pair
                    row_id = key if isinstance(key, int) and not isinstance(key, bool) else position
                    futures[position] = self.submit(example, row_id=row_id)
                    futures[position].add_done_callback(partial(_report, done, position, key))
                while futures and (pair is None or len(futures) >= ahead or not done.empty()):
                    ready, key, future = done.get()
                    finished[ready] = key, future
                    while finished and (not ordered or turn in finished):
                        number = turn if ordered else next(iter(finished))
                        key, future = finished.pop(number)
                        del futures[number]
                        turn += 1
                        yield key, _result(future, errors)
                if pair is None:
                    return
        finally:
            for future in futures.values():
                future.cancel()

    @property
    def stats(self) -> StreamStats:
        """Counts, occupancy and latencies so far."""
        return self._meter.snapshot(
            waiting=len(self._inbox), running=self._scheduler.running, max_batch=self._max_batch
        )

    def close(self, *, cancel: bool = False) -> None:
        """Take no more rows, and return when the others are answered; or cancel those, at once."""
        if cancel:
            self._abort.set()
        self._inbox.close()
        self._worker.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; after an error, cancel what is not answered."""
        self.close(cancel=kind is not None)


def _work(scheduler: Scheduler, abort: threading.Event) -> None:
    """The worker thread. It holds no reference to the engine, so that an engine that is forgotten ends."""
    inbox = scheduler.inbox
    try:
        while not abort.is_set() and not (inbox.closed and scheduler.idle):
            if not scheduler.turn():
                inbox.wait()
        scheduler.cancel_all()
    except BaseException as error:
        inbox.close()
        scheduler.fail_all(error)
        raise


def _end(inbox: Inbox, abort: threading.Event, worker: threading.Thread) -> None:
    """Stop an engine that nobody closed."""
    abort.set()
    inbox.close()
    if worker is not threading.current_thread():
        worker.join()


def _hear_of_cancelling(scheduler: Scheduler, ticket: Ticket, future: Future[StreamOutput]) -> None:
    if future.cancelled():
        scheduler.cancel(ticket)


def _report(
    done: queue.SimpleQueue[tuple[int, Any, Future[StreamOutput]]],
    position: int,
    key: Any,
    future: Future[StreamOutput],
) -> None:
    done.put((position, key, future))


def _result(future: Future[StreamOutput], errors: str) -> Any:
    if errors == "raise":
        return future.result()
    error = future.exception()
    return future.result() if error is None else error


def _check_mode(model: EarlyExitModel) -> None:
    if model.training:
        raise ArgumentError(
            "model",
            expected="a model in evaluation mode",
            got="one in training mode",
            remedy="Call model.eval() first.",
        )


def _limits(model: EarlyExitModel, max_batch: int, max_tokens: int | None, max_skips: int | None) -> Limits:
    skips = 4 * len(set(model.steps.schedule)) if max_skips is None else max_skips
    _check_limit("max_batch", max_batch)
    _check_limit("max_skips", skips)
    if max_tokens is not None:
        _check_limit("max_tokens", max_tokens)
        if model.padding is None:
            raise ArgumentError(
                "max_tokens",
                expected="None for a model without lengths",
                got=max_tokens,
                remedy="Build the model with padding=ponder.Padding(…), or limit rows with max_batch.",
            )
    return Limits(max_batch, max_tokens, skips)


def _check_limit(name: str, limit: Any) -> None:
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ArgumentError(name, expected="a whole number ≥ 1", got=repr(limit), remedy=f"Pass {name}=64, say.")
