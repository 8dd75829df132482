"""What the best policy has over the best blind choice, at one speed-up in steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Gain"]


@dataclass(frozen=True)
class Gain:
    """What the best policy has over the best blind choice, at one speed-up in steps.

    Policy, threshold and blind choice are chosen on one bootstrap sample of the rows, each the best that the speed-up
    allows, and compared on the rows that it left out; so the choice does not flatter the policy.

    Args:
        speedup: N / mean exit step that was asked for.
        policy: The one that is best on all rows, as text.
        score: Its score on all rows.
        blind: The score of the best blind choice, on all rows, that is cheap enough for the speed-up: one step, or a
            coin between two. A policy with few thresholds may cost less than it might; blind is not held to that.
        blind_step: The best single step of those that are cheap enough.
        oracle: The score of one who knows the labels and is cheap enough.
        static: The score of the encoder cut there, where it was given and costs no more; else NaN.
        gain: Policy minus blind, mean over the bootstrap samples.
        low: Lower end of its 95% interval: the 2.5% quantile over the samples, each drawn by 1/√(e − 1) towards what
            its choice gains on all rows, since the rows that it left out are fewer and spread so much more; and then
            as far away as with z²/2 rows more of the greatest gain that a row can have and as many of the greatest
            loss, since samples of rows of which few decide know no others (as in Agresti & Coull 1998).
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
        """What a policy could gain at most at this speed-up: oracle minus blind."""
        return self.oracle - self.blind

    @property
    def share_of_headroom(self) -> float:
        """How much of the headroom the policy gains; NaN where there is none, or no policy."""
        return self.gain / self.headroom if self.headroom > self.rounding else math.nan

    @property
    def rounding(self) -> float:
        """What a difference of such scores may be where there is none, in whatever unit they are."""
        return 1e-12 * max(abs(self.blind), abs(self.oracle))
