"""What a diagnosis comes to, as a word that a program can ask for and as a sentence that says how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

from ponder._utils.rounding import rounded_down
from ponder.analysis.fixed_step import StepForAll
from ponder.analysis.gain import Gain

__all__ = ["Outcome", "outcome_of", "sentence_of"]

Outcome: TypeAlias = Literal["exits pay", "one step is as good", "too few rows", "no policy is cheap enough"]


def outcome_of(gains: Sequence[Gain], margin: float) -> Outcome:
    """What the gains come to, where a gain up to the margin does not matter."""
    told = [gain for gain in gains if not math.isnan(gain.gain)]
    if not told:
        return "no policy is cheap enough"
    if any(_pays(gain) for gain in told):
        return "exits pay"
    wide = any(gain.high > max(margin, gain.rounding) for gain in told)
    return "too few rows" if wide else "one step is as good"


def sentence_of(gains: Sequence[Gain], fixed: StepForAll, metric: str, rows: int) -> str:
    """The outcome in one sentence, with its uncertainty.

    Args:
        gains: Policy against blind at each speed-up.
        fixed: The step that all rows may leave at.
        metric: Name of the score.
        rows: Their number.
    """
    told = [gain for gain in gains if not math.isnan(gain.gain)]
    match outcome_of(gains, fixed.margin):
        case "exits pay":
            pays = [gain for gain in told if _pays(gain)]
            best = max(pays, key=lambda gain: gain.gain)
            return (
                f"Early exits pay on this model: at ×{best.speedup:g} in steps {best.policy} scores {best.score:.4f} "
                f"({metric.replace('_', ' ')}; {fixed.full_depth:.4f} at full depth) where the best blind choice "
                f"there scores {best.blind:.4f} (gain {best.gain:+.4f}, {_interval(best)})"
                f"{_cut(pays, 'score', ', but ', ': use that there')}."
            )
        case "too few rows":
            widest = max(told, key=lambda gain: gain.high)
            return (
                f"These {rows} rows cannot tell whether early exits pay on this model: the gain of a policy over blind "
                f"at ×{widest.speedup:g} in steps is {widest.gain:+.4f}, {_interval(widest)}. Record more rows"
                f"{_cut(gains, 'blind', '; ')}."
            )
        case "one step is as good":
            best = max(told, key=lambda gain: gain.gain)
            return (
                f"On this model one fixed step is as good as any policy tried (the largest gain of a policy over blind "
                f"is {best.gain:+.4f} at ×{best.speedup:g} in steps, {_interval(best)}): {_use(fixed)}"
                f"{_cut(gains, 'blind', '; ')}."
            )
        case "no policy is cheap enough":
            return (
                f"No policy that was tried is cheap enough for any of the speed-ups: {_use(fixed)}"
                f"{_cut(gains, 'blind', '; ')}."
            )


def _pays(gain: Gain) -> bool:
    return gain.low > gain.rounding


def _interval(gain: Gain) -> str:
    return f"95% interval {gain.low:+.4f} to {gain.high:+.4f}"


def _cut(gains: Sequence[Gain], than: Literal["score", "blind"], before: str, after: str = "") -> str:
    """That the encoder cut there and trained so is better than a policy, or than the best blind choice, where it is."""
    beaten = [gain for gain in gains if gain.static > getattr(gain, than)]
    if not beaten:
        return ""
    cut = max(beaten, key=lambda gain: gain.static - float(getattr(gain, than)))
    return f"{before}at ×{cut.speedup:g} the encoder cut and trained so scores {cut.static:.4f}{after}"


def _use(fixed: StepForAll) -> str:
    """Which step to use for all rows, and what is known of it."""
    if fixed.step == fixed.num_steps:
        why = f"each earlier step is clearly worse, or may be worse by more than {fixed.margin:.4g}"
        return f"use FixedStep({fixed.step}), full depth, which scores {fixed.full_depth:.4f} ({why})"
    known = f"{fixed.change:+.4f}, with 97.5% confidence {rounded_down(fixed.at_least, 3)} or more"
    if fixed.greatest_loss is not None:
        known += (
            f" as long as no row to come loses more than {fixed.greatest_loss:.4g}, the most that one of these does"
        )
    return (
        f"use FixedStep({fixed.step}), which scores {fixed.score:.4f} where full depth scores {fixed.full_depth:.4f} "
        f"({known})"
    )
