"""A share of the traffic goes on to full depth after its answer was given, and the policy steps back when it must.

`ponder.monitor.Audit` says which answers are audited and when the promise no longer holds; `AuditPlan` says to which
policies the service steps back; `TrafficAudit` runs the audits through the service's own batches.
"""

from __future__ import annotations

import copy
import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ponder._utils.validation import check_int, check_real
from ponder.analysis.policy_grid import at_threshold, leaves_later, part_with_threshold
from ponder.errors import ArgumentError, PonderError
from ponder.inference.streaming import StreamOutput
from ponder.monitor import Audit
from ponder.monitor.order import check_order
from ponder.monitor.state_file import StateFile
from ponder.parts.recording import same_answers
from ponder.parts.tasks import Task
from ponder.policies import Certified, ExitPolicy, LastStep
from ponder.serving.batcher import Batcher

__all__ = ["AuditPlan", "TrafficAudit"]

_FORMAT = "ponder-served-audit-1"
_SAFER = (1 / 2, 1 / 4)
_AHEAD = 1000  # answers that the file counts beforehand, so that no crash brings the draws of the last ones again
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class AuditPlan:
    """What is promised, and what answers when the promise no longer holds.

    Args:
        audit: The promise, and the share of the answers that is audited; each service begins with a copy of it.
        policies: The policies, from the cheapest, which answers first, to the safest; full depth comes after the last
            by itself.
        path: A JSON file with the state, read where it exists, and written after every audit and every few hundred
            answers; None for none. One open service keeps it, and others are refused.
        tolerance: In regression, the distance by which an answer may differ from that of full depth.
        max_running: Audits that may run at a time; the answers that would exceed it are not audited.

    Raises:
        ArgumentError: No policies, or a number out of range.

    Example:
        >>> plan = AuditPlan(ponder.monitor.Audit(level=0.01), (policies.Confidence(0.8), policies.Confidence(0.95)))
        >>> len(plan.policies), plan.audit.level
        (2, 0.01)
        >>> AuditPlan.of_certificate(policies.Confidence(0.8)) is None  # nothing is certified
        True
    """

    audit: Audit
    policies: tuple[ExitPolicy, ...]
    path: Path | None = None
    tolerance: float = 0.0
    max_running: int = 32

    def __post_init__(self) -> None:
        object.__setattr__(self, "policies", tuple(self.policies))
        if not self.policies:
            raise ArgumentError(
                "policies", expected="at least one policy", got="none", remedy="Give them from cheapest to safest."
            )
        check_order(self.policies)
        check_real("tolerance", self.tolerance)
        check_int("max_running", self.max_running)

    @property
    def file(self) -> StateFile | None:
        """Where the state survives a restart; None where it does not."""
        return None if self.path is None else StateFile(self.path, _FORMAT, self.policies)

    def policy_at(self, stage: int) -> ExitPolicy:
        """The policy that answers in a stage, from 0; full depth after the last.

        Example:
            >>> plan = AuditPlan(ponder.monitor.Audit(level=0.01), (policies.Confidence(0.8),))
            >>> plan.policy_at(0), plan.policy_at(1)
            (Confidence(threshold=0.8), LastStep())
        """
        return self.policies[stage] if stage < len(self.policies) else LastStep()

    def resumed(self) -> Audit:
        """An audit of its own for a service, as the plan, or its file, has it.

        The file is written at once, so that a place that cannot be is told at once.

        Raises:
            ArgumentError: The file cannot be written.
            CheckpointError: It holds the state of another promise or of other policies, or no state at all.
        """
        own = copy.deepcopy(self.audit)
        if self.file is None:
            return own
        found = self.file.read(own)
        self.file.write(found.to_dict())
        return found

    @classmethod
    def of_certificate(cls, policy: ExitPolicy, share: float = 0.01, path: Path | None = None) -> AuditPlan | None:
        """The plan that a certified policy comes with, or None where nothing is certified about full depth.

        Level and confidence are those of the certificate, and the safer policies have thresholds that the certificate
        tested before its own, the latest exits first: half-way and a quarter of the way to it. A policy of several
        thresholds, or one whose threshold is not the value that was tested, as of many callables, has no safer one but
        full depth.

        Args:
            policy: The policy of a model.
            share: The share of answers that is audited, in (0, 1].
            path: A JSON file with the state of the audits, as for the plan.
        """
        if not isinstance(policy, Certified) or policy.risk != "disagreement" or policy.threshold_value is None:
            return None
        if policy.confidence is None or isinstance(policy.policy, LastStep):
            return None
        return cls(Audit(policy.level, policy.confidence, share), (policy, *_safer(policy)), path)


def _safer(policy: Certified) -> Iterator[ExitPolicy]:
    """Policies that leave later than a certified one, from the cheapest, as far as its own threshold was tested."""
    inside, tested = policy.policy, [value for value, _, _ in policy.path]
    moved, chosen = part_with_threshold(inside), policy.threshold_value
    threshold = None if moved is None else moved.tunable
    if threshold is None or getattr(moved, threshold.field, None) != chosen or chosen not in tested:
        return
    for value in dict.fromkeys(tested[int(tested.index(chosen) * part)] for part in _SAFER):
        try:
            one = at_threshold(inside, value)
        except PonderError:  # a value of a callable, which is none of the threshold
            return
        if leaves_later(inside, one):
            yield one


