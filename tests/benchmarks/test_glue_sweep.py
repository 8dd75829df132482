"""What a sweep does, in which order, and what it leaves behind; most of it with runs that only pretend to train."""

import dataclasses
import errno
import json
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import Trainer
from typer.testing import CliRunner

from benchmarks.glue import training
from benchmarks.glue.cli import _narrowed, _tell, app
from benchmarks.glue.config import RunConfig
from benchmarks.glue.results import FORMAT, Result
from benchmarks.glue.run import run
from benchmarks.glue.sweeping import suite as suites
from benchmarks.glue.sweeping.executors import Job, Outcome, execute, inline
from benchmarks.glue.sweeping.suite import RecipeSpec, Suite
from benchmarks.glue.sweeping.sweep import sweep
from ponder import objectives, policies, recipes
from ponder._utils.files import write_json
from ponder.errors import ArgumentError, ArgumentTypeError, DataError

GRID = Suite("grid", "", ("RTE",), (RecipeSpec("palbert"),), {}, {"lr": [1e-5, 2e-5], "lambda_lr": [1e-5, 3e-5]}, 3)
COMMITTED = sorted(Path("benchmarks/results").glob("*/*.json"))


def result_of(config, held_out=0.5, dev=0.5):
    """What a run would write."""
    splits = {"dev": {"examples": 2, "mean_exit_step": 1.0, "exits": {"score": dev}}}
    if config.selection == "held_out":
        splits["held_out"] = {"examples": 2, "exits": {"score": held_out}}
    names = {"task": config.task, "recipe": config.recipe, "backbone": config.backbone, "num_steps": 1}
    return Result(
        {"format": FORMAT, "config": config.to_dict(), **names, "policy": {}, "splits": splits, "speed_up": {}}
    )


class Pretender:
    """Writes results without training, and takes down what it was asked for."""

    def __init__(self, held_out=lambda config: 0.5, dev=lambda config: 0.5, failing=(), busy=()):
        self.asked, self.held_out, self.dev = [], held_out, dev
        self.failing, self.busy = set(failing), set(busy)

    def __call__(self, job):
        self.asked.append(job)
        future = Future()
        future.set_result(self.outcome(job))
        return future

    def outcome(self, job):
        if job.config.key in self.busy and not job.wait:
            return Outcome("busy")
        if job.config.key in self.failing:
            return Outcome("failed", 1.0, "MemoryError: too much", "trace")
        if job.models is not None:
            write_json(job.models / job.config.key / "glue.json", {})
        result_of(job.config, self.held_out(job.config), self.dev(job.config)).save(job.result)
        return Outcome("done", 1.0)


def go(cells, submit, folder, **options):
    return sweep(cells, submit, glue_dir=None, out=folder / "out", work=folder / "work", **options)


def keys(folder):
    return sorted(path.stem for path in folder.glob("*.json"))


def invoke(*arguments):
    return CliRunner().invoke(app, ["sweep", *map(str, arguments)])


def test_every_suite_is_a_grid_of_runs_and_the_papers_is_table_3():
    assert suites.names() == (
        "ablation",
        "beyond",
        "breadth",
        "depth",
        "mini",
        "paper",
        "pays",
        "pays-mpnet",
        "speed",
        "switches",
    )
    for name in suites.names():
        cells = suites.get(name).cells("minilm")
        assert len({point.key for cell in cells for point in cell.points}) == sum(len(cell.points) for cell in cells)
    paper = suites.get("paper").cells("minilm")
    assert len(paper) == 8 * 4  # all tasks but WNLI
    rates = {(lr, size) for lr in (1e-5, 2e-5, 3e-5, 5e-5) for size in (16, 32, 128)}
    for cell in paper:
        assert cell.seeds == 5
        assert {(point.lr, point.batch_size) for point in cell.points} == rates
        assert {(point.schedule, point.stop_after) for point in cell.points} == {("constant", 5)}
        assert {point.policy for point in cell.points} == {None}
        lambda_rates = {1e-5, 2e-5, 3e-5} if cell.spec.recipe == "palbert" else {RunConfig("RTE").lambda_lr}
        assert {point.lambda_lr for point in cell.points} == lambda_rates
        assert len(cell.points) == len(rates) * len(lambda_rates)
    for name in ("pondernet", "palbert"):
        assert recipes.get(name) == recipes.get(name, beta=0.5, rate=0.1)


