"""`Cascade`: stages from the cheapest to the most expensive, with thresholds and a promise.

A cascade is a run whose steps are its stages. `predict` runs them by the one loop of the library
(`ponder.running`, over a `StagesSource`), which asks a stage only about the rows of which no
earlier stage was certain. `record` asks all stages about all rows (`ponder.cascade.recording`), and
`certify` chooses and certifies thresholds on such a record (`ponder.calibration.cascades`). `save`
and `load` use `ponder.cascade.cascade_files`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self, TypeAlias

import numpy as np

from ponder._utils.files import reading
from ponder._utils.rows import class_numbers, listed
from ponder._utils.seals import digest_of_json
from ponder.calibration.cascades import CascadeReport, certify_cascade, check_costs
from ponder.calibration.records import Ints, Record
from ponder.calibration.risks import Missed, OtherAnswers, Risk, RiskLike
from ponder.cascade.cascade_files import FILE, read_cascade, write_cascade
from ponder.cascade.recording import RecordedStages, ids_of_inputs, record_stages, refer
from ponder.cascade.source import Deferring, StagesSource
from ponder.cascade.stages import CascadeStage, Input, stage_of
from ponder.errors import ArgumentError
from ponder.policies.base import ExitPolicy, LastStep, ModelSpec, PolicyBatch, all_within
from ponder.policies.combine import Certified, promise_about
from ponder.policies.stages import StageThresholds
from ponder.running.loop import Answers, run
from ponder.statistics.certificate import CONFIDENCE, LEVEL

__all__ = ["Cascade", "CascadeAnswers"]

NamedRisk: TypeAlias = Literal["disagreement", "error", "missed"]


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
        stages: Sequence[object],
        costs: Sequence[float] | None = None,
        *,
        policy: ExitPolicy | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.stages: list[CascadeStage] = [stage_of(stage) for stage in stages]
        self.classes = _first_names([classes, *(stage.classes for stage in reversed(self.stages))])
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
        rows = listed("inputs", inputs)
        if policy is None:
            policy = self.policy
        last = self._policy_of_last(policy)
        stages = len(self.stages)
        num_steps = stages
        if last is not None:
            # A policy that was certified on the steps of the last stage counts these.
            num_steps = stages - 1 + self.stages[-1].num_steps
        policy.check(ModelSpec(num_steps, has_features=False, has_context=False))
        source = StagesSource(self.stages, self.classes, rows, last, batch_size)
        batch = PolicyBatch(ids_of_inputs(rows), stages)
        answers = run(source, Deferring(policy, source), batch)
        return CascadeAnswers(answers.outputs, answers.exit_step, self.classes, source.errors)

    def record(self, inputs: Iterable[Input], labels: Sequence[object] | None = None) -> Record:
        """Run every stage on every input: a trajectory whose steps are the stages.

        Costs are measured by default.

        Stages are tried on five rows first, so that a broken one fails before the others cost
        anything. A row on which a stage fails later has no answer of that stage.

        The steps of a last stage with exits are there too, unless its own policy decides on these.

        Args:
            inputs: The inputs.
            labels: Names of the right classes, or None.
        """
        steps = self._policy_of_last(self.policy) is not None
        recorded = self._recorded(listed("inputs", inputs), labels, steps=steps)
        if self.costs is None:
            self.costs = recorded.seconds
        return recorded.record

    def certify(
        self,
        inputs: Iterable[Input] | Record,
        labels: Sequence[object] | None = None,
        *,
        risk: NamedRisk | Risk = "disagreement",
        level: float = LEVEL,
        confidence: float = CONFIDENCE,
        positive: str | int | Sequence[str | int] | None = None,
        reference: object | None = None,
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
            reference: A model whose full depth is to be kept instead of the last stage's, such as
                the model before int8.
            seed: Seed of the split.
        """
        chosen = self._risk(risk, positive, referred=reference is not None)
        costs = self.costs
        if isinstance(inputs, Record):
            record = inputs
        else:
            rows = listed("inputs", inputs)
            if reference is not None:
                referred = refer(stage_of(reference), rows, self.classes)
                rows = referred.inputs
                labels = referred.labels
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
        policy = report.policy.with_facts(weights=self.weights_digest())
        # Nothing raises from here on, so a refused call leaves policy and costs as they were.
        self.policy = policy
        self.costs = costs
        return replace(report, policy=policy)

    def weights_digest(self) -> str | None:
        """Return a digest of the weights of all stages; None if no stage has one."""
        digests = [stage.weights_digest() for stage in self.stages]
        if not any(digests):
            return None
        return digest_of_json(digests)

    def save(self, folder: str | Path) -> None:
        """Write the cascade with its stages, and the promise with a digest of each.

        The folder is replaced as a whole. A promise about other weights than those of the stages
        now is dropped, with a warning.
        """
        policy = promise_about(self.weights_digest, self.policy)
        write_cascade(folder, self.stages, self.costs, self.classes, policy)

    @classmethod
    def load(cls, folder: str | Path, stages: Sequence[object] | None = None) -> Self:
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
        saved = read_cascade(Path(folder), stages)
        with reading(Path(folder) / FILE, "cascade"):
            cascade = cls(saved.stages, saved.costs, policy=saved.policy, classes=saved.classes)
        cascade.policy = promise_about(cascade.weights_digest, saved.policy, saved.changed)
        return cascade

    def _recorded(
        self, rows: list[Input], labels: Sequence[object] | None, *, steps: bool
    ) -> RecordedStages:
        """Ask all stages about all rows; `labels` are names of the right classes."""
        numbers: Ints | None = None
        if labels is not None:
            numbers = np.array(class_numbers(labels, self.classes))
        return record_stages(self.stages, rows, self.classes, numbers, steps_of_last=steps)

    def _risk(
        self,
        risk: NamedRisk | Risk,
        positive: str | int | Sequence[str | int] | None,
        *,
        referred: bool,
    ) -> RiskLike:
        """Return the risk of a name, against the answers of a reference if there is one."""
        if risk == "missed":
            numbers = class_numbers(
                np.atleast_1d(np.asarray(positive)).tolist(), self.classes, "positive"
            )
            return Missed(numbers, reference="labels" if referred else "full_depth")
        if referred and risk == "disagreement":
            return OtherAnswers()
        return risk

    def _policy_of_last(self, policy: ExitPolicy) -> ExitPolicy | None:
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


def _first_names(candidates: Iterable[Sequence[str] | None]) -> tuple[str, ...]:
    """Return the first names of classes that are not None; none if there are no such."""
    for names in candidates:
        if names is not None:
            return tuple(map(str, names))
    return ()
