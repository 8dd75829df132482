"""The puzzles: generators against plain solvers, solvers, training that goes on, measuring, results and the command."""

from __future__ import annotations

import builtins
import itertools
import json
import shutil
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.checksum import with_checksum
from benchmarks.puzzles import cli, config, demo, experiment, measuring, report, rules, sudoku, summary
from benchmarks.puzzles.learners import LEARNERS, Looped, learner_of
from benchmarks.puzzles.mazes import Mazes, path_lengths
from benchmarks.puzzles.prefix_sums import PrefixSums
from benchmarks.puzzles.sudoku import MiniSudoku, Sudoku
from benchmarks.puzzles.training import train
from ponder import policies
from ponder.errors import ArgumentError, DataError, PonderError
from ponder.policies import ModelSpec

TINY = {
    name: replace(one, width=8, num_steps=5, gradient_steps=3, run_steps=9, updates=3, batch_size=4, examples=4)
    for name, one in config.SMALL.items()
}
GENERATED = ("prefix-sums", "mazes")
FEW = {"converged": slice(0, 4, 3), "confidence": slice(1, None, 5), "converged and confident": slice(2, None, 10)}


@pytest.fixture(scope="module", autouse=True)
def _few_rules() -> Iterator[None]:
    """Solvers are measured with two rules of a family; every problem is replayed for each, and nothing takes longer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "FAMILIES", {name: family[FEW[name]] for name, family in rules.FAMILIES.items()})
        patch.setattr(rules, "_DOUBT", rules._DOUBT[1::5])
        yield


def needs_reasoning_gym() -> None:
    pytest.importorskip("reasoning_gym", reason="sudoku needs reasoning-gym (extra puzzles)")


# -- generators


def test_prefix_sums_against_a_plain_loop():
    problems = PrefixSums().draw(13, 50, seed=3)
    assert problems.inputs.shape == (50, 1, 13)
    for row, labels in zip(problems.inputs[:, 0].tolist(), problems.labels.tolist(), strict=True):
        parity = list(itertools.accumulate(int(bit > 0) for bit in row))
        assert labels == [total % 2 for total in parity]
    assert 0.4 < float((problems.inputs > 0).float().mean()) < 0.6


@pytest.mark.parametrize("side", [2, 5, 8])
def test_mazes_against_a_breadth_first_search(side):
    problems = Mazes().draw(side, 20, seed=1)
    moves = ((0, 1), (1, 0), (0, -1), (-1, 0))
    for maze, label, difficulty in zip(problems.inputs, problems.labels, problems.difficulty.tolist(), strict=True):
        opened = maze[:4] > 0
        assert int(opened.sum()) == 2 * (side * side - 1)  # a tree, each opening seen from both sides
        (start,), (goal,) = (maze[channel].flatten().gt(0).nonzero().flatten().tolist() for channel in (4, 5))
        came_from, queue = {start: start}, deque([start])
        while queue:
            cell = queue.popleft()
            for move, (down, right) in enumerate(moves):
                row, column = cell // side + down, cell % side + right
                if opened[move, cell // side, cell % side]:
                    assert 0 <= row < side
                    assert 0 <= column < side
                    there = row * side + column
                    if there not in came_from:
                        came_from[there] = cell
                        queue.append(there)
        assert len(came_from) == side * side
        way = {goal}
        while (cell := came_from[cell if len(way) > 1 else goal]) not in way:
            way.add(cell)
        assert label.nonzero().flatten().tolist() == sorted(way)
        assert difficulty == len(way)
    assert torch.equal(path_lengths(problems), problems.difficulty)


@pytest.mark.parametrize(("puzzle", "level"), [(MiniSudoku(), 9), (Sudoku(), 12)])
def test_sudokus_are_solved_by_their_labels(puzzle, level):
    needs_reasoning_gym()
    problems, side, box = puzzle.draw(level, 6, seed=0), puzzle.side, round(puzzle.side**0.5)
    assert problems.difficulty.tolist() == (problems.inputs == 0).sum(1).tolist()
    assert all(abs(empty - level) <= 1 for empty in problems.difficulty.tolist())
    for given, answer in zip(problems.inputs, problems.labels + 1, strict=True):
        assert bool(((given == 0) | (given == answer)).all())
        grid, digits = answer.view(side, side), set(range(1, side + 1))
        for place in range(side):
            down, right = box * (place // box), box * (place % box)
            for group in (grid[place], grid[:, place], grid[down : down + box, right : right + box].flatten()):
                assert set(group.tolist()) == digits


@pytest.mark.parametrize("name", config.PUZZLES)
def test_problems_follow_from_the_seed(name):
    if name not in GENERATED:
        needs_reasoning_gym()
    puzzle = config.PUZZLES[name]
    level = puzzle.trained_levels[0]
    one, again, other = (puzzle.draw(level, 5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.inputs, again.inputs)
    assert torch.equal(one.labels, again.labels)
    assert not torch.equal(one.inputs, other.inputs)
    assert len(one) == 5


@pytest.mark.parametrize(
    "changed",
    [
        {"update": 5},
        {"updates": "many"},
        {"updates": 0},
        {"bf16": 1},
        {"updates": True},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"run_steps": 23},  # fewer than the 24 of training
        {"num_steps": 100},
        {"num_steps": 2, "run_steps": 8},  # a rule that waits eight steps could not stop
    ],
)
def test_fields_that_a_configuration_has_not_are_refused(changed):
    with pytest.raises(ArgumentError, match="setting: expected"):
        config.config_of("mazes", **changed)


def test_training_varies_sudokus_and_they_stay_sudokus(monkeypatch):
    pytest.importorskip("reasoning_gym", reason="sudoku needs reasoning-gym (extra puzzles)")
    monkeypatch.setattr(MiniSudoku, "kept", 3)
    monkeypatch.setattr(Sudoku, "kept", 3)
    sudoku._kept.cache_clear()
    for puzzle, level in ((MiniSudoku(), 7), (Sudoku(), 25)):
        problems, side = puzzle.practice(level, 8, seed=0), puzzle.side
        box, digits = round(side**0.5), torch.arange(side)
        given = problems.inputs > 0
        assert torch.equal((problems.inputs - 1)[given], problems.labels[given])
        assert ((~given).sum(1) == level).all()
        rows = problems.labels.unflatten(1, (side, side))
        boxes = rows.unflatten(2, (box, box)).unflatten(1, (box, box)).transpose(2, 3).reshape(-1, side, side)
        for lines in (rows, rows.transpose(1, 2), boxes):
            assert (lines.sort(-1).values == digits).all()
        assert len(problems.inputs.unique(dim=0)) == 8, "varied"
        assert torch.equal(puzzle.practice(level, 8, seed=0).inputs, problems.inputs)
        assert not torch.equal(puzzle.practice(level, 8, seed=1).inputs, problems.inputs)
    sudoku._kept.cache_clear()


@pytest.mark.parametrize(("name", "level"), [("prefix-sums", 0), ("mazes", 1), ("mazes", 2.5), ("sudoku-4x4", 13)])
def test_levels_that_a_puzzle_does_not_have(name, level):
    with pytest.raises(ArgumentError, match="level: expected a whole number of"):
        config.PUZZLES[name].draw(level, 1, seed=0)


def test_puzzles_without_reasoning_gym_say_so(monkeypatch):
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "reasoning_gym":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    for name in ("sudoku-4x4", "sudoku-9x9"):
        with pytest.raises(DataError, match=r"reasoning-gym.*ponder-torch\[puzzles\]"):
            config.PUZZLES[name].check_ready()
    for name in GENERATED:
        config.PUZZLES[name].check_ready()


# -- solvers


@torch.no_grad()
@pytest.mark.parametrize("name", GENERATED)
def test_a_problem_inside_a_larger_canvas_is_answered_as_alone(name):
    """Sizes can share a batch: a mask makes a canvas end where the problem does, for the solver and for policies."""
    puzzle, model = config.PUZZLES[name], learner_of("looped", TINY[name]).model.eval()
    problems = puzzle.draw(5, 3, seed=0)
    canvas = torch.zeros(*problems.inputs.shape[:2], *(8 for _ in problems.inputs.shape[2:]))
    inside = torch.zeros_like(canvas[:, :1])
    here = (..., *(slice(0, 5) for _ in problems.inputs.shape[2:]))
    canvas[here], inside[here] = problems.inputs, 1.0
    mask = inside.flatten(1).long()
    alone = model.unroll(problems.inputs).outputs
    larger = model.unroll(canvas, attention_mask=mask).outputs.unflatten(2, canvas.shape[2:])
    cut = larger[(slice(None), slice(None), *here[1:])].flatten(2, -2)
    torch.testing.assert_close(cut, alone, atol=1e-5, rtol=1e-5)
    sure = alone.softmax(-1).amax(-1).amin(-1)
    for rule in (policies.Converged(patience=1), policies.Confidence(float(sure.median()))):
        expected = model.unroll(problems.inputs).replay(rule).exit_step
        assert model(canvas, attention_mask=mask, policy=rule).exit_step.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("prefix-sums", torch.zeros(2, 3, 5)),
        ("prefix-sums", torch.zeros(2, 1, 5, 5)),
        ("mazes", torch.zeros(2, 1, 5, 5)),
        ("sudoku-4x4", torch.zeros(2, 81, dtype=torch.long)),
        ("sudoku-4x4", torch.zeros(2, 16)),
    ],
)
def test_sizes_that_a_solver_cannot_take(name, inputs):
    model = learner_of("looped", TINY[name]).model.eval()
    with pytest.raises(ArgumentError, match="inputs: expected"):
        model.unroll(inputs)


def test_the_recursive_solvers_state_is_a_pair_and_the_answer_is_read_from_its_first():
    model = learner_of("looped", TINY["sudoku-4x4"]).model.eval()
    puzzle = torch.randint(0, 5, (3, 16), generator=torch.Generator().manual_seed(0))
    (answer, latent), context = model.stem(puzzle)
    assert answer.shape == latent.shape == context["problem"].shape == (3, 16, 8)
    for _ in range(5):
        answer, latent = model.steps.fns[0]((answer, latent), **context)
    torch.testing.assert_close(model.unroll(puzzle).outputs[:, -1], model.head(answer))


# -- training


@pytest.mark.parametrize("learner", LEARNERS)
def test_a_training_that_is_cut_off_ends_as_one_that_is_not(tmp_path, learner, monkeypatch):
    tiny = replace(TINY["prefix-sums"], updates=6)
    monkeypatch.setattr("benchmarks.puzzles.training._SAVED_EVERY", 2)

    def made() -> Any:
        torch.manual_seed(0)
        return learner_of(learner, tiny, 2)

    whole, cut = made(), made()
    train(whole, tiny, seed=1)

    def stop(update: int, loss: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.puzzles.training._TOLD_EVERY", 5)
    with pytest.raises(KeyboardInterrupt):
        train(cut, tiny, seed=1, path=tmp_path / "state.pt", tell=stop)
    again = made()
    assert train(again, tiny, seed=1, path=tmp_path / "state.pt").updates == 6
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_state_of_another_training_is_refused(tmp_path):
    tiny = TINY["prefix-sums"]
    train(learner_of("looped", tiny), tiny, seed=1, path=tmp_path / "state.pt")
    for changed, seed, word in ((replace(tiny, batch_size=5), 1, "setting"), (tiny, 2, "seed")):
        with pytest.raises(DataError, match=f"differs in {word}"):
            train(learner_of("looped", changed), changed, seed=seed, path=tmp_path / "state.pt")


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "flipped", "list", "part", "weights"])
def test_a_damaged_state_is_named_and_left_as_it_is(tmp_path, damage):
    tiny, path = TINY["prefix-sums"], tmp_path / "state.pt"
    train(learner_of("looped", tiny), tiny, seed=1, path=path)
    whole, state = path.read_bytes(), torch.load(path, weights_only=True)
    if damage in ("list", "part", "weights"):
        other = {**state, "weights": {}} if damage == "weights" else {k: v for k, v in state.items() if k != "losses"}
        torch.save([1] if damage == "list" else other, path)
    else:
        weight = next(value for value in state["weights"].values() if value.numel() > 20).numpy().tobytes()
        place = whole.index(weight)
        flipped = whole[:place] + bytes([255 - whole[place]]) + whole[place + 1 :]
        path.write_bytes({"cut": whole[:place], "empty": b"", "text": b"hello", "flipped": flipped}[damage])
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"state\.pt: expected the state of a training.* left as it is"):
        train(learner_of("looped", tiny), tiny, seed=1, path=path)
    assert path.read_bytes() == before


# -- measuring


@torch.no_grad()
def test_gates_are_fitted_on_the_trained_levels_and_serve_every_number_of_steps():
    tiny = replace(TINY["prefix-sums"], examples=50)
    model = Looped(tiny).eval().model
    for gate in measuring.fitted_gates(model, tiny):
        problems = measuring.problems_of(tiny, "test", [16])[16]
        trajectory = model.unroll(problems.inputs, num_steps=tiny.run_steps)
        assert trajectory.num_steps > tiny.num_steps
        steps = [trajectory.replay(rule).exit_step.double().mean() for rule in rules.gate_rules([gate])]
        assert steps == sorted(steps), "the less doubt, the later"


def test_the_cheapest_rule_that_is_accurate_enough():
    def score(right: list[int], steps: list[int]) -> rules.Score:
        return rules.Score(torch.tensor(right).bool(), torch.tensor(steps), torch.ones(len(right)))

    scores = [score([1, 1, 0, 0], [1, 1, 1, 1]), score([1, 1, 1, 0], [5, 5, 5, 5]), score([1, 1, 1, 0], [3, 3, 3, 4])]
    assert rules.cheapest(scores, 0.75) == 2
    assert rules.cheapest(scores, 0.5) == 0
    assert rules.cheapest(scores, 0.9) == 2  # none reaches it: the most accurate, and of equals the cheaper


def test_sets_share_no_problem_and_measuring_chooses_nothing_on_the_test_set(monkeypatch):
    tiny = replace(TINY["mazes"], examples=8)
    sets = {split: measuring.problems_of(tiny, split)[9].inputs for split in measuring.SPLITS}
    for one, other in itertools.combinations(sets.values(), 2):
        assert not (one.flatten(1).unsqueeze(1) == other.flatten(1)).all(-1).any()

    def correct(outputs, labels):  # what is not trained solves nothing, and all rules would be as good on every set
        return labels.sum(-1, keepdim=True) * torch.arange(1, outputs.shape[1] + 1) % 7 < 3

    monkeypatch.setattr(measuring, "_TASK", SimpleNamespace(correct=correct))
    tiny = TINY["prefix-sums"]
    learner = Looped(tiny)
    first = measuring.measure(learner, tiny)
    monkeypatch.setitem(measuring.SPLITS, "test", 4_000_037)
    second = measuring.measure(learner, tiny)
    assert first["best_rule"] == second["best_rule"]
    for way in first["ways"]:
        assert first["ways"][way].get("policy") == second["ways"][way].get("policy")
        assert first["ways"][way]["validation"] == second["ways"][way]["validation"]


# -- results


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Any:
    """Results of every learner of the puzzles that need nothing, two seeds of the looped one."""
    out = tmp_path_factory.mktemp("puzzles")
    for name in GENERATED:
        for learner in LEARNERS:
            experiment.run(TINY[name], learner, 0, out=out, states=out / "states")
    experiment.run(TINY["mazes"], "looped", 1, out=out, states=out / "states")
    return out


def test_the_summary_is_what_the_results_say(results):
    told = summary.summarise_all(results)["mazes"]
    runs = experiment.read_results(results, "mazes")["looped"]
    best = [run["ways"][run["best_rule"]]["test"] for run in runs]
    assert told["seeds"] == [0, 1]
    assert told["accuracy"] == pytest.approx(sum(one["accuracy"] for one in best) / 2, abs=1e-6)
    assert told["mean_steps"] == pytest.approx(sum(one["mean_steps"] for one in best) / 2, abs=1e-6)
    assert told["larger_accuracy"] == pytest.approx(sum(o["by_level"][-1]["accuracy"] for o in best) / 2, abs=1e-6)
    curve = runs[0]["by_step"]["validation"]["all"]
    depth = runs[0]["ways"]["best fixed depth"]["policy"]["step"]
    assert depth == 1 + min(n for n, value in enumerate(curve) if value >= max(curve) - rules.SLACK)
    for run in runs:
        for way in run["ways"].values():
            by_level = way["test"]["by_level"]
            assert way["test"]["accuracy"] == pytest.approx(sum(e["accuracy"] for e in by_level) / len(by_level))


def test_the_oracle_against_a_plain_loop():
    by_step = torch.rand(30, 6, generator=torch.Generator().manual_seed(0)) < 0.3
    score = measuring.oracle(by_step, torch.ones(30))
    for row, right, step in zip(by_step.tolist(), score.right.tolist(), score.steps.tolist(), strict=True):
        assert right == any(row)
        assert step == (row.index(True) + 1 if right else 1)


def test_a_result_that_is_there_is_read_and_one_of_another_configuration_refused(results):
    tiny = TINY["mazes"]
    path = experiment.result_path(results, tiny, "looped", 0)
    before = path.read_bytes()
    assert experiment.run(tiny, "looped", 0, out=results, states=results)["seed"] == 0
    assert path.read_bytes() == before
    with pytest.raises(DataError, match="differs in setting"):
        experiment.run(replace(tiny, updates=4), "looped", 0, out=results, states=results)


def test_what_could_not_stand_in_one_table_is_refused_before_it_is_trained(results, monkeypatch, tmp_path):
    monkeypatch.setattr(config, "SMALL", TINY)
    monkeypatch.setattr(cli, "run", pytest.fail)
    copy = shutil.copytree(results, tmp_path / "copy")
    for learner, changed in (("act", "width=16"), ("looped", "updates=4"), ("pondernet", "width=16")):
        arguments = ["run", "mazes", "--learner", learner, "--seed", "7", "--set", changed, "--out", str(copy)]
        with pytest.raises(DataError, match="one configuration"):
            CliRunner().invoke(cli.app, [*arguments, "--states", str(tmp_path)], catch_exceptions=False)
    with pytest.raises(DataError, match="one configuration"):
        experiment.equal_depth(replace(TINY["mazes"], width=16), 0, copy)
    assert experiment.equal_depth(replace(TINY["mazes"], updates=1), 0, copy) >= 1
    experiment.check_together(copy, replace(TINY["mazes"], updates=1), ["act"])  # baselines may be trained for less


def test_a_baseline_alone_has_a_table(monkeypatch, tmp_path):
    monkeypatch.setattr(config, "SMALL", TINY)
    places = ["--out", str(tmp_path / "out"), "--states", str(tmp_path / "states")]
    ran = CliRunner().invoke(cli.app, ["run", "prefix-sums", "--learner", "act", *places], catch_exceptions=False)
    assert ran.exit_code == 0
    assert "ACT" in ran.output


def test_results_that_were_edited_or_are_not_there(results, tmp_path):
    with pytest.raises(DataError, match="no results"):
        experiment.read_results(tmp_path, "mazes")
    with pytest.raises(DataError, match="looped solver's result"):
        experiment.run(TINY["mazes"], "feed-forward", 0, out=tmp_path, states=tmp_path)
    edited = json.loads((results / "mazes-looped-s0.json").read_text())
    edited["best_rule"] = "oracle"
    (tmp_path / "mazes-looped-s0.json").write_text(json.dumps(edited))
    with pytest.raises(DataError, match="edited"):
        experiment.read_results(tmp_path, "mazes")


def test_a_copy_of_one_seed_does_not_count_as_another(results, tmp_path):
    one = json.loads((results / "mazes-looped-s0.json").read_text())
    for seed in (0, 3):
        path = tmp_path / f"mazes-looped-s{seed}.json"
        path.write_text(json.dumps(with_checksum({**one, "seed": seed, "environment": {"seed": seed}})))
    with pytest.raises(DataError, match=r"mazes-looped-s3\.json: expected a run of its own; it is .*-s0\.json but for"):
        experiment.read_results(tmp_path, "mazes")


def test_the_feed_forward_network_costs_what_halting_does(results):
    looped = experiment.read_results(results, "prefix-sums")["looped"][0]
    layers = experiment.read_results(results, "prefix-sums")["feed-forward"][0]["depth"]
    spent = looped["ways"][looped["best_rule"]]["validation"]["mean_steps"]
    assert spent <= layers < spent + 1


def test_the_page_and_the_figure(results, tmp_path):
    everything = {name: experiment.read_results(results, name) for name in GENERATED}
    text = report.markdown(everything)
    assert "### Mazes" in text
    report.draw_figure(tmp_path / "figure.svg", everything)
    assert "mean exit step" in (tmp_path / "figure.svg").read_text()


def test_a_report_of_nothing_is_refused_and_writes_nothing(results, tmp_path):
    asked = ["report", "--out", str(tmp_path / "typo"), "--figure", str(tmp_path / "figure.svg")]
    with pytest.raises(DataError, match=r"typo: no results of the looped solver.* Run .* first"):
        CliRunner().invoke(cli.app, asked, catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []
    shutil.copy(results / "mazes-act-s0.json", tmp_path)  # which the report does not show by itself
    with pytest.raises(DataError, match="no results of the looped solver"):
        CliRunner().invoke(cli.app, ["report", "--out", str(tmp_path)], catch_exceptions=False)
    (tmp_path / "page.md").write_text("# No marks\n")
    asked = ["report", "--out", str(results), "--details", str(tmp_path / "page.md")]
    with pytest.raises(PonderError, match="expected the lines"):
        CliRunner().invoke(cli.app, asked, catch_exceptions=False)
    assert not (results / "summary.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mazes-act-s0.json", "page.md"]


def test_goals_that_are_missed_say_so(results):
    told = summary.summarise_all(results)
    reached = {**told["mazes"], "goals": dict.fromkeys(summary.GOALS, True)}
    missed = {**told["mazes"], "goals": dict.fromkeys(summary.GOALS, False)}
    lines = report.goal_table({"one": reached, "other": missed}).splitlines()
    assert [line.count("(missed)") for line in lines].count(1) == len(summary.GOALS)
    assert all("(missed)" not in line.split("|")[3] for line in lines)
    assert set(told["mazes"]["goals"]) == set(summary.GOALS)


COMMITTED = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "puzzles"


def test_the_committed_summary_and_page_say_what_the_committed_results_do():
    told = json.loads((COMMITTED / "summary.json").read_text())
    assert told == json.loads(json.dumps(summary.summarise_all(COMMITTED)))
    fields = {"accuracy", "mean_steps", "best_fixed_accuracy", "best_fixed_steps", "rank_correlation"}
    for puzzle, one in told.items():
        assert fields | {"larger_accuracy", "feed_forward_accuracy"} <= one.keys()
        assert (one["larger_accuracy"] is None) == puzzle.startswith("sudoku")
    docs = COMMITTED.parents[2] / "docs"
    assert report.goal_table(told) in (docs / "puzzles.md").read_text()
    everything = {name: experiment.read_results(COMMITTED, name) for name in told}
    assert report.markdown(everything) in (docs / "puzzles-results.md").read_text()


def test_the_committed_results_are_of_the_small_settings_which_train_in_an_hour_on_two_cores():
    told = json.loads((COMMITTED / "summary.json").read_text())
    for puzzle in told:
        for learner, results in experiment.read_results(COMMITTED, puzzle).items():
            for result in results:
                small = {**asdict(config.SMALL[puzzle])}
                if learner not in ("looped", "stream"):  # baselines may be shorter
                    small["updates"] = min(small["updates"], result["setting"]["updates"])
                assert result["setting"] == small
    seconds = sum(value for one in told.values() for value in one["training_seconds"].values())
    assert seconds <= 2 * 60 * 60
    page = (COMMITTED.parents[2] / "docs" / "puzzles.md").read_text().replace("\n", " ")
    assert f"trains in {-int(-seconds // 60)} minutes on one core" in page


def test_baselines_may_be_trained_for_fewer_updates_and_the_table_says_so(results, tmp_path):
    shutil.copytree(results, tmp_path / "copy")
    shorter = replace(TINY["mazes"], updates=2)
    (tmp_path / "copy" / "mazes-act-s0.json").unlink()
    experiment.run(shorter, "act", 0, out=tmp_path / "copy", states=tmp_path / "states")
    networks = [row[0] for row in report.rows(experiment.read_results(tmp_path / "copy", "mazes"))]
    assert "ACT, 2 updates" in networks
    assert "PonderNet" in networks
    experiment.run(shorter, "looped", 2, out=tmp_path / "copy", states=tmp_path / "states")
    with pytest.raises(DataError, match="results of one configuration"):
        experiment.read_results(tmp_path / "copy", "mazes")


def test_a_stream_is_told_as_it_is(results, monkeypatch):
    """Answers and exits are those of batches; problems of all sizes share one canvas."""
    tiny = TINY["mazes"]
    told = experiment.run_stream(tiny, 0, out=results, states=results / "states", repeats=1)
    looped = experiment.read_results(results, "mazes")["looped"][0]
    assert told["problems"] == told["exit_steps_equal"] == told["answers_equal"] == 4 * len(tiny.task.levels)
    assert told["depth"] == looped["ways"]["best fixed depth"]["policy"]["step"]
    assert told["policy"] == looped["ways"][looped["best_rule"]]["policy"]
    assert told["mean_steps"] == pytest.approx(looped["ways"][looped["best_rule"]]["test"]["mean_steps"], abs=0.1)
    assert told["steps_saved"] == pytest.approx(1 - told["mean_steps"] / told["depth"])
    summed = summary.summarise("mazes", experiment.read_results(results, "mazes"))
    assert summed["stream_steps_saved"] == pytest.approx(told["steps_saved"], abs=1e-6)
    with pytest.raises(ArgumentError, match=r"called mazes-stream-s0.json; .* made with problems 24"):
        experiment.run_stream(tiny, 0, out=results, states=results / "states", examples=1)
    with pytest.raises(DataError, match="names the rule"):
        experiment.run_stream(tiny, 7, out=results, states=results / "states")
    with pytest.raises(DataError, match="expected the weights of the solver"):
        experiment.run_stream(tiny, 0, out=results, states=results / "elsewhere")
    with pytest.raises(DataError, match="of this configuration"):
        experiment.run_stream(replace(tiny, updates=2), 0, out=results, states=results / "states")


def test_every_problem_has_random_numbers_of_its_own(monkeypatch):
    """Problems in other chunks, and of other levels, are other rows to a policy that draws by their ids."""
    monkeypatch.setattr(measuring, "_ROWS", 8)
    seen = []

    @dataclass(frozen=True)
    class Notes(policies.ExitPolicy):
        def init(self, batch):
            seen.append(batch.row_ids)

        def decide(self, step, state):
            return False, state

    model = Looped(TINY["prefix-sums"]).model
    puzzle = PrefixSums()
    measuring.replayed(model.eval(), {level: puzzle.draw(level, 20, seed=0) for level in (8, 12)}, None, [Notes()])
    ids = torch.cat(seen)
    assert torch.equal(ids, torch.arange(40))


# -- command line


def test_run_report_and_demo(monkeypatch, tmp_path):
    monkeypatch.setattr(config, "SMALL", TINY)
    monkeypatch.setattr(demo, "SMALL", TINY)
    out, states = tmp_path / "results", tmp_path / "states"
    arguments = ["run", "prefix-sums", "--learner", "looped", "--out", str(out), "--states", str(states)]
    ran = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert ran.exit_code == 0
    assert "converged" in ran.output
    streamed = ["stream", "prefix-sums", "--repeats", "1", "--out", str(out), "--states", str(states)]
    assert "32 of 32" in CliRunner().invoke(cli.app, streamed, catch_exceptions=False).output
    pages = [tmp_path / name for name in ("page.md", "details.md")]
    for page in pages:
        page.write_text("<!-- results: written by the benchmark -->\n<!-- end of results -->\n")
    told = CliRunner().invoke(
        cli.app,
        [
            *("report", "--out", str(out), "--figure", str(tmp_path / "f.svg")),
            *("--page", str(pages[0]), "--details", str(pages[1])),
        ],
        catch_exceptions=False,
    )
    assert told.exit_code == 0
    assert json.loads((out / "summary.json").read_text()).keys() == {"prefix-sums"}
    assert (tmp_path / "f.svg").exists()
    assert "rank correlation" in pages[0].read_text()
    assert "### Prefix-sums" in pages[1].read_text()
    shown = CliRunner().invoke(
        cli.app, ["demo", "--updates", "2", "--out", str(tmp_path / "demo")], catch_exceptions=False
    )
    assert shown.exit_code == 0
    assert "64" in shown.output
    assert (tmp_path / "demo" / "puzzles.svg").exists()


def test_what_no_network_can_be_made_of_is_refused_before_any_is_trained(monkeypatch, tmp_path):
    monkeypatch.setattr(experiment, "train", lambda *_, **__: pytest.fail("trained"))
    for fixed, message in (("rate=2.0", "rate: expected"), ("run_steps=5", "run_steps of 20 or more")):
        arguments = ["run", "prefix-sums", "--set", fixed, "--out", str(tmp_path / "out")]
        with pytest.raises(ArgumentError, match=message):
            CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["run", "chess"], ["run", "mazes", "--learner", "oracle"]])
def test_names_that_are_not_known(arguments, tmp_path):
    with pytest.raises(ArgumentError, match="expected one of"):
        CliRunner().invoke(cli.app, [*arguments, "--out", str(tmp_path)], catch_exceptions=False)


def test_rules_serve_the_settings_that_they_are_chosen_for():
    for one in config.SMALL.values():
        for family in rules.FAMILIES.values():
            for rule in family:
                assert isinstance(rule, policies.ExitPolicy)
                for steps in (one.run_steps, rules.LEAST_STEPS):
                    rule.check(ModelSpec(steps, "token_classification", has_hazard=True))
    with pytest.raises(ArgumentError, match="patience: expected less than"):
        rules.FAMILIES["converged"][-1].check(ModelSpec(rules.LEAST_STEPS - 1, "token_classification", has_hazard=True))
