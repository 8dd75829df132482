"""`Service`: requests of texts in, answers out, each exactly once; what HTTP says around it is in `ponder.serving.app`.

A request is accepted as a whole or refused at once, before anything is computed. Its texts are tokenised on one thread
(tokenizers cannot be shared), answered by the batcher beside those of other requests, and counted.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ponder._utils.validation import check_real
from ponder.errors import ArgumentError, PonderError
from ponder.inference.streaming import StreamOutput
from ponder.inference.streaming.requests import DeadlineError
from ponder.policies import ExitPolicy
from ponder.serving.answers import answer_of
from ponder.serving.auditing import AuditPlan, TrafficAudit
from ponder.serving.limits import Limits
from ponder.serving.metrics import Metrics, Outcome
from ponder.serving.model import ServedModel, Text, check_request
from ponder.serving.refusals import BrokenError, OverloadedError, StoppingError, TooLateError
from ponder.serving.request_policies import bounded, with_threshold
from ponder.serving.watching import FolderWatch

__all__ = ["Prediction", "Service"]

_SMOOTHING = 0.1  # weight of a new latency in the mean that Retry-After is made of
_MOST_SECONDS = 30
_OUTCOMES: tuple[tuple[type[BaseException], Outcome], ...] = (
    (OverloadedError, "overloaded"),
    (StoppingError, "stopping"),
    (BrokenError, "broken"),
    (TooLateError, "timed_out"),
    (ArgumentError, "invalid"),
    (asyncio.CancelledError, "cancelled"),
    (Exception, "failed"),
)


@dataclass(frozen=True, eq=False)
class Prediction:
    """The answers to the texts of a request, and what an audit of them needs.

    Args:
        answers: One a text, as plain JSON; see `answer_of`.
        examples: The tokenised texts.
        outputs: The head's outputs of each.
        stage: Number of the audits' stage, where the service's own policy answered all of them in time; else None.
    """

    answers: list[dict[str, Any]]
    examples: Sequence[Any]
    outputs: Sequence[Tensor]
    stage: int | None


class Service:
    """A model that answers requests, until it is closed. It belongs to the event loop that opens it.

    Args:
        model: The model.
        limits: What is accepted.
        audit: What is audited; None for no audit.
        clock: Seconds, for latencies and deadlines.

    Raises:
        ArgumentError: A policy, of the model or of the audit, that cannot serve the model, or that reads what no
            request gives.
        CheckpointError: The audit's file holds the state of another promise.
        PonderError: Another service keeps the audit's file.

    Example:
        >>> import asyncio
        >>> async def answer(texts):
        ...     service = Service(served)
        ...     made = await service.predict(texts, max_steps=2)
        ...     await service.close()
        ...     return made.answers
        >>> [one["exit_step"] for one in asyncio.run(answer(["a text", "another one"]))]
        [2, 2]
    """

    def __init__(
        self,
        model: ServedModel,
        limits: Limits | None = None,
        audit: AuditPlan | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model, self.limits, self._clock = model, Limits.checked(limits), clock
        for policy in (model.policy, *(() if audit is None else audit.policies)):
            model.check(policy)
            _check_reads(policy)
        self._batcher = model.start(self.limits)
        self._tokenizer = ThreadPoolExecutor(1, thread_name_prefix="ponder-tokenizer")
        written = None if audit is None else audit.path
        self._watch = None if model.folder is None else FolderWatch(model.folder, model.digests or {}, written)
        self._waiting = 0
        self._mean_seconds = 1.0
        self._stopping = False
        self._empty = asyncio.Event()
        self._empty.set()
        try:
            self.audit = None if audit is None else TrafficAudit(audit, model.task, self._batcher)
        except PonderError:
            self._batcher.close(cancel=True)
            self._tokenizer.shutdown()
            raise
        self.metrics = Metrics(
            model.num_steps,
            lambda: self._waiting,
            self.folder_changed,
            None if self.audit is None else self.audit.state,
        )

    @property
    def waiting(self) -> int:
        """Texts that were accepted and are not answered."""
        return self._waiting

    @property
    def stopping(self) -> bool:
        """Whether nothing more is accepted."""
        return self._stopping

    @property
    def failure(self) -> BaseException | None:
        """What ended the thread that answers; None while it works."""
        return self._batcher.failure

    @property
    def policy(self) -> ExitPolicy:
        """The policy that answers now, where a request asks for no other."""
        return self.model.policy if self.audit is None else self.audit.policy

    def folder_changed(self) -> bool:
        """Whether the model's folder holds another model than the one that answers; reads files."""
        return self._watch is not None and self._watch.changed()

    async def predict(
        self,
        texts: Sequence[Text],
        *,
        threshold: float | None = None,
        max_steps: int | None = None,
        deadline: float | None = None,
    ) -> Prediction:
        """Answer the texts of one request. Cancelling it frees their places.

        Args:
            texts: One or more.
            threshold: A threshold instead of that of the service's policy; with audits, of the first of theirs.
            max_steps: Every text is answered by this step at the latest.
            deadline: Seconds from now; the service's own where None or longer.

        Raises:
            OverloadedError: Too many texts wait.
            StoppingError: The service is being closed.
            BrokenError: The thread that answers has ended with an error; see `failure`.
            TooLateError: The deadline passed before a text had finished its first step.
            ArgumentError: A threshold or a step that the policy cannot have, no texts, or one that cannot be read.
        """
        begun = self._clock()
        try:
            check_request(texts)
            async with self._places(len(texts)):
                made = await self._answered(texts, threshold, max_steps, self._due(begun, deadline))
        except BaseException as error:
            self.metrics.ended(next((told for kind, told in _OUTCOMES if isinstance(error, kind)), "failed"))
            raise
        seconds = self._clock() - begun
        self._mean_seconds += _SMOOTHING * (seconds - self._mean_seconds)
        self.metrics.answered(
            seconds,
            [answer["exit_step"] for answer in made.answers],
            truncated=sum(answer["truncated"] for answer in made.answers),
            overdue=sum(answer["overdue"] for answer in made.answers),
        )
        return made

    def audit_some(self, given: Prediction) -> None:
        """Send a share of the answers, which are out, on to full depth."""
        if self.audit is not None and given.stage is not None:
            self.audit.seen(given.examples, given.outputs, given.stage)

    async def close(self) -> None:
        """Accept nothing more, and return when all that was accepted is answered and the audits are kept."""
        self._stopping = True
        await self._empty.wait()
        await asyncio.get_running_loop().run_in_executor(None, self._shut)

    def _shut(self) -> None:
        self._batcher.close()
        if self.audit is not None:
            self.audit.close()
        self._tokenizer.shutdown()

    @asynccontextmanager
    async def _places(self, count: int) -> AsyncIterator[None]:
        """Places for the texts of a request, until it is answered."""
        if self._stopping:
            raise StoppingError
        if self._waiting + count > self.limits.max_waiting:
            raise self._overloaded()
        self._waiting += count
        self._empty.clear()
        try:
            yield
        finally:
            self._waiting -= count
            if not self._waiting:
                self._empty.set()

    async def _answered(
        self, texts: Sequence[Text], threshold: float | None, max_steps: int | None, due: float | None
    ) -> Prediction:
        stage = None if self.audit is None or threshold is not None or max_steps is not None else self.audit.stage
        policy = self._policy_of(threshold, max_steps)
        loop = asyncio.get_running_loop()
        tokens = await loop.run_in_executor(self._tokenizer, self.model.tokenize, texts)
        if not len(texts) == len(tokens.examples) == len(tokens.truncated):
            raise PonderError(
                f"tokenize gave {len(tokens.examples)} examples, and of {len(tokens.truncated)} whether they were cut, "
                f"for {len(texts)} texts: nobody knows whose an answer is. Give one of each for every text."
            )
        left = None if due is None else due - self._clock()
        if left is not None and left <= 0.0:
            raise TooLateError
        answers = await self._batched(tokens.examples, policy, left)
        told = [
            answer_of(self.model.task, self.model.labels, answer, truncated=cut)
            for answer, cut in zip(answers, tokens.truncated, strict=True)
        ]
        if any(answer.timed_out for answer in answers):
            stage = None  # the deadline chose the step, not the policy
        return Prediction(told, tokens.examples, [answer.output for answer in answers], stage)

    async def _batched(self, examples: Sequence[Any], policy: ExitPolicy, left: float | None) -> list[StreamOutput]:
        """The batcher's answers to all examples; the others are dropped where one fails or the caller is gone."""
        futures: list[Future[StreamOutput]] = []
        try:
            for example in examples:
                try:
                    futures.append(self._batcher.submit(example, policy=policy, deadline=left, block=False))
                except queue.Full as error:
                    raise self._overloaded() from error
            await _all_done(futures)
            for future in futures:
                if future.done():
                    _raised(future)
            return [future.result() for future in futures]
        except DeadlineError as error:
            raise TooLateError from error
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # of a thread that has ended, whatever ended it
            if self.failure is None:
                raise
            raise BrokenError from error
        finally:
            for future in futures:
                future.cancel()

    def _policy_of(self, threshold: float | None, max_steps: int | None) -> ExitPolicy:
        policy, steps = self.policy, self.model.num_steps
        if threshold is not None:
            first = self.model.policy if self.audit is None else self.audit.plan.policies[0]
            policy = with_threshold(first, threshold, steps, len(self.model.labels) or 1)
        if max_steps is not None:
            policy = bounded(policy, max_steps, steps)
        if policy is not self.policy:
            self.model.check(policy)
        return policy

    def _due(self, begun: float, deadline: float | None) -> float | None:
        if deadline is not None:
            check_real("deadline", deadline, open_low=True)
        seconds = min((each for each in (deadline, self.limits.deadline) if each is not None), default=None)
        return None if seconds is None else begun + seconds

    def _overloaded(self) -> OverloadedError:
        return OverloadedError(min(max(math.ceil(self._mean_seconds), 1), _MOST_SECONDS))


