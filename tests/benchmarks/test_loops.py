"""LoopBench: its problems, its step at some positions, ACT's mean state, and a run in its smallest size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.loops import cli, measuring, report
from benchmarks.loops.measuring import parts_of, replay_rows, run_positions, run_rows
from benchmarks.loops.solver import RowSolver, Solver
from benchmarks.loops.sudoku import Box, _count_solutions, draw_puzzles, relations_of, vary
from benchmarks.loops.tasks import TASKS, Problems, Task
from benchmarks.loops.training import HEADS, LEARNERS, _loss_of_head, _states_of, train_gates
from ponder import LambdaHead, StepDistribution, objectives, policies
from tests.benchmarks.test_others import invoke

pytestmark = pytest.mark.usefixtures("few_updates")

QUICK = ["sudoku-4x4", "modular-sums", "prefix-sums", "mazes"]
RULES = [
    policies.LastStep(),
    policies.FixedStep(2),
    policies.Confidence(0.9),
    policies.Quantile(0.6),
    policies.ACT(0.3),
    policies.Patience(1),
    policies.Converged(0.6, on="features"),
]


def small(task: Task, **changes: int) -> Task:
    return replace(task, **{"width": 16, "num_steps": 5, **changes})


def solver_of(task: Task) -> Solver:
    """A solver whose answers move, so that positions halt at different steps."""
    torch.manual_seed(2)
    solver = Solver(task).eval()
    with torch.no_grad():
        for weight in (solver.head.weight, solver.gate.weight, solver.quality.weight):
            weight.normal_(std=1.0)
        for weight in solver.step.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.4)
    return solver


PARTS = ("supervised", "pondernet", "act", "hazards head", "act head", "q-head")


def all_parts(task: Task) -> dict[str, measuring.Parts]:
    """The parts of one solver as every learner, with heads whose hazards vary."""
    solver = solver_of(task)
    heads = {name: LambdaHead(task.width, layers=2) for name in HEADS}
    for head in heads.values():
        for weight in head.parameters():
            torch.nn.init.normal_(weight)
    return parts_of(dict.fromkeys(LEARNERS, solver), heads)


@pytest.mark.parametrize("box", [Box(2, 2), Box(2, 3)], ids=str)
def test_sudokus_have_one_solution_and_keep_it_under_symmetries(box: Box) -> None:
    found = [torch.from_numpy(each) for each in draw_puzzles(box, 6, (box.side, 2 * box.side), 3)]
    assert len({tuple(puzzle) for puzzle in found[0].tolist()}) == 6
    puzzles, solutions = vary(*found, box, torch.Generator().manual_seed(0))
    assert puzzles.tolist() != found[0].tolist()
    relations = relations_of(box)
    for puzzle, solution in zip(puzzles, solutions, strict=True):
        assert _count_solutions(puzzle.tolist(), box, 2) == 1
        assert bool((solution[puzzle > 0] == puzzle[puzzle > 0]).all())
        clash = (solution[:, None] == solution[None]) & (relations > 0) & (relations < 7)
        assert not clash.any()


@pytest.mark.parametrize("name", QUICK)
def test_problems_follow_from_split_and_seed(name: str) -> None:
    task = TASKS[name]
    for split in ("train", "test"):
        one, same = (task.draw(split, 5, 1) for _ in range(2))
        assert torch.equal(one.inputs, same.inputs)
        assert one.inputs.shape == (5, task.length, task.features)
        assert one.labels.shape == (5, task.length)
        assert 0 <= int(one.labels.min()) <= int(one.labels.max()) < task.classes
    assert not torch.equal(one.inputs, task.draw("validation", 5, 1).inputs)
    assert task.relations().shape == (task.length, task.length)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("rule", RULES[1:], ids=str)
def test_a_run_of_positions_equals_the_run_that_computes_all(
    name: str, rule: policies.ExitPolicy, layers: int
) -> None:
    """A step of several blocks keeps keys and values of halted positions, and so is compared for one block alone."""
    task = small(TASKS["modular-sums"], layers=layers)
    parts, problems = all_parts(task)[name], task.draw("test", 7, 0)
    run = run_positions(parts, rule, problems, task.num_steps)
    alone = [run_positions(parts, rule, rows, task.num_steps) for rows in _one_by_one(problems)]
    assert torch.equal(run.steps, torch.cat([one.steps for one in alone]))
    assert torch.equal(run.answers, torch.cat([one.answers for one in alone]))
    if layers == 1:
        assert len(run.steps.unique()) > (0 if isinstance(rule, policies.FixedStep) else 1)
        whole = _computing_all(parts, run.steps, problems, task.num_steps)
        assert torch.equal(run.answers, whole)


def _one_by_one(problems: Problems) -> list[Problems]:
    pairs = zip(problems.inputs.split(1), problems.labels.split(1), strict=True)
    return [Problems(*pair) for pair in pairs]


@torch.inference_mode()
def _computing_all(
    parts: measuring.Parts, steps: torch.Tensor, problems: Problems, num_steps: int
) -> torch.Tensor:
    """The answers if every position is computed at every step, and halted ones keep their states."""
    state = parts.start(problems)
    for step in range(1, num_steps + 1):
        state = torch.where((steps >= step).unsqueeze(-1), parts.step(state), state)
    return parts.head(parts.read(state)).argmax(-1)


@pytest.mark.parametrize("name", PARTS)
def test_rows_that_leave_when_all_their_positions_want_to_are_read_from_one_record(
    name: str,
) -> None:
    task = small(TASKS["sudoku-4x4"])
    parts, problems = all_parts(task)[name], task.draw("test", 9, 0)
    for rule, replayed in zip(
        RULES, replay_rows(parts, RULES, problems, task.num_steps), strict=True
    ):
        run = run_rows(parts, rule, problems, task.num_steps)
        assert torch.equal(run.steps, replayed.steps), rule
        assert torch.equal(run.answers, replayed.answers), rule


def test_acts_mean_state_gives_the_mean_of_the_outputs_that_its_objective_trains() -> None:
    task = small(TASKS["sudoku-4x4"])
    parts, problems = all_parts(task)["act"], task.draw("test", 9, 0)
    solver = parts.solver
    objective = objectives.ACT(epsilon=0.01)
    with torch.inference_mode():
        thoughts = solver(problems.inputs, 0, task.num_steps).transpose(1, 2).flatten(0, 1)
        halting = StepDistribution.from_hazard_logits(solver.gate(thoughts).squeeze(-1))
        expected = objective.answer(solver.head(thoughts), halting)
        state = parts.start(problems)
        for _ in range(task.num_steps):
            state = parts.step(state)
        found = parts.head(parts.read(state)).flatten(0, 1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_loopbench_runs_reports_and_draws_in_its_smallest_size(tmp_path: Path) -> None:
    options = ("--set=updates=4", "--set=width=16", "--set=num_steps=3", "--problems", 6)
    arguments = ("run", "sudoku-4x4", *options, "--out", tmp_path)
    assert (
        invoke(cli.app, *arguments).splitlines()[-25:]
        == (invoke(cli.app, *arguments).splitlines()[-25:])
    )
    found = report.results(tmp_path)
    (result,) = found["sudoku-4x4"]
    assert result["ways"]["all steps, supervised"]["test"]["same"] == 1.0
    assert len(result["by_step"]["act"]["solved"]) == 3
    assert len(report.ranking(found)) == 11
    assert "### Ranking" in invoke(cli.app, "report", "--out", tmp_path)
    report.draw_figure(tmp_path / "figure.svg", found)
    report.draw_sudoku(tmp_path / "sudoku.svg", found)
    assert (tmp_path / "sudoku-4x4-s0.npz").exists()


def test_a_rule_is_the_cheapest_that_keeps_what_all_steps_solve() -> None:
    task = small(TASKS["sudoku-4x4"])
    parts, problems = all_parts(task)["supervised"], task.draw("test", 9, 0)
    whole = measuring.record(parts, problems, task.num_steps)
    rule = whole[:, -1]
    labelled = Problems(problems.inputs, rule)  # all steps solve everything
    gate = measuring.gates_of(task.num_steps)["fixed depth"]
    chosen, tried = measuring.chosen(gate, parts, task, labelled, rule, "row")
    equal = [step for step in range(1, 6) if torch.equal(whole[:, step - 1], rule)]
    assert chosen == policies.FixedStep(equal[0])
    assert len(tried) == task.num_steps


def test_gates_learn_on_states_that_stay_as_they_are(tmp_path: Path) -> None:
    task = small(TASKS["modular-sums"])
    solver = solver_of(task)
    before = [weight.clone() for weight in solver.parameters()]
    heads, facts = train_gates(solver, 0, tmp_path / "gates.pt")
    after = solver.parameters()
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    held_out = _states_of(solver, task.draw("validation", 128, 0))
    for name, head in heads.items():
        torch.manual_seed(0)
        fresh = LambdaHead(task.width, layers=2, start=0.1)
        with torch.no_grad():
            loss = float(_loss_of_head(name, head, held_out))
            at_first = float(_loss_of_head(name, fresh, held_out))
        assert loss == pytest.approx(facts[name]["held_out"], abs=1e-4)
        assert loss < at_first
    again, same = train_gates(solver, 0, tmp_path / "gates.pt")
    assert same == facts
    for name, head in heads.items():
        for old, new in zip(head.parameters(), again[name].parameters(), strict=True):
            assert torch.equal(old, new)


def test_whole_problems_halt_by_the_q_head_that_was_trained_in() -> None:
    """The carried logit is that of the trained loop, and all positions of a problem halt together."""
    task = small(TASKS["modular-sums"])
    solver = solver_of(task)
    problems = task.draw("test", 9, 0)
    rule = policies.RightAnswer(0.6)
    run = run_positions(all_parts(task)["all-right"], rule, problems, task.num_steps)
    assert bool((run.steps == run.steps[:, :1]).all())
    assert len(run.steps.unique()) > 1
    trained = RowSolver(solver).eval()
    trained.loop.policy = rule
    with torch.no_grad():
        out = trained(problems.inputs, problems.labels)
    assert torch.equal(out.exit_step, run.steps)
    assert torch.equal(out.outputs.argmax(-1), run.answers)
