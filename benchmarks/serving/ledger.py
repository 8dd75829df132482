"""`Ledger`: an application that writes down what became of every request that reached the one inside."""

from __future__ import annotations

from collections import Counter
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["NUMBER", "Ledger"]

NUMBER = b"x-number"
"""The header that tells who a request is."""


class Ledger:
    """ASGI middleware that counts how often each numbered request came, and how often it was answered.

    Args:
        app: The application inside.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.arrived: Counter[int] = Counter()
        self.answered: Counter[int] = Counter()
        self.statuses: Counter[int] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on."""
        number = dict(scope.get("headers", ())).get(NUMBER)
        if number is None:
            await self._app(scope, receive, send)
            return
        self.arrived[int(number)] += 1

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.answered[int(number)] += 1
                self.statuses[message["status"]] += 1
            await send(message)

        await self._app(scope, receive, sent)

    def to_dict(self) -> dict[str, Any]:
        """Counts, and the numbers of requests that came or were answered more than once."""
        return {
            "arrived": len(self.arrived),
            "arrived_numbers": sorted(self.arrived),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "arrived_twice": sorted(number for number, count in self.arrived.items() if count > 1),
            "answered_twice": sorted(number for number, count in self.answered.items() if count > 1),
            "unanswered": sorted(self.arrived.keys() - self.answered.keys()),
        }
