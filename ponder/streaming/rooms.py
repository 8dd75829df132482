"""Rooms: rows stand in the room of the weights that they need next, and one room runs at a time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from ponder.streaming.cohort import Cohort
from ponder.streaming.inbox import Inbox
from ponder.streaming.ticket import Ticket

__all__ = ["Door", "Limits", "Rooms"]


@dataclass(frozen=True)
class Door:
    """Which room: the weights (the index of a callable of `Steps`), and the kind of rows that fit one another."""

    weights: int
    signature: Hashable


@dataclass(frozen=True)
class Limits:
    """How much runs at once.

    Args:
        max_batch: Rows of a step.
        max_tokens: Positions of a step, padding included: rows · longest; None for any number.
        max_skips: How often a room may be passed over before it goes first.
    """

    max_batch: int
    max_tokens: int | None
    max_skips: int

    def room_for(self, rows: int, longest: int, ticket: Ticket) -> bool:
        """Whether a row fits beside `rows` others; a row alone always does."""
        if not rows:
            return True
        tokens = (rows + 1) * max(longest, ticket.length)
        return rows < self.max_batch and (self.max_tokens is None or tokens <= self.max_tokens)


class Rooms:
    """The rows that are running, by what they need next.

    A model of shared steps has one room, where rows of all depths stand together; a stacked model one for each step.

    Args:
        schedule: `Steps.schedule`: the weights of each step.
        inbox: Rows that wait in front of the first room.
        limits: How much runs at once.
    """

    def __init__(self, schedule: Sequence[int], inbox: Inbox, limits: Limits) -> None:
        self._schedule, self._inbox, self._limits = schedule, inbox, limits
        self._cohorts: dict[Door, list[Cohort]] = {}
        self._skips: dict[Door, int] = {}
        self.crowd = 2 * limits.max_batch * len(set(schedule))  # running rows at which nobody else is let in

    def __len__(self) -> int:
        return sum(len(cohort) for cohorts in self._cohorts.values() for cohort in cohorts)

    def enter(self, cohort: Cohort) -> None:
        """Let rows stand in front of their next steps."""
        places: dict[int, list[int]] = {}
        for position, step in enumerate(cohort.steps):
            places.setdefault(self._schedule[step], []).append(position)
        for weights, positions in places.items():
            part = cohort.take(positions)
            self._cohorts.setdefault(Door(weights, part.tickets[0].signature), []).append(part)

    def next(self) -> Door | None:
        """The room to run: one that was passed over too often, else the fullest, the deepest of equals."""
        waiting = {} if len(self) >= self.crowd else self._inbox.counts()
        entrance = {Door(self._schedule[0], signature): rows for signature, rows in waiting.items()}
        doors = dict.fromkeys([*self._cohorts, *entrance])
        if not doors:
            return None
        chosen = max(doors, key=lambda door: self._rank(door, entrance.get(door, 0)))
        self._skips = {door: self._skips.get(door, 0) + 1 for door in doors if door != chosen}
        return chosen

    def _rank(self, door: Door, waiting: int) -> tuple[int, int, int]:
        cohorts, skips = self._cohorts.get(door, []), self._skips.get(door, 0)
        rows = waiting + sum(len(cohort) for cohort in cohorts)
        depth = max((step for cohort in cohorts for step in cohort.steps), default=0)
        return skips if skips >= self._limits.max_skips else 0, min(rows, self._limits.max_batch), depth

    def leave(self, door: Door) -> tuple[list[Cohort], list[Ticket]]:
        """Take the rows of a room that run now, the oldest first, and the waiting ones that fill the free slots."""
        chosen: list[Cohort] = []
        rest: list[Cohort] = []
        rows, longest = 0, 0
        for cohort in self._cohorts.pop(door, []):
            count = 0
            while not rest and count < len(cohort) and self._limits.room_for(rows, longest, cohort.tickets[count]):
                rows, longest = rows + 1, max(longest, cohort.tickets[count].length)
                count += 1
            if count:
                chosen.append(cohort.take(range(count)))
            if count < len(cohort):
                rest.append(cohort.take(range(count, len(cohort))))
        if rest:
            self._cohorts[door] = rest
        return chosen, [] if rest or door.weights != self._schedule[0] else self._admit(door, rows, longest)

    def remove(self, gone: Callable[[Ticket], bool]) -> list[Cohort]:
        """Take out the rows of the tickets for which `gone` holds."""
        removed: list[Cohort] = []
        for door, cohorts in list(self._cohorts.items()):
            kept: list[Cohort] = []
            for cohort in cohorts:
                leaving = [position for position, ticket in enumerate(cohort.tickets) if gone(ticket)]
                staying = sorted(set(range(len(cohort))) - set(leaving))
                removed += [cohort.take(leaving)] if leaving else []
                kept += [cohort.take(staying)] if staying else []
            if kept:
                self._cohorts[door] = kept
            else:
                del self._cohorts[door]
        return removed

    def _admit(self, door: Door, rows: int, longest: int) -> list[Ticket]:
        admitted: list[Ticket] = []
        while (ticket := self._inbox.peek(door.signature)) and self._limits.room_for(rows, longest, ticket):
            admitted.append(self._inbox.pop(door.signature))
            rows, longest = rows + 1, max(longest, ticket.length)
        return admitted
