"""`StreamEngine`: a stream of examples through a model, with every step as full as the stream allows."""

from __future__ import annotations

import itertools
import operator
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

from torch import Tensor
from torch.utils.data import DataLoader

from ponder._utils.modes import check_evaluating
from ponder._utils.validation import check_choice, check_int
from ponder.engine.model import EarlyExitModel, check_model
from ponder.errors import ArgumentError, PonderError
from ponder.inference.batching import BatchLimits
from ponder.inference.examples import as_batch_of_one, examples_in
from ponder.inference.passes import check_order, check_row_count, check_sizes
from ponder.inference.streaming.request_queue import RequestQueue
from ponder.inference.streaming.requests import Request, StreamOutput, seconds_of
from ponder.inference.streaming.scheduler import Scheduler
from ponder.inference.streaming.stats import StreamMetrics, StreamStats
from ponder.inference.streaming.stepper import Stepper
from ponder.policies import ExitPolicy

__all__ = ["StreamEngine"]

_Report = tuple[int, Any, Future[StreamOutput]]


class StreamEngine:
    """Answers examples as they come, each at the step where the policy lets it exit.

    Rows at different depths share one batch wherever they need the same weights next: as rows exit, waiting ones take
    their slots, so that every step runs full. Rows of different lengths share a batch where the model declares its
    `ponder.Padding`; otherwise rows of one shape do.

    An example is the inputs of one row, or a pair (inputs, context) whose second item is a dict; tensors as in a data
    set, without a batch dimension. A row that fails (bad input, a policy that raises for it) fails alone.

    Args:
        model: The model, in evaluation mode. It must stay so, and keep its weights, while the engine is open.
        policy: Who decides; where None the policy that the model has when the engine is made.
        num_steps: How many steps there are, where one shared step can run for longer than the model's own number.
        max_batch: Rows of a step.
        max_tokens: Positions of a step, padding included; needs a model with padding. None for any number.
        max_waiting: Rows that may wait for a slot before `submit` blocks.
        max_skips: How often a batch queue (the rows that need the same weights next) may be passed over for fuller
            ones before it goes first; 4 for each queue of the model where None.
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
        check_model(model)
        check_evaluating(model)
        check_int("max_waiting", max_waiting, remedy="Pass max_waiting=64, say.")
        check_int("max_batch", max_batch, remedy="Pass max_batch=64, say.")
        skips = 4 * len(set(model.steps.schedule)) if max_skips is None else max_skips
        check_int("max_skips", skips, remedy="Pass max_skips=64, say.")
        limits = BatchLimits.checked("max_batch", max_batch, max_tokens, model.padding)
        device = next((parameter.device for parameter in model.parameters()), None)
        self._num_steps = model.depth(num_steps)
        self._model, self._policy, self._clock = model, model.checked(policy, self._num_steps), clock
        if policy is not None:
            model.look_at_certificate(policy)
        self._reads = "context" in self._policy.needs
        self._max_batch, self._max_waiting = max_batch, max_waiting
        self._metrics, self._queue, stepper = (
            StreamMetrics(),
            RequestQueue(max_waiting),
            Stepper(model, device, num_steps),
        )
        self._reader = stepper.reader
        self._scheduler = Scheduler(stepper, self._queue, limits, skips, self._metrics, clock)
        self._numbers = itertools.count()
        self._abort = threading.Event()
        self._worker = threading.Thread(
            target=_work, args=(self._scheduler, self._abort), name="ponder-stream", daemon=True
        )
        self._worker.start()
        self._end = weakref.finalize(self, _end, self._queue, self._abort, self._worker)

    def submit(
        self,
        example: Any,
        *,
        policy: ExitPolicy | None = None,
        policy_context: Mapping[str, Any] | None = None,
        deadline: float | None = None,
        row_id: int | None = None,
        block: bool = True,
        timeout: float | None = None,
    ) -> Future[StreamOutput]:
        """Hand in one example. Any thread may call this, and so may a done-callback of a future.

        Args:
            example: Inputs, or (inputs, context), of one row; not to be changed until it is answered.
            policy: Decides on this row instead of the engine's policy. Rows of different policies share steps.
            policy_context: What the policy may read of the row (a budget, say), by name: a number or a tensor without a
                batch dimension each.
            deadline: Seconds from now after which the row is answered from the step that it has finished, marked
                `timed_out`; with `TimeoutError` where it has finished none. None for no limit.
            row_id: Who the row is, for seeded sampling; the number of the submission where None.
            block: Wait where `max_waiting` rows are waiting already. In a done-callback, which runs on the engine's
                own thread, nothing could free a place: there the row is accepted beyond the limit.
            timeout: Seconds to wait for a place; None for any time.

        Returns:
            The future of a `StreamOutput`, or of the row's own error. `cancel` takes effect until it is answered.

        Raises:
            ArgumentError: A policy that cannot serve the model, nothing for it to read, or a deadline that is no
                number.
            queue.Full: There was no place.
            PonderError: The engine is closed, its thread has ended with an error (`failure`), or it runs in the process
                from which this one was forked.
        """
        now, passed = self._clock(), policy
        policy = self._policy if policy is None else self._model.checked(policy, self._num_steps)
        if passed is not None:
            self._model.look_at_certificate(policy, once=True)
        reads = self._reads if policy is self._policy else "context" in policy.needs
        given = _for_policy(policy, policy_context) if reads else {}
        due = None if deadline is None else now + seconds_of(deadline)
        row_id = next(self._numbers) if row_id is None else operator.index(row_id)
        self._queue.check_open()
        try:
            read = self._reader.read(example)
        except Exception as error:
            future: Future[StreamOutput] = Future()
            self._metrics.end("failed", 0.0)
            future.set_exception(error)
            return future
        request = Request(read, policy, row_id, now, due, given)
        self._queue.put(request, block, timeout, beyond=threading.current_thread() is self._worker)
        if due is not None:
            self._scheduler.expect(request)
        request.future.add_done_callback(partial(_hear_of_cancelling, self._scheduler, request))
        return request.future

    def run(
        self,
        examples: Iterable[Any],
        *,
        keyed: bool = False,
        ordered: bool = False,
        errors: Literal["raise", "return"] = "raise",
        policy: ExitPolicy | None = None,
        policy_context: Mapping[str, Tensor] | None = None,
    ) -> Iterator[tuple[Any, Any]]:
        """Answer all examples of an iterable, which is read only as far ahead as rows may wait and run.

        Answers are handed on between examples: one that is ready while the iterable is thinking comes after its next
        example, and an iterable that waits for an answer waits for ever. For these there is `submit`.

        Args:
            examples: Examples; or pairs (key, example) where `keyed`.
            keyed: Whether keys come with the examples. Without, the key is the position. Row ids for seeded sampling
                are keys that are whole numbers, and positions else.
            ordered: Whether answers come in the order of the examples instead of the order of completion.
            errors: ``"raise"`` the error of a row that failed, or ``"return"`` it in the place of its output.
            policy: Decides instead of the engine's policy.
            policy_context: What policies may read of each row, by name: tensors with a row for each example.

        Returns:
            An iterator over pairs (key, `StreamOutput`).

        Raises:
            ArgumentError: Another word for `errors`; and, at the end, a context of more rows than there were examples.
        """
        check_choice("errors", errors, ("raise", "return"))
        sizes = check_row_count("policy_context", policy_context)
        if isinstance(examples, DataLoader) and not keyed:
            check_order(examples, sizes)
        pairs = iter(examples) if keyed else enumerate(examples_in(examples))
        return self._answers(pairs, ordered, errors, policy, policy_context, sizes)

    def _answers(
        self,
        pairs: Iterator[tuple[Any, Any]],
        ordered: bool,
        errors: str,
        policy: ExitPolicy | None,
        policy_context: Mapping[str, Tensor] | None,
        sizes: Mapping[str, int],
    ) -> Iterator[tuple[Any, Any]]:
        """The generator of `run`."""
        done: queue.SimpleQueue[_Report] = queue.SimpleQueue()
        futures: dict[int, Future[StreamOutput]] = {}
        finished: dict[int, tuple[Any, Future[StreamOutput]]] = {}
        turn, ahead = 0, self._max_waiting + self._scheduler.max_active
        try:
            for position in itertools.count():
                pair = next(pairs, None)
                if pair is not None:
                    key, example = pair
                    row_id = _whole_number(key, position)
                    given = None if policy_context is None else _row(policy_context, position)
                    futures[position] = self.submit(example, row_id=row_id, policy=policy, policy_context=given)
                    futures[position].add_done_callback(partial(_report, done, position, key))
                while futures and (pair is None or len(futures) >= ahead or not done.empty()):
                    ready, key, future = self._wait_for(done)
                    finished[ready] = key, future
                    while finished and (not ordered or turn in finished):
                        number = turn if ordered else next(iter(finished))
                        key, future = finished.pop(number)
                        del futures[number]
                        turn += 1
                        yield key, _result(future, errors)
                if pair is None:
                    check_sizes(sizes, position)
                    return
        finally:
            for future in futures.values():
                future.cancel()

    @property
    def stats(self) -> StreamStats:
        """The counts, the occupancy and the latencies so far."""
        return self._metrics.snapshot(
            waiting=len(self._queue), running=self._scheduler.running, max_batch=self._max_batch
        )

    @property
    def failure(self) -> BaseException | None:
        """What ended the thread that answers, so that no row will be answered any more; None while it works."""
        return self._queue.failure

    def close(self, *, cancel: bool = False) -> None:
        """Take no more rows, and return when the others are answered; or cancel those, at once.

        In a done-callback, which runs on the engine's own thread, it returns at once, and the others are answered (or
        cancelled) after it.
        """
        if self._queue.elsewhere:
            return
        self._queue.close()  # first: what is taken after the last sweep of the thread that answers would wait for ever
        if cancel:
            self._abort.set()
        if threading.current_thread() is not self._worker:
            self._worker.join()

    def _wait_for(self, done: queue.SimpleQueue[_Report]) -> _Report:
        """The next answer; an error where none could ever come."""
        if not done.empty():
            return done.get()
        self._queue.check_process()
        if threading.current_thread() is self._worker:
            raise PonderError(
                "run waits for answers, and here, in a done-callback, it would keep the engine from giving any. "
                "Call submit in callbacks, or run in another thread."
            )
        return done.get()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; after an error, cancel what is not answered."""
        self.close(cancel=kind is not None)


