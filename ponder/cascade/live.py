"""`Live`: a cheap model in front of a reference on a stream, with a promise that survives drift.

A row whose content the reference has answered before gets that answer. For any other row:

1. The cheap model answers, with a doubt, which the rule turns into an audit probability.
2. The gate lets the answer pass only if the bound of the ledger stays within the level in the worst
   case.
3. The coin is thrown; coin, claim and pending audit are written to the disk.
4. The reference is called for rows that are deferred or audited. Its answers are kept, settle the
   ledger, and teach the cheap model.

The ledger is in `ponder.statistics.ledger`, the rule in `live_rule.py`, the order of the rows in
`live_order.py`, the file in `live_store.py`, both models in `live_models.py`, calls and their
retries in `asking.py`.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ponder import cascade
from ponder._utils.checks import check_real, check_share
from ponder._utils.rows import listed
from ponder.cascade.asking import Asker, Asking, ReferenceDownError, Reply
from ponder.cascade.live_models import (
    Cheap,
    FixedCheap,
    Learner,
    Prediction,
    ask_of,
    asking_of,
    json_of,
    plain_label,
    predictions,
)
from ponder.cascade.live_order import SAMPLE, Order
from ponder.cascade.live_rule import AuditRule, Outcome, Rule, Standing
from ponder.cascade.live_store import Account, Lesson, Row, Store
from ponder.errors import ArgumentError, PonderError
from ponder.statistics.certificate import CONFIDENCE, LEVEL
from ponder.statistics.ledger import Ledger, fair_coin

__all__ = ["BudgetSpentError", "Live", "LiveAnswers", "Progress"]

_CHUNK = 64
_BLOCK = 256
_ROOM = 16
_WINDOW = 2000
_POLL = 0.05
_NO_PREDICTION = Prediction(None, 1.0)


class BudgetSpentError(PonderError):
    """The budget of a `Live` is spent; rows that need the reference have no answer."""


@dataclass(frozen=True)
class LiveAnswers:
    """Answers in the order of the rows.

    Args:
        labels: The label of each row; None for a row without an answer.
        source: "cheap", "reference", or "none" for a row without an answer.
        audited: Whether the row was audited, `(rows,)` bool.
        errors: The error of each row without an answer, by its position.
    """

    labels: list[Any]
    source: list[str]
    audited: NDArray[np.bool_]
    errors: Mapping[int, Exception] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """How far a call of `answer` has come.

    Args:
        done: Rows that have an answer or an error.
        total: Rows of the call.
        asked: Share of all answers so far for which the reference was asked.
        bound: Bound on the share of all answers so far that differ.
    """

    done: int
    total: int
    asked: float
    bound: float


@dataclass
class _Call:
    """The state of one call of `answer`."""

    rows: Sequence[Any]
    ids: Sequence[str] | None
    finite: bool
    answers: LiveAnswers
    order: Order
    end: int  # answers there are after a finite batch
    errors: dict[int, Exception] = field(default_factory=dict)
    # Rows by content that this call asks, and by content that other processes ask just now.
    claimed: dict[str, list[int]] = field(default_factory=dict)
    elsewhere: dict[str, list[int]] = field(default_factory=dict)
    predictions: dict[int, Prediction] = field(default_factory=dict)
    predicted_by: Cheap | None = None
    sorted_by: Cheap | None = None
    held: dict[int, float] = field(default_factory=dict)  # a row that waits for audits under way
    waits: bool = False  # whether the next row waits for calls under way
    down: ReferenceDownError | None = None  # the error of all further rows
    done: int = 0

    def give(self, position: int, label: Any, source: str, *, audited: bool = False) -> None:
        """Give a row its answer."""
        self.answers.labels[position] = label
        self.answers.source[position] = source
        self.answers.audited[position] |= audited
        self.done += 1

    def fail(self, positions: Sequence[int], error: Exception) -> None:
        """Give rows the error that they have in place of an answer."""
        for position in positions:
            self.errors[position] = error
        self.done += len(positions)


class Live:
    """A cheap model in front of a reference, with a promise on the given answers under any drift.

    With the probability `confidence`, at every moment, at most `level` of the answers given so far
    differ from what the reference says. The one assumption is that of `ponder.statistics.ledger`:
    our audit coin is fair and secret.

    It starts by asking the reference about everything. These answers teach the cheap model; as soon
    as the bound allows, it answers. The promise is about this stream, and says nothing of rows to
    come.

    Args:
        reference: A function from a list of rows to their labels, also an async one; or anything
            that can be a stage of a cascade.
        level: The share of the answers that may differ; 0 asks for everything.
        confidence: The probability with which the promise holds.
        path: An SQLite file, in which answers are kept and which several processes may share; None
            for memory.
        cheap: A stage with probabilities that does not change; None for one that learns.
        teach: A function from texts and labels to a cheap model with `classes` and `predict_proba`;
            by default `Student.fit`. At each teaching it is called three times: twice without some
            of the latest texts, to read doubts by them.
        classes: Names of the classes, for a `cheap` or a `reference` without names.
        rule: The rule for audits and for teaching the cheap model. A bad rule costs money, not the
            promise.
        budget: The number of calls, those of earlier processes included; None for no limit.
        asking: How the reference is called: concurrency, calls a minute, attempts.
        progress: Called with `Progress` as answers come.
        teach_apart: Whether the cheap model is taught on a thread of its own, so that no row waits
            for it.
        coin: Returns numbers in [0, 1); for tests alone, since a coin that can be foreseen promises
            nothing.

    Example:
        >>> def ask(texts):  # an expensive model
        ...     return ["card" if "card" in text else "loan" for text in texts]
        >>> live = ponder.Live(ask, level=0.05)
        >>> texts = [f"{word} number {n}" for n in range(2000) for word in ("my card", "a loan")]
        >>> found = live.answer(texts)
        >>> found.labels[:2], found.source[0], found.source.count("reference") < 2000
        (['card', 'loan'], 'reference', True)
    """

    def __init__(
        self,
        reference: Any,
        level: float = LEVEL,
        confidence: float = CONFIDENCE,
        path: str | Path | None = None,
        *,
        cheap: Any = None,
        teach: Callable[[Sequence[Any], Sequence[str]], Any] | None = None,
        classes: Sequence[str] | None = None,
        rule: Rule | None = None,
        budget: int | None = None,
        asking: Asking | None = None,
        progress: Callable[[Progress], object] | None = None,
        teach_apart: bool = False,
        coin: Callable[[], float] | None = None,
    ) -> None:
        check_real("level", level, 0.0, 1.0, open_high=True)
        check_share("confidence", confidence)
        self.level = level
        self.confidence = confidence
        self.budget = budget
        self._ask = ask_of(reference, classes)
        self._asking = asking or asking_of(reference)
        if cheap is not None:
            self._learner = Learner(FixedCheap(cheap, classes), None)
        else:
            # The student is loaded here, when there is no other cheap model.
            self._learner = Learner(None, teach or cascade.Student.fit)
        self._progress = progress
        self.rule: Rule = rule or AuditRule()
        self._coin = coin or fair_coin
        self._store = Store(path, Account(Ledger(confidence)))
        self._check_same_promise(path)
        self._names: dict[str, Any] = {}
        self._labels = self._store.count_answers()
        self._deciding = threading.RLock()
        self._teach_apart = teach_apart
        self._teaching = threading.Lock()
        self._teacher: threading.Thread | None = None
        self._resume()
        self._teach_if_due()

    @property
    def account(self) -> Account:
        """Answers, calls and the ledger, as they are in the file."""
        return self._store.account()

    @property
    def statement(self) -> str:
        """The promise on the answers given so far, in words."""
        account = self.account
        if not account.answers:
            return "No answers yet."
        sentence = account.ledger.sentence(account.answers, "the reference's")
        return f"{sentence}; {100 * account.asked / account.answers:.0f}% were asked."

    def answer(
        self, texts: Sequence[Any], *, ids: Sequence[Any] | None = None, finite: bool = False
    ) -> LiveAnswers:
        """Answer rows, in their order.

        Args:
            texts: Texts, pairs of texts, or other rows that JSON can hold, numbers say.
            ids: A name for each row: a row with a name keeps its answer, also after a stop. Without
                names each row is new; the reference's answer to its content is reused in either
                case.
            finite: Whether the promise is about the batch at its end, and not about every moment.
                Rows that were asked are right, so more of the others may differ. The rows are
                decided in an order of their own: a random sample, then doubtful rows, which teach
                the most, and the surest (`live_order.py`).

        Returns:
            The answers. A row that the reference failed on, also after retries, is in `errors`.

        Raises:
            ArgumentError: The reference returned labels of a wrong number.
            ArgumentTypeError: It returned labels that are neither texts nor numbers, or `texts` is
                one text, or holds rows that JSON cannot.
        """
        rows = listed("texts", texts)
        count = len(rows)
        errors = dict[int, Exception]()
        answers = LiveAnswers([None] * count, ["none"] * count, np.zeros(count, dtype=bool), errors)
        order = list(range(count))
        if finite:
            # A file is often sorted by class: in its order each new class would be asked in full.
            # The seed is fixed, so that a run that was stopped goes on in the same order.
            random.Random(0).shuffle(order)
        names = None if ids is None else [str(name) for name in ids]
        end = self.account.answers + count
        call = _Call(rows, names, finite, answers, Order(order), end, errors)
        if names is not None:
            self._recall(call)
        with self._asker(call) as asker:
            while len(call.order) or call.claimed or call.elsewhere:
                self._decide_some(call, asker)
                self._collect(call, asker)
                self._teach_if_due()
                self._report(call)
        return call.answers

    def asked_by_class(self) -> dict[str, int]:
        """Return how many texts of each class the reference answered, the most first."""
        return self._store.asked_by_class()

    def close(self) -> None:
        """Close the file."""
        if self._teacher is not None:
            self._teacher.join()
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _check_same_promise(self, path: str | Path | None) -> None:
        account = self.account
        kept = account.ledger.confidence
        if kept != self.confidence:
            expected = f"a file with the confidence of this promise, {self.confidence}"
            got = f"{kept}, in {path}"
            remedy = "Pass the same one, or give each promise a file of its own."
            raise ArgumentError("path", expected=expected, got=got, remedy=remedy)

    def _resume(self) -> None:
        """Take up where the last process stopped: outcomes, and the cheap model that it had.

        A model that all lessons taught would sort the rows of a batch in another way, and so ask
        about other rows than a run that never stopped.
        """
        for row in self._store.outcomes(_WINDOW):
            self.rule.learn(Outcome(row.doubt, bool(row.differs), row.probability))
        taught = self._store.taught()
        if taught and self._learner.can_learn and self.level > 0.0:
            lessons = self._store.lessons()
            self._teach(lessons[:taught])
            for lesson in lessons[taught:]:
                self._learner.note(lesson.name)

    def _recall(self, call: _Call) -> None:
        """Answer rows that have an answer by name; those that a stopped process asked come first.

        Until they are answered, their audits count as caught, and use up what the level allows.
        """
        rows = call.order.upcoming(len(call.order))
        waiting = [row for row in rows if not self._answer_by_name(call, row)]
        asked = [row for row in waiting if self._named(call, row) is not None]
        under_way = set(asked)
        call.order = Order([row for row in waiting if row not in under_way])
        call.order.put_back(asked)

    @contextmanager
    def _asker(self, call: _Call) -> Iterator[Asker]:
        """Call the reference until the block ends; arrived answers are kept even after an error."""
        asker = Asker(self._ask, self._asking, self._arrived)
        try:
            yield asker
        finally:
            self._keep(asker.close(), call)
            self._store.release(list(call.claimed))

    def _decide_some(self, call: _Call, asker: Asker) -> None:
        """Decide rows while the reference has room, and submit the questions."""
        at_once = self._asking.concurrency * self._asking.batch_size
        room = max(2 * at_once, _ROOM) - asker.running
        while len(call.order) and room > 0:
            with self._deciding:
                submitted = self._decide(call, room)
            asker.submit(submitted)
            room -= len(submitted)
            if call.waits:
                call.waits = False
                return

    def _decide(self, call: _Call, room: int) -> list[tuple[str, Any]]:
        """Decide the next rows in one transaction, and return the questions for the reference."""
        self._predict(call)
        submitted = list[tuple[str, Any]]()
        with self._store.transaction():
            account = self._store.account()
            for _ in range(min(_CHUNK, len(call.order))):
                if len(submitted) >= room:
                    break
                position = self._next(call, account)
                key = _key_of(call.rows[position])
                if self._settle_without_call(call, position, key, account):
                    continue
                row = self._decided_row(call, position, key, account)
                if row is None:
                    call.order.put_back([position])
                    call.waits = True
                    break
                if row.audited:
                    self._claim(call, position, row, account)
                    submitted.append((key, call.rows[position]))
                else:
                    account.answers += 1
                    self._give_cheap(call, position, row)
            self._store.write_account(account)
        return submitted

    def _predict(self, call: _Call) -> None:
        """Ask the cheap model about the next rows, a block ahead, unless it was asked already."""
        model = self._learner.model
        if model is None or self.level == 0.0:
            return
        if call.predicted_by is not model:
            call.predicted_by = model
            call.predictions.clear()
        self._sort_if_due(call, model)
        if all(position in call.predictions for position in call.order.upcoming(_CHUNK)):
            return
        self._predict_rows(call, model, call.order.upcoming(_BLOCK))

    def _sort_if_due(self, call: _Call, model: Cheap) -> None:
        """Sort a batch by the doubts of a cheap model that learns, once a sample was answered."""
        if not call.finite or not self._learner.can_learn or call.sorted_by is model:
            return
        if self.account.answers < SAMPLE * call.end:
            return
        call.sorted_by = model
        waiting = call.order.upcoming(len(call.order))
        self._predict_rows(call, model, waiting)
        call.order.sort([call.predictions[position].doubt for position in waiting])

    def _predict_rows(self, call: _Call, model: Cheap, positions: Sequence[int]) -> None:
        """Ask the cheap model about those of some rows that it was not asked about."""
        ahead = [position for position in positions if position not in call.predictions]
        found = predictions(model, [call.rows[position] for position in ahead])
        call.predictions.update(zip(ahead, found, strict=True))

    def _next(self, call: _Call, account: Account) -> int:
        """Take the next row: of a sorted batch the surest one, unless the rule defers others."""
        if call.order.sorted:
            most_doubtful = call.order.upcoming(1)[0]
            if self._audit_probability(call, most_doubtful, account) < 1.0:
                return call.order.take_surest()
        return call.order.take()

    def _settle_without_call(self, call: _Call, position: int, key: str, account: Account) -> bool:
        """Give a row the answer of its name or content, or an error once the budget is spent."""
        if self._answer_by_name(call, position) or self._answer_by_content(
            call, position, key, account
        ):
            return True
        stopped: PonderError | None = call.down
        if self.budget is not None and account.asked >= self.budget:
            stopped = BudgetSpentError(f"{account.asked:,} of {self.budget:,} calls are spent.")
        if stopped is None:
            return False
        call.fail([position], stopped)
        return True

    def _answer_by_name(self, call: _Call, position: int) -> bool:
        """Give a row the answer that its name has, if it has one."""
        row = self._named(call, position)
        if row is None or (row.audited and row.differs is None):
            return False
        if row.audited:
            known = self._store.answer(row.key)
            assert known is not None
            self._names[str(known.label)] = known.label
            call.give(position, known.label, "reference", audited=row.probability < 1.0)
        else:
            self._give_cheap(call, position, row)
        call.end -= 1
        return True

    def _named(self, call: _Call, position: int) -> Row | None:
        return None if call.ids is None else self._store.row(call.ids[position])

    def _answer_by_content(self, call: _Call, position: int, key: str, account: Account) -> bool:
        """Give a row the reference's answer to its content, or let it wait for another call."""
        found = self._store.answer(key)
        if found is None:
            return False
        if found.label is not None:
            for row in self._store.waiting(key):  # of a process that was killed after the answer
                self._settle(row, str(found.label), account)
            self._deliver(call, position, key, found.label, account)
        elif key in call.claimed:
            call.claimed[key].append(position)
        else:
            call.elsewhere.setdefault(key, []).append(position)
        return True

    def _decided_row(self, call: _Call, position: int, key: str, account: Account) -> Row | None:
        """Return the decision on a row: that of its name, or a new one, which is written.

        None if the row waits, as in `_throw`.
        """
        row = self._named(call, position)
        if row is not None:
            return row
        if self._store.waiting(key):
            # Of a call that failed: its answer settles an audit that counts as caught.
            row = Row(key, None, 0.0, 1.0, True)
        else:
            row = self._throw(call, position, key, account)
        if row is not None:
            name = None if call.ids is None else call.ids[position]
            self._store.write_row(row, name)
        return row

    def _throw(self, call: _Call, position: int, key: str, account: Account) -> Row | None:
        """Choose the audit probability of a row, throw its coin, and note both in the ledger.

        Returns:
            The row; None if it waits for audits under way, after which the bound may be lower.
        """
        prediction = call.predictions.get(position, _NO_PREDICTION)
        label = prediction.label
        doubt = prediction.doubt
        # A row that is picked for its doubt is no evidence of how the doubts of others are read.
        deferred = Row(key, None if call.order.sorted else label, doubt, 1.0, True)
        if label is None or self.level == 0.0:
            return deferred
        probability = call.held.pop(position, None)
        if probability is None:
            probability = self._audit_probability(call, position, account)
        if probability >= 1.0:
            return deferred
        if not self._allowed(call, label, probability, account):
            # To wait costs time, to defer the row would cost a call.
            if account.ledger.pending and call.claimed:
                call.held[position] = probability
                return None
            return deferred
        audited = account.ledger.throw(probability, self._coin)
        return Row(key, label, doubt, probability, audited)

    def _audit_probability(self, call: _Call, position: int, account: Account) -> float:
        """Return the audit probability that the rule gives to a row."""
        horizon = call.end if call.finite else account.answers
        remaining = len(call.order) + 1
        doubts = call.order.doubts
        standing = Standing(self.level, account.answers, remaining, horizon, account.ledger, doubts)
        prediction = call.predictions.get(position, _NO_PREDICTION)
        return self.rule.audit_probability(prediction.doubt, standing)

    def _allowed(self, call: _Call, label: str, probability: float, account: Account) -> bool:
        """Return whether the promise holds still if this row is not audited."""
        horizon = account.answers + 1
        if call.finite:
            horizon = max(horizon, call.end)
        within = self.level * horizon
        ledger = account.ledger
        # In most rows the first comparison equals the second, for a tenth of the time.
        return ledger.bound + 1 <= within or ledger.bound_after(probability) <= within

    def _give_cheap(self, call: _Call, position: int, row: Row) -> None:
        """Give a row the cheap model's answer, in the type in which the reference gives it."""
        call.give(position, self._names.get(str(row.cheap), row.cheap), "cheap")

    def _claim(self, call: _Call, position: int, row: Row, account: Account) -> None:
        """Note that this call asks the reference about a row."""
        account.asked += 1
        probability = row.probability
        if call.order.sorted and row.cheap is None:
            probability = 0.0  # it was picked for its doubt, and not drawn
        self._store.claim(row.key, json_of(call.rows[position]), probability)
        call.claimed[row.key] = [position]
        call.answers.audited[position] = row.probability < 1.0

    def _arrived(self, reply: Reply) -> None:
        """Keep an answer at once, on the thread that got it; its effects are computed later."""
        self._store.keep(reply.key, plain_label(reply.label))

    def _collect(self, call: _Call, asker: Asker) -> None:
        """Keep the answers that arrived, and look for those that others asked."""
        if asker.running or call.elsewhere:
            self._keep(asker.take(_POLL if call.elsewhere else None), call)
        if asker.misused is not None:
            raise asker.misused
        call.down = asker.down
        for key, positions in list(call.elsewhere.items()):
            found = self._store.answer(key)
            if found is None or found.label is not None or self._store.take_over(found.owner):
                call.order.put_back(positions)
                del call.elsewhere[key]

    def _keep(self, replies: Sequence[Reply], call: _Call) -> None:
        """Keep replies in one transaction: answers, outcomes of audits, and lessons."""
        if not replies:
            return
        with self._deciding, self._store.transaction():
            account = self._store.account()
            for reply in replies:
                positions = call.claimed.pop(reply.key, [])
                if reply.error is not None:
                    self._store.release_now(reply.key)
                    account.asked -= 1
                    call.fail(positions, reply.error)
                    continue
                label = plain_label(reply.label)
                self._store.write_answer(reply.key, label)
                self._labels += 1
                for row in self._store.waiting(reply.key):
                    self._settle(row, str(label), account)
                for position in positions:
                    self._deliver(call, position, reply.key, label, account)
            self._store.write_account(account)
        self._store.shorten_journal(sum(reply.error is None for reply in replies))

    def _settle(self, row: Row, label: str, account: Account) -> None:
        """Note the outcome of a row in the ledger, and let the rule learn from it."""
        differs = row.cheap is not None and row.cheap != label
        self._store.settle(row, differs)
        self._learner.note(label)
        if row.cheap is None:
            return
        self.rule.learn(Outcome(row.doubt, differs, row.probability))
        if row.probability < 1.0:
            account.ledger.settle(row.probability, differs=differs)

    def _deliver(self, call: _Call, position: int, key: str, label: Any, account: Account) -> None:
        """Give a row the reference's answer, and count it."""
        row = self._named(call, position)
        if row is None and call.ids is not None:
            known = Row(key, None, 0.0, 1.0, True, False)
            self._store.write_row(known, call.ids[position])
        account.answers += 1
        self._names[str(label)] = label
        call.give(position, label, "reference")

    def _teach_if_due(self) -> None:
        """Teach the cheap model the reference's answers, if the rule says so."""
        learner = self._learner
        if not learner.can_learn or self.level == 0.0:
            return
        if not self._teaching.acquire(blocking=False):
            return  # another thread teaches it
        if not self.rule.teaches(self._labels, learner.taught, learner.unknown):
            self._teaching.release()
        elif self._teach_apart:
            self._teacher = threading.Thread(target=self._teach_all, name="ponder-teaching")
            self._teacher.start()
        else:
            self._teach_all()

    def _teach_all(self) -> None:
        """Teach the cheap model all answers of the reference; then other threads may teach it."""
        try:
            lessons = self._store.lessons()
            self._labels = len(lessons)
            self._teach(lessons)
            self._store.write_taught(len(lessons))
        finally:
            self._teaching.release()

    def _teach(self, lessons: Sequence[Lesson]) -> None:
        """Teach the cheap model, and show the rule how its doubts are to be read."""
        self._names.update({lesson.name: lesson.label for lesson in lessons})
        outcomes = self._learner.learn(lessons)
        if outcomes is not None:
            with self._deciding:
                self.rule.renew(outcomes)

    def _report(self, call: _Call) -> None:
        if self._progress is not None:
            account = self.account
            answers = max(account.answers, 1)
            # Rows that were asked count at once, answers when they arrive.
            asked = min(account.asked / answers, 1.0)
            bound = account.ledger.bound / answers
            self._progress(Progress(call.done, len(call.rows), asked, bound))


def _key_of(row: Any) -> str:
    """Return a digest of the content of a row."""
    return blake2b(json_of(row).encode(), digest_size=16).hexdigest()
