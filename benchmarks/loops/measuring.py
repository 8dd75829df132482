"""Measurements of trained solvers: every gate per row and per position, fixed depths, the oracle, a certificate.

* *Per position* is a run of `ponder.loops.Loop` with halted positions frozen: each threshold is a run, no replay.
* *Per row* has the same gates: a row leaves once each of its positions has wanted to halt; all run until then. So the
  exits under every threshold are read from one record; the chosen one is run against the clock.

The rule of choice was written before the first run: of the thresholds of a gate (`gates.GATES`, from late to early),
the one with the fewest position-steps whose share of solved problems on the validation rows is at most 0.5 points
below that of the same model with all steps; the most accurate if there is none. Test rows are read at the chosen ones
alone. For characters the share of right positions takes the place of solved problems, since no text is solved.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.loops.gates import Gate, gates_of
from benchmarks.loops.report import BY_ROWS
from benchmarks.loops.solver import MeanStep, RowStep, Slice, Solver
from benchmarks.loops.tasks import Problems, Task
from benchmarks.loops.training import LEARNERS
from ponder import policies
from ponder._utils.trees import take_rows
from ponder.loops import Loop
from ponder.policies import ExitPolicy, StepView
from ponder.statistics.bounds import upper_bound

__all__ = ["Measured", "measure", "parts_of"]

SLACK = 0.005
"""How much less is solved on validation rows by a rule that still counts as equal to all steps."""
BATCH = 512
LEVEL = 0.05
CONFIDENCE = 0.95
CERTIFIED = (0.9999, 0.999, 0.99, 0.95, 0.9, 0.8)
"""Thresholds of confidence that a certificate walks, from late to early; it stops at the first that fails."""
_REPEATS = 3
_FAILURES = 3


@dataclass(frozen=True, eq=False)
class Parts:
    """What halts: a step, and what is read of its states.

    Args:
        step: The step.
        head: Features of positions to outputs.
        lambda_head: Features of positions to logits of the gate.
        readout: States to features; the states themselves if None.
        start: From problems to the first states.
    """

    step: nn.Module
    head: nn.Module
    lambda_head: nn.Module
    readout: nn.Module | None
    solver: Solver

    def start(self, problems: Problems) -> Tensor:
        """Return the first states of problems."""
        state = self.solver.start(problems.inputs)
        return self.step.start(state) if isinstance(self.step, MeanStep | RowStep) else state

    def read(self, state: Tensor) -> Tensor:
        """Return the features of states."""
        return state if self.readout is None else self.readout(state)


def parts_of(solvers: Mapping[str, Solver], heads: Mapping[str, nn.Module]) -> dict[str, Parts]:
    """Return what halts, by name: each learner's solver with its gate, and the supervised one with each head."""
    supervised = solvers["supervised"]
    return {
        "supervised": _stepwise(supervised, heads["q-head"]),
        "pondernet": _stepwise(solvers["pondernet"], solvers["pondernet"].gate),
        "act": _mean(solvers["act"], solvers["act"].gate),
        "all-right": _by_rows(solvers["all-right"]),
        "hazards head": _stepwise(supervised, heads["hazards"]),
        "act head": _mean(supervised, heads["act"]),
        "q-head": _stepwise(supervised, heads["q-head"]),
    }


def _stepwise(solver: Solver, gate: nn.Module) -> Parts:
    """Return a solver that answers from the state of the step, with a gate on it."""
    width = solver.task.width
    thought = Slice(nn.Identity(), 0, width)
    return Parts(solver.step, solver.head, Slice(gate, 0, width), thought, solver)


def _mean(solver: Solver, gate: nn.Module) -> Parts:
    """Return a solver that answers from ACT's mean state, with the halting unit that carries it."""
    width = solver.task.width
    head = Slice(solver.head, 2 * width, 3 * width)
    return Parts(MeanStep(solver.step, gate), head, Slice(gate, 0, width), None, solver)


def _by_rows(solver: Solver) -> Parts:
    """Return a solver whose whole problems halt by the Q-head that was trained in."""
    width = solver.task.width
    gate = Slice(nn.Identity(), 2 * width, 2 * width + 1)
    return Parts(RowStep(solver), Slice(solver.head, 0, width), gate, None, solver)


@dataclass(frozen=True, eq=False)
class Run:
    """The answers of a run, `(rows, length)`, and the step at which each position halted (per row, its row)."""

    answers: Tensor
    steps: Tensor
    seconds: float = 0.0


