"""What clients ask in the soak, a function of a request's number, so that all can check it; and what they note."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Asked", "Notes", "asked", "read_notes"]

_TEXTS = 512
_PATIENT, _GONE, _HURRIED = 0.65, 0.75, 0.85  # below: waits; leaves; has a deadline; above: several texts


@dataclass(frozen=True)
class Asked:
    """A request, and whether its client stays for the answer.

    Args:
        body: The request's body, to be sent as JSON.
        leaves: Whether its client breaks the connection instead of waiting.
    """

    body: dict[str, Any]
    leaves: bool


def asked(number: int) -> Asked:
    """The request of a number: one text or several, in a hurry or not, by a client that stays or leaves."""
    draw = random.Random(number)
    kind = draw.random()
    if kind < _HURRIED:
        hurried = kind >= _GONE
        body: dict[str, Any] = {"text": _text(number)}
        return Asked({**body, "deadline": draw.choice([1e-6, 1e-3])} if hurried else body, _PATIENT <= kind < _GONE)
    return Asked({"texts": [_text(number + place) for place in range(draw.randint(2, 4))]}, leaves=False)


def _text(number: int) -> str:
    draw = random.Random(number % _TEXTS)
    return "".join(draw.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", k=draw.randint(1, 16)))


@dataclass
class Notes:
    """What clients wrote down, by the numbers of requests.

    Args:
        sent: That were sent.
        left: Whose client broke the connection itself.
        broken: Whose connection broke, or was refused.
        answers: Status and body of every answer that came, in order.
        doubled: That were answered more than once.
    """

    sent: set[int] = field(default_factory=set)
    left: set[int] = field(default_factory=set)
    broken: set[int] = field(default_factory=set)
    answers: dict[int, tuple[int, Any]] = field(default_factory=dict)
    doubled: set[int] = field(default_factory=set)

    def answered(self, number: int, status: int, body: Any) -> None:
        """An answer came."""
        if number in self.answers:
            self.doubled.add(number)
        self.answers[number] = status, body


def read_notes(lines: Iterable[str]) -> Notes:
    """The notes of clients, one JSON list a line; the last line of one that was killed may be cut off."""
    notes = Notes()
    for line in lines:
        if not line.endswith("\n"):
            continue
        kind, number, *rest = json.loads(line)
        if kind == "answered":
            notes.answered(number, rest[0], rest[1])
        else:
            {"sent": notes.sent, "left": notes.left, "broken": notes.broken}[kind].add(number)
    return notes
