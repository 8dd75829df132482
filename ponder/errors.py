"""The errors that `ponder` raises: one root, and messages that say what to do."""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "CheckpointError",
    "DataError",
    "NonFiniteError",
    "PonderError",
]


class PonderError(Exception):
    """Root of every error that this library raises on purpose."""


class _WrongArgumentError(PonderError):
    """Argument, expectation, what came and the remedy, composed into one message."""

    def __init__(self, argument: str, *, expected: str, got: object, remedy: str) -> None:
        self.argument, self.expected, self.got, self.remedy = argument, expected, str(got), remedy
        super().__init__(f"{argument}: expected {expected}; got {self.got}. {remedy}")

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.argument, self.expected, self.got, self.remedy)


class ArgumentError(_WrongArgumentError, ValueError):
    """An argument has the right type and a value that cannot be used.

    Args:
        argument: Name of the argument, as the caller wrote it.
        expected: What would have been accepted.
        got: What came.
        remedy: What to do about it, a full sentence.

    Example:
        >>> raise ArgumentError("q", expected="a number in [0, 1]", got=1.5, remedy="Pass q=0.5.")
        Traceback (most recent call last):
        ponder.errors.ArgumentError: q: expected a number in [0, 1]; got 1.5. Pass q=0.5.
    """


class ArgumentTypeError(_WrongArgumentError, TypeError):
    """An argument has a type that cannot be used; arguments as for `ArgumentError`."""


class DataError(PonderError, ValueError):
    """A data file does not hold what its format promises."""


class CheckpointError(PonderError, ValueError):
    """A saved model, trajectory or result is truncated, foreign or of another shape."""


class NonFiniteError(PonderError, ArithmeticError):
    """A step produced NaN or infinity (raised in the checking mode only)."""


def _rebuild(
    kind: type[_WrongArgumentError], argument: str, expected: str, got: str, remedy: str
) -> _WrongArgumentError:
    """Pickling support, so that worker processes can send their errors home."""
    return kind(argument, expected=expected, got=got, remedy=remedy)