def _work(scheduler: Scheduler, abort: threading.Event) -> None:
    """The worker thread. It holds no reference to the engine, so that an engine that is forgotten ends."""
    waiting = scheduler.waiting
    try:
        while not abort.is_set() and not (waiting.closed and scheduler.idle):
            if not scheduler.turn():
                waiting.wait()
        if waiting.failure is None:
            scheduler.cancel_all()
        else:
            scheduler.fail_all(waiting.failure)
    except BaseException as error:
        waiting.close(error)
        scheduler.fail_all(error)
        raise


def _end(waiting: RequestQueue, abort: threading.Event, worker: threading.Thread) -> None:
    """Stop an engine that nobody closed."""
    if waiting.elsewhere:
        return
    waiting.close(
        PonderError(
            "the StreamEngine was gone before this row was answered: nothing held it any more. Keep it until then: "
            "with StreamEngine(model) as engine: …"
        )
    )
    abort.set()
    if worker is not threading.current_thread():
        worker.join()


def _hear_of_cancelling(scheduler: Scheduler, request: Request, future: Future[StreamOutput]) -> None:
    if future.cancelled():
        scheduler.cancel(request)


def _report(done: queue.SimpleQueue[_Report], position: int, key: Any, future: Future[StreamOutput]) -> None:
    done.put((position, key, future))


