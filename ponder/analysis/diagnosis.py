"""What a diagnosis tells: policies against blind choices, with the uncertainty of the data. `diagnose` makes it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ponder.analysis.fixed_step import StepForAll
from ponder.analysis.frontiers import Frontier
from ponder.analysis.gain import Gain
from ponder.analysis.verdicts import Outcome, outcome_of, sentence_of
from ponder.plots import frontiers

__all__ = ["Collapse", "Diagnosis", "Difficulty"]


@dataclass(frozen=True)
class Collapse:
    """Whether the halting distribution tells rows apart.

    Args:
        step: The commonest exit step of Q-exit with q = 0.5.
        share: The share of rows that leave there.
        information: Mutual information between row and halting step, as a share of log N: 0 where all rows have the
            same distribution.
    """

    step: int
    share: float
    information: float

    @property
    def collapsed(self) -> bool:
        """Whether it is one step for all: nine rows in ten leave there, or it carries next to no information."""
        return self.share >= 0.9 or self.information < 0.01


@dataclass(frozen=True)
class Difficulty:
    """Rows that are right from the same step on to the end.

    Args:
        step: That step; None for rows that are wrong at the last step.
        share: Their share of all rows.
        mean_exit_step: Mean of the steps at which they leave under the best policy at `speedup`.
        speedup: The middle one of those that were asked for, or the nearest to it that a policy reaches.
    """

    step: int | None
    share: float
    mean_exit_step: float
    speedup: float


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """One page that answers "should I let examples exit early?".

    Args:
        metric: Name of the score, the higher the better.
        scores: The score at each step, `(steps,)`.
        frontiers: The frontiers by name: each policy tried, ``"blind"``, ``"oracle"``, and ``"static"`` where it was
            given.
        gains: Policy against blind at each speed-up.
        step_for_all: The step that all rows may leave at, and what is known of it.
        collapse: What is known of a collapse of the halting distribution; None without a Lambda head.
        difficulty: Rows by the step from which they are right; empty where labels do not tell, or no policy is cheap
            enough.
        rows: Their number.

    Example:
        >>> diagnosis = ponder.diagnose(trajectory, samples=50)
        >>> [round(score, 2) for score in diagnosis.scores]  # of each step
        [0.33, 0.67, 1.0, 1.0]
        >>> diagnosis.gains[0].speedup, round(diagnosis.gains[0].score, 2)  # the best policy at 1.5 times fewer steps
        (1.5, 1.0)
        >>> diagnosis.outcome
        'exits pay'
    """

    metric: str
    scores: tuple[float, ...]
    frontiers: Mapping[str, Frontier]
    gains: tuple[Gain, ...]
    step_for_all: StepForAll
    collapse: Collapse | None
    difficulty: tuple[Difficulty, ...]
    rows: int

    @property
    def outcome(self) -> Outcome:
        """The answer for a program to ask.

        It is ``"exits pay"``, ``"one step is as good"``, ``"too few rows"`` or ``"no policy is cheap enough"``.
        """
        return outcome_of(self.gains, self.step_for_all.margin)

    @property
    def verdict(self) -> str:
        """The answer in one sentence, with its uncertainty; a step that it names is `step_for_all`."""
        return sentence_of(self.gains, self.step_for_all, self.metric, self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; NaN becomes None."""
        made = {
            **{name: getattr(self, name) for name in ("outcome", "verdict", "metric", "scores", "rows")},
            "step_for_all": dataclasses.asdict(self.step_for_all),
            "frontiers": {name: dataclasses.asdict(frontier) for name, frontier in self.frontiers.items()},
            "gains": [
                dataclasses.asdict(gain) | {"headroom": gain.headroom, "share_of_headroom": gain.share_of_headroom}
                for gain in self.gains
            ],
            "collapse": None
            if self.collapse is None
            else {**dataclasses.asdict(self.collapse), "collapsed": self.collapse.collapsed},
            "difficulty": [dataclasses.asdict(each) for each in self.difficulty],
        }
        plain: dict[str, Any] = _plain(made)
        return plain

    def plot(self, **options: Any) -> Any:
        """Draw the score against the mean exit step, with a line for each frontier; see `ponder.plots.frontiers`."""
        return frontiers(self, **options)

    def __repr__(self) -> str:
        return f"Diagnosis({self.outcome}, {self.rows} rows: {self.verdict})"

    def __str__(self) -> str:
        """The diagnosis as a page of text."""
        last = len(self.scores)
        lines = [self.verdict, "", f"{self.metric} of each of {last} steps, on {self.rows} rows:"]
        lines += ["  " + "  ".join(f"{n}: {score:.4g}" for n, score in enumerate(self.scores, start=1)), ""]
        lines.append(
            "in steps  best policy                          score    blind    gain [95% interval]       oracle"
            "   headroom"
        )
        for gain in self.gains:
            score = "" if math.isnan(gain.score) else f"{gain.score:.4f}"
            interval = f"{gain.gain:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
            interval = "not reached" if math.isnan(gain.gain) else interval
            gained = "" if math.isnan(gain.share_of_headroom) else f" ({100 * gain.share_of_headroom:.0f}% gained)"
            lines.append(
                f"×{gain.speedup:<8g} {gain.policy:<36} {score:<8} {gain.blind:<8.4f} {interval:<25} "
                f"{gain.oracle:<8.4f} {gain.headroom:.4f}{gained}"
                + ("" if math.isnan(gain.static) else f"  cut and trained so: {gain.static:.4f}")
            )
        lines.append(
            "score, blind and oracle are of these rows, on which the best policy was chosen; gain is of rows that "
            "bootstrap samples left out of its choice."
        )
        if self.collapse is not None:
            told = self.collapse
            lines += [
                "",
                f"The halting distribution has {'' if told.collapsed else 'not '}collapsed onto one step: "
                f"{100 * told.share:.0f}% of the rows would leave at step {told.step} (q = 0.5); it carries "
                f"{100 * told.information:.1f}% of the information that it could.",
            ]
        if self.difficulty:
            at = f"×{self.difficulty[0].speedup:g}"
            lines += ["", f"Rows by the step from which they are right, and where the best policy at {at} lets go:"]
            for each in self.difficulty:
                what = "wrong at the last step" if each.step is None else f"right from step {each.step} on"
                lines.append(f"  {what:<24} {100 * each.share:5.1f}%  mean exit step {each.mean_exit_step:.2f}")
        return "\n".join(lines)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
