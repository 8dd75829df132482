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
    """Root of every error that this library raises on purpose.

    Example:
        >>> try:
        ...     policies.Confidence(1.5)
        ... except ponder.PonderError as error:
        ...     print(error)
        threshold: expected a number in [0, 1]; got 1.5. Pass threshold=0.5, say.
    """


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
    """An argument has a type that cannot be used; arguments as for `ArgumentError`.

    Example:
        >>> try:
        ...     policies.After("quantile", 2)
        ... except ArgumentTypeError as error:
        ...     print(error)
        policy: expected an ExitPolicy (of ponder.policies.base); got str. Combine policies with policies.
    """


class DataError(PonderError, ValueError):
    """A data file does not hold what its format promises.

    Example:
        >>> raise DataError("train.tsv, line 3: expected 4 columns; got 3.")
        Traceback (most recent call last):
            ...
        ponder.errors.DataError: train.tsv, line 3: expected 4 columns; got 3.
    """


class CheckpointError(PonderError, ValueError):
    """A saved model, trajectory or result is truncated, foreign or of another shape.

    Example:
        >>> try:
        ...     ponder.load(model, "no-such-folder")
        ... except CheckpointError as error:
        ...     print(error)
        no-such-folder/ponder.json: missing or no JSON ([Errno 2] No such file ...).
    """


class NonFiniteError(PonderError, ArithmeticError):
    """A step produced NaN or infinity (raised in the checking mode only).

    Example:
        >>> broken = ponder.PonderWrapper(lambda hidden: hidden / 0.0, 2, head=nn.Linear(8, 3), check_finite=True)
        >>> broken.eval()(torch.randn(2, 8))
        Traceback (most recent call last):
            ...
        ponder.errors.NonFiniteError: step 1 ...
    """


def _rebuild(
    kind: type[_WrongArgumentError], argument: str, expected: str, got: str, remedy: str
) -> _WrongArgumentError:
    """Pickling support, so that worker processes can send their errors home."""
    return kind(argument, expected=expected, got=got, remedy=remedy)
