"""`Cascade`: stages from the cheapest to the most expensive, with thresholds and a promise.

A cascade is a run whose steps are its stages. `predict` runs them by the one loop of the library
(`ponder.running`), which asks a stage only about the rows that no earlier stage was sure of.
`record` asks all stages about all rows, and `certify` chooses and certifies thresholds on such a
record (`ponder.calibration.cascades`).
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ponder._utils.files import (
    ABOUT,
    digest_of_files,
    read_json,
    reading,
    replaced_folder,
    write_json,
)
from ponder._utils.plain import from_plain
from ponder._utils.rows import class_numbers, content_ids
from ponder._utils.seals import changed_parts, sealed
from ponder.calibration.cascades import CascadeReport, certify_cascade, check_costs
from ponder.calibration.records import Record
from ponder.calibration.risks import Missed, OtherAnswers, Risk, RiskLike
from ponder.calibration.statement import CONFIDENCE, LEVEL
from ponder.cascade.stages import CascadeStage, Input, StageAnswers, stage_of
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.policies.base import (
    ExitPolicy,
    LastStep,
    ModelSpec,
    PolicyBatch,
    PolicyWrapper,
    StepView,
    all_within,
)
from ponder.policies.combine import Certified, promise_about
from ponder.policies.stages import StageThresholds
from ponder.running.loop import Answers, run

__all__ = ["Cascade", "CascadeAnswers"]

Floats = NDArray[Any]
Ints = NDArray[Any]
_FILE = "cascade.json"
_FORMAT = "ponder-cascade-2"
_OWNED = (_FILE, "stage_*", *ABOUT)  # files that belong to one saving
_TRIED = 5  # rows on which stages are tried before the others are paid for
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, repr=False)
class CascadeAnswers(Answers):
    """The answers of a cascade, in the order of the inputs; outputs are log-probabilities.

    Args:
        errors: The last error of a stage about each row that some stage failed on, by position.
                Such a row passes to the next stage; if the last one fails, it has no label.
    """

    errors: Mapping[int, Exception] = field(default_factory=dict)

    @property
    def stage(self) -> Ints:
        """The stage that answered each row, `(rows,)`, from 1."""
        return np.asarray(self.exit_step)

    def __repr__(self) -> str:
        shares: list[int] = []
        if len(self):
            shares = np.bincount(self.stage)[1:].tolist()
        return (
            f"CascadeAnswers({len(self)} rows, by stage {shares}, {len(self.errors)} with errors)"
        )


class _Recorded(NamedTuple):
    """A record of all stages, and the seconds of each for one row, `(stages,)`."""

    record: Record
    seconds: tuple[float, ...]


class _Referred(NamedTuple):
    """The rows that a reference answers, and its answers."""

    rows: list[Input]
    labels: list[str]


class Cascade:
    """Models from the cheapest to the most expensive: each answers its certain rows.

    If the last stage has exits, `certify` chooses these anew: its steps are stages as well.

    Args:
        stages: Two or more of: models with `predict_proba` (scikit-learn, `Student`), models of
            ponder, exports, folders of any of these, other cascades, and functions from a list of
            inputs to probabilities or to names.
        costs: The cost of each stage for one input, 0 if it is free; measured by `certify` if None.
        policy: Decides which rows are answered; everything goes to the last stage if None.
        classes: Names of the classes; those of the last stage, or of the first that has names, if
            None.

    Example:
        >>> import numpy as np
        >>> def cheap(texts):
        ...     known = [0.99 if "card" in text else 0.5 for text in texts]
        ...     return np.array([[share, 1.0 - share] for share in known])
        >>> def ask(texts):  # a large model
        ...     return ["card" if "card" in text else "loan" for text in texts]
        >>> cascade = ponder.cascade.Cascade([cheap, ask], costs=[0, 20], classes=["card", "loan"])
        >>> texts = [f"{word} {n}" for n in range(500) for word in ("card", "loan")]
        >>> report = cascade.certify(texts, level=0.02)
        >>> report.met, cascade.predict(["my card", "a loan"]).stage.tolist()
        (True, [1, 2])
    """

    def __init__(
        self,
        stages: Sequence[Any],
        costs: Sequence[float] | None = None,
        *,
        policy: ExitPolicy | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.stages: list[CascadeStage] = [stage_of(stage) for stage in stages]
        named = [classes, *(stage.classes for stage in reversed(self.stages))]
        self.classes = next((tuple(map(str, names)) for names in named if names is not None), ())
        """Names of the classes, in the order of the probabilities."""
        count = len(self.stages)
        if count < 2 or len(costs or self.stages) != count or not self.classes:
            raise ArgumentError(
                "stages",
                expected="two or more, a cost for each if any, and names of the classes",
                got=f"{count} stages, costs {costs}, classes {self.classes}",
                remedy="Pass [cheap, large], classes=[…].",
            )
        self.costs: tuple[float, ...] | None = None
        if costs is not None:
            self.costs = tuple(check_costs(costs).tolist())
        if policy is None:
            policy = LastStep()
        self.policy: ExitPolicy = policy

    def predict(
        self, inputs: Iterable[Input], *, policy: ExitPolicy | None = None, batch_size: int = 256
    ) -> CascadeAnswers:
        """Answer every input at the first stage that is certain; deferred rows share batches.

        A stage that fails on a batch is called again row by row, and the rows on which it fails go
        to the next stage.

        Args:
            inputs: The inputs, texts for example.
            policy: Decides instead of the cascade's own policy.
            batch_size: Inputs of a call of a stage at most.
        """
        rows = _listed(inputs)
        if policy is None:
            policy = self.policy
        last = self._exits(policy)
        source = _Stages(self, rows, last, batch_size)
        count = len(self.stages)
        num_steps = count
        if last is not None:
            # A policy that was certified on the steps of the last stage counts these.
            num_steps = count - 1 + self.stages[-1].num_steps
        policy.check(ModelSpec(num_steps, has_features=False, has_context=False))
        answers = run(source, _Deferring(policy, source), PolicyBatch(_row_ids(rows), count))
        return CascadeAnswers(answers.outputs, answers.exit_step, self.classes, source.errors)

    def record(self, inputs: Iterable[Input], labels: Sequence[Any] | None = None) -> Record:
        """Run every stage on every input: a trajectory whose steps are the stages.

        Costs are measured by default.

        Stages are tried on five rows first, so that a broken one fails before the others cost
        anything. A row on which a stage fails later has no answer of that stage.

        The steps of a last stage with exits are there too, unless its own policy decides on these.

        Args:
            inputs: The inputs.
            labels: Names of the right classes, or None.
        """
        steps = self._exits(self.policy) is not None
        recorded = self._recorded(_listed(inputs), labels, steps=steps)
        if self.costs is None:
            self.costs = recorded.seconds
        return recorded.record

    def certify(
        self,
        inputs: Iterable[Input] | Record,
        labels: Sequence[Any] | None = None,
        *,
        risk: Literal["disagreement", "error", "missed"] | Risk = "disagreement",
        level: float = LEVEL,
        confidence: float = CONFIDENCE,
        positive: Any = None,
        reference: Any = None,
        seed: int = 0,
    ) -> CascadeReport:
        """Choose the thresholds, and certify how often answers differ from those of the last stage.

        A third of the inputs chooses the kind of policy and the order of thresholds; the others, on
        which nothing was chosen, certify by the exact binomial bound (see
        `ponder.calibration.certify_cascade`). Inputs are rows of the traffic: one that comes again
        counts again. The cascade has the policy afterwards; if `certify` raises, it has the one
        that it had.

        Args:
            inputs: Inputs like those to come, which taught no stage; or their record.
            labels: Names of the right classes, for ``"error"``.
            risk: ``"disagreement"`` with the last stage (no labels), ``"error"``, or ``"missed"``:
                of the inputs whose reference is in the `positive` classes, the share that gets
                another answer; or a `Risk`. An input that the last stage does not answer is
                lost if an earlier stage answers it, and one that an earlier stage does not answer
                is deferred. Inputs without an answer of `reference` are left out.
            level: Upper limit of the risk.
            confidence: Probability with which the promise holds.
            positive: The class or classes of ``"missed"``.
            reference: A model whose full depth is to be kept, in the place of the last stage's:
                that before int8.
            seed: Seed of the split.
        """
        chosen = self._risk(risk, positive, referred=reference is not None)
        costs = self.costs
        if isinstance(inputs, Record):
            record = inputs
        else:
            rows = _listed(inputs)
            if reference is not None:
                rows, labels = self._referred(rows, stage_of(reference))
            recorded = self._recorded(rows, labels, steps=self.stages[-1].num_steps > 1)
            record = recorded.record
            if costs is None:
                costs = recorded.seconds
        if costs is None:
            raise ArgumentError(
                "costs",
                expected="the cost of each stage",
                got="None",
                remedy="Pass costs=[1, 20] to the cascade, or the inputs themselves to certify.",
            )
        report = certify_cascade(
            record, costs, risk=chosen, level=level, confidence=confidence, seed=seed
        )
        policy = replace(report.policy, weights=self.weights_digest())
        # Nothing raises from here on, so a refused call leaves policy and costs as they were.
        self.policy = policy
        self.costs = costs
        return replace(report, policy=policy)

    def weights_digest(self) -> str | None:
        """Return a digest of the weights of all stages; None if no stage has one."""
        digests = [stage.weights_digest() for stage in self.stages]
        if not any(digests):
            return None
        return hashlib.sha256("\n".join(each or "" for each in digests).encode()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write the cascade with its stages, and the promise with a digest of each.

        The folder is replaced as a whole. A promise about other weights than those of the stages
        now is dropped, with a warning.
        """
        policy = promise_about(self.weights_digest, self.policy)
        with replaced_folder(folder, [_FILE], _OWNED) as new:
            stages = list[dict[str, str | None]]()
            for number, stage in enumerate(self.stages, 1):
                name = f"stage_{number}"
                if stage.can_be_written:
                    stage.save(new / name)
                    stages.append({"folder": name, "digest": digest_of_files(new / name)})
                else:
                    stages.append({"folder": None, "digest": None})
            settings = {"stages": stages, "costs": self.costs, "classes": self.classes}
            data = sealed(settings | {"policy": policy.to_dict()}, {})
            write_json(new / _FILE, _FORMAT, data)

    @classmethod
    def load(cls, folder: str | Path, stages: Sequence[Any] | None = None) -> Self:
        """Read a cascade that `save` wrote.

        A promise is dropped, with a warning, if a stage is another than the one that it is about
        (if its files have changed, or if one that was written is given by `stages` and has other
        weights), or if the settings were edited. That a function is the same cannot be seen, and
        is for you to see to.

        Args:
            folder: The folder.
            stages: One for each stage: None for what was written, and the stage itself if it is a
                function, which could not be written.
        """
        path = Path(folder) / _FILE
        data = read_json(path, _FORMAT, "cascade")
        with reading(path, "cascade"):
            said = from_plain(_Settings, data)
            policy = ExitPolicy.from_dict(said.policy)
        written = said.stages
        given: list[Any] = [None] * len(written)
        if stages is not None:
            given = list(stages)
        missing = [
            number
            for number, (stage, entry) in enumerate(zip(given, written, strict=False), 1)
            if stage is None and entry.folder is None
        ]
        if missing or len(given) != len(written):
            raise ArgumentError(
                "stages",
                expected=f"{len(written)} stages, and None only for those that were written",
                got=f"{len(given)} stages, none for the functions at {missing}",
                remedy="Pass stages=[None, ask], say.",
            )
        read = list[CascadeStage]()
        for stage, entry in zip(given, written, strict=True):
            if stage is None:
                read.append(stage_of(Path(folder) / str(entry.folder)))
            else:
                read.append(stage_of(stage))
        with reading(path, "cascade"):
            made = cls(read, said.costs, policy=policy, classes=said.classes)

        def changed() -> list[str]:
            stages_now = enumerate(zip(given, written, strict=True), 1)
            found = [
                f"stage {number}"
                for number, (stage, entry) in stages_now
                if _has_changed(Path(folder), entry, stage)
            ]
            return [*found, *changed_parts(data, lambda name: None)]

        made.policy = promise_about(made.weights_digest, policy, changed)
        return made

    def _recorded(
        self, rows: list[Input], labels: Sequence[Any] | None, *, steps: bool
    ) -> _Recorded:
        """Ask all stages about all rows, each about five of them first.

        Args:
            rows: The inputs.
            labels: Names of the right classes.
            steps: Whether the steps of the last stage are recorded.
        """
        numbers: Ints | None = None
        if labels is not None:
            numbers = np.array(class_numbers(labels, self.classes))
        with_steps = [False] * (len(self.stages) - 1) + [steps]
        tried = list[_Tried]()
        for number, stage in enumerate(self.stages, 1):
            name = f"stage {number}"
            all_steps = with_steps[number - 1]
            tried.append(_tried(stage, rows[:_TRIED], self.classes, name, steps=all_steps))
        columns = list[Floats]()
        seconds = list[float]()
        for number, stage in enumerate(self.stages, 1):
            first = tried[number - 1]
            column = self._finished(stage, first, rows, steps=with_steps[number - 1])
            seconds.append(column.seconds)
            outputs = column.answers.outputs
            if outputs.ndim == 2:  # a stage of one step
                outputs = outputs[:, None]
            columns.append(outputs)
            _log(number, len(rows), column.answers.errors)
        record = Record(
            np.concatenate(columns, axis=1),
            None,
            _row_ids(rows),
            labels=numbers,
            task="classification",
            content_ids=True,
        )
        return _Recorded(record, tuple(seconds))

    def _finished(
        self, stage: CascadeStage, first: _Tried, rows: list[Input], *, steps: bool
    ) -> _Tried:
        """Return the answers of a stage to all rows, and its seconds for one row.

        Args:
            stage: The stage.
            first: Its answers to the first five.
            rows: The inputs.
            steps: Whether its steps are recorded.
        """
        start = time.perf_counter()
        others = stage.answer(rows[_TRIED:], self.classes, steps=steps)
        seconds = time.perf_counter() - start
        count = len(rows) - _TRIED
        if count > 0:
            seconds_of_row = seconds / count  # the first call warms up
        else:
            seconds_of_row = first.seconds / max(len(rows), 1)
        errors = dict(first.answers.errors)
        errors |= {row + _TRIED: error for row, error in others.errors.items()}
        outputs = np.concatenate([first.answers.outputs, others.outputs])
        return _Tried(StageAnswers(outputs, errors), seconds_of_row)

    def _referred(self, rows: list[Input], reference: CascadeStage) -> _Referred:
        """Return the rows that a reference answers, and its answers."""
        policy = reference.full_depth
        tried = _tried(reference, rows[:_TRIED], self.classes, "the reference", policy=policy)
        others = reference.answer(rows[_TRIED:], self.classes, policy)
        outputs = np.concatenate([tried.answers.outputs, others.outputs])
        answered = np.flatnonzero(~np.isnan(outputs).any(axis=-1))
        numbers = outputs[answered].argmax(axis=1)
        return _Referred([rows[n] for n in answered], [self.classes[n] for n in numbers])

    def _risk(self, risk: Any, positive: Any, *, referred: bool) -> RiskLike:
        """Return the risk of a name, against the answers of a reference if there is one."""
        if risk == "missed":
            numbers = class_numbers(np.atleast_1d(positive).tolist(), self.classes, "positive")
            return Missed(numbers, reference="labels" if referred else "full_depth")
        if referred and risk == "disagreement":
            return OtherAnswers()
        chosen: RiskLike = risk
        return chosen

    def _exits(self, policy: ExitPolicy) -> ExitPolicy | None:
        """Return the policy of the last stage's steps; None if its own decides, or it has none."""
        before = len(self.stages) - 1
        steps = self.stages[-1].num_steps
        inside = policy.policy if isinstance(policy, Certified) else policy
        if steps > 1 and inside.exit_of_all(before + steps) == before + steps:
            return LastStep()  # promises are about its full depth
        for part in all_within(policy):
            if isinstance(part, StageThresholds) and len(part.thresholds) > before:
                return replace(part, thresholds=part.thresholds[before:])
        return None


