"""`Audit`: which answers are looked at again, and when a promise can no longer be held. Numbers in, decisions out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ponder._utils.files import read_json, write_json
from ponder._utils.rounding import rounded_down, rounded_up
from ponder._utils.validation import check_flag, check_int, check_real, check_share
from ponder.errors import CheckpointError
from ponder.monitor.betting import Capital, confidence_sequence

__all__ = ["Audit", "StepBack"]

_FORMAT = "ponder-audit-1"
_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class StepBack:
    """The promise can no longer be held.

    Args:
        stage: Number of the stage that ended, from 0.
        audits: How many answers were audited in it.
        disagreements: How many of these differed from full depth.
        low: Lowest disagreement that the audits leave possible by `confidence_sequence`. It is two-sided, so that it
            takes more audits to exclude the level than the bet takes to end the stage: often the level is above it.
        high: Highest.
        statement: The same in words.

    Example:
        >>> audit = Audit(level=0.01, confidence=0.95)
        >>> audit.record(True)  # one disagreement is not enough
        >>> told = audit.record(True)
        >>> told.stage, told.audits, told.disagreements
        (0, 2, 2)
    """

    stage: int
    audits: int
    disagreements: int
    low: float
    high: float
    statement: str


class Audit:
    """Audits of a share of the answers, against the promise that at most `level` of them differ from full depth.

    It asks for audits (`chosen`), takes their outcome (`record`) and says when to step back to a safer policy, which
    begins the next stage. It knows neither models nor policies: `ponder.monitor.Watched` does, and so may a service.

    As long as the disagreement is at most `level`, a stage ends with probability 1 − `confidence` at most, over
    all time: one may look after every audit, for years. Rows are taken to come one after the other, each with a
    disagreement of at most `level` given those before; nothing else is assumed, and it need not be constant.

    Args:
        level: The share of answers that may differ from those at full depth, in (0, 1).
        confidence: The least probability with which no stage ever ends while the disagreement is at most `level`, in
            (0, 1).
        share: The share of answers that is audited, in (0, 1]: what an audit costs, it costs so often.
        seed: Seed by which the answers that are audited are drawn.

    Example:
        >>> audit = Audit(level=0.01, confidence=0.95, share=0.5)
        >>> sum(audit.chosen() for _ in range(1000))
        524
        >>> audit.record(False) is None  # the promise holds so far
        True
    """

    def __init__(self, level: float = 0.01, confidence: float = 0.95, share: float = 0.01, *, seed: int = 0) -> None:
        check_share("level", level)
        check_share("confidence", confidence)
        check_real("share", share, 0.0, 1.0, open_low=True)
        check_int("seed", seed, 0)
        self.level, self.confidence, self.share, self.seed = level, confidence, share, seed
        self.answers = 0
        self.stage = 0
        self.disagreements = 0
        self._capital = Capital.start(level)

    @property
    def audits(self) -> int:
        """The number of audits in this stage."""
        return self._capital.audits

    @property
    def wealth(self) -> float:
        """The capital of the bet against the promise; at 1 / (1 − confidence) the stage ends."""
        return self._capital.wealth

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest disagreement that this stage's audits leave possible; see `confidence_sequence`."""
        return confidence_sequence(self.disagreements, self.audits, self.confidence)

    def chosen(self) -> bool:
        """Count one answer, and say whether it is to be audited: a draw that does not look at the answer."""
        drawn = _mix(_mix(self.seed + _GAMMA) + self.answers * _GAMMA) * 2.0**-64
        self.answers += 1
        return drawn < self.share

    def record(self, disagrees: bool) -> StepBack | None:
        """Take the outcome of an audit of this stage's policy.

        Args:
            disagrees: Whether the answer that was given differs from the one at full depth.

        Returns:
            A `StepBack` where the promise can no longer be held: the next stage, with a safer policy, has begun.
        """
        remedy = "Call record once an audit; bool(x) turns a tensor or an array of one value."
        check_flag("disagrees", disagrees, remedy=remedy)
        self._capital = self._capital.after(disagrees)
        self.disagreements += disagrees
        if self.wealth * (1.0 - self.confidence) < 1.0:
            return None
        low, high = self.bounds
        left = StepBack(
            stage=self.stage,
            audits=self.audits,
            disagreements=self.disagreements,
            low=low,
            high=high,
            statement=f"the promise that at most {rounded_up(self.level)} of the answers differ from full depth can no "
            f"longer be held: {self.disagreements} of {self.audits} audited answers differ, which is too many for it "
            f"(confidence {rounded_down(self.confidence)}); a two-sided interval, which proves less, is "
            f"{rounded_down(low, 4)} to {rounded_up(high, 4)}",
        )
        self.stage, self.disagreements, self._capital = self.stage + 1, 0, Capital.start(self.level)
        return left

    def to_dict(self) -> dict[str, Any]:
        """Settings and state, as plain JSON: an audit that goes on from there decides as this one does."""
        return {
            "format": _FORMAT,
            "level": self.level,
            "confidence": self.confidence,
            "share": self.share,
            "seed": self.seed,
            "answers": self.answers,
            "stage": self.stage,
            "disagreements": self.disagreements,
            "capital": self._capital.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`.

        Raises:
            CheckpointError: It is no audit, or an impossible one.
        """
        if not isinstance(data, Mapping) or data.get("format") != _FORMAT:
            raise CheckpointError(f"expected an audit in the format {_FORMAT!r}; got {data!r:.80}.")
        try:
            audit = cls(data["level"], data["confidence"], data["share"], seed=data["seed"])
            counts = {name: data[name] for name in ("answers", "stage", "disagreements")}
            for name, count in counts.items():
                check_int(name, count, 0)
            audit._capital = Capital.from_dict(data["capital"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the saved audit cannot be used: {error}.") from error
        audit.answers, audit.stage, audit.disagreements = counts["answers"], counts["stage"], counts["disagreements"]
        if audit._capital.level != audit.level or audit.disagreements > audit.audits:
            raise CheckpointError("the saved audit is impossible: its parts do not belong together.")
        return audit

    def save(self, path: str | Path) -> None:
        """Write one JSON file, whole or not at all."""
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            CheckpointError: The file is missing, truncated or foreign.
        """
        return cls.from_dict(read_json(Path(path)))

    def __repr__(self) -> str:
        low, high = self.bounds
        return (
            f"Audit(level={rounded_up(self.level)}, confidence={rounded_down(self.confidence)}, share={self.share:g}; "
            f"stage {self.stage}: {self.disagreements} of {self.audits} differ, between {rounded_down(low, 4)} and "
            f"{rounded_up(high, 4)})"
        )


def _mix(x: int) -> int:
    """The SplitMix64 finaliser (Steele, Lea & Flood 2014): a draw that is a function of seed and number."""
    x &= _MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)