@torch.inference_mode()
def run_positions(parts: Parts, policy: ExitPolicy, problems: Problems, num_steps: int) -> Run:
    """Run problems to the exits of their positions, batch by batch, halted positions frozen."""
    loop = Loop(parts.step, parts.head, parts.lambda_head, readout=parts.readout).eval()
    clock = time.process_time()
    answers = []
    steps = []
    for batch in _batches(problems):
        out = loop(parts.start(batch), max_steps=num_steps, policy=policy)
        answers.append(out.outputs.argmax(-1))
        steps.append(out.exit_step)
    return Run(torch.cat(answers), torch.cat(steps), time.process_time() - clock)


@torch.inference_mode()
def run_rows(parts: Parts, policy: ExitPolicy, problems: Problems, num_steps: int) -> Run:
    """Run problems until all positions of a row have wanted to halt, batch by batch; rows leave at once."""
    clock = time.process_time()
    answers = []
    steps = []
    for batch in _batches(problems):
        answer, step = _run_rows(parts, policy, batch, num_steps)
        answers.append(answer)
        steps.append(step)
    found = torch.cat(steps).unsqueeze(1).expand(problems.labels.shape)
    return Run(torch.cat(answers), found, time.process_time() - clock)


def _run_rows(
    parts: Parts, policy: ExitPolicy, problems: Problems, num_steps: int
) -> tuple[Tensor, Tensor]:
    """Return answers and exit steps of one batch of rows."""
    count, length = problems.labels.shape
    answers = torch.zeros(count, length, dtype=torch.long)
    steps = torch.zeros(count).long()
    state = parts.start(problems)
    asked = None
    log_survival = torch.zeros(count * length)
    wants = torch.zeros(count, length, dtype=torch.bool)
    rows = torch.arange(count)
    for step in range(1, num_steps + 1):
        state = parts.step(state)
        together = policy.exit_of_all(num_steps)
        if together is not None:
            leaves = torch.full(rows.shape, step >= together)
        elif step == num_steps:
            leaves = torch.ones(rows.shape, dtype=torch.bool)
        else:
            view, log_survival = _view(parts, policy, state, step, num_steps, log_survival)
            if step == 1:
                asked = policy.init(view)
            halts, asked = policy.decide(view, asked)
            wants = wants | torch.as_tensor(halts).unflatten(0, wants.shape)
            leaves = wants.all(1)
        if not bool(leaves.any()):
            continue
        answers[rows[leaves]] = parts.head(parts.read(state[leaves])).argmax(-1)
        steps[rows[leaves]] = step
        rows = rows[~leaves]
        state = state[~leaves]
        wants = wants[~leaves]
        if not len(rows):
            break
        of_positions = (~leaves).repeat_interleave(length).nonzero().flatten()
        asked, log_survival = take_rows((asked, log_survival), of_positions)
    return answers, steps


def _view(
    parts: Parts, policy: ExitPolicy, state: Tensor, step: int, num_steps: int, survival: Tensor
) -> tuple[StepView, Tensor]:
    """Return what a policy sees of all positions of the rows that run, and the log of their survival after it."""
    features = parts.read(state).flatten(0, 1)
    readings: dict[str, Any] = {}
    if "hazard" in policy.needs:
        logits = parts.lambda_head(features).reshape(-1)
        after = survival + nn.functional.logsigmoid(-logits)
        readings = {"hazard": logits.sigmoid(), "survival": survival.exp()}
        readings["cdf"] = -torch.expm1(after)
        survival = after
    if "output" in policy.needs:
        readings["output"] = parts.head(features)
    if "features" in policy.needs:
        readings["features"] = features
    index = torch.full(features.shape[:1], step)
    return StepView(index, torch.arange(len(index)), num_steps, readings), survival


def _batches(problems: Problems) -> list[Problems]:
    pairs = zip(problems.inputs.split(BATCH), problems.labels.split(BATCH), strict=True)
    return [Problems(inputs, labels) for inputs, labels in pairs]


@torch.inference_mode()
def record(parts: Parts, problems: Problems, num_steps: int) -> Tensor:
    """Return the answers of every step at full depth, `(rows, steps, length)`."""
    found = []
    for batch in _batches(problems):
        state = parts.start(batch)
        steps = []
        for _ in range(num_steps):
            state = parts.step(state)
            steps.append(parts.head(parts.read(state)).argmax(-1))
        found.append(torch.stack(steps, dim=1))
    return torch.cat(found)