def test_the_point_is_chosen_on_held_out_scores_and_run_with_every_seed(tmp_path):
    (cell,) = GRID.cells("minilm")
    best, best_on_dev = cell.points[2], cell.points[1]
    executor = Pretender(
        lambda config: float(config.lr == best.lr and config.lambda_lr == best.lambda_lr), lambda c: 0.9
    )
    summary = go([cell], executor, tmp_path)
    assert (summary.done, summary.failures, summary.skipped) == (6, (), 0)
    finals = [dataclasses.replace(best, seed=seed) for seed in range(3)]
    assert keys(tmp_path / "out") == sorted(run.key for run in finals)
    assert keys(tmp_path / "out" / "grid") == sorted(point.key for point in cell.points)
    (record,) = (tmp_path / "out" / "chosen").glob("*.json")
    record = json.loads(record.read_text())
    assert (record["chosen"], record["runs"]) == (best.key, [run.key for run in finals])
    assert {(tried["lr"], tried["lambda_lr"]) for tried in record["tried"]} == {
        (a, b) for a in (1e-5, 2e-5) for b in (1e-5, 3e-5)
    }

    # The paper's way: by dev, and nothing is held out. Its runs have names of their own.
    (cell,) = GRID.cells("minilm", "dev")
    go(
        [cell],
        Pretender(dev=lambda config: float(config.lr == best_on_dev.lr and config.lambda_lr == best_on_dev.lambda_lr)),
        tmp_path,
    )
    chosen = dataclasses.replace(best_on_dev, selection="dev")
    assert chosen.key in keys(tmp_path / "out")
    assert Result.of_run(tmp_path / "out" / f"{chosen.key}.json")["config"]["selection"] == "dev"


def test_a_finished_sweep_asks_for_nothing_more(tmp_path):
    cells = GRID.cells("minilm")
    go(cells, Pretender(), tmp_path)

    def files():
        return {path: path.stat().st_ino for path in (tmp_path / "out").rglob("*.json")}  # each write is a new file

    before, again = files(), Pretender()
    assert len(before) == 4 + 3 + 1  # the grid, the seeds, and the choice, which is written down again
    assert go(cells, again, tmp_path).done == 6
    assert again.asked == []
    unchanged = {path: number for path, number in before.items() if path.parent.name != "chosen"}
    assert unchanged.items() <= files().items()
    assert files().keys() == before.keys()


def test_failures_are_recorded_and_tried_again_and_a_better_point_takes_the_place_of_the_first(tmp_path):
    (cell,) = GRID.cells("minilm")
    best, second = cell.points[:2]
    score = {(p.lr, p.lambda_lr): s for p, s in zip(cell.points, (0.9, 0.8, 0.1, 0.1), strict=True)}

    def held_out(config):
        return score[config.lr, config.lambda_lr]

    summary = go([cell], Pretender(held_out, failing=[best.key]), tmp_path)
    assert [failure.error for failure in summary.failures] == ["MemoryError: too much"]
    assert keys(tmp_path / "out" / "failed") == [best.key]
    assert keys(tmp_path / "out") == sorted(run.key for run in cell.finals(second))

    again = Pretender(held_out)
    assert go([cell], again, tmp_path).failures == ()
    assert keys(tmp_path / "out" / "failed") == []
    assert keys(tmp_path / "out") == sorted(run.key for run in cell.finals(best))
    assert len(again.asked) == 1 + 2  # the one that failed, and the other seeds of the new choice
    assert {run.key for run in cell.finals(second)} <= set(keys(tmp_path / "out" / "grid"))  # nothing is lost


def test_models_of_the_chosen_point_are_kept_and_its_first_run_is_made_once_more_for_it(tmp_path):
    (cell,) = GRID.cells("minilm")
    models = tmp_path / "models"

    def held_out(config):
        return config.lr + config.lambda_lr

    first = Pretender(held_out)
    assert go([cell], first, tmp_path, models=models).done == 6
    assert len(first.asked) == 4 + 3
    assert [job.models for job in first.asked] == [None] * 4 + [models] * 3
    assert sorted(path.name for path in models.iterdir()) == keys(tmp_path / "out")
    again = Pretender(held_out)
    assert go([cell], again, tmp_path, models=models).done == 6
    assert again.asked == []

    best = cell.finals(cell.points[3])[1]
    (models / best.key / "glue.json").unlink()
    (models / best.key).rmdir()
    go([cell], again, tmp_path, models=models)
    assert [job.config for job in again.asked] == [best]


