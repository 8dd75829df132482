"""`advise`: the way that makes a fine-tuned classifier cheaper on a user's texts, if any does.

The texts are split once, by content: to teach, to choose, to certify. Every way that is certified
is so at 1 − (1 − confidence) / ways, so that all promises hold at once, whichever wins.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ponder._utils.rounding import rounded_up
from ponder.advice.timing import padded_positions
from ponder.advice.ways import Progress, Race, Way
from ponder.calibration.bounds import rows_needed, upper_bound
from ponder.calibration.statement import CONFIDENCE, LEVEL, Promise

__all__ = ["Advice", "advise"]

_CERTIFY = 0.4  # of the texts
_BUSY = 1.3  # the slowest round ÷ the median of the model as it is
_LEVELS = (0.005, 0.01, 0.02, 0.05)


@dataclass(frozen=True, eq=False)
class Advice:
    """Result of the race.

    Args:
        ways: Every way that ran, the model as it is first.
        winner: The way to take.
        sentence: Why it is, in words.
        remarks: What would help, and observations.
        texts: Numbers of texts that taught, chose and certified.
        threads: Threads of PyTorch and onnxruntime.
        changed: Certifying texts whose answer the winner changes, with both answers; 50 at most.
        curve: What texts brought: numbers of texts that choose and certify, and the share of the
            model's work that the winner, or exits, would do by them.
        moves: Levels of disagreement, and that share at each; only the level that was asked for is
            promised.
        statement: What the winner promises, in one sentence; None if it promises nothing.
        confidence: Probability with which all promises hold.
        taught: The texts that taught early heads and the student.
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
    taught: tuple[Any, ...] = field(repr=False, default=())

    @property
    def table(self) -> list[dict[str, Any]]:
        """The ways as rows of plain values."""
        rows = [
            {name: value for name, value in vars(way).items() if name != "model"}
            for way in self.ways
        ]
        return [
            {**row, "wins": way is self.winner} for row, way in zip(rows, self.ways, strict=True)
        ]

    def save(self, folder: str | Path) -> Path:
        """Write the winner as a folder for `ponder predict`, `serve`, `check` and `export`."""
        self.winner.model.save(Path(folder))
        return Path(folder)


