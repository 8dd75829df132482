"""How a broken rule is reported."""

from __future__ import annotations

from ponder.errors import PonderError

__all__ = ["ContractError", "require"]


class ContractError(PonderError, AssertionError):
    """A plug-in or a backbone breaks a rule of its contract.

    Args:
        subject: What was checked.
        rule: The rule, in a few words.
        seen: What was seen.
        remedy: What to do about it, a full sentence.

    Example:
        >>> raise ContractError("Mine()", "the mask is bool", "got float32", "Compare.")
        Traceback (most recent call last):
        ponder.testing.contract.ContractError: Mine() breaks the rule that the mask is bool: got float32. Compare.
    """

    def __init__(self, subject: object, rule: str, seen: str, remedy: str) -> None:
        self.subject, self.rule, self.seen, self.remedy = str(subject), rule, seen.rstrip("."), remedy
        super().__init__(f"{self.subject} breaks the rule that {rule}: {self.seen}. {remedy}")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.subject, self.rule, self.seen, self.remedy)


def require(holds: bool, subject: object, rule: str, seen: str, remedy: str) -> None:
    """Raise `ContractError` unless `holds`; arguments as for the error."""
    if not holds:
        raise ContractError(subject, rule, seen, remedy)