def test_a_run_that_another_sweep_finished_is_done_though_that_one_removed_its_model(backbone, glue_dir, tmp_path):
    config = tiny(["vanilla"], backbone)[0].points[0]
    result_of(config).save(tmp_path / "out" / f"{config.key}.json")
    job = Job(config, glue_dir, tmp_path / "out", tmp_path / "work", models=tmp_path / "models")
    assert execute(job).status == "done"


def test_fewer_seeds_leave_the_results_of_more_where_they_are(tmp_path):
    three, one = (dataclasses.replace(GRID, seeds=seeds).cells("minilm") for seeds in (3, 1))
    go(three, Pretender(), tmp_path)
    before = keys(tmp_path / "out")
    assert len(before) == 3
    for cells in (one, three):
        again = Pretender()
        go(cells, again, tmp_path)
        assert again.asked == []
        assert keys(tmp_path / "out") == before


def test_a_point_that_is_chosen_again_takes_its_results_back(tmp_path):
    (cell,) = GRID.cells("minilm")
    first, second = cell.points[:2]
    go([cell], Pretender(lambda config: float(config.lambda_lr == first.lambda_lr and config.lr == first.lr)), tmp_path)
    for score, chosen in ((2.0, second), (0.0, first)):
        result_of(second, score).save(tmp_path / "out" / "grid" / f"{second.key}.json")
        again = Pretender()
        go([cell], again, tmp_path)
        assert len(again.asked) == (2 if chosen is second else 0)
        assert keys(tmp_path / "out") == sorted(run.key for run in cell.finals(chosen))


def test_sweeps_with_other_settings_leave_one_another_their_results(tmp_path):
    """One of other settings moved the finished runs of the first away, and both said that all was done."""
    mine, other = GRID.cells("minilm"), GRID.with_fixed({"epochs": 1}).cells("minilm")
    go(mine, Pretender(), tmp_path)
    before = keys(tmp_path / "out")
    go(other, Pretender(), tmp_path)
    assert set(before) < set(keys(tmp_path / "out"))
    again = Pretender()
    go(mine, again, tmp_path)
    assert again.asked == []
    assert set(before) < set(keys(tmp_path / "out"))


def test_a_grid_takes_what_a_sweep_of_one_point_has_done(tmp_path):
    (cell,) = GRID.cells("minilm")
    done = cell.points[1]
    result_of(done).save(tmp_path / "out" / f"{done.key}.json")
    asked = Pretender()
    go([cell], asked, tmp_path)
    tried = [job.config for job in asked.asked if job.models is None]
    assert done not in tried


def test_a_choice_that_cannot_be_written_down_fails_its_cell_alone(tmp_path, monkeypatch):
    cells = dataclasses.replace(GRID, tasks=("RTE", "CoLA")).cells("minilm")

    def full(path, data):
        if "chosen" in path.parts and "rte" in path.name:
            raise ArgumentError("folder", expected="room", got="No space left on device", remedy="Make some.")
        write_json(path, data)

    monkeypatch.setattr("benchmarks.glue.sweeping.study.write_json", full)
    summary = go(cells, Pretender(), tmp_path)
    assert [failure.config.task for failure in summary.failures] == ["RTE"]
    assert (summary.done, summary.skipped) == (3 + 6, 2)
    again = Pretender()
    summary = go(cells, again, tmp_path)  # all points are there from the start
    assert [failure.config.task for failure in summary.failures] == ["RTE"]  # and the next best was not chosen
    assert again.asked == []
    monkeypatch.undo()
    assert go(cells, again, tmp_path).done == 12
    assert len(again.asked) == 2  # nothing that was done is done again


def test_where_no_point_has_a_result_the_seeds_are_not_tried(tmp_path):
    (cell,) = GRID.cells("minilm")
    summary = go([cell], Pretender(failing=[point.key for point in cell.points]), tmp_path)
    assert (summary.done, len(summary.failures), summary.skipped) == (0, 4, 2)


def test_runs_of_another_sweep_are_waited_for_only_when_nothing_else_is_left(tmp_path):
    (cell,) = GRID.cells("minilm")
    executor = Pretender(busy=[cell.points[0].key])
    assert go([cell], executor, tmp_path).done == 6
    assert [job.wait for job in executor.asked] == [False] * 4 + [True] + [False] * 2


