"""Rooms: rows stand in the room of the weights that they need next, and one room runs at a time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from ponder.inference.streaming.cohort import Cohort
from ponder.inference.streaming.inbox import Inbox
from ponder.inference.streaming.ticket import Ticket

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
        self._one_room = len(set(schedule)) == 1
        self.crowd = 2 * limits.max_batch * len(set(schedule))  # running rows at which nobody else is let in

    def __len__(self) -> int:
        return sum(len(cohort) for cohorts in self._cohorts.values() for cohort in cohorts)

    def enter(self, cohort: Cohort) -> None:
        """Let rows stand in front of their next steps."""
        if self._one_room:
            self._cohorts.setdefault(Door(self._schedule[0], cohort.tickets[0].signature), []).append(cohort)
            return
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
        load, chosen, rest = _Load(self._limits), list[Cohort](), list[Cohort]()
        for cohort in self._cohorts.pop(door, []):
            count = 0
            while not rest and count < len(cohort.tickets) and load.take(cohort.tickets[count]):
                count += 1
            chosen += [cohort.take(range(count))] if count else []
            rest += [cohort.take(range(count, len(cohort)))] if count < len(cohort) else []
        if rest:
            self._cohorts[door] = rest
        if rest or door.weights != self._schedule[0]:
            return chosen, []
        return chosen, self._inbox.take(door.signature, load.take)

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


class _Load:
    """What has been taken for a step."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._rows, self._longest = limits, 0, 0

    def take(self, ticket: Ticket) -> bool:
        """Take a row in where there is room beside the others; a row alone always fits."""
        rows, longest = self._rows + 1, max(self._longest, ticket.length)
        tokens = self._limits.max_tokens
        if self._rows and (rows > self._limits.max_batch or (tokens is not None and rows * longest > tokens)):
            return False
        self._rows, self._longest = rows, longest
        return True