@dataclass(frozen=True)
class _Written:
    """A stage in `cascade.json`: its folder and a digest of it, or None without a folder."""

    folder: str | None
    digest: str | None


@dataclass(frozen=True)
class _Settings:
    """The contents of `cascade.json`."""

    stages: tuple[_Written, ...]
    costs: tuple[float, ...] | None
    classes: tuple[str, ...]
    policy: dict[str, Any]
    digests: dict[str, str] = field(default_factory=dict)


class _Stages:
    """The rows of a cascade that no stage has answered yet: a `Source`.

    A stage is called when its output is first read, and once, for the running rows alone.

    Args:
        cascade: The cascade.
        inputs: The inputs.
        last: The policy of the steps of the last stage; None if its own decides.
        batch_size: Inputs of a call of a stage at most.
    """

    mask: None = None
    policy_context: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self, cascade: Cascade, inputs: list[Input], last: ExitPolicy | None, batch_size: int
    ) -> None:
        self.errors: dict[int, Exception] = {}
        """The last error about a row, by its position among the inputs."""
        self._cascade = cascade
        self._inputs = inputs
        self._last = last
        self._batch_size = batch_size
        self._rows: Ints = np.arange(len(inputs))
        self._number = 0
        self._output: Floats | None = None

    def advance(self, step: int) -> None:
        """Go to a stage, from 1."""
        self._number = step
        self._output = None

    def output(self) -> Floats:
        """Return log-probabilities of the rows, `(rows, classes)`; NaN if the stage fails."""
        if self._output is None:
            self._output = self._answer()
        return self._output

    def output_of(self, index: Ints) -> Floats:
        """Return log-probabilities of some running rows."""
        return self.output()[index]

    def features(self) -> Any:
        """Refuse: a stage has no features."""
        raise NotImplementedError

    def hazard_logit(self) -> Any:
        """Refuse: a stage has no hazard."""
        raise NotImplementedError

    def keep(self, index: Ints) -> None:
        """See `Source.keep`."""
        self._rows = self._rows[index]
        if self._output is not None:
            self._output = self._output[index]

    def _answer(self) -> Floats:
        """Call the stage on the running rows, and keep its errors."""
        stages = self._cascade.stages
        number = self._number
        if not len(self._rows):
            return np.zeros((0, len(self._cascade.classes)))
        policy: ExitPolicy | None = None
        if number == len(stages):
            policy = self._last
        inputs = [self._inputs[row] for row in self._rows]
        answers = stages[number - 1].answer(
            inputs, self._cascade.classes, policy, batch_size=self._batch_size
        )
        self.errors |= {int(self._rows[place]): error for place, error in answers.errors.items()}
        _log(number, len(inputs), answers.errors)
        return answers.outputs


