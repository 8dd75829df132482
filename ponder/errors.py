"""The errors that `ponder` raises: one root, and messages with a remedy."""

from __future__ import annotations

from functools import partial

__all__ = ["ArgumentError", "ArgumentTypeError", "CheckpointError", "NonFiniteError", "PonderError"]


class PonderError(Exception):
    """Root of every error that this library raises on purpose.

    Example:
        >>> try:
        ...     policies.Confidence(1.5)
        ... except ponder.errors.PonderError as error:
        ...     print(error)
        threshold: expected a number in [0, 1]; got 1.5. Pass threshold=0.5, say.
    """


class _WrongArgumentError(PonderError):
    def __init__(self, argument: str, *, expected: str, got: object, remedy: str) -> None:
        self.argument = argument
        self.expected = expected
        self.got = str(got)
        self.remedy = remedy
        super().__init__(f"{argument}: expected {expected}; got {self.got}. {remedy}")

    def __reduce__(
        self,
    ) -> tuple[object, ...]:  # exceptions cross processes by their positional arguments
        return partial(type(self), expected=self.expected, got=self.got, remedy=self.remedy), (
            self.argument,
        )


class ArgumentError(_WrongArgumentError, ValueError):
    """A value of the right type that cannot be used.

    Args:
        argument: Name of the argument.
        expected: Values that are accepted.
        got: The value.
        remedy: A full sentence with the remedy.

    Example:
        >>> expected = "a number in [0, 1]"
        >>> raise ponder.errors.ArgumentError("q", expected=expected, got=1.5, remedy="Pass q=0.5.")
        Traceback (most recent call last):
        ponder.errors.ArgumentError: q: expected a number in [0, 1]; got 1.5. Pass q=0.5.
    """


class ArgumentTypeError(_WrongArgumentError, TypeError):
    """A value of a type that cannot be used; arguments as for `ArgumentError`."""


class CheckpointError(PonderError, ValueError):
    """A saved file is truncated, of another format or of a model of another shape."""


class NonFiniteError(PonderError, ArithmeticError):
    """A loss or gradient of training is NaN or infinite."""
