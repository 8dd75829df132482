"""What a diagnosis tells: policies against blind choices, with the uncertainty of the data. `diagnose` makes it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ponder.analysis.frontiers import Frontier
from ponder.plots import frontiers

__all__ = ["Collapse", "Diagnosis", "Difficulty", "Gain"]


@dataclass(frozen=True)
class Gain:
    """What the best policy has over the best blind choice, at one speed-up in steps.

    Policy, threshold and blind choice are chosen on one bootstrap sample of the rows and compared on the rows that it
    left out, where the blind choice costs no more than the policy; so the choice does not flatter the policy.

    Args:
        speedup: N / mean exit step that was asked for.
        policy: The one that is best on all rows, as text.
        score: Its score on all rows.
        blind: The score of the best blind choice, on all rows, that costs no more than that policy: one step, or a coin
            between two. Where no policy is cheap enough, one that costs no more than was asked for.
        blind_step: The best single step of those that are cheap enough for the speed-up.
        oracle: The score of one who knows the labels and costs no more than that either.
        static: The score of the encoder cut there, where it was given and costs no more; else NaN.
        gain: Policy minus blind, mean over the bootstrap samples.
        low: Lower end of its 95% interval: the 2.5% quantile over the samples, each drawn by 1/√(e − 1) towards what
            its choice gains on all rows, since the rows that it left out are fewer and spread so much more.
        high: Upper end, likewise.
    """

    speedup: float
    policy: str
    score: float
    blind: float
    blind_step: int
    oracle: float
    static: float
    gain: float
    low: float
    high: float

    @property
    def headroom(self) -> float:
        """What a policy could gain at most at this cost: oracle minus blind."""
        return self.oracle - self.blind

    @property
    def share_of_headroom(self) -> float:
        """How much of the headroom the policy gains; NaN where there is none, or no policy."""
        return self.gain / self.headroom if self.headroom > 1e-12 else math.nan


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
        mean_exit_step: Mean of the steps at which they leave under the best policy at the middle speed-up.
    """

    step: int | None
    share: float
    mean_exit_step: float


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """One page that answers "should I let examples exit early?".

    Args:
        verdict: The answer, in one sentence, with its uncertainty: exits pay, one fixed step is as good, or so few rows
            cannot tell. A step that it names is not clearly worse than full depth or the best step, and with 97.5%
            confidence it loses no more against full depth than 0.03 of right answers, or a tenth of what the steps
            differ by; where no earlier step is known to, full depth is named.
        metric: Name of the score, the higher the better.
        scores: The score at each step, `(steps,)`.
        frontiers: The frontiers by name: each policy tried, ``"blind"``, ``"oracle"``, and ``"static"`` where it was
            given.
        gains: Policy against blind at each speed-up.
        collapse: What is known of a collapse of the halting distribution; None without a Lambda head.
        difficulty: Rows by the step from which they are right; empty where labels do not tell.
        rows: Their number.

    Example:
        >>> diagnosis = ponder.diagnose(trajectory, samples=50)
        >>> [round(score, 2) for score in diagnosis.scores]  # of each step
        [0.33, 0.67, 1.0, 1.0]
        >>> diagnosis.gains[0].speedup, round(diagnosis.gains[0].score, 2)  # the best policy at 1.5 times fewer steps
        (1.5, 1.0)
    """

    verdict: str
    metric: str
    scores: tuple[float, ...]
    frontiers: Mapping[str, Frontier]
    gains: tuple[Gain, ...]
    collapse: Collapse | None
    difficulty: tuple[Difficulty, ...]
    rows: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; NaN becomes None."""
        made = {
            **{name: getattr(self, name) for name in ("verdict", "metric", "scores", "rows")},
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

    def __str__(self) -> str:
        """The diagnosis as a page of text."""
        last = len(self.scores)
        lines = [self.verdict, "", f"{self.metric} of each of {last} steps, on {self.rows} rows:"]
        lines += ["  " + "  ".join(f"{n}: {score:.4g}" for n, score in enumerate(self.scores, start=1)), ""]
        lines.append(
            "speed-up  best policy                          score    blind    gain [95% interval]       oracle"
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
                f"The halting distribution: {100 * told.share:.0f}% of the rows would leave at step {told.step} "
                f"(q = 0.5); it carries {100 * told.information:.1f}% of the information that it could.",
            ]
        if self.difficulty:
            lines += ["", "Rows by the step from which they are right, and where the policy of the middle row lets go:"]
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
