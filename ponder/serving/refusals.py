"""Why a service gives no answer to a request that it understood."""

from __future__ import annotations

from ponder.errors import PonderError

__all__ = ["BrokenError", "OverloadedError", "StoppingError", "TooLateError"]


class BrokenError(PonderError):
    """The thread that answers has ended with an error, and the service must be started again: HTTP's 503."""

    def __init__(self, message: str = "the service is broken and must be started again; /healthz says why.") -> None:
        super().__init__(message)


class OverloadedError(PonderError):
    """Too many texts wait for their answers: HTTP's 429.

    Args:
        retry_after: Seconds after which it may be worth asking again.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many texts are waiting. Ask again in {retry_after} seconds.")
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.retry_after,)


class StoppingError(PonderError):
    """The service is being shut down and takes no more requests: HTTP's 503."""

    def __init__(self, message: str = "the service is stopping and takes no more requests.") -> None:
        super().__init__(message)


class TooLateError(PonderError):
    """The deadline passed before a text had finished its first step: HTTP's 504."""

    def __init__(self, message: str = "the deadline passed before there was an answer.") -> None:
        super().__init__(message)
