"""What a service serves, and how requests share its batches: joined while the model is busy, or as a stream of rows."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from ponder.errors import PonderError
from ponder.policies.base import ExitPolicy

__all__ = ["Answers", "Batcher", "Batching", "Served", "StreamBatcher", "Text"]

Text: TypeAlias = str | tuple[str, str]
"""A text, or a pair of texts."""
_ENGINES = 4


class Answers(Protocol):
    """Answers to texts, in their order."""

    @property
    def labels(self) -> Sequence[str]:
        """Names of the predicted classes."""

    @property
    def probabilities(self) -> Any:
        """Probability of each predicted class, `(rows,)`; NaN where there is no answer."""

    @property
    def exit_step(self) -> Any:
        """The step at which each row exited, `(rows,)`, from 1."""


class Batching(Protocol):
    """A model that answers requests on threads of its own."""

    def submit(self, texts: Sequence[Text], policy: ExitPolicy) -> Future[Answers]:
        """Hand in the texts of a request; a future that is cancelled in time is not computed."""

    def close(self) -> None:
        """Take no more requests, and return when the others are answered."""


class Served(Protocol):
    """A model that a service can answer with: a folder of exits, an export, a cascade."""

    @property
    def num_steps(self) -> int:
        """N."""

    @property
    def policy(self) -> ExitPolicy:
        """The policy that it was saved with."""

    @property
    def columns(self) -> Sequence[str]:
        """Names of the one or two columns of texts that it was fitted to; none where they are not known."""

    @property
    def max_characters(self) -> int:
        """Number of characters to which texts are cut before they are tokenised."""

    def answer(self, texts: Sequence[Text], policy: ExitPolicy | None = None) -> Answers:
        """Answer texts, each at its exit."""

    def batching(self, max_batch: int) -> Batching:
        """Start what answers requests."""


@dataclass(frozen=True)
class Some:
    """The answers to one request."""

    labels: Sequence[str]
    probabilities: Any
    exit_step: Any


@dataclass(eq=False)
class _Request:
    texts: Sequence[Text]
    policy: ExitPolicy
    future: Future[Answers]


class Batcher:
    """Joins the requests that wait while a batch is computed; those of one batch have one policy.

    Args:
        answer: A function of texts and a policy, called on one thread.
        max_batch: Texts of a batch at most, where they are of several requests.

    Example:
        >>> from ponder.deploy.server_batching import Batcher, Some
        >>> batcher = Batcher(lambda texts, policy: Some(list(texts), [1.0] * len(texts), [1] * len(texts)), 8)
        >>> batcher.submit(["a", "b"], policies.LastStep()).result().labels
        ['a', 'b']
        >>> batcher.close()
    """

    def __init__(self, answer: Callable[[Sequence[Text], ExitPolicy], Answers], max_batch: int) -> None:
        self._answer, self._max_batch = answer, max_batch
        self._waiting: deque[_Request] = deque()
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="ponder-batches", daemon=True)
        self._thread.start()

    def submit(self, texts: Sequence[Text], policy: ExitPolicy) -> Future[Answers]:
        """See `Batching`."""
        request = _Request(texts, policy, Future())
        with self._changed:
            if self._closed:
                raise PonderError("the service is closed: it takes no more requests.")
            self._waiting.append(request)
            self._changed.notify()
        return request.future

    def close(self) -> None:
        """See `Batching`."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                batch = self._take()
            self._run([request for request in batch if request.future.set_running_or_notify_cancel()])

    def _take(self) -> list[_Request]:
        """Take the oldest request, and others of its policy, as many as a batch holds."""
        batch = [self._waiting.popleft()]
        room, rest = self._max_batch - len(batch[0].texts), deque[_Request]()
        for request in self._waiting:
            fits = len(request.texts) <= room and request.policy == batch[0].policy
            (batch if fits else rest).append(request)
            room -= len(request.texts) if fits else 0
        self._waiting = rest
        return batch

    def _run(self, batch: list[_Request]) -> None:
        """Answer requests together; where that fails, each alone, so that one that fails fails alone."""
        if not batch:
            return
        try:
            found = self._answer([text for request in batch for text in request.texts], batch[0].policy)
            labels, probabilities, steps = found.labels, found.probabilities, found.exit_step
        except Exception as error:
            for request in batch if len(batch) > 1 else ():
                self._run([request])
            if len(batch) == 1:
                batch[0].future.set_exception(error)
            return
        start = 0
        for request in batch:
            part = slice(start, start := start + len(request.texts))
            request.future.set_result(Some(labels[part], probabilities[part], steps[part]))


class StreamBatcher:
    """Rows of all requests in one stream: each leaves at its exit, and waiting ones take its place.

    A policy has a `ponder.StreamEngine` of its own; the few that were asked for last stay open.

    Args:
        encode: A function from texts to examples, called on one thread.
        start: A function from a policy to its engine.
        read: A function from the outputs and exit steps of a request's rows to its answers.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[Text]], Sequence[Any]],
        start: Callable[[ExitPolicy], Any],
        read: Callable[[list[Any], list[int]], Answers],
    ) -> None:
        self._encode, self._start, self._read = encode, start, read
        self._engines: OrderedDict[Hashable, Any] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ponder-tokenizer")

    def submit(self, texts: Sequence[Text], policy: ExitPolicy) -> Future[Answers]:
        """See `Batching`."""
        future: Future[Answers] = Future()
        self._thread.submit(self._begin, future, texts, policy)
        return future

    def close(self) -> None:
        """See `Batching`."""
        self._thread.shutdown()
        for engine in self._engines.values():
            engine.close()

    def _begin(self, future: Future[Answers], texts: Sequence[Text], policy: ExitPolicy) -> None:
        """Tokenise, and let the rows into the stream."""
        if not future.set_running_or_notify_cancel():
            return
        rows: list[Future[Any]] = []
        try:
            engine = self._engine(policy)
            rows += [engine.submit(example) for example in self._encode(texts)]
        except Exception as error:
            for row in rows:
                row.cancel()
            future.set_exception(error)
            return
        remaining, lock = len(rows), threading.Lock()

        def one(_: Future[Any]) -> None:
            nonlocal remaining
            with lock:
                remaining -= 1
                last = remaining == 0
            if last:
                self._end(future, rows)

        for row in rows:
            row.add_done_callback(one)

    def _end(self, future: Future[Answers], rows: Sequence[Future[Any]]) -> None:
        try:
            done = [row.result() for row in rows]
            future.set_result(self._read([row.output for row in done], [row.exit_step for row in done]))
        except BaseException as error:  # a row's own error, or the end of its engine
            future.set_exception(error)

    def _engine(self, policy: ExitPolicy) -> Any:
        if policy not in self._engines:
            self._engines[policy] = self._start(policy)
        self._engines.move_to_end(policy)
        if len(self._engines) > _ENGINES:
            _, oldest = self._engines.popitem(last=False)
            with suppress(PonderError):
                oldest.close()
        return self._engines[policy]