def _check_reads(policy: ExitPolicy) -> None:
    """Refuse a policy that reads what no request can give."""
    if "context" in policy.needs:
        raise ArgumentError(
            "policy",
            expected="one that reads the model alone",
            got=f"{policy!r}, which reads a policy_context that requests do not have",
            remedy="Serve another policy; or call ponder.StreamEngine.submit with policy_context=….",
        )


def _raised(future: Future[StreamOutput]) -> None:
    """Raise the error of a row; what the model refuses of what its tokenizer made is no fault of the request."""
    try:
        future.result()
    except ArgumentError as error:
        raise PonderError(f"the model cannot answer what its tokenizer made of a text: {error}") from error


async def _all_done(futures: Sequence[Future[Any]]) -> None:
    """Wait for futures of other threads: one wake-up for all of them, or for the first that fails."""
    loop = asyncio.get_running_loop()
    done, left, lock = loop.create_future(), len(futures), threading.Lock()

    def wake() -> None:
        if not done.done():
            done.set_result(None)

    def one(future: Future[Any]) -> None:
        nonlocal left
        failed = future.cancelled() or future.exception() is not None
        with lock:
            left -= 1
            last = left == 0
        if failed or last:
            with suppress(RuntimeError):  # the loop was closed: nobody waits
                loop.call_soon_threadsafe(wake)

    for future in futures:
        future.add_done_callback(one)
    if futures:
        await done
