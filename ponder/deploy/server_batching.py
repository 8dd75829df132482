"""Batches of a service: requests that wait while the model is busy are joined."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from ponder._utils.rows import Text
from ponder.policies.base import ExitPolicy

__all__ = ["Answering", "Batcher", "Served", "Some", "Text"]


class Answering(Protocol):
    """A model that answers texts."""

    def answer(self, texts: Sequence[Text], policy: ExitPolicy | None = None) -> Any:
        """Answer texts, each at its exit, in their order; the result has the fields of `Some`."""


class Served(Answering, Protocol):
    """A model that a service can answer with: a folder of exits, an export, a cascade.

    Attributes:
        num_steps: N.
        policy: The policy with which it was saved.
        columns: Names of the one or two columns of texts to which it was fitted; empty if they are
            not known.
        max_characters: The number of characters to which texts are cut before they are tokenised.
    """

    num_steps: int
    policy: ExitPolicy
    columns: Sequence[str]
    max_characters: int


@dataclass(frozen=True)
class Some:
    """The answers to some texts.

    Args:
        labels: Names of the predicted classes.
        probabilities: Their probabilities, `(rows,)`; NaN for a text without an answer.
        exit_step: The exit steps, `(rows,)`, from 1.
    """

    labels: Sequence[str]
    probabilities: Any
    exit_step: Any


@dataclass(eq=False)
class _Request:
    texts: Sequence[Text]
    policy: ExitPolicy
    future: Future[Some]


class Batcher:
    """Joins the requests that wait while a batch is computed; those of one batch have one policy.

    Args:
        answer: A function of texts and a policy, called on one thread.
        max_batch: Texts of a batch of several requests at most.

    Example:
        >>> from ponder.deploy.server_batching import Batcher, Some
        >>> def answer(texts, policy):
        ...     return Some(list(texts), [1.0] * len(texts), [1] * len(texts))
        >>> batcher = Batcher(answer, 8)
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
        """Submit the texts of a request; if its future is cancelled in time, it is not run."""
        request = _Request(texts, policy, Future())
        self._waiting.append(request)
        # If an earlier call answers this request, too, this one will have nothing to do.
        self._thread.submit(self._next)
        return request.future

    def close(self) -> None:
        """Take no more requests, and return when the others are answered."""
        self._thread.shutdown()

    def _next(self) -> None:
        """Answer the oldest request, and others of its policy, as many as a batch holds."""
        batch = list[_Request]()
        rest = list[_Request]()
        room = self._max_batch
        for _ in range(len(self._waiting)):  # other threads may append meanwhile
            request = self._waiting.popleft()
            size = len(request.texts)
            if not batch or (size <= room and request.policy == batch[0].policy):
                batch.append(request)
                room -= size
            else:
                rest.append(request)
        self._waiting.extendleft(reversed(rest))
        self._run([request for request in batch if request.future.set_running_or_notify_cancel()])

    def _run(self, batch: list[_Request]) -> None:
        """Answer requests together; if that fails, each alone, so that only bad ones fail."""
        if not batch:
            return
        try:
            texts = [text for request in batch for text in request.texts]
            answers = self._answer(texts, batch[0].policy)
            labels = answers.labels
            probabilities = answers.probabilities
            steps = answers.exit_step
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
            else:
                for request in batch:
                    self._run([request])
            return
        start = 0
        for request in batch:
            stop = start + len(request.texts)
            part = slice(start, stop)
            request.future.set_result(Some(labels[part], probabilities[part], steps[part]))
            start = stop