@dataclass(frozen=True)
class _Deferring(PolicyWrapper):
    """The policy inside, but rows on which their stage fails stay for the next one."""

    source: _Stages

    def exit_of_all(self, num_steps: int) -> int | None:
        # At an earlier stage not all rows exit, since it can fail on some.
        inside = self.policy.exit_of_all(num_steps)
        if inside != num_steps:
            return None
        return inside

    def decide(self, step: StepView, state: Any) -> tuple[Any, Any]:
        mask, state = self.policy.decide(step, state)
        if not np.any(mask):
            return False, state
        return mask & ~np.isnan(self.source.output()).any(axis=-1), state


class _Tried(NamedTuple):
    """Answers of a stage to some rows, and the seconds that they took."""

    answers: StageAnswers
    seconds: float


def _tried(
    stage: CascadeStage,
    rows: list[Input],
    classes: Sequence[str],
    name: str,
    *,
    policy: ExitPolicy | None = None,
    steps: bool = False,
) -> _Tried:
    """Return the answers to a few rows; raise if the stage fails on all of them."""
    start = time.perf_counter()
    answers = stage.answer(rows, classes, policy, steps=steps)
    if rows and len(answers.errors) == len(rows):
        first = answers.errors[0]
        if isinstance(first, ArgumentError):
            raise first
        raise ArgumentError(
            "stages",
            expected=f"{name} to answer some of the first {len(rows)} inputs, on which it is tried",
            got=f"{type(first).__name__}: {first}",
            remedy="Call it on a few inputs: it must return names, or (rows, classes).",
        ) from first
    return _Tried(answers, time.perf_counter() - start)


def _has_changed(folder: Path, entry: _Written, given: Any) -> bool:
    """Return whether a stage is seen to be another than the one that was written.

    Weights of stages in memory are compared by the certificate's own digest.
    """
    if given is None:
        return digest_of_files(folder / str(entry.folder)) != entry.digest
    return entry.folder is not None and stage_of(given).weights_digest() is None


def _listed(inputs: Iterable[Input]) -> list[Input]:
    """Return inputs as a list, since a Series has an index, and generators have no length."""
    if isinstance(inputs, str | Mapping) or hasattr(inputs, "columns"):
        raise ArgumentTypeError(
            "inputs",
            expected="a list, array, Series or generator of inputs",
            got=f"a {type(inputs).__name__}",
            remedy='Pass [text], or one column: table["text"].',
        )
    return list(inputs)


def _row_ids(rows: Sequence[Input]) -> Ints:
    return content_ids([str(each) for each in rows])


def _log(number: int, rows: int, errors: Mapping[int, Exception]) -> None:
    """Log that a stage failed, once for all rows of a call."""
    if errors:
        first = next(iter(errors.values()))
        _logger.warning(
            "Stage %d gave no answer to %d of %d rows; the first: %r",
            *(number, len(errors), rows, first),
        )
