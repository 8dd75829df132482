"""`advise`: race the ways to make a fine-tuned classifier cheaper, on a user's texts and machine, each with a promise.

The texts are split once, by content: to teach, to choose, to certify. Every way that is certified is so at
1 − (1 − confidence) / ways, so that all promises hold at once, whichever wins.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ponder._utils.rounding import rounded_up
from ponder._utils.rows import split
from ponder.calibration.agreement import candidates, certify
from ponder.calibration.bounds import rows_needed, upper_bound
from ponder.calibration.control import RiskControl
from ponder.calibration.records import Record
from ponder.cascade.cascade import Cascade
from ponder.cascade.stages import Stage, stage_of
from ponder.cascade.student import Embeddings, Student
from ponder.deploy.exporting import onnx, quantized
from ponder.deploy.runtime import OnnxModel
from ponder.errors import ArgumentError
from ponder.integrations.transformers import PonderForSequenceClassification, fit_exits
from ponder.integrations.transformers.exits import distinct
from ponder.integrations.transformers.texts import load_tokenizer, max_positions, tokenize
from ponder.policies import FixedStep, LastStep

__all__ = ["Advice", "Way", "advise"]

_SHARES = (0.4, 0.2, 0.4)  # as `fit_exits`
_ROUNDS, _TIMED, _ALONE = 3, 128, 16  # rounds of timing, texts in batches of 32 and by themselves
_CERTIFIED = 7  # ways that are certified


@dataclass(frozen=True, eq=False)
class Way:
    """One way to answer, with what it costs and promises.

    Args:
        name: Its name.
        model: What answers: an object with `predict`; None of a mix that is computed from two others.
        disagreement: Share of the certifying texts that are answered otherwise than by the model as it is.
        promise: The disagreement that is promised at most; NaN where nothing is.
        accuracy: Share of the labelled certifying texts that are answered right; NaN without labels.
        megabytes: Size of what has to be deployed.
        needs_torch: Whether PyTorch has to be.
        seconds: Seconds for a text in batches of 32: median, lowest and highest of the rounds.
        alone: Seconds for a text by itself: median and 95th percentile.
        speed_up: Seconds of the model as it is ÷ these, of the same rounds: median, lowest, highest.
    """

    name: str
    model: Any
    disagreement: float
    promise: float
    accuracy: float
    megabytes: float
    needs_torch: bool
    seconds: tuple[float, float, float] = (math.nan,) * 3
    alone: tuple[float, float] = (math.nan,) * 2
    speed_up: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True, eq=False)
class Advice:
    """Result of the race.

    Args:
        ways: Every way that ran, the model as it is first.
        winner: The way to take.
        sentence: Why it is, in words.
        remarks: What would help.
        texts: Number of texts that taught, chose and certified.
        threads: Threads of PyTorch and onnxruntime.
        changed: Certifying texts whose answer the winner changes, with both answers; 50 at most.
    """

    ways: tuple[Way, ...]
    winner: Way
    sentence: str
    remarks: tuple[str, ...]
    texts: tuple[int, int, int]
    threads: int
    changed: tuple[tuple[str, str, str], ...] = field(repr=False, default=())

    @property
    def table(self) -> list[dict[str, Any]]:
        """The ways as rows of plain values."""
        names = (
            "name",
            "seconds",
            "alone",
            "speed_up",
            "disagreement",
            "promise",
            "accuracy",
            "megabytes",
            "needs_torch",
        )
        return [{**{name: getattr(way, name) for name in names}, "wins": way is self.winner} for way in self.ways]

    def save(self, folder: str | Path) -> Path:
        """Write the winner as a folder that `ponder predict`, `serve`, `check` and `export` take."""
        target, model = Path(folder), self.winner.model
        if isinstance(model, OnnxModel):
            target.mkdir(parents=True, exist_ok=True)
            for name in (*model.manifest.files(),):
                (target / name).write_bytes((model.folder / name).read_bytes())
            model.manifest.write(target)
        elif isinstance(model, Cascade):
            model.save(target)
        else:
            model.save_pretrained(target)
        return target


def advise(
    model: str | Path,
    texts: Sequence[str],
    labels: Sequence[str] | None = None,
    *,
    disagreement: float = 0.01,
    confidence: float = 0.95,
    within: float | None = None,
    seed: int = 0,
    progress: Callable[[str], object] | None = None,
) -> Advice:
    """Race the model as it is, int8, exits, a cascade with a student, and these in int8, and say which to take.

    Rivals that look at nothing are in the race: the best fixed step, and a coin between student and model.

    Args:
        model: Folder or hub name of a fine-tuned classifier of texts, with its tokenizer.
        texts: Texts like those to come, which did not teach the model.
        labels: Names of their right classes, which tell accuracies; nothing learns from them.
        disagreement: The share of answers that may differ from those of the model as it is, in (0, 1).
        confidence: Probability with which all promises hold, in (0, 1).
        within: Seconds: take the most faithful way whose 95th percentile for a text by itself is below.
        seed: Seed of the split.
        progress: Called with the name of what begins.

    Raises:
        ArgumentError: Fewer than 50 different texts, or no classifier of one class a text.
    """
    say = progress or (lambda name: None)
    say("exits")
    race = _Race(str(model), list(texts), labels, disagreement, 1.0 - (1.0 - confidence) / _CERTIFIED, seed)
    with tempfile.TemporaryDirectory(prefix="ponder-advise-") as scratch:
        try:
            for way in race.ways(Path(scratch), say):
                race.found.append(way)
        except KeyboardInterrupt:  # what is finished is shown
            if not race.found:
                raise
        say("timing")
        ways = _timed(race.found, race.timing)
        ways += race.blind(ways)
        winner, sentence = _choose(ways, disagreement, within)
        made = replace(winner, model=_kept(winner.model))
        ways = [made if way is winner else way for way in ways]
        changed = race.changed(made)
    sizes = (len(race.teach), len(race.choose), len(race.check))
    return Advice(tuple(ways), made, sentence, race.remarks(confidence), sizes, torch.get_num_threads(), changed)


class _Race:
    """The texts, their split, and the answers of the model as it is."""

    def __init__(
        self, source: str, texts: list[str], labels: Sequence[str] | None, level: float, confidence: float, seed: int
    ) -> None:
        self.level, self.confidence, self.seed, self.found = level, confidence, seed, list[Way]()
        self.exits = PonderForSequenceClassification.from_finetuned(source)
        self.exits.tokenizer = load_tokenizer(source)
        task: Any = self.exits.ponder.task
        if not task.one_class:
            raise ArgumentError(
                "MODEL",
                expected="a classifier of one class a text",
                got=f"the task {task.name!r}",
                remedy="Rerankers and regressions have no answers that are the same or not.",
            )
        rows = tokenize(self.exits.tokenizer, texts, max_positions(self.exits.encoder)).rows
        first, ids, _ = distinct(rows)
        self.rows, self.texts = [rows[n] for n in first], [texts[n] for n in first]
        self.labels = None if labels is None else [labels[n] for n in first]
        if len(self.texts) < 50:
            raise ArgumentError(
                "--texts", expected="50 different texts or more", got=str(len(self.texts)), remedy="Give more."
            )
        self.teach, self.choose, self.check = (np.asarray(side) for side in split(ids, _SHARES, seed))
        names: Any = self.exits.config.id2label or {}
        self.names = [str(names[place]) for place in sorted(names)]
        self.timing = [self.texts[n] for n in self.check[:_TIMED]]

    def ways(self, scratch: Path, say: Callable[[str], object]) -> Iterator[Way]:
        """Yield every way once it can answer."""
        report = fit_exits(self.exits, self.rows, disagreement=self.level, confidence=self.confidence, seed=self.seed)
        policy, self.exits.policy = self.exits.policy, LastStep()
        record = self.exits.record([self.rows[n] for n in (*self.choose, *self.check)])
        self.outputs = np.asarray(record.outputs, dtype=np.float64)
        self.answers = self.outputs[:, -1].argmax(-1)
        plain = _Plain(self.exits)
        size = sum(weight.numel() * weight.element_size() for weight in self.exits.encoder.parameters()) / 1e6
        yield self._way("as it is", plain, self.answers, 0.0, size, True)
        yield self._fixed(plain, size)
        steps = record.exit_steps(policy)
        self.early = self.outputs[np.arange(len(steps)), steps - 1]
        self.exits.policy = policy
        promise = report.level if report.met else math.nan
        yield self._way("exits", self.exits, self.early.argmax(-1), promise, size, True)
        say("student")
        self.student = self._student(plain)
        yield from self._cascades(plain, self.outputs[:, -1], size, True, "")
        say("int8")
        yield from self._int8(scratch, say)

    def _way(
        self, name: str, model: Any, answers: NDArray[Any], promise: float, size: float, torch_needed: bool
    ) -> Way:
        own, right = answers[len(self.choose) :], self.answers[len(self.choose) :]
        accuracy = math.nan
        if self.labels is not None:
            accuracy = float(
                np.mean([self.names[a] == str(self.labels[n]) for a, n in zip(own, self.check, strict=True)])
            )
        return Way(name, model, float((own != right).mean()), promise, accuracy, size, torch_needed)

    def _fixed(self, plain: Any, size: float) -> Way:
        """The earliest step at which all texts may exit: a rival that looks at nothing."""
        record = Record(self.outputs, None, np.arange(len(self.outputs)))
        choosing, certifying = self._sides(record)
        family = [(FixedStep, range(record.num_steps, 0, -1))]
        found = certify(choosing, certifying, family, level=self.level, confidence=self.confidence)
        model = _At(self.exits, found.policy.policy)
        steps = record.exit_steps(found.policy.policy)
        answers = self.outputs[np.arange(len(steps)), steps - 1].argmax(-1)
        return self._way("best fixed step", model, answers, self.level if found.met else math.nan, size, True)

    def _student(self, plain: Any) -> Student | None:
        texts = [self.texts[n] for n in self.teach]
        matrix = self.exits.encoder.get_input_embeddings().weight.detach().float().numpy()
        fast = getattr(self.exits.tokenizer, "backend_tokenizer", None)
        embeddings = None if fast is None else Embeddings(fast.to_str(), np.ascontiguousarray(matrix))
        taught = plain.predict(texts).labels
        if len(set(taught)) < 2:
            return None  # a model of one answer needs no student
        return Student.fit(texts, taught, embeddings=embeddings, seed=self.seed)

    def _cascades(
        self, model: Any, outputs: NDArray[Any], size: float, torch_needed: bool, ending: str
    ) -> Iterator[Way]:
        """The student before a model, and before it with its exits."""
        if self.student is None:
            return
        own = sum(array.nbytes for array in (self.student.weights, self.student.idf)) / 1e6
        own += self.student.tokens.matrix.nbytes / 1e6 if self.student.tokens is not None else 0.0
        texts = [self.texts[n] for n in np.concatenate([self.choose, self.check])]
        cheap = Cascade([self.student, _stage(model, self.names)], costs=[1.0, 2.0]).stages[0]
        sure = np.log(np.maximum(cheap.probabilities(texts, self.names), 1e-12))
        behind = [(f"cascade{ending}", model, outputs)]
        if not ending:
            behind.append(("cascade + exits", self.exits, self.early))
        for name, dear, answers in behind:
            whole = Record(np.stack([sure, answers, self.outputs[:, -1]], axis=1), None, np.arange(len(texts)))
            found = self._certified(whole, costs=[1.0, 30.0, 30.0])
            inside = found.policy.policy
            cascade = Cascade([self.student, _stage(dear, self.names)], costs=[1.0, 30.0], policy=_inside(inside))
            steps = whole.exit_steps(inside)
            made = whole.outputs[np.arange(len(steps)), steps - 1].argmax(-1)
            promise = self.level if found.met else math.nan
            yield self._way(name, cascade, made, promise, size + own, torch_needed)

    def _int8(self, scratch: Path, say: Callable[[str], object]) -> Iterator[Way]:
        self.exits.policy, kept = LastStep(), self.exits.policy
        teach = [self.texts[n] for n in self.teach[:200]]
        try:
            full = onnx(self.exits, scratch / "fp32", example=None)
        finally:
            self.exits.policy = kept
        folder = quantized(full, scratch / "int8", calibration=teach)
        texts = [self.texts[n] for n in np.concatenate([self.choose, self.check])]
        whole, eight = OnnxModel(folder), OnnxModel(folder)
        record = whole.record(texts)
        last = record.outputs[:, -1]
        size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        differs = int((last.argmax(-1) != self.answers)[len(self.choose) :].sum())
        bound = upper_bound(differs, len(self.check), self.confidence)
        yield self._way("int8", whole, last.argmax(-1), self.level if bound <= self.level else math.nan, size, False)
        say("int8 + exits")
        outputs = np.concatenate([record.outputs, self.outputs[:, -1:]], axis=1)
        found = self._certified(Record(outputs, None, np.arange(len(texts))))
        eight.policy = _inside(found.policy.policy)
        steps = Record(outputs, None, np.arange(len(texts))).exit_steps(found.policy.policy)
        made = outputs[np.arange(len(steps)), steps - 1].argmax(-1)
        yield self._way("int8 + exits", eight, made, self.level if found.met else math.nan, size, False)
        yield from self._cascades(whole, last, size, False, " in int8")

    def _certified(self, record: Record, costs: Sequence[float] | None = None) -> RiskControl:
        """Choose and certify a policy whose reference, the last column, is never asked for."""
        choosing, certifying = self._sides(record)
        last = record.num_steps - 1
        found: list[Any] = candidates(choosing)[1:4]
        kinds = [(like.before(last), values) for like, values in found]
        return certify(choosing, certifying, kinds, level=self.level, confidence=self.confidence, costs=costs)

    def _sides(self, record: Record) -> tuple[Record, Record]:
        cut = len(self.choose)
        parts = (slice(cut), slice(cut, None))
        return tuple(  # type: ignore[return-value]
            replace(record, outputs=record.outputs[part], row_ids=np.asarray(record.row_ids)[part]) for part in parts
        )

    def blind(self, ways: Sequence[Way]) -> list[Way]:
        """A coin between student and model that changes as many answers as were asked for: it looks at nothing."""
        cascade = next((way for way in ways if way.name == "cascade"), None)
        if cascade is None or self.student is None:
            return []
        sure = self.student.predict_proba([self.texts[n] for n in self.check]).argmax(1)
        wrong = np.mean([self.student.classes[a] for a in sure] != self._named(self.answers[len(self.choose) :]))
        share = min(1.0, self.level / max(float(wrong), 1e-9))
        kept = 1.0 - share
        median, low, high = (max(second * kept, 1e-9) for second in ways[0].seconds)
        speed = 1.0 / max(kept, 1e-9)
        way = Way("coin", None, share * float(wrong), math.nan, math.nan, cascade.megabytes, True)
        return [replace(way, seconds=(median, low, high), speed_up=(speed,) * 3)]

    def changed(self, way: Way) -> tuple[tuple[str, str, str], ...]:
        """Certifying texts whose answer a way changes."""
        texts = [self.texts[n] for n in self.check]
        own = way.model.predict(texts).labels
        plain = self._named(self.answers[len(self.choose) :])
        return tuple([(t, p, str(o)) for t, p, o in zip(texts, plain, own, strict=True) if p != o][:50])

    def remarks(self, confidence: float) -> tuple[str, ...]:
        """What would help."""
        needed, there = rows_needed(self.level, self.confidence), len(self.check)
        said = []
        if there < needed:
            said.append(
                f"A promise of {rounded_up(100 * self.level)}% needs {math.ceil(needed / _SHARES[2])} different texts, "
                f"or more; there are {len(self.texts)}."
            )
        elif len(self.texts) < 5000:
            said.append("More texts, which need no labels, teach better exits and students.")
        if len(set(self.answers.tolist())) < 2:
            said.append("The model gives all of these texts one answer: give texts on which its answers differ.")
        if self.labels is None:
            said.append("With --labels the table shows accuracies.")
        return tuple(said)

    def _named(self, answers: NDArray[Any]) -> list[str]:
        return [self.names[a] for a in answers]


class _Plain:
    """The model as it is, without exits: what every way is compared with."""

    def __init__(self, exits: Any) -> None:
        self.exits, self.config = exits, exits.config

    def predict(self, texts: Sequence[str], batch_size: int = 32) -> Any:
        tokenizer, encoder = self.exits.tokenizer, self.exits.encoder
        order = sorted(range(len(texts)), key=lambda n: -len(texts[n]))
        outputs: list[Any] = [None] * len(texts)
        names = self.exits.adapter.inputs
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                places = order[start : start + batch_size]
                limit = min(max_positions(encoder), tokenizer.model_max_length)
                batch = tokenizer(
                    [texts[n] for n in places], padding=True, truncation=True, max_length=limit, return_tensors="pt"
                )
                logits = encoder(**{name: batch[name] for name in batch if name in names}).logits
                for n, row in zip(places, logits, strict=True):
                    outputs[n] = row
        stacked = torch.stack(outputs)
        return _Found(stacked, [self.config.id2label[n] for n in stacked.argmax(-1).tolist()])

    def save_pretrained(self, folder: Path) -> None:
        self.exits.encoder.save_pretrained(folder)
        self.exits.tokenizer.save_pretrained(folder)


@dataclass(frozen=True, eq=False)
class _Found:
    outputs: Any
    labels: list[str]


class _At:
    """A model with exits under another policy."""

    def __init__(self, model: Any, policy: Any) -> None:
        self.model, self.policy, self.config = model, policy, model.config

    def predict(self, texts: Sequence[str], batch_size: int = 32) -> Any:
        return self.model.predict(texts, batch_size=batch_size, policy=self.policy)

    def save_pretrained(self, folder: Path) -> None:
        self.model.policy = self.policy
        self.model.save_pretrained(folder)


def _stage(model: Any, names: Sequence[str]) -> Stage:
    stage = stage_of(model)
    stage.classes = tuple(names)
    return stage


def _inside(policy: Any) -> Any:
    """A policy without the bound of its last column."""
    return policy.policy if hasattr(policy, "step") and hasattr(policy, "policy") else policy


def _timed(ways: Sequence[Way], texts: Sequence[str]) -> list[Way]:
    """Time all ways in turn, round by round, in batches of 32 and text by text."""
    batches: list[list[float]] = [[] for _ in ways]
    alone: list[list[float]] = [[] for _ in ways]
    for way in ways:
        way.model.predict(texts[:32])
    for _ in range(_ROUNDS):
        for place, way in enumerate(ways):
            start = time.perf_counter()
            way.model.predict(texts)
            batches[place].append((time.perf_counter() - start) / len(texts))
            for text in texts[:_ALONE]:
                start = time.perf_counter()
                way.model.predict([text])
                alone[place].append(time.perf_counter() - start)
    made = []
    for way, took, single in zip(ways, batches, alone, strict=True):
        ratios = np.array(batches[0]) / np.array(took)
        made.append(
            replace(
                way,
                seconds=(float(np.median(took)), min(took), max(took)),
                alone=(float(np.median(single)), float(np.quantile(single, 0.95))),
                speed_up=(float(np.median(ratios)), float(ratios.min()), float(ratios.max())),
            )
        )
    return made


def _choose(ways: Sequence[Way], level: float, within: float | None) -> tuple[Way, str]:
    plain = ways[0]
    if within is not None:
        fast = [way for way in ways if way.alone[1] <= within]
        if not fast:
            return plain, f"No way answers a text within {1e3 * within:.3g} ms here: change nothing."
        best = min(fast, key=lambda way: (way.disagreement, way.seconds[0]))
        held = "with its promise" if best.promise <= level else "without a promise, since none fits"
        return best, f"{best.name}: the most faithful within {1e3 * within:.3g} ms, {held}."
    sound = [way for way in ways[1:] if way.model is not None and way.promise <= level and way.speed_up[1] > 1.0]
    if not sound:
        return plain, "Change nothing: no way is faster than the noise of its timing and keeps the promise."
    best = max(sound, key=lambda way: way.speed_up[0])
    more = " No exits are needed: the cut model does it." if best.name == "best fixed step" else ""
    return best, (
        f"{best.name}: ×{best.speed_up[0]:.2f} in seconds ({best.speed_up[1]:.2f} to {best.speed_up[2]:.2f}), and "
        f"other answers than now on at most {rounded_up(100 * level)}% of texts like these.{more}"
    )


def _kept(model: Any) -> Any:
    """A winner whose files outlive the race."""
    if isinstance(model, OnnxModel):
        folder = Path(tempfile.mkdtemp(prefix="ponder-winner-"))
        for name in model.manifest.files():
            (folder / name).write_bytes((model.folder / name).read_bytes())
        model.manifest.write(folder)
        return OnnxModel(folder)
    if isinstance(model, Cascade):
        model.stages = [_kept_stage(stage) for stage in model.stages]
    return model


def _kept_stage(stage: Stage) -> Stage:
    model = _kept(stage.model)
    if model is stage.model:
        return stage
    made = _stage(model, stage.classes or ())
    made.folder = model.folder
    return made