def test_the_table_shows_every_cell(tmp_path):
    console = Console(width=120, record=True, force_terminal=False)
    cells = dataclasses.replace(GRID, tasks=("RTE", "CoLA")).cells("minilm")
    failing = cells[0].points[0].key
    go(cells, Pretender(failing=[failing]), tmp_path, show=console.print)
    shown = console.export_text()
    assert "5 of 6" in shown
    assert "6 of 6" in shown
    assert "1 runs failed" in shown
    go(cells, Pretender(), tmp_path, show=console.print)
    assert "nothing left to do" in console.export_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda good: json.dumps(good)[:80], "no JSON"),
        (lambda good: json.dumps({**good, "format": "ponder-glue-0"}), "ponder-glue-0"),
        (lambda good: json.dumps({**good, "config": {**good["config"], "lr": 0.5}}), "edited"),
        (lambda good: json.dumps({**good, "config": {**good["config"], "from_the_future": 1}}), "from_the_future"),
    ],
)
@pytest.mark.parametrize("place", ["grid", "."])
def test_a_result_that_cannot_be_trusted_stops_the_sweep_before_it_starts(place, content, message, tmp_path):
    (cell,) = GRID.cells("minilm")
    run = cell.points[3] if place == "grid" else cell.finals(cell.points[3])[2]
    path = tmp_path / "out" / place / f"{run.key}.json"
    path.parent.mkdir(parents=True)
    path.write_text(content(result_of(run).data))
    executor = Pretender()
    with pytest.raises(DataError, match=message):
        go([cell], executor, tmp_path)
    assert executor.asked == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "nope"], "one of ablation"),
        (["--suite", "mini", "--tasks", "XYZ"], "one of CoLA"),
        (["--suite", "mini", "--tasks", "RTE,rte"], "each once"),
        (["--suite", "mini", "--tasks", ","], "--tasks: expected one name or more"),
        (["--suite", "mini", "--recipes", ""], "--recipes: expected one name or more"),
        (["--suite", "mini", "--recipes", "static:k=2:k=3"], "--recipes: expected each field once; got k again"),
        (["--suite", "mini", "--set", "lr=1e-4", "--set", "lr=2e-4"], "--set: expected each field once"),
        (["--suite", "mini", "--recipes", "static:k"], "field=value"),
        (["--suite", "mini", "--recipes", "nope"], "one of"),
        (["--suite", "mini", "--set", "nope=1"], "fields of a run"),
        (["--suite", "mini", "--set", "epochs=0"], "epochs"),
        (["--suite", "mini", "--set", "policy=entropy"], "expected fields threshold"),
        (["--suite", "mini", "--set", "policy=3"], "policy: expected an exit policy, as text or as an object"),
        (["--suite", "mini", "--glue-dir", "./none"], "--glue-dir: expected a folder that is there"),
        (["--suite", "mini", "--set", 'policy={"name": "nope"}'], "policy: expected one of"),
        (["--suite", "mini", "--recipes", "palbert:q=0.3:beta=0.1,palbert:beta=0.1:q=0.3"], "each once"),
        (["--suite", "mini", "--executor", "nope"], "local, ray"),
        (["--suite", "mini", "--selection", "test"], "held_out or dev"),
        (["--suite", "mini", "--seeds", "0"], "seeds"),
        (["--suite", "mini", "--backbone", "./none"], "backbone"),
    ],
)
def test_bad_arguments_are_named_before_anything_runs(arguments, message, tmp_path):
    done = invoke("--executor", "inline", *arguments, "--out", tmp_path / "out")  # the last of two counts
    assert isinstance(done.exception, ArgumentError | ArgumentTypeError), done.output
    assert message in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_workers_are_given_whole_paths(tmp_path, monkeypatch):
    """They need not stand in the folder of the command."""
    from benchmarks.glue.sweeping import sweep as module

    given = {}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "sweep", lambda cells, pool, **places: given.update(places) or module.Summary(0, (), 0))
    (tmp_path / "glue").mkdir()
    relative = {"--out": "out", "--work": "work", "--glue-dir": "glue", "--keep-model": "models"}
    options = [part for pair in relative.items() for part in pair]
    done = invoke("--suite", "mini", "--executor", "inline", *options)
    assert done.exit_code == 0, done.output
    for place, folder in (("out", "out"), ("work", "work"), ("glue_dir", "glue"), ("models", "models")):
        assert given[place] == tmp_path / folder


