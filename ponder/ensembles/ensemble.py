"""`Ensemble`: members answer in blocks, and rows whose answer is settled leave.

An ensemble is a run whose steps are blocks of members. `predict` runs them by the one loop of the
library (`ponder.running`, over a `MembersSource`), so a block is asked about the rows alone that
still run. `record` asks all members about all rows, and `certify` chooses the threshold on such a
record: the answer that the whole ensemble gives, on all but a share of rows like these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ponder._utils.checks import check_int
from ponder._utils.files import reading
from ponder._utils.plain import from_plain
from ponder._utils.rows import CHOOSE_AND_CERTIFY, split
from ponder.calibration.certifying import certainties, certify
from ponder.calibration.control import RiskControl
from ponder.calibration.draws import certify_draws
from ponder.calibration.records import Record
from ponder.calibration.risks import RiskLike
from ponder.calibration.votes import standard_error
from ponder.ensembles.members import Members, Rows, members_of
from ponder.errors import ArgumentError
from ponder.policies.base import ExitPolicy, LastStep, ModelSpec, PolicyBatch
from ponder.policies.files import read_policy, write_policy
from ponder.policies.lead import Lead
from ponder.running.loop import Answers, run
from ponder.statistics.certificate import CONFIDENCE, LEVEL
from ponder.tasks import task_named

__all__ = ["Ensemble", "EnsembleAnswers"]

Floats: TypeAlias = NDArray[Any]
Ints: TypeAlias = NDArray[Any]


@dataclass(frozen=True, eq=False)
class EnsembleAnswers(Answers):
    """The answers of an ensemble; `exit_step` counts the members that were asked, `(rows,)`."""

    @property
    def labels(self) -> Any:
        """The predicted classes, `(rows,)`, as the model names them; of a regression, numbers."""
        if len(self.names):
            return np.asarray(self.names)[self.outputs.argmax(-1)]
        return self.outputs[:, 0]


class Ensemble:
    """An ensemble whose members are asked in blocks, until the answer is settled.

    Args:
        model: A fitted forest, `GradientBoostingClassifier`, `VotingClassifier` or
            `BaggingClassifier` of scikit-learn; or a function `(rows, start, stop)` → class numbers
            `(rows, members)` or probabilities `(rows, members, classes)`: samples of a language
            model, passes with dropout.
        block: Members that are asked at once.
        members: Number of members of a function.
        classes: Classes of a function.
        policy: Decides when a row leaves. By default rows leave whose answer no remaining member
            can change (`Lead`), which needs no promise; with ordered members, none.

    Example:
        >>> import numpy as np
        >>> from sklearn.ensemble import RandomForestClassifier
        >>> rows = np.random.default_rng(0).normal(size=(1200, 2))
        >>> forest = RandomForestClassifier(100, random_state=0)
        >>> forest = forest.fit(rows[:200], rows[:200, 0] > 0)
        >>> ensemble = ponder.Ensemble(forest)
        >>> ensemble.certify(rows[200:800], level=0.02).met
        True
        >>> answers = ensemble.predict(rows[800:])
        >>> bool((answers.labels == forest.predict(rows[800:])).mean() > 0.98)
        True
        >>> bool(answers.exit_step.mean() < 40)  # of 100 trees
        True
    """

    def __init__(
        self,
        model: Any,
        *,
        block: int = 10,
        members: int | None = None,
        classes: Any = (),
        policy: ExitPolicy | None = None,
    ) -> None:
        check_int("block", block)
        self.members: Members = members_of(model, members, classes)
        self.block = block
        if policy is None:
            policy = LastStep()
            if self.members.in_any_order and len(self.members.classes):
                policy = Lead(self.num_steps)
        self.policy: ExitPolicy = policy

    @property
    def num_steps(self) -> int:
        """Number of blocks."""
        return -(-self.members.count // self.block)

    def predict(self, rows: Rows, *, policy: ExitPolicy | None = None) -> EnsembleAnswers:
        """Ask the members block by block; a row leaves once the policy says so.

        Args:
            rows: The inputs.
            policy: Decides instead of the ensemble's own policy.
        """
        if policy is None:
            policy = self.policy
        task = task_named(self._task)
        spec = ModelSpec(self.num_steps, task, has_features=self._is_regression, has_context=False)
        policy.check(spec)
        source = MembersSource(self.members, self.block, self.members.prepared(rows))
        batch = PolicyBatch(np.arange(len(rows)), self.num_steps, task)
        found = run(source, policy, batch)
        members = np.minimum(found.exit_step * self.block, self.members.count)
        return EnsembleAnswers(found.outputs, members, self.members.classes)

    def record(self, rows: Rows, labels: Any = None) -> Record:
        """Ask all members about all rows: a record whose steps are blocks.

        Args:
            rows: The inputs.
            labels: The right classes, as the model names them, or numbers; None if unknown.
        """
        source = MembersSource(self.members, self.block, self.members.prepared(rows))
        outputs = list[Floats]()
        features = list[Floats]()
        for step in range(1, self.num_steps + 1):
            source.advance(step)
            outputs.append(source.output())
            if self._is_regression:
                features.append(source.features())
        numbers = None
        if labels is not None:
            numbers = np.asarray(labels)
            if not self._is_regression:
                numbers = np.searchsorted(self.members.classes, numbers)
        return Record(
            np.stack(outputs, axis=1),
            None,
            np.arange(len(rows)),
            features=np.stack(features, axis=1) if features else None,
            labels=numbers,
            task=self._task,
            weights=self.members.digest(),
        )

    def certify(
        self,
        rows: Rows,
        labels: Any = None,
        *,
        risk: RiskLike | None = None,
        level: float = LEVEL,
        confidence: float = CONFIDENCE,
        tolerance: float | None = None,
    ) -> RiskControl:
        """Choose when rows leave, and certify how often answers differ from the whole ensemble's.

        Votes leave by their lead, and means by their standard error, whose thresholds are tested on
        all rows. For ordered members a third of the rows chooses among confidence, margin and
        entropy, and the others certify. The ensemble has the policy afterwards; if this raises, it
        has the one that it had.

        Args:
            rows: Inputs like those to come, on which the model was not fitted.
            labels: The right classes, for ``risk="error"`` or ``"error_gap"``.
            risk: As for `ponder.control_risk`; by default ``"disagreement"`` with all members, and
                for numbers `Moved(tolerance)`.
            level: Upper limit of the risk.
            confidence: Probability with which the promise holds.
            tolerance: For numbers: by how much a mean may differ from that of all members.
        """
        record = self.record(rows, labels)
        if self.members.in_any_order:
            found = certify_draws(
                record, tolerance=tolerance, risk=risk, level=level, confidence=confidence
            )
        else:
            choosing, certifying = split(record.row_ids, CHOOSE_AND_CERTIFY)
            found = certify(
                record.map(lambda values: values[choosing]),
                record.map(lambda values: values[certifying]),
                certainties(record),
                risk=risk or "disagreement",
                level=level,
                confidence=confidence,
            )
        self.policy = found.policy
        return found

    def save(self, file: str | Path) -> None:
        """Write the policy, with its certificate, as a JSON file; the model is yours to keep."""
        write_policy(file, self.policy, block=self.block, members=self.members.digest())

    @classmethod
    def load(
        cls, file: str | Path, model: Any, *, members: int | None = None, classes: Any = ()
    ) -> Self:
        """Read what `save` wrote, for the same model.

        Args:
            file: The file.
            model: The model, as it was then; read it with what scikit-learn advises, skops say.
            members: Number of members of a function.
            classes: Classes of a function.

        Raises:
            ArgumentError: The model has other members. Functions are not compared.
            CheckpointError: The file is damaged, or was edited.
        """
        policy, settings = read_policy(file)
        with reading(file, "ensemble"):
            saved = from_plain(_Settings, settings)
        made = cls(model, block=saved.block, members=members, classes=classes, policy=policy)
        if made.members.digest() != saved.members:
            raise ArgumentError(
                "model",
                expected=f"the members with which {file} was written",
                got=f"others, in {model!r}",
                remedy="Certify this model: Ensemble(model).certify(rows).",
            )
        return made

    @property
    def classes(self) -> Any:
        """The classes, as the model names them; empty for numbers."""
        return self.members.classes

    @property
    def _is_regression(self) -> bool:
        return not len(self.members.classes)

    @property
    def _task(self) -> str:
        return "regression" if self._is_regression else "classification"


@dataclass(frozen=True)
class _Settings:
    """The settings of a file, without the policy."""

    block: int
    members: str | None


class MembersSource:
    """The rows of an ensemble that still run: a `ponder.running.Source` whose steps are blocks.

    Args:
        members: The members.
        block: Members of a step; the last step has those that are left.
        rows: The inputs, as `Members.prepared` gives them.
    """

    mask: None = None
    policy_context: Mapping[str, Floats] = MappingProxyType({})

    def __init__(self, members: Members, block: int, rows: Rows) -> None:
        self._members = members
        self._block = block
        self._rows = rows
        self._taken = 0
        self._sums: Floats = members.sums(rows, 0, 0)

    def advance(self, step: int) -> None:
        """Ask the members up to the end of a block, about the running rows."""
        stop = min(step * self._block, self._members.count)
        self._sums = self._sums + self._members.sums(self._rows, self._taken, stop)
        self._taken = stop

    def output(self) -> Floats:
        """Return logarithms of the shares, logits or means of the members so far."""
        return self._members.outputs(self._sums, max(self._taken, 1))

    def output_of(self, index: Ints) -> Floats:
        """Return the outputs of some running rows."""
        return self._members.outputs(self._sums[index], self._taken)

    def features(self) -> Floats:
        """Return the standard error of each mean, `(rows, 1)`."""
        return standard_error(self._sums, self._taken)

    def hazard_logit(self) -> NoReturn:
        """Refuse: members have no hazard."""
        raise NotImplementedError

    def keep(self, index: Ints) -> None:
        """Keep some of the running rows."""
        self._sums = self._sums[index]
        self._rows = self._rows[index]