@dataclass(eq=False)
class TrafficAudit:
    """The audits of one service. Answers are noted by its event loop, and judged by a thread of the audits' own.

    Args:
        plan: What is promised.
        task: What outputs mean.
        batcher: The batcher that runs audits, beside the traffic.

    Raises:
        ArgumentError: A task whose answers cannot be compared, or a file that cannot be written.
        CheckpointError: The file holds the state of another promise or of other policies, or no state at all.
        PonderError: Another service keeps the file.
    """

    plan: AuditPlan
    task: Task
    batcher: Batcher
    running: int = 0
    skipped: int = 0
    _audit: Audit = field(init=False)
    _renewed_at: int = field(init=False, default=-1)

    def __post_init__(self) -> None:
        if not self.task.comparable and not (self.task.numbers and self.plan.tolerance):
            raise ArgumentError(
                "audit",
                expected="a task whose answers are the same or not, or regression with a tolerance",
                got=f"the task {self.task.name!r}",
                remedy="Pass tolerance=0.1, say, in the unit of the outputs, or serve without an audit.",
            )
        self._file = self.plan.file
        with ExitStack() as held:
            if self._file is not None:
                held.enter_context(self._file.held())
            self._audit = self.plan.resumed()
            self._held = held.pop_all()
        self._lock = threading.Lock()
        self._judge = ThreadPoolExecutor(1, thread_name_prefix="ponder-audit")
        self._save()

    @property
    def stage(self) -> int:
        """Number of the policy that answers now, from 0; the number of policies at full depth."""
        return self._audit.stage

    @property
    def policy(self) -> ExitPolicy:
        """The policy that answers now."""
        return self.plan.policy_at(self.stage)  # the stage is read once: the thread of the audits may end it

    def state(self) -> dict[str, Any]:
        """Where the audits stand, for `/healthz` and metrics."""
        with self._lock:
            audit = self._audit
            low, high = audit.bounds
            return {
                "level": audit.level,
                "confidence": audit.confidence,
                "share": audit.share,
                "stage": audit.stage,
                "full_depth": audit.stage >= len(self.plan.policies),
                "audits": audit.audits,
                "disagreements": audit.disagreements,
                "low": low,
                "high": high,
                "wealth": audit.wealth,
                "skipped": self.skipped,
            }

    def seen(self, examples: Sequence[Any], outputs: Sequence[Tensor], stage: int) -> None:
        """Note answers that the policy of a stage gave, and send the chosen ones on to full depth."""
        for example, output in zip(examples, outputs, strict=True):
            if stage != self.stage or stage >= len(self.plan.policies):
                return
            with self._lock:
                drawn = self._audit.chosen()
                chosen = drawn and self.running < self.plan.max_running
                self.running += chosen
                self.skipped += drawn - chosen
                renewed = self._audit.answers == self._renewed_at
            if renewed:
                with suppress(RuntimeError):  # that thread has ended: `close` writes the count
                    self._judge.submit(self._save)
            if chosen:
                self._send(example, output, stage)

    def close(self) -> None:
        """Judge what the batcher, closed before, has answered, keep the state, and leave its file to others."""
        with self._held:
            self._judge.shutdown()
            self._save(ahead=0)

    def _send(self, example: Any, output: Tensor, stage: int) -> None:
        try:
            future = self.batcher.submit(example, policy=LastStep(), block=False)
        except (queue.Full, PonderError):  # the traffic goes first, and what stops takes no more
            with self._lock:
                self.running -= 1
                self.skipped += 1
            return
        future.add_done_callback(lambda full: self._judge.submit(self._judged, full, output, stage))

    def _judged(self, full: Future[StreamOutput], output: Tensor, stage: int) -> None:
        """Record one audit; an answer of a policy that was stepped back from says nothing of the one after it."""
        try:
            if full.cancelled():
                return
            given, deepest = (each[None] for each in (output, full.result().output))
            agrees = bool(same_answers(self.task, given, deepest, tolerance=self.plan.tolerance))
            with self._lock:
                if stage != self._audit.stage:
                    return
                left = self._audit.record(not agrees)
            self._save()
            if left is not None:
                _log.warning("%s. %r answers from now on.", left.statement, self.policy)
        except Exception:
            _log.exception("an audit failed")
        finally:
            with self._lock:
                self.running -= 1

    def _save(self, ahead: int = _AHEAD) -> None:
        """Write the state, with the count of answers that the next process goes on from if this one crashes."""
        if self._file is None:
            return
        with self._lock:
            state = self._audit.to_dict()
            self._renewed_at = self._audit.answers + _AHEAD // 2  # in time, where the thread that writes is busy
            state["answers"] += ahead
        try:
            self._file.write(state)
        except PonderError:
            _log.exception("the state of the audits could not be kept")