def test_a_log_is_told_of_each_run_and_has_no_bars(glue_dir, backbone, tmp_path):
    told = []
    cells = GRID.cells("minilm")
    go(cells, Pretender(failing={cells[0].points[0].key}), tmp_path, tell=told.append)
    assert told[0] == f"{cells[0].points[0].key}: failed (MemoryError: too much) after 1 s, runs left: 5"
    assert told[1] == f"{cells[0].points[1].key}: done after 1 s, runs left: 4"
    places = ("--out", tmp_path / "results", "--work", tmp_path / "checkpoints", "--glue-dir", glue_dir)
    done = invoke("--suite", "mini", "--recipes", "vanilla", "--backbone", backbone, "--executor", "inline", *places)
    assert done.exit_code == 0, done.output
    first, *_ = done.stdout.splitlines()
    assert first.startswith("rte-tiny-vanilla-s0-")
    assert first.endswith("runs left: 0")
    assert "%|" not in done.output
    assert "\r" not in done.output


def test_a_suite_file_of_ones_own(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(
        json.dumps({"description": "", "tasks": ["RTE"], "recipes": ["pabee"], "fixed": {}, "grid": {"lr": [1e-4]}})
    )
    (cell,) = suites.get(str(path)).cells("minilm")
    assert cell.points == (RunConfig("RTE", "pabee", lr=1e-4),)
    path.write_text(json.dumps({"tasks": ["rte"], "recipes": ["pabee"]}))
    assert suites.get(str(path)).cells("minilm")[0].points == (RunConfig("RTE", "pabee"),)
    path.write_text(json.dumps({"tasks": ["rte"], "recipes": ["palbert"], "fixed": {"policy": "quantile:q=0.3"}}))
    assert suites.get(str(path)).cells("minilm")[0].points[0].policy == {"name": "quantile", "q": 0.3}
    good = {"tasks": ["RTE"], "recipes": ["pabee"]}
    for wrong, message in (
        ({"recipes": None}, "recipes: expected a list"),
        ({"tasks": "RTE"}, "tasks: expected a list"),
        ({"recipes": [3]}, "recipe: expected the name"),
        ({"recipes": [{"recipe": "pabee", "options": ["q"]}]}, "options: expected an object"),
        ({"recipes": [{"name": "pabee"}]}, "some of recipe, options, fields; got name"),
        ({"seeds": 2.5}, "seeds: expected a whole number"),
        ({"grid": {"lr": 1e-4}}, "grid.lr: expected a list"),
        ({"fixed": ["lr"]}, "fixed: expected an object"),
        ({"by_task": {"RTE": ["lr"]}}, "by_task.RTE: expected an object"),
        ({"by_task": {"RTE": {"lr": 1e-4}, "rte": {"lr": 2e-4}}}, "by_task: expected each once; got RTE, RTE"),
        ({"fixed": {"lr": 1e-4}, "grid": {"lr": [1e-4, 2e-4]}}, "fixed and grid: expected each once; got lr, lr"),
        ({"grid": {"lr": [1e-4, 2e-4, 1e-4]}}, "grid.lr: expected each once"),
        ({"grid": {"policy": ["quantile:q=0.3", "quantile: q=0.30"]}}, "grid.policy: expected each once"),
        ({"grid": {"epochs": [1, 0]}}, "epochs: expected a whole number"),
        ({"tasks": []}, "expected at least one task"),
        ({"tasks": [3]}, "tasks: expected names of tasks; got 3"),
        ({"tasks": [""]}, "task: expected one of CoLA"),
        ({"from_the_future": 1}, "some of description, tasks, .*; got from_the_future"),
    ):
        path.write_text(json.dumps({**good, **wrong}))
        with pytest.raises(DataError, match=rf"own\.json.*{message}"):
            suites.get(str(path))
    path.write_text('{"tasks": ["RTE"], "recipes": ["pabee"], "by_task": {"RTE": {"lr": 1e-4, "lr": 2e-4}}}')
    with pytest.raises(DataError, match=r"fields of an object: expected each once; got lr, lr"):
        suites.get(str(path))


def test_task_and_recipe_may_have_fields_of_their_own_and_the_command_line_has_the_last_word():
    fixed = {"epochs": 3, "lr": 1e-4, "batch_size": 8}
    specs = (RecipeSpec("pabee"), RecipeSpec("palbert", fields={"batch_size": 4, "lr": 2e-4}))
    by_task = {"cola": {"epochs": 2, "lr": 3e-4}, "MRPC": {"lr": 1e-5}}
    suite = Suite("own", "", ("CoLA", "RTE"), specs, fixed, {}, 1, by_task)
    assert [cell.points[0] for cell in suite.cells("minilm")] == [
        RunConfig("CoLA", "pabee", epochs=2, lr=3e-4, batch_size=8),
        RunConfig("CoLA", "palbert", epochs=2, lr=2e-4, batch_size=4),
        RunConfig("RTE", "pabee", epochs=3, lr=1e-4, batch_size=8),
        RunConfig("RTE", "palbert", epochs=3, lr=2e-4, batch_size=4),
    ]
    varied = dataclasses.replace(suite, grid={"warmup": [0.1, 0.2]}, by_task={"CoLA": {"warmup": 0.3}})
    assert [len(cell.points) for cell in varied.cells("minilm")] == [1, 1, 2, 2]  # what a task fixes does not vary
    same = {
        (cell.points[0].epochs, cell.points[0].lr) for cell in suite.with_fixed({"epochs": 1, "lr": 5e-5}).cells("x")
    }
    assert same == {(1, 5e-5)}
    for wrong, message in (
        ({"by_task": {"cola": {"nope": 1}}}, "fields of a run"),
        ({"by_task": {"nope": {"lr": 1e-4}}}, "one of CoLA"),
        ({"recipes": (RecipeSpec("pabee", fields={"seed": 1}),)}, "fields of a run"),
    ):
        with pytest.raises(ArgumentError, match=message):
            dataclasses.replace(suite, **wrong)


def test_recipes_on_the_command_line_may_have_arguments():
    fields = {"lambda_lr": 2e-4}
    suite = Suite("own", "", ("RTE",), (RecipeSpec("vanilla"), RecipeSpec("palbert", fields=fields)))
    chosen = _narrowed(suite, None, "static:k=3, palbert:q=0.3:beta=0.1,palbert,pabee", None, None)
    assert chosen.recipes == (
        RecipeSpec("static", {"k": 3}),
        RecipeSpec("palbert", {"q": 0.3, "beta": 0.1}, fields),
        RecipeSpec("palbert", fields=fields),
        RecipeSpec("pabee"),
    )


def test_recipes_whose_policy_is_not_defined_for_a_task_are_left_out():
    specs = tuple(map(RecipeSpec, ("vanilla", "pabee", "deebert", "fastbert", "ponder")))
    cells = Suite("own", "", ("STS-B", "RTE"), specs, {}, {}, 1).cells("minilm")
    assert [cell.spec.recipe for cell in cells if cell.task == "STS-B"] == ["vanilla", "pabee", "ponder"]
    assert len([cell for cell in cells if cell.task == "RTE"]) == 5
    with pytest.raises(ArgumentError, match="deebert on STS-B"):
        Suite("own", "", ("STS-B",), specs[2:3], {}, {}, 1).cells("minilm")


def test_the_committed_runs_are_those_of_their_suites():
    """The commands that docs/benchmark-report.md gives find them done, and every committed run is one of theirs."""
    found = set()
    on_minilm, on_mpnet = ("breadth", "switches", "beyond", "pays"), ("depth", "pays-mpnet")
    for name, backbone in (*((name, "minilm") for name in on_minilm), *((name, "mpnet") for name in on_mpnet)):
        for cell in suites.get(name).cells(backbone):
            found |= {run.key for point in cell.points for run in cell.finals(point)}
    committed = {path.stem for path in COMMITTED if path.parent.name == "glue"}
    assert len(committed) > 100
    assert committed - found == set()


def test_a_result_of_a_recipe_that_has_changed_since_is_refused(tmp_path):
    read = [path for path in COMMITTED if path.parent.name in ("glue", "halting", "readout", "repeated")]
    assert {path.parent.name for path in read} == {"glue", "halting", "readout", "repeated"}
    for path in read:
        Result.of_run(path)  # the committed ones are of the recipes as they are
        assert "digest" in json.loads(path.read_text())
    of_palbert = {path: json.loads(path.read_text()) for path in read if "-palbert-" in path.name}
    before = next(path for path, data in of_palbert.items() if "recipe_fields" not in data)
    now = next(path for path, data in of_palbert.items() if "recipe_fields" in data)
    for path, field, value in (
        (before, "training", [{"objective": {"name": "final-step"}}]),
        (before, "policy", {"name": "last-step"}),
        (now, "recipe_fields", {**of_palbert[now]["recipe_fields"], "policy": {"name": "last-step"}}),
    ):
        changed = Result({**of_palbert[path], field: value})
        changed.save(tmp_path / path.name)
        with pytest.raises(DataError, match="has changed since"):
            Result.of_run(tmp_path / path.name)


def test_later_fields_do_not_change_the_names_of_committed_results():
    assert len(COMMITTED) >= 16
    for path in COMMITTED:
        if "config" in (data := json.loads(path.read_text())) and data["format"] == FORMAT:
            assert RunConfig.from_dict(data["config"]).key == path.stem
    one = RunConfig("RTE")
    for change in (
        {"selection": "dev"},
        {"schedule": "constant"},
        {"head_lr": 1e-3},
    ):
        assert dataclasses.replace(one, **change).key != one.key
        assert (
            RunConfig.from_dict(dataclasses.replace(one, **change).to_dict()).key
            == dataclasses.replace(one, **change).key
        )


def test_fields_of_before_are_read_where_they_changed_nothing():
    before = {**RunConfig("RTE").to_dict(), "knob": "recipe", "knob_keeps": 0.99, "budget": 1.5}
    assert RunConfig.from_dict(before) == RunConfig("RTE")
    with pytest.raises(DataError, match="knob"):
        RunConfig.from_dict({**before, "knob": "held_out"})


def tiny(recipes, backbone, seeds=1, **fixed):
    made = Suite(
        "tiny", "", ("RTE",), tuple(map(RecipeSpec, recipes)), {"epochs": 1, "batch_size": 16, **fixed}, {}, seeds
    )
    return made.cells(backbone)


def test_two_stage_recipes_go_on_from_the_kept_model_of_vanilla(backbone, glue_dir, tmp_path, monkeypatch):
    real, trained = training.train_stage, []
    monkeypatch.setattr(
        training, "train_stage", lambda config, *rest: trained.append(config.recipe) or real(config, *rest)
    )
    # The suite gives its rate of the Lambda head to all of its runs, also to those that have none.
    points = [cell.points[0] for cell in tiny(["vanilla", "deebert"], backbone, lambda_lr=1e-4)]
    places = (glue_dir, tmp_path / "out", tmp_path / "work")
    vanilla, deebert = (run(point, *places, models=tmp_path / "models", progress=False) for point in points)
    assert trained == ["vanilla", "deebert"]
    assert deebert["training"][0] == vanilla["training"][0]
    assert deebert["splits"]["dev"]["full_depth"] == vanilla["splits"]["dev"]["full_depth"]
    elsewhere = run(points[1], glue_dir, tmp_path / "alone", tmp_path / "work", progress=False)  # trains it itself
    assert trained[2:] == ["vanilla", "deebert"]
    assert elsewhere["splits"] == deebert["splits"]


@pytest.mark.parametrize("per_step_heads", [True, False])
def test_any_recipe_that_begins_as_vanilla_goes_on_from_it(per_step_heads, backbone, glue_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes.registry, "_factories", dict(recipes.registry._factories))
    stages = (*recipes.get("vanilla").stages, recipes.Stage(objectives.DeepSupervision("uniform")))
    made = recipes.Recipe("twice", "", stages, policies.Patience(1, 0.1), per_step_heads=per_step_heads)
    recipes.register("twice")(lambda: made)
    begun = []
    real = training.train_stage

    def watched(config, task, model, *arguments):
        begun.append({name: value.clone() for name, value in model.state_dict().items()})
        return real(config, task, model, *arguments)

    monkeypatch.setattr(training, "train_stage", watched)
    config = dataclasses.replace(tiny(["twice"], backbone)[0].points[0], task="STS-B")
    result = run(config, glue_dir, tmp_path, tmp_path / "work", progress=False)
    assert [stage["objective"]["name"] for stage in result["training"]] == ["final-step", "deep-supervision"]
    plain, second = begun
    last = "ponder.head.heads.3." if per_step_heads else "ponder.head."
    assert plain["ponder.head.1.bias"].item() == pytest.approx(2.0, abs=1.0)  # where labels are
    moved = [name for name in plain if name.startswith("encoder") and not torch.equal(plain[name], second[name])]
    assert len(moved) > 10
    assert not torch.equal(plain["ponder.head.1.weight"], second[last + "1.weight"])
    if per_step_heads:
        torch.testing.assert_close(second["ponder.head.heads.0.1.bias"], plain["ponder.head.1.bias"])


def test_a_full_disk_fails_the_run_and_loses_nothing(backbone, glue_dir, tmp_path, monkeypatch):
    cells = tiny(["vanilla"], backbone)
    real, write_text = training.train_stage, Path.write_text
    trained = []
    monkeypatch.setattr(training, "train_stage", lambda *arguments: trained.append(1) or real(*arguments))
    places = {"glue_dir": glue_dir, "out": tmp_path / "out", "work": tmp_path / "work"}

    def full(path, *arguments, **keywords):
        if tmp_path / "out" in path.parents:
            write_text(path, "{")  # some of it still went through
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_text(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "write_text", full)
    with inline() as executor:
        summary = sweep(cells, executor, **places)
    assert "No space left on device" in summary.failures[0].error
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []

    monkeypatch.setattr(Path, "write_text", write_text)
    with inline() as executor:
        assert sweep(cells, executor, **places).failures == ()
    assert trained == [1]  # what was trained lay in the folder of checkpoints
    assert not (tmp_path / "work" / "stages").exists()  # nobody goes on from it


def test_a_checkpoint_that_does_not_fit_on_the_disk_fails_its_run_alone(backbone, glue_dir, tmp_path, monkeypatch):
    cells = tiny(["vanilla", "pabee"], backbone)
    real, saved = Trainer._save_checkpoint, []

    def full(self, *arguments, **keywords):
        saved.append(1)
        if len(saved) == 1:
            raise OSError(errno.ENOSPC, "No space left on device [checkpoint]")
        return real(self, *arguments, **keywords)

    monkeypatch.setattr(Trainer, "_save_checkpoint", full)
    places = {"glue_dir": glue_dir, "out": tmp_path / "out", "work": tmp_path / "work"}
    console = Console(width=200, record=True)
    with inline() as executor:
        summary = sweep(cells, executor, **places)
    assert [(failure.config.recipe, summary.done) for failure in summary.failures] == [("vanilla", 1)]
    _tell(console, summary, tmp_path / "out")
    assert "No space left on device [checkpoint]" in console.export_text()
    with inline() as executor:
        assert sweep(cells, executor, **places).failures == ()


@pytest.mark.parametrize("recipe", ["vanilla", "pabee"])
def test_nothing_is_held_out_where_dev_selects_and_what_selects_is_told(recipe, backbone, glue_dir, tmp_path):
    (point,) = tiny([recipe], backbone)[0].points
    config = dataclasses.replace(point, selection="dev")
    job_out = tmp_path / "out"
    assert execute(Job(config, glue_dir, job_out, tmp_path / "work")).status == "done"
    written = Result.of_run(job_out / f"{config.key}.json")
    assert (written["selection"], set(written["splits"])) == ("dev", {"dev"})
    (stage,), dev = written["training"], written["splits"]["dev"]
    selected_by = {"exits": dev["exits"]["score"], "mean over steps": sum(dev["per_step"]) / len(dev["per_step"])}
    assert stage["selected_by"] == ("exits" if recipe == "vanilla" else "mean over steps")
    assert stage["held_out_scores"] == [pytest.approx(selected_by[stage["selected_by"]], abs=1e-6)]


def test_the_command_goes_on_after_a_missing_file_and_exits_with_1(backbone, glue_dir, tmp_path):
    arguments = ["--suite", "mini", "--tasks", "RTE,CoLA", "--recipes", "vanilla", "--set", "max_train=20"]
    places = ["--backbone", backbone, "--out", tmp_path / "out", "--work", tmp_path / "work", "--executor", "inline"]
    partial = tmp_path / "glue"
    (partial / "RTE").mkdir(parents=True)
    for path in (Path(glue_dir) / "RTE").iterdir():
        (partial / "RTE" / path.name).write_bytes(path.read_bytes())
    done = invoke(*arguments, *places, "--glue-dir", partial)
    assert done.exit_code == 1, done.output
    assert "1 runs have a result" in done.output
    assert "CoLA" in done.output
    (failed,) = (tmp_path / "out" / "failed").glob("*.json")
    assert "expected the train split of CoLA" in json.loads(failed.read_text())["error"]
    assert [path.name.split("-")[0] for path in (tmp_path / "out").glob("*.json")] == ["rte"]
