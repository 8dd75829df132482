"""One thread's work: take a batch queue, run its step, answer who leaves; a row that fails fails alone."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from ponder.inference.batching import BatchLimits
from ponder.inference.streaming.batch_queues import BatchQueues
from ponder.inference.streaming.cohort import Cohort, join
from ponder.inference.streaming.request_queue import RequestQueue
from ponder.inference.streaming.requests import DeadlineError, Request, StreamOutput
from ponder.inference.streaming.stats import StreamMetrics
from ponder.inference.streaming.stepper import Stepper

__all__ = ["Scheduler"]


class Scheduler:
    """Runs rows from the waiting queue to their answers. Not thread-safe, but for `expect` and `cancel`.

    Args:
        stepper: The model.
        waiting: The rows that wait.
        limits: How large a step's batch may be.
        max_skips: How often a batch queue may be passed over.
        metrics: What counts.
        clock: Seconds.
    """

    def __init__(
        self,
        stepper: Stepper,
        waiting: RequestQueue,
        limits: BatchLimits,
        max_skips: int,
        metrics: StreamMetrics,
        clock: Callable[[], float],
    ) -> None:
        self.waiting, self.queues = waiting, BatchQueues(stepper.schedule, waiting, limits, max_skips)
        self._stepper, self._metrics, self._clock = stepper, metrics, clock
        self._running: set[Request] = set()
        self._deadlines: list[tuple[float, int, Request]] = []
        self._numbers = itertools.count()
        self._cancelled: deque[Request] = deque()
        self._announced: deque[Request] = deque()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._running and not len(self.waiting)

    @property
    def running(self) -> int:
        """The number of rows that have begun and are not answered."""
        return len(self._running)

    @property
    def max_active(self) -> int:
        """The number of running rows at which no others are let in."""
        return self.queues.max_active

    def expect(self, request: Request) -> None:
        """Watch the deadline that a request has; any thread may call this."""
        self._announced.append(request)

    def cancel(self, request: Request) -> None:
        """Drop a request whose future was cancelled; any thread may call this."""
        self._cancelled.append(request)

    def turn(self) -> bool:
        """One step of one batch queue; False where there was nothing to run."""
        if self._cancelled:
            self._drop_cancelled()
        if self._announced or self._deadlines:
            self._answer_overdue()
        key = self.queues.next()
        if key is None:
            return False
        running, admitted = self.queues.leave(key)
        if admitted:
            self._running.update(admitted)
            running += self._begin(admitted)
        if running:
            self._step(running)
        return True

    def fail_all(self, error: BaseException) -> None:
        """Answer everything that is still here with an error, whatever callbacks make of it."""
        for request in self._all():
            with suppress(BaseException):
                self._end(request, "failed", error)

    def cancel_all(self) -> None:
        """Cancel everything that is still here."""
        for request in self._all():
            request.future.cancel()
            self._end(request, "cancelled", None)

    def _all(self) -> list[Request]:
        self.queues.remove(lambda request: True)
        self._running.update(self.waiting.take_all())
        return list(self._running)

    def _begin(self, requests: Sequence[Request]) -> list[Cohort]:
        """The stem; where it raises, for halves of the rows, down to the one that fails."""
        try:
            with torch.inference_mode():
                return [self._stepper.begin(requests)]
        except Exception as error:
            if len(requests) == 1:
                self._fail(requests, error)
                return []
        half = len(requests) // 2
        return self._begin(requests[:half]) + self._begin(requests[half:])

    def _step(self, cohorts: Sequence[Cohort]) -> None:
        """One step; where it raises, for halves of the rows, down to the one that fails."""
        try:
            with torch.inference_mode():
                cohort = join(cohorts, self._stepper.padding)
                after = self._stepper.step(cohort)
        except Exception as error:
            failed: Exception | None = error
        else:
            failed = None
        if failed is not None:
            self._step_halves(cohorts, failed)
            return
        self._metrics.step(len(cohort.requests))
        if after.staying is not None:
            self.queues.enter(after.staying)
        if after.outputs is not None:
            requests = [cohort.requests[position] for position in after.leaving]
            steps = [cohort.steps[position] + 1 for position in after.leaving]
            self._answer(requests, after.outputs, steps, timed_out=False)

    def _step_halves(self, cohorts: Sequence[Cohort], error: Exception) -> None:
        rows = sum([len(cohort) for cohort in cohorts])
        if rows == 1:
            self._fail(cohorts[0].requests, error)
            return
        if len(cohorts) == 1 and cohorts[0].keep is None:
            # The step was given these states themselves, and may have changed them in place before it failed.
            cohorts = self._again(cohorts[0])
            rows = sum([len(cohort) for cohort in cohorts])
        for half in _halves(cohorts, max(rows // 2, 1)):
            if half:
                self._step(half)

    def _again(self, cohort: Cohort) -> list[Cohort]:
        """A cohort with its states computed anew; rows for which that fails, fail."""
        try:
            with torch.inference_mode():
                return self._stepper.again(cohort)
        except Exception as error:
            if len(cohort) == 1:
                self._fail(cohort.requests, error)
                return []
        first, second = _halves([cohort], len(cohort) // 2)
        return self._again(first[0]) + self._again(second[0])

    def _answer_overdue(self) -> None:
        """Answer rows whose time is up from the step that they have finished."""
        while self._announced:
            request = self._announced.popleft()
            assert request.deadline is not None
            heapq.heappush(self._deadlines, (request.deadline, next(self._numbers), request))
        if len(self._deadlines) > 2 * (len(self._running) + len(self.waiting)) + 64:  # most are answered: forget them
            self._deadlines = [entry for entry in self._deadlines if not entry[2].resolved]
            heapq.heapify(self._deadlines)
        now, overdue = self._clock(), set[Request]()
        while self._deadlines and self._deadlines[0][0] <= now:
            request = heapq.heappop(self._deadlines)[2]
            if not request.resolved:
                overdue.add(request)
        for request in overdue:
            if self.waiting.discard(request):
                late = DeadlineError("the deadline passed before the first step of the row")
                self._end(request, "timed_out", late)
        if overdue:
            for cohort in self.queues.remove(overdue.__contains__):
                self._answer_early(cohort)

    def _answer_early(self, cohort: Cohort) -> None:
        try:
            with torch.inference_mode():
                outputs = self._stepper.answer(join([cohort], self._stepper.padding))
        except Exception as error:
            if len(cohort) == 1:
                self._fail(cohort.requests, error)
                return
            outputs = None
        if outputs is not None:
            self._answer(cohort.requests, outputs, cohort.steps, timed_out=True)
            return
        for half in _halves([cohort], len(cohort) // 2):
            self._answer_early(half[0])

    def _answer(self, requests: Sequence[Request], outputs: Tensor, steps: Sequence[int], *, timed_out: bool) -> None:
        outputs = outputs.clone()  # out of inference mode: an ordinary tensor, for whatever the caller does with it
        for request, output, step in zip(requests, outputs.unbind(0), steps, strict=True):
            self._end(request, "timed_out" if timed_out else "done", StreamOutput(output, step, timed_out))

    def _fail(self, requests: Sequence[Request], error: BaseException) -> None:
        for request in requests:
            self._end(request, "failed", error)

    def _drop_cancelled(self) -> None:
        gone = set[Request]()
        while self._cancelled:
            request = self._cancelled.popleft()
            if not request.resolved and not self.waiting.discard(request):
                gone.add(request)
            self._end(request, "cancelled", None)
        if gone:
            self.queues.remove(gone.__contains__)

    def _end(self, request: Request, how: str, answer: StreamOutput | BaseException | None) -> None:
        """Answer a request, once. A future that its owner cancelled in the meantime is told so."""
        if request.resolved:
            return
        request.resolved = True
        request.example.inputs, request.example.context = None, {}
        self._running.discard(request)
        if not request.future.set_running_or_notify_cancel():
            how, answer = "cancelled", None
        self._metrics.end(how, self._clock() - request.submitted)
        if isinstance(answer, BaseException):
            request.future.set_exception(answer)
        elif answer is not None:
            request.future.set_result(answer)


def _halves(cohorts: Sequence[Cohort], count: int) -> list[list[Cohort]]:
    """Split cohorts into those of the first `count` rows, and those of the others."""
    first: list[Cohort] = []
    second: list[Cohort] = []
    for cohort in cohorts:
        here = min(count, len(cohort))
        count -= here
        first += [cohort.take(range(here))] if here else []
        second += [cohort.take(range(here, len(cohort)))] if here < len(cohort) else []
    return [first, second]
