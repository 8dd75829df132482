"""One thread's work: take a room, run its step, answer who leaves; a row that fails fails alone."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ponder._utils.trees import map_tensors, tensors
from ponder.inference.streaming.cohort import Cohort, join
from ponder.inference.streaming.inbox import Inbox
from ponder.inference.streaming.rooms import Limits, Rooms
from ponder.inference.streaming.stats import Meter
from ponder.inference.streaming.stepper import Stepper
from ponder.inference.streaming.ticket import StreamOutput, Ticket

__all__ = ["Scheduler"]


class Scheduler:
    """Runs rows from the inbox to their answers. Not thread-safe, but for `cancel`.

    Args:
        stepper: The model and the policy.
        inbox: The rows that wait.
        limits: How much runs at once.
        meter: What counts.
        clock: Seconds.
    """

    def __init__(
        self, stepper: Stepper, inbox: Inbox, limits: Limits, meter: Meter, clock: Callable[[], float]
    ) -> None:
        self.inbox, self.rooms = inbox, Rooms(stepper.schedule, inbox, limits)
        self._stepper, self._meter, self._clock = stepper, meter, clock
        self._running: set[Ticket] = set()
        self._deadlines: list[tuple[float, int, Ticket]] = []
        self._numbers = itertools.count()
        self._cancelled: deque[Ticket] = deque()
        self._announced: deque[Ticket] = deque()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._running and not len(self.inbox)

    @property
    def running(self) -> int:
        """Rows that have left the inbox and are not answered."""
        return len(self._running)

    @property
    def crowd(self) -> int:
        """Running rows at which no others are let in."""
        return self.rooms.crowd

    def expect(self, ticket: Ticket) -> None:
        """Watch the deadline of a ticket; any thread may call this."""
        if ticket.deadline is not None:
            self._announced.append(ticket)

    def cancel(self, ticket: Ticket) -> None:
        """Drop a ticket whose future was cancelled; any thread may call this."""
        self._cancelled.append(ticket)

    def turn(self) -> bool:
        """One step of one room; False where there was nothing to run."""
        self._drop_cancelled()
        self._answer_overdue()
        door = self.rooms.next()
        if door is None:
            return False
        running, admitted = self.rooms.leave(door)
        if admitted:
            self._running.update(admitted)
            running += self._begin(admitted)
        if running:
            self._step(running)
        return True

    def fail_all(self, error: BaseException) -> None:
        """Answer everything that is still here with an error."""
        self._fail(self._all(), error)

    def cancel_all(self) -> None:
        """Cancel everything that is still here."""
        for ticket in self._all():
            ticket.future.cancel()
            self._end(ticket, "cancelled", None)

    def _all(self) -> list[Ticket]:
        self.rooms.remove(lambda ticket: True)
        waiting = [t for signature in self.inbox.counts() for t in self.inbox.take(signature, lambda ticket: True)]
        return [*waiting, *self._running]

    def _begin(self, tickets: Sequence[Ticket]) -> list[Cohort]:
        """The stem; where it raises, for halves of the rows, down to the one that fails."""
        try:
            with torch.inference_mode():
                cohort = self._stepper.begin(tickets)
            for ticket in tickets:
                ticket.example = None
            return [cohort]
        except Exception as error:
            if len(tickets) == 1:
                self._fail(tickets, error)
                return []
        half = len(tickets) // 2
        return self._begin(tickets[:half]) + self._begin(tickets[half:])

    def _step(self, cohorts: Sequence[Cohort]) -> None:
        """One step; where it raises, for halves of the rows, down to the one that fails."""
        rows = sum(len(cohort) for cohort in cohorts)
        try:
            with torch.inference_mode():
                cohort = join(cohorts, self._stepper.padding)
                if rows > 1 and _same_state(cohort, cohorts[0]):  # it may be tried again, and steps may work in place
                    cohort = replace(cohort, hidden=map_tensors(Tensor.clone, cohort.hidden))
                after = self._stepper.step(cohort)
        except Exception as error:
            if rows == 1:
                self._fail([ticket for cohort in cohorts for ticket in cohort.tickets], error)
                return
            after = None
        if after is None:
            for half in _halves(cohorts, rows // 2):
                self._step(half)
            return
        self._meter.step(rows)
        if after.staying is not None:
            self.rooms.enter(after.staying)
        if after.outputs is not None:
            tickets = [cohort.tickets[position] for position in after.leaving]
            steps = [cohort.steps[position] + 1 for position in after.leaving]
            self._answer(tickets, after.outputs, steps, timed_out=False)

    def _answer_overdue(self) -> None:
        """Answer rows whose time is up from the step that they have finished."""
        while self._announced:
            ticket = self._announced.popleft()
            assert ticket.deadline is not None
            heapq.heappush(self._deadlines, (ticket.deadline, next(self._numbers), ticket))
        if len(self._deadlines) > 2 * (len(self._running) + len(self.inbox)) + 64:  # most are answered: forget them
            self._deadlines = [entry for entry in self._deadlines if not entry[2].resolved]
            heapq.heapify(self._deadlines)
        now, overdue = self._clock(), set[Ticket]()
        while self._deadlines and self._deadlines[0][0] <= now:
            ticket = heapq.heappop(self._deadlines)[2]
            if not ticket.resolved:
                overdue.add(ticket)
        for ticket in overdue:
            if self.inbox.discard(ticket):
                self._time_out(ticket)
        if overdue:
            for cohort in self.rooms.remove(overdue.__contains__):
                self._answer_early(cohort)

    def _answer_early(self, cohort: Cohort) -> None:
        try:
            with torch.inference_mode():
                outputs = self._stepper.answer(join([cohort], self._stepper.padding))
        except Exception as error:
            if len(cohort) == 1:
                self._fail(cohort.tickets, error)
                return
            outputs = None
        if outputs is not None:
            self._answer(cohort.tickets, outputs, cohort.steps, timed_out=True)
            return
        for (half,) in _halves([cohort], len(cohort) // 2):
            self._answer_early(half)

    def _answer(self, tickets: Sequence[Ticket], outputs: Tensor, steps: Sequence[int], *, timed_out: bool) -> None:
        outputs = outputs.clone()  # out of inference mode: an ordinary tensor, for whatever the caller does with it
        for ticket, output, step in zip(tickets, outputs.unbind(0), steps, strict=True):
            self._end(ticket, "timed_out" if timed_out else "done", StreamOutput(output, step, timed_out))

    def _time_out(self, ticket: Ticket) -> None:
        self._end(ticket, "timed_out", TimeoutError("the deadline passed before the first step of the row"))

    def _fail(self, tickets: Sequence[Ticket], error: BaseException) -> None:
        for ticket in tickets:
            self._end(ticket, "failed", error)

    def _drop_cancelled(self) -> None:
        gone = set[Ticket]()
        while self._cancelled:
            ticket = self._cancelled.popleft()
            if not ticket.resolved and not self.inbox.discard(ticket):
                gone.add(ticket)
            self._end(ticket, "cancelled", None)
        if gone:
            self.rooms.remove(gone.__contains__)

    def _end(self, ticket: Ticket, how: str, answer: StreamOutput | BaseException | None) -> None:
        """Answer a ticket, once. A future that its owner cancelled in the meantime is told so."""
        if ticket.resolved:
            return
        ticket.resolved = True
        self._running.discard(ticket)
        if not ticket.future.set_running_or_notify_cancel():
            how, answer = "cancelled", None
        self._meter.end(how, self._clock() - ticket.submitted)
        if isinstance(answer, BaseException):
            ticket.future.set_exception(answer)
        elif answer is not None:
            ticket.future.set_result(answer)


def _same_state(joined: Cohort, cohort: Cohort) -> bool:
    """Whether the hidden states of a cohort were joined without a copy."""
    own, other = (next(tensors(part.hidden))[1].untyped_storage().data_ptr() for part in (joined, cohort))
    return own == other


def _halves(cohorts: Sequence[Cohort], count: int) -> list[list[Cohort]]:
    """The first `count` rows, and the others."""
    first: list[Cohort] = []
    second: list[Cohort] = []
    for cohort in cohorts:
        here = min(count, len(cohort))
        count -= here
        first += [cohort.take(range(here))] if here else []
        second += [cohort.take(range(here, len(cohort)))] if here < len(cohort) else []
    return [first, second]