def _result(future: Future[StreamOutput], errors: str) -> Any:
    if errors == "raise":
        return future.result()
    error = future.exception()
    return future.result() if error is None else error


def _for_policy(policy: ExitPolicy, context: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """What a policy will read of a row, as a batch of one."""
    if not isinstance(context, Mapping):
        raise ArgumentError(
            "policy_context",
            expected=f"a dict of what {policy!r} reads of the row",
            got=type(context).__name__,
            remedy="Pass submit(example, policy_context={'budget': 3.0}), say.",
        )
    given: dict[str, Tensor] = {}
    for name, value in context.items():
        read = as_batch_of_one(value)
        if read is None:
            raise ArgumentError(
                f"policy_context[{name!r}]",
                expected="a number, or a tensor without a batch dimension",
                got=type(value).__name__,
                remedy="Convert it.",
            )
        given[name] = read
    return given


def _whole_number(key: Any, otherwise: int) -> int:
    """A key that is a whole number, one of NumPy or PyTorch too, as such."""
    if isinstance(key, bool):
        return otherwise
    try:
        return operator.index(key)
    except TypeError:  # a text, say
        return otherwise


def _row(context: Mapping[str, Tensor], position: int) -> dict[str, Tensor]:
    """What belongs to one row of a stream."""
    for name, value in context.items():
        if position >= len(value):
            raise ArgumentError(
                f"policy_context[{name!r}]",
                expected="a row for each example",
                got=f"{len(value)} rows",
                remedy="Give one row an example, in the order of the stream.",
            )
    return {name: value[position] for name, value in context.items()}
