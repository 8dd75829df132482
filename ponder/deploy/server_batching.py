"""What a service serves, and how requests share its batches: those that wait are joined while the model is busy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from ponder.policies.base import ExitPolicy

__all__ = ["Answering", "Batcher", "Served", "Some", "Text"]

Text: TypeAlias = str | tuple[str, str]
"""A text, or a pair of texts."""


class Answering(Protocol):
    """Anything that answers texts."""

    def answer(self, texts: Sequence[Text], policy: ExitPolicy | None = None) -> Any:
        """Answer texts, each at its exit, in their order: with what `Some` has."""


class Served(Answering, Protocol):
    """A model that a service can answer with: a folder of exits, an export, a cascade."""

    num_steps: int
    policy: ExitPolicy  # with which it was saved
    columns: Sequence[
        str
    ]  # names of the one or two columns of texts that it was fitted to; none where not known
    max_characters: int  # to which texts are cut before they are tokenised


@dataclass(frozen=True)
class Some:
    """The answers to some texts."""

    labels: Sequence[str]  # names of the predicted classes
    probabilities: Any  # of these, `(rows,)`; NaN where there is no answer
    exit_step: Any  # `(rows,)`, from 1


@dataclass(eq=False)
class _Request:
    texts: Sequence[Text]
    policy: ExitPolicy
    future: Future[Some]


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

    def __init__(self, answer: Callable[[Sequence[Text], ExitPolicy], Any], max_batch: int) -> None:
        self._answer = answer
        self._max_batch = max_batch
        self._waiting = deque[_Request]()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ponder-batches")

    def submit(self, texts: Sequence[Text], policy: ExitPolicy) -> Future[Some]:
        """Hand in the texts of a request; a future that is cancelled in time is not computed."""
        request = _Request(texts, policy, Future())
        self._waiting.append(request)
        self._thread.submit(
            self._next
        )  # where an earlier call takes the request too, this one finds nothing to do
        return request.future

    def close(self) -> None:
        """Take no more requests, and return when the others are answered."""
        self._thread.shutdown()

    def _next(self) -> None:
        """Answer the oldest request, and others of its policy, as many as a batch holds."""
        batch = list[_Request]()
        rest = list[_Request]()
        room = self._max_batch
        for _ in range(len(self._waiting)):  # others are appended meanwhile
            request = self._waiting.popleft()
            fits = not batch or (len(request.texts) <= room and request.policy == batch[0].policy)
            (batch if fits else rest).append(request)
            room -= len(request.texts) if fits else 0
        self._waiting.extendleft(reversed(rest))
        self._run([request for request in batch if request.future.set_running_or_notify_cancel()])

    def _run(self, batch: list[_Request]) -> None:
        """Answer requests together; where that fails, each alone, so that one that fails fails alone."""
        if not batch:
            return
        try:
            found = self._answer(
                [text for request in batch for text in request.texts], batch[0].policy
            )
            labels = found.labels
            probabilities = found.probabilities
            steps = found.exit_step
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
