"""`advise`: the way that makes a fine-tuned classifier cheaper on a user's texts, if any does.

A `Race` makes and times all ways; `_choose` picks the winner, and `_remarks` says what would help.
Each way is certified with confidence 1 − (1 − confidence) / ways, so that all promises hold
together, and the winner may be chosen after the fact.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch

from ponder._utils.rounding import rounded_up
from ponder._utils.rows import Text
from ponder.advice.material import Material
from ponder.advice.race import Race, Settings
from ponder.advice.specs import BEST_STEP, EXITS, INT8, Depth, WaySpec
from ponder.advice.timing import padded_positions
from ponder.advice.ways import SavableModel, Way
from ponder.integrations.transformers.exits import Progress
from ponder.statistics.bounds import rows_needed, upper_bound
from ponder.statistics.certificate import CONFIDENCE, LEVEL, Certificate

__all__ = ["Advice", "advise"]

_CERTIFY = 0.4
"""The share of the texts that certifies."""
_WAITED = 0.3
"""The share of the timing that this process waited for a core, above which load is reported."""
_BUSY = 1.3
"""Slowest round ÷ median round of the model as it is, above which load is reported."""
_COLUMNS = (
    "name",
    "disagreement",
    "promise",
    "accuracy",
    "megabytes",
    "needs_torch",
    "seconds",
    "alone",
    "speed_up",
)
_LEVELS = (0.005, 0.01, 0.02, 0.05)
_DEEP = 12
"""Layers of a model on which exits save much."""
_WASTEFUL = 1.2
"""Padding in the order of the file ÷ padding by length, above which length buckets are advised."""


@dataclass(frozen=True, eq=False)
class Advice:
    """Result of the race.

    Args:
        ways: Every way that ran, the model as it is first.
        winner: The recommended way.
        sentence: The reason, with its promise if it has one.
        remarks: What would help, and observations.
        texts: Numbers of texts that taught, chose and certified.
        threads: Threads of PyTorch and onnxruntime.
        changed: Certifying texts whose answer the winner changes, with both answers; 50 at most.
        curve: Numbers of texts that choose and certify, and the share of the model's work that the
            winner, or exits, would do with so many.
        moves: Levels of disagreement, and that share at each; only the requested level is promised.
        statement: The promise of the winner in one sentence; None without a promise.
        confidence: Probability with which all promises hold.
        taught: The texts that taught early heads and the student, repeats included.
    """

    ways: tuple[Way, ...]
    winner: Way
    sentence: str
    remarks: tuple[str, ...]
    texts: tuple[int, int, int]
    threads: int
    changed: tuple[tuple[str, str, str], ...] = field(repr=False, default=())
    curve: tuple[tuple[int, float], ...] = field(repr=False, default=())
    moves: tuple[tuple[float, float], ...] = field(repr=False, default=())
    statement: str | None = None
    confidence: float = CONFIDENCE
    taught: tuple[Text, ...] = field(repr=False, default=())

    @property
    def table(self) -> list[dict[str, object]]:
        """The ways as rows of plain values."""
        rows: list[dict[str, object]] = []
        for way in self.ways:
            row = {each: getattr(way, each) for each in _COLUMNS}
            rows.append({**row, "wins": way is self.winner})
        return rows

    def save(self, folder: str | Path) -> Path:
        """Write the winner as a folder for `ponder predict`, `serve`, `check` and `export`."""
        path = Path(folder)
        cast(SavableModel, self.winner.model).save(path)  # the blind mix never wins
        return path


def advise(
    model: str | Path,
    texts: Sequence[Text],
    labels: Sequence[object] | None = None,
    *,
    disagreement: float = LEVEL,
    confidence: float = CONFIDENCE,
    within: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Advice:
    """Race the model, int8, exits, a cascade with a student, and these in int8.

    Two rivals read nothing of a text: the best fixed step, and a blind mix of student and model. An
    interrupt (Ctrl-C) ends the race, and the ways that are ready are compared.

    Args:
        model: Folder or hub name of a fine-tuned classifier of texts, with its tokenizer.
        texts: Texts, or pairs of texts, like those to come, on which the model was not trained.
        labels: Names or numbers of their right classes, for accuracies; they are not used for
            training.
        disagreement: The share of answers that may differ from those of the model as it is, in (0,
            1).
        confidence: Probability with which all promises hold, in (0, 1).
        within: Seconds: take the most faithful way whose 95th percentile for a text by itself is
            below.
        seed: Seed of the split.
        progress: Called with a phase, the number of its parts that are done, and of all.

    Raises:
        ArgumentError: Fewer than 50 different texts, labels that the model lacks, or no classifier.
    """
    settings = Settings(disagreement, confidence, within, seed)
    report = progress or _silent
    folder = Path(tempfile.mkdtemp(prefix="ponder-advise-"))
    try:
        material = Material.prepare(str(model), list(texts), labels, seed=seed, progress=report)
        race = Race(material, settings, folder, report)
        race.run()
        advice = _advice_of(race)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    # The winner's graphs are read from the folder as long as the advice is used.
    weakref.finalize(advice, shutil.rmtree, folder, ignore_errors=True)
    return advice


def _silent(phase: str, done: int, total: int) -> None:
    """Show no progress."""


def _advice_of(race: Race) -> Advice:
    """Choose the winner of a race, and say what texts and other levels bring."""
    choice = _choose(race)
    winner = choice.way
    material = race.material
    level = race.settings.level
    # Costs by numbers of texts are those of the winner, or of exits if it is not certified by them.
    shown = EXITS
    if winner.spec.student or winner.spec.depth is Depth.EXITS:
        shown = winner.spec
    sizes = [len(race.recorded.ids) // divisor for divisor in (4, 2, 1)]
    curve = tuple((size, race.relative_cost(shown, size)) for size in sizes)
    levels = sorted({*_LEVELS, level})
    statement: str | None = None
    if winner is not race.ways[0] and winner.promise <= level:
        statement = choice.reason
    sides = race.recorded.sides
    return Advice(
        ways=tuple(race.ways),
        winner=winner,
        sentence=choice.reason,
        remarks=tuple(_remarks(race, curve, shown)),
        texts=(len(material.teaching), len(sides.choosing), len(sides.certifying)),
        threads=torch.get_num_threads(),
        changed=race.changed(winner.spec),
        curve=curve,
        moves=tuple((each, race.relative_cost(shown, level=each)) for each in levels),
        statement=statement,
        confidence=race.settings.confidence,
        taught=tuple(material.taught_texts),
    )


@dataclass(frozen=True, eq=False)
class _Choice:
    """The winner, and the reason in one sentence: its promise, if it has one."""

    way: Way
    reason: str


def _choose(race: Race) -> _Choice:
    """Choose the fastest way that keeps the promise, if it is faster beyond the noise of timing."""
    as_it_is = race.ways[0]
    if math.isnan(as_it_is.seconds[0]):
        return _Choice(as_it_is, "Nothing was timed: change nothing yet.")
    if race.settings.within is not None:
        return _choose_within(race, race.settings.within)
    level = race.settings.level
    faster = [way for way in race.ways[1:] if way.promise <= level and way.speed_up[1] > 1.0]
    if not faster:
        return _Choice(
            as_it_is,
            "Change nothing: no way is faster than the noise of its timing and keeps the promise.",
        )
    best = max(faster, key=lambda way: way.speed_up[0])
    explanations = {
        BEST_STEP: ", which is the model cut there",
        INT8: ", without exits",
    }
    explanation = explanations.get(best.spec, "")
    median, low, high = best.speed_up
    speed = f"×{median:.2f} in seconds ({low:.2f} to {high:.2f})"
    return _Choice(best, _promise(race, f"Take {best.name}{explanation}, {speed}"))


def _choose_within(race: Race, limit: float) -> _Choice:
    """Choose the most faithful way that is fast enough for single texts; promises come first."""
    as_it_is = race.ways[0]
    level = race.settings.level
    time = f"{1e3 * limit:.3g} ms"
    fast = [way for way in race.ways if way.alone[1] <= limit and not way.spec.blind]
    if not fast:
        return _Choice(as_it_is, _none_within(race, time))

    def rank(way: Way) -> tuple[bool, float, float]:
        without_promise = not way.promise <= level  # the promise of some ways is NaN
        return without_promise, way.disagreement, way.seconds[0]

    best = min(fast, key=rank)
    if best is as_it_is:
        return _Choice(
            best, f"Change nothing: the model as it is answers 95% of the texts within {time}."
        )
    rule = f"Take {best.name}, the most faithful within {time}"
    if best.promise <= level:
        return _Choice(best, _promise(race, rule))
    return _Choice(best, f"{rule}, without a promise, since no way with one is as fast.")


def _none_within(race: Race, time: str) -> str:
    """Say that no way is fast enough, and which one with a promise is the nearest."""
    sentence = f"No way answers a text within {time} here: change nothing."
    promised = [way for way in race.ways[1:] if way.promise <= race.settings.level]
    if promised:
        nearest = min(promised, key=lambda way: way.alone[1])
        sentence += (
            f" The nearest with a promise is {nearest.name}: 95% of the texts within "
            f"{1e3 * nearest.alone[1]:.3g} ms, ×{nearest.speed_up[0]:.2f}."
        )
    return sentence


def _promise(race: Race, rule: str) -> str:
    return Certificate(
        rule=rule,
        change="other answers than now",
        level=race.settings.level,
        confidence=race.settings.confidence,
        rows=len(race.material.certifying),
        unit="text",
    ).sentence


def _remarks(race: Race, curve: Sequence[tuple[int, float]], shown: WaySpec) -> list[str]:
    """Return advice on what would help, and observations.

    Args:
        race: The race.
        curve: Costs of a way by numbers of texts.
        shown: That way.
    """
    remarks: list[str] = []
    if race.stopped:
        remarks.append("Stopped: these ways were ready.")
    remarks += _remarks_on_texts(race, curve)
    steps = race.material.model.ponder.num_steps
    if steps < _DEEP and shown is EXITS and curve[-1][1] > 0.67:
        remarks.append(f"{steps} layers are few to skip: a twelve-layer model gains more by exits.")
    remarks += _remarks_on_time(race)
    return remarks


def _remarks_on_texts(race: Race, curve: Sequence[tuple[int, float]]) -> list[str]:
    """Return whether more texts, other texts or labels would help, and what int8 could promise."""
    remarks: list[str] = []
    material = race.material
    rows = len(material.certifying)
    level = race.settings.level
    confidence = race.settings.confidence_of_each
    needed = rows_needed(level, confidence)
    if rows < needed:
        enough = math.ceil(needed / _CERTIFY) + 5
        remarks.append(
            f"A promise of {rounded_up(100 * level)}% for every way needs {enough} different "
            f"texts, or more; there are {material.distinct}."
        )
    else:
        helps = curve[-1][1] < curve[-2][1] - 0.01
        remarks.append(f"More texts would {'help' if helps else 'bring little'}.")
    if race.student is None and len(set(material.answers.tolist())) < 2:
        remarks.append(
            "The model gives all of these texts one answer: give texts on which its answers differ."
        )
    quantised = race.promises.get(INT8)
    if quantised is not None and not quantised.met and rows >= needed:
        differ = int((quantised.answers != material.answers).sum())
        least = rounded_up(100 * upper_bound(differ, rows, confidence), 2)
        remarks.append(
            f"int8 alone changes the answers to {differ} of {rows} texts: {least}% is what it "
            "could promise."
        )
    if material.labels is None:
        remarks.append("With --labels the table shows accuracies.")
    return remarks


def _remarks_on_time(race: Race) -> list[str]:
    """Return observations on padding, cut texts and other load."""
    remarks: list[str] = []
    lengths = race.material.lengths
    shuffled = np.random.default_rng(0).permutation(lengths)
    padding = padded_positions(shuffled) / padded_positions(np.sort(lengths))
    if padding > _WASTEFUL:
        remarks.append(
            f"Length buckets: batches of similar length, as timed here, pad ×{padding:.1f} less "
            "than others."
        )
    truncated = race.material.truncated
    if truncated:
        remarks.append(f"{truncated} texts are longer than the model takes, and are cut.")
    median, _, slowest = race.ways[0].seconds
    if race.waited > _WAITED:
        remarks.append(
            f"The machine was busy: other processes had the core during {100 * race.waited:.0f}% "
            "of the timing, so a quiet machine takes less time. All ways were timed in turn, so "
            "the ratios hold."
        )
    elif slowest / median > _BUSY:
        remarks.append(
            f"The machine was busy: rounds differ by ×{slowest / median:.1f}. "
            "Run it again when it is quiet."
        )
    return remarks