@torch.inference_mode()
def replay_rows(
    parts: Parts, rules: Sequence[ExitPolicy], problems: Problems, num_steps: int
) -> list[Run]:
    """Return what `run_rows` would give under each rule, from one record a batch."""
    answers: list[list[Tensor]] = [[] for _ in rules]
    steps: list[list[Tensor]] = [[] for _ in rules]
    for batch in _batches(problems):
        loop = Loop(parts.step, parts.head, parts.lambda_head, readout=parts.readout).eval()
        needed = any("features" in rule.needs for rule in rules)
        made = loop.unroll(parts.start(batch), max_steps=num_steps, keep_features=needed)
        every = made.outputs.argmax(-1).unflatten(0, batch.labels.shape)
        for place, rule in enumerate(rules):
            last = made.replay(rule).exit_step.unflatten(0, batch.labels.shape).amax(1)
            index = (last - 1)[:, None, None].expand(-1, every.shape[1], 1)
            answers[place].append(every.gather(2, index).squeeze(2))
            steps[place].append(last)
    return [
        Run(torch.cat(answer), torch.cat(step).unsqueeze(1).expand(problems.labels.shape))
        for answer, step in zip(answers, steps, strict=True)
    ]


def picture(
    parts: Parts, task: Task, problems: Problems, ways: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the answers and exit steps of the first test sudoku by confidence; None for other tasks."""
    if not task.name.startswith("sudoku"):
        return None
    first = Problems(problems.inputs[:1], problems.labels[:1])
    rule = ExitPolicy.from_dict(ways["confidence, position"]["policy"])
    run = run_positions(parts, rule, first, task.num_steps)
    given = first.inputs[0, :, 0] == 0
    found = {"given": given.tolist(), "labels": first.labels[0].tolist()}
    return found | {"answers": run.answers[0].tolist(), "steps": run.steps[0].tolist()}


def flops_of(task: Task) -> int:
    """Return the floating-point operations of one step at one position: products of matrices, and attention."""
    linear = 16 * task.width**2
    attention = 4 * task.length * task.width
    return task.layers * (linear + attention)


@dataclass(frozen=True)
class Measured:
    """One run against the labels and against all steps, means over rows."""

    solved: float
    right: float
    row_steps: float
    position_steps: float
    same: float
    seconds: float
    flops: float

    @classmethod
    def of(cls, run: Run, problems: Problems, whole: Tensor, task: Task) -> Measured:
        """Return the numbers of a run; `whole` holds the answers of all steps of the same model."""
        right = run.answers == problems.labels
        steps = run.steps.double()
        share = float(steps.mean()) / task.num_steps
        return cls(
            solved=float(right.all(1).double().mean()),
            right=float(right.double().mean()),
            row_steps=float(steps.amax(1).mean()),
            position_steps=share,
            same=float((run.answers == whole).all(1).double().mean()),
            seconds=run.seconds,
            flops=float(steps.sum(1).mean()) * flops_of(task),
        )

    def score(self, task: Task) -> float:
        """Return what the rule of choice compares."""
        return self.right if task.causal else self.solved


RUNS = {"row": run_rows, "position": run_positions}


def _runs(
    gate: Gate, parts: Parts, task: Task, problems: Problems, mode: str
) -> Iterator[tuple[ExitPolicy, Run]]:
    """Yield the run of every rule of a gate, from late to early; per row, all from one record."""
    if mode == "row":
        runs = replay_rows(parts, gate.rules, problems, task.num_steps)
        yield from zip(gate.rules, runs, strict=True)
        return
    for rule in gate.rules:
        yield rule, run_positions(parts, rule, problems, task.num_steps)


def chosen(
    gate: Gate, parts: Parts, task: Task, problems: Problems, whole: Tensor, mode: str
) -> tuple[ExitPolicy, list[tuple[ExitPolicy, Measured]]]:
    """Return the rule that validation rows choose, and what the rules of the gate that were tried do there.

    Rules are walked from late to early, up to the third in a row that solves too little.
    """
    all_steps = Measured.of(
        Run(whole, torch.full(whole.shape, task.num_steps)), problems, whole, task
    )
    wanted = all_steps.score(task) - SLACK
    tried: list[tuple[ExitPolicy, Measured]] = []
    failed = 0
    for rule, run in _runs(gate, parts, task, problems, mode):
        tried.append((rule, Measured.of(run, problems, whole, task)))
        failed = 0 if tried[-1][1].score(task) >= wanted else failed + 1
        if failed == _FAILURES:
            break
    able = [pair for pair in tried if pair[1].score(task) >= wanted]
    if able:
        return min(able, key=lambda pair: pair[1].position_steps)[0], tried
    return max(tried, key=lambda pair: pair[1].score(task))[0], tried


def measure(
    solvers: Mapping[str, Solver], heads: Mapping[str, nn.Module], task: Task, count: int
) -> dict[str, Any]:
    """Return what every gate does, per row and per position, as plain JSON, and the answers of every step.

    Args:
        solvers: The solver of each learner.
        heads: The gates on the supervised solver (`training.train_gates`).
        task: The task.
        count: Problems of each split.
    """
    splits = {name: task.draw(name, count, 0) for name in ("validation", "calibration", "test")}
    parts = parts_of(solvers, heads)
    whole = {
        name: {split: record(own, problems, task.num_steps) for split, problems in splits.items()}
        for name, own in parts.items()
        if name not in ("q-head", "hazards head")  # the same answers as the supervised
    }
    whole["q-head"] = whole["hazards head"] = whole["supervised"]
    ways: dict[str, Any] = {}
    for name, gate in gates_of(task.num_steps).items():
        own = parts[gate.parts]
        answers = whole[gate.parts]
        for mode in ("row",) if name in BY_ROWS else ("row", "position"):
            rule, tried = chosen(
                gate, own, task, splits["validation"], answers["validation"][:, -1], mode
            )
            test = _timed(own, rule, task, splits["test"], answers["test"][:, -1], mode)
            ways[f"{name}, {mode}"] = {
                "gate": name,
                "mode": mode,
                "policy": rule.to_dict(),
                "validation": dict(next(vars(each) for key, each in tried if key == rule)),
                "test": vars(test),
                "tried": [{"policy": key.to_dict(), **vars(each)} for key, each in tried],
            }
    for learner in LEARNERS:
        rule = policies.LastStep()
        last = whole[learner]["test"][:, -1]
        test = _timed(parts[learner], rule, task, splits["test"], last, "row")
        ways[f"all steps, {learner}"] = {"test": vars(test)}
    return {
        "rows": count,
        "flops_of_a_position_step": flops_of(task),
        "ways": ways,
        "oracle": oracle(whole["supervised"]["test"], splits["test"], task),
        "by_step": {
            learner: _by_step(whole[learner]["test"], splits["test"]) for learner in LEARNERS
        },
        "certificate": certificate(parts["supervised"], task, splits, whole["supervised"]),
        "picture": picture(parts["supervised"], task, splits["test"], ways),
        "answers": {
            learner: whole[learner]["test"].numpy().astype(np.int8) for learner in LEARNERS
        },
    }


def _timed(
    parts: Parts, rule: ExitPolicy, task: Task, problems: Problems, whole: Tensor, mode: str
) -> Measured:
    """Measure a rule on test rows; seconds are the least of three runs of one thread."""
    runs = [RUNS[mode](parts, rule, problems, task.num_steps) for _ in range(_REPEATS)]
    quickest = min(runs, key=lambda run: run.seconds)
    return Measured.of(quickest, problems, whole, task)


def _by_step(answers: Tensor, problems: Problems) -> dict[str, list[float]]:
    right = answers == problems.labels.unsqueeze(1)
    solved = right.all(2).double().mean(0)
    return {
        "solved": [round(each, 5) for each in solved.tolist()],
        "right": [round(each, 5) for each in right.double().mean((0, 2)).tolist()],
    }


def oracle(answers: Tensor, problems: Problems, task: Task) -> dict[str, Any]:
    """Return what halting at the first right answer gives; what is never right stops after the first step."""
    right = answers == problems.labels.unsqueeze(1)
    rows = right.all(2)
    cells = right.flatten(2)
    first_rows = rows.long().argmax(1) + 1
    first_cells = cells.long().argmax(1) + 1
    return {
        "row": {
            "solved": float(rows.any(1).double().mean()),
            "position_steps": float(first_rows.double().mean()) / task.num_steps,
        },
        "position": {
            "solved": float(cells.any(1).all(1).double().mean()),
            "right": float(cells.any(1).double().mean()),
            "position_steps": float(first_cells.double().mean()) / task.num_steps,
        },
    }


def certificate(
    parts: Parts, task: Task, splits: Mapping[str, Problems], whole: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Certify confidence per position: at most 5% of rows answer other than with all steps, at any position.

    Thresholds are walked from late to early, a run each, and the walk stops at the first whose exact bound is above
    the level (fixed-sequence testing), so that the last that passed holds with 95% confidence.
    """
    walked = []
    passed = None
    for threshold in CERTIFIED:
        rule = policies.Confidence(threshold)
        run = run_positions(parts, rule, splits["calibration"], task.num_steps)
        differ = int((run.answers != whole["calibration"][:, -1]).any(1).sum())
        bound = upper_bound(differ, len(splits["calibration"]), CONFIDENCE)
        walked.append({"threshold": threshold, "differ": differ, "bound": round(bound, 5)})
        if bound > LEVEL:
            break
        passed = threshold
    found: dict[str, Any] = {"level": LEVEL, "confidence": CONFIDENCE, "walked": walked}
    if passed is None:
        return {**found, "threshold": None}
    test = run_positions(parts, policies.Confidence(passed), splits["test"], task.num_steps)
    measured = Measured.of(test, splits["test"], whole["test"][:, -1], task)
    return {**found, "threshold": passed, "test": vars(measured)}