def advise(
    model: str | Path,
    texts: Sequence[Any],
    labels: Sequence[Any] | None = None,
    *,
    disagreement: float = LEVEL,
    confidence: float = CONFIDENCE,
    within: float | None = None,
    deep: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Advice:
    """Race the model, int8, exits, a cascade with a student, and these in int8.

    Rivals that look at nothing are in the race: the best fixed step, and a blind mix of student and
    model. An interrupt (Ctrl-C) ends it, and the ways that are ready are compared.

    Args:
        model: Folder or hub name of a fine-tuned classifier of texts, with its tokenizer.
        texts: Texts, or pairs of texts, like those to come, which did not teach the model.
        labels: Names or numbers of their right classes, which tell accuracies; nothing learns from
            them.
        disagreement: The share of answers that may differ from those of the model as it is, in (0,
            1).
        confidence: Probability with which all promises hold, in (0, 1).
        within: Seconds: take the most faithful way whose 95th percentile for a text by itself is
            below.
        deep: Also teach a model of half the layers, which takes minutes.
        seed: Seed of the split.
        progress: Called with a phase, the number of its parts that are done, and of all.

    Raises:
        ArgumentError: Fewer than 50 different texts, labels that the model lacks, or no classifier.
    """
    folder = Path(tempfile.mkdtemp(prefix="ponder-advise-"))
    try:
        options: Any = {
            "level": disagreement,
            "confidence": confidence,
            "within": within,
            "deep": deep,
            "seed": seed,
        }
        race = Race(
            str(model), list(texts), labels, folder, progress or (lambda *_: None), **options
        )
        race.run()
        advice = _advised(race, confidence)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(advice, shutil.rmtree, folder, ignore_errors=True)
    return advice


def _advised(race: Race, confidence: float) -> Advice:
    winner, sentence = _choose(race, confidence)
    name = winner.name if winner.name.endswith(("exits", "cascade")) else "exits"
    sizes = [len(race.seen.ids) // part for part in (4, 2, 1)]
    curve = tuple((size, race.relative_cost(name, size)) for size in sizes)
    moves = tuple(
        (each, race.relative_cost(name, None, each)) for each in sorted({*_LEVELS, race.level})
    )
    return Advice(
        tuple(race.found),
        winner,
        sentence,
        tuple(_remarks(race, curve, name)),
        (len(race.teach), *map(len, race.seen.sides)),  # type: ignore[arg-type]
        torch.get_num_threads(),
        race.changed(winner.name),
        curve,
        moves,
        statement=sentence
        if winner is not race.found[0] and winner.promise <= race.level
        else None,
        confidence=confidence,
        taught=tuple(race.teach),
    )


def _choose(race: Race, confidence: float) -> tuple[Way, str]:
    """Return the way to take, and why, in one sentence: its promise, if it has one."""
    plain = race.found[0]
    ways = race.found
    level = race.level
    if math.isnan(plain.seconds[0]):
        return plain, "Nothing was timed: change nothing yet."
    if race.within is not None:
        return _within(race, race.within, confidence)
    sound = [way for way in ways[1:] if way.promise <= level and way.speed_up[1] > 1.0]
    if not sound:
        return (
            plain,
            "Change nothing: no way is faster than the noise of its timing and keeps the promise.",
        )
    best = max(sound, key=lambda way: way.speed_up[0])
    more = {
        "best fixed step": ", which is the model cut there",
        "half the layers": ", a smaller model",
        "int8": ", without exits",
    }
    speed = f"×{best.speed_up[0]:.2f} in seconds ({best.speed_up[1]:.2f} to {best.speed_up[2]:.2f})"
    rule = f"Take {best.name}{more.get(best.name, '')}, {speed}"
    return best, _promise(race, rule, confidence)


def _within(race: Race, limit: float, confidence: float) -> tuple[Way, str]:
    """Return the most faithful way that is fast enough for single texts; promises come first."""
    time = f"{1e3 * limit:.3g} ms"
    fast = [way for way in race.found if way.alone[1] <= limit and way.name != "blind mix"]
    if fast:
        best = min(
            fast, key=lambda way: (not way.promise <= race.level, way.disagreement, way.seconds[0])
        )
        if best is race.found[0]:
            said = f"Change nothing: the model as it is answers 95% of the texts within {time}."
            return best, said
        rule = f"Take {best.name}, the most faithful within {time}"
        if best.promise <= race.level:
            return best, _promise(race, rule, confidence)
        return best, f"{rule}, without a promise, since no way with one is as fast."
    kept = [way for way in race.found[1:] if way.promise <= race.level]
    said = f"No way answers a text within {time} here: change nothing."
    if kept:
        near = min(kept, key=lambda way: way.alone[1])
        said += (
            f" The nearest with a promise is {near.name}: 95% of the texts within "
            f"{1e3 * near.alone[1]:.3g} ms, ×{near.speed_up[0]:.2f}."
        )
    return race.found[0], said


def _promise(race: Race, rule: str, confidence: float) -> str:
    change = "other answers than now"
    return Promise(rule, change, race.level, confidence, len(race.check)).sentence


def _remarks(race: Race, curve: Sequence[tuple[int, float]], name: str) -> list[str]:
    """Return advice on what would help, and observations.

    Args:
        race: The race.
        curve: Costs of the best way by numbers of texts.
        name: The name of the best way.
    """
    remarks = ["Stopped: these ways were ready."] if race.stopped else []
    remarks += _remarks_on_texts(race, curve)
    steps = race.model.ponder.num_steps
    if steps < 12 and name == "exits" and curve[-1][1] > 0.67:
        remarks.append(f"{steps} layers are few to skip: a twelve-layer model gains more by exits.")
    remarks += _remarks_on_time(race)
    return remarks


def _remarks_on_texts(race: Race, curve: Sequence[tuple[int, float]]) -> list[str]:
    """Return whether more texts, other texts or labels would help, and what int8 could promise."""
    remarks: list[str] = []
    rows = len(race.check)
    needed = rows_needed(race.level, race.confidence)
    if rows < needed:
        level = rounded_up(100 * race.level)
        many = math.ceil(needed / _CERTIFY) + 5
        remarks.append(
            f"A promise of {level}% for every way needs {many} different texts, or more; there are "
            f"{race.sides.distinct}."
        )
    else:
        helps = curve[-1][1] < curve[-2][1] - 0.01
        remarks.append(f"More texts would {'help' if helps else 'bring little'}.")
    if race.student is None and len(set(race.answers.tolist())) < 2:
        remarks.append(
            "The model gives all of these texts one answer: give texts on which its answers differ."
        )
    quantised = race.made.get("int8")
    if quantised is not None and not quantised.met and rows >= needed:
        differ = int((quantised.answers != race.answers).sum())
        least = rounded_up(100 * upper_bound(differ, rows, race.confidence), 2)
        remarks.append(
            f"int8 alone changes the answers to {differ} of {rows} texts: {least}% is what it "
            "could promise."
        )
    if race.labels is None:
        remarks.append("With --labels the table shows accuracies.")
    return remarks


def _remarks_on_time(race: Race) -> list[str]:
    """Return observations on padding, cut texts and other load."""
    remarks: list[str] = []
    order = np.random.default_rng(0).permutation(race.lengths)
    padding = padded_positions(order) / padded_positions(np.sort(race.lengths))
    if padding > 1.2:
        remarks.append(
            f"Length buckets: batches of similar length, as timed here, pad ×{padding:.1f} less "
            "than others."
        )
    if race.cut:
        remarks.append(f"{race.cut} texts are longer than the model takes, and are cut.")
    seconds = race.found[0].seconds
    ratio = seconds[2] / seconds[0]
    if ratio > _BUSY:
        remarks.append(
            f"The machine was busy: rounds differ by ×{ratio:.1f}. Run it again when it is quiet."
        )
    return remarks
