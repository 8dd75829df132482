"""Runs, results and reports, on a tiny backbone and tiny files."""

import dataclasses
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset
from typer.testing import CliRunner

from benchmarks import tasks
from benchmarks.command_line import parse_fields, parse_policy
from benchmarks.examples import Collator, load_tokenizer, tokenize
from benchmarks.glue import training
from benchmarks.glue.cli import app
from benchmarks.glue.config import RunConfig
from benchmarks.glue.evaluation import mean_cost, measure_costs, measure_speed_ups, record, summarise
from benchmarks.glue.model import build, keep, load_kept
from benchmarks.glue.report import report
from benchmarks.glue.results import FORMAT, Result, read_all
from benchmarks.glue.run import run
from benchmarks.glue.training import train
from benchmarks.locking import BusyError, hold
from ponder import Trajectory, objectives, policies, priors, recipes
from ponder.cost import measure
from ponder.errors import ArgumentError, ArgumentTypeError, CheckpointError, DataError
from ponder.policies import Quantile

# One of every build of heads, stages and policies; the others differ in numbers.
RECIPES = ["deebert", "fastbert", "pabee", "palbert", "ponder", "pondernet", "vanilla"]


def config(backbone, **changes):
    fields = {"task": "RTE", "recipe": "palbert", "backbone": backbone, "epochs": 1, "batch_size": 16, "lr": 1e-3}
    return RunConfig(**{**fields, **changes})


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def result(backbone, glue_dir, tmp_path_factory):
    """What one run gives: beside the folder of its result lie its model and its trajectories."""
    folder = tmp_path_factory.mktemp("result")
    kept = {"models": folder / "models", "trajectories": folder / "kept"}
    return run(config(backbone), glue_dir, folder / "out", folder / "work", **kept, progress=False)


@pytest.fixture
def models(result):
    """The folder of the model of `result`."""
    return result.path.parents[1] / "models"


def test_trajectories_are_kept_where_they_are_asked_for(result, backbone, glue_dir, tmp_path):
    settings, places = config(backbone), result.path.parents[1]
    assert sorted(path.name for path in (places / "kept").iterdir()) == [
        f"{settings.key}-dev.safetensors",
        f"{settings.key}-held_out.safetensors",
    ]
    kept = Trajectory.load(places / "kept" / f"{settings.key}-dev.safetensors")
    exits = kept.replay(policies.from_dict(result["policy"]))
    assert float(exits.exit_step.double().mean()) == pytest.approx(result["splits"]["dev"]["mean_exit_step"])
    shutil.copy(result.path, tmp_path)
    run(settings, glue_dir, tmp_path, tmp_path / "work", trajectories=tmp_path / "other", progress=False)
    assert len(list((tmp_path / "other").iterdir())) == 2  # made once more, for what was not kept


@pytest.mark.parametrize("recipe", RECIPES)
def test_command_line_run_of_every_recipe(recipe, backbone, glue_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")  # folders of tests have long names
    arguments = (
        *("run", "--task", "rte", "--recipe", recipe, "--backbone", backbone, "--glue-dir", glue_dir, "--epochs", 1),
        *("--batch-size", 16, "--out", tmp_path / "out", "--work", tmp_path / "work", "--quiet"),
    )
    done, again = invoke(*arguments), invoke(*arguments)
    assert done.exit_code == again.exit_code == 0, done.output
    assert "was there already" not in done.output
    assert "was there already" in again.output
    assert done.stderr == ""  # no bar of any library
    table = done.stdout.splitlines()[:-1]
    assert table == again.stdout.splitlines()[: len(table)]
    assert table[0].split() == ["RTE,", "dev", recipe, "on", backbone]
    assert re.fullmatch(r"at the exits +\d+\.\d %, accuracy", table[3])
    assert " in steps, ×" in table[-1]
    (path,) = (tmp_path / "out").glob("*.json")
    written = json.loads(path.read_text())
    assert (written["task"], written["recipe"], written["num_steps"]) == ("RTE", recipe, 4)
    assert sum(written["splits"]["dev"]["exit_histogram"]) == written["splits"]["dev"]["examples"] == 20
    assert len(written["splits"]["dev"]["per_step"]) == 4
    assert len(written["training"]) == (2 if recipe in ("deebert", "fastbert", "ponder") else 1)
    assert {"steps", "flops", "wall_clock"} <= written["speed_up"].keys()
    assert (written["splits"]["dev"]["halting"] is not None) == (recipe in ("palbert", "pondernet"))
    if recipe == "vanilla":
        assert written["speed_up"]["steps"] == written["speed_up"]["flops"] == 1.0
        assert written["splits"]["dev"]["exits"] == written["splits"]["dev"]["full_depth"]
    assert not any((tmp_path / "work").iterdir())


def test_a_result_holds_what_is_needed_to_repeat_it(result):
    written = json.loads(result.path.read_text())
    assert RunConfig(**written["config"]).key == result.path.stem
    assert {"commit", "versions", "device", "command", "date"} <= written["environment"].keys()
    assert math.isclose(written["speed_up"]["steps"], 4 / written["splits"]["dev"]["mean_exit_step"])
    assert set(written["splits"]) == {"dev", "held_out"}
    assert written["splits"]["held_out"]["examples"] == 6


def test_regression_selects_and_scores(backbone, glue_dir, tmp_path):
    done = run(config(backbone, task="STS-B", recipe="pabee"), glue_dir, tmp_path, tmp_path / "work", progress=False)
    assert {"pearson", "spearman", "score"} == done["splits"]["dev"]["exits"].keys()


@pytest.mark.parametrize("recipe", ["vanilla", "pabee"])  # one shared head, one head a step
def test_regression_heads_start_at_the_mean_label(backbone, glue_dir, tmp_path, recipe):
    # TRAP: heads that start far from the labels wrecked the encoder wherever all steps are trained at once.
    settings, task = config(backbone, task="STS-B", recipe=recipe, lr=1e-9), tasks.get("STS-B")
    ready = tokenize(task.load(glue_dir)["train"], load_tokenizer(backbone), 32)
    trained = train(settings, task, ready, ready, tmp_path, progress=False).model
    biases = [module.bias for module in trained.ponder.head.modules() if isinstance(module, torch.nn.Linear)]
    assert len(biases) == (trained.ponder.num_steps if recipe == "pabee" else 1)
    torch.testing.assert_close(torch.cat(biases), torch.full((len(biases),), float(np.mean(ready["labels"]))))


def test_an_entropy_policy_is_refused_on_regression_before_training(backbone, glue_dir, tmp_path):
    with pytest.raises(ArgumentError, match="regression"):
        run(config(backbone, task="STS-B", recipe="deebert"), glue_dir, tmp_path, tmp_path / "work", progress=False)


def test_a_policy_that_reads_features_is_replayed_with_them(backbone, glue_dir, tmp_path, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Settled(policies.ExitPolicy):
        threshold: float
        needs = frozenset({"features"})

        def decide(self, step, state):
            if state is None:
                return False, step.features
            return (step.features - state).norm(dim=-1) < self.threshold, step.features

    from ponder.policies import base

    monkeypatch.setitem(base.registry._factories, "settled", Settled)
    settings = config(backbone, policy="settled:threshold=1e6")
    assert settings.policy == {"name": "settled", "threshold": 1e6}
    done = run(settings, glue_dir, tmp_path, tmp_path / "work", progress=False)
    assert done["splits"]["dev"]["mean_exit_step"] == 2.0


def test_a_finished_run_is_read_and_not_repeated(result, backbone, tmp_path):
    again = run(config(backbone), tmp_path / "no such folder", result.path.parent, tmp_path, progress=False)
    assert again.data == json.loads(result.path.read_text())


@pytest.mark.skipif(torch.accelerator.is_available(), reason="an accelerator's fused attention has dropout")
def test_attention_is_written_out_for_training_on_a_cpu_and_back_afterwards(backbone, tmp_path, monkeypatch):
    model = build(config(backbone), 2)
    before, during = model.encoder.config._attn_implementation, []

    def cut_off(trainer, **keywords):
        during.append(trainer.model.encoder.config._attn_implementation)
        raise KeyboardInterrupt

    monkeypatch.setattr(training.PonderTrainer, "train", cut_off)
    rows = Dataset.from_dict({"input_ids": [[1, 2]], "labels": [0], "idx": [0], "length": [2]})
    with pytest.raises(KeyboardInterrupt):
        training.train_stage(config(backbone), tasks.get("RTE"), model, rows, rows, tmp_path, progress=False)
    assert during == ["eager"]
    assert model.encoder.config._attn_implementation == before == "sdpa"


@pytest.mark.parametrize("head_lr", [None, 1e-2])
def test_heads_have_dropout_and_the_optimiser_is_adam_with_the_rates_of_the_heads(
    head_lr, backbone, tmp_path, monkeypatch
):
    settings = config(backbone, lr=1e-3, lambda_lr=1e-5, head_lr=head_lr, schedule="constant", warmup=0.0)
    model, made = build(settings, 2), []

    def cut_off(trainer, **keywords):
        made.append(trainer.create_optimizer())
        raise KeyboardInterrupt

    monkeypatch.setattr(training.PonderTrainer, "train", cut_off)
    rows = Dataset.from_dict({"input_ids": [[1, 2]], "labels": [0], "idx": [0], "length": [2]})
    with pytest.raises(KeyboardInterrupt):
        training.train_stage(settings, tasks.get("RTE"), model, rows, rows, tmp_path, progress=False)
    groups = made[0].param_groups
    assert isinstance(made[0], torch.optim.AdamW)
    assert {group["weight_decay"] for group in groups} == {0.0}  # which makes it Adam
    of_lambda = {id(weight) for weight in model.ponder.lambda_head.parameters()}
    of_heads = {id(weight) for weight in model.ponder.head.parameters()}
    for group in groups:
        for weight in group["params"]:
            own = 1e-5 if id(weight) in of_lambda else head_lr or 1e-3 if id(weight) in of_heads else 1e-3
            assert group["lr"] == own
    trained = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(trained) == sorted(id(weight) for weight in model.parameters())
    assert [module.p for module in model.ponder.head.modules() if isinstance(module, torch.nn.Dropout)] == [0.1]


def test_a_run_that_was_cut_off_after_its_first_stage_ends_as_if_it_was_not(backbone, glue_dir, tmp_path, monkeypatch):
    whole = run(config(backbone, recipe="deebert"), glue_dir, tmp_path / "a", tmp_path / "w", progress=False)
    real, calls = training.train_stage, []

    def cut_off(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(training, "train_stage", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run(config(backbone, recipe="deebert"), glue_dir, tmp_path / "b", tmp_path / "w", progress=False)
    assert not list((tmp_path / "b").glob("*.json"))
    resumed = run(config(backbone, recipe="deebert"), glue_dir, tmp_path / "b", tmp_path / "w", progress=False)
    assert len(calls) == 3
    assert resumed["splits"] == whole["splits"]


def test_a_run_goes_on_from_the_first_stage_that_it_began_with(backbone, glue_dir, tmp_path, monkeypatch):
    """The trap: a model of vanilla that came in between, from another sweep, was the teacher of half a training."""
    two_stages, models = config(backbone, recipe="deebert"), tmp_path / "models"
    first = training.plain(two_stages)
    whole = run(two_stages, glue_dir, tmp_path / "a", tmp_path / "w", progress=False)
    real = training.train_stage

    def stop_at_early_heads(settings, task, model, *rest):
        if settings.recipe != "vanilla":
            raise KeyboardInterrupt
        return real(settings, task, model, *rest)

    def cut_off(work):
        with monkeypatch.context() as patch:
            patch.setattr(training, "train_stage", stop_at_early_heads)
            with pytest.raises(KeyboardInterrupt):
                run(two_stages, glue_dir, tmp_path / "b", work, models=models, progress=False)

    cut_off(tmp_path / "own")
    run(first, glue_dir, tmp_path / "c", tmp_path / "w", models=models, progress=False)
    other = load_kept(models / first.key)
    torch.nn.init.normal_(next(other.model.encoder.parameters()))
    keep(other.model, first, models, other.training, other.origin)
    done = run(two_stages, glue_dir, tmp_path / "b", tmp_path / "own", models=models, progress=False)
    assert done["splits"] == whole["splits"]
    shutil.rmtree(tmp_path / "b")
    shutil.rmtree(models / two_stages.key)
    cut_off(tmp_path / "kept")
    shutil.rmtree(models / first.key)
    with pytest.raises(ArgumentError, match="--work: expected checkpoints of this run"):
        run(two_stages, glue_dir, tmp_path / "b", tmp_path / "kept", models=models, progress=False)


def test_what_selects_is_told_where_the_policy_sees_nothing_of_a_stage(backbone, glue_dir, tmp_path):
    """The trap: early heads under the last step ran to their end, and the file said that the best epoch was kept."""
    places, two = (tmp_path / "out", tmp_path / "work"), {"epochs": 3, "lr": 3e-3, "stop_after": 1}
    heads = run(config(backbone, recipe="deebert", policy={"name": "last-step"}, **two), glue_dir, *places)
    told, held_out = heads["training"][1], heads["splits"]["held_out"]
    assert told["selected_by"] == "mean over steps"
    assert np.mean(held_out["per_step"]) == pytest.approx(max(told["held_out_scores"]), abs=1e-6)
    answers = {"name": "patience", "patience": 2, "tolerance": 0.2}
    lambdas = run(config(backbone, task="STS-B", recipe="ponder", policy=answers, **two), glue_dir, *places)
    assert [stage["selected_by"] for stage in lambdas["training"]][-1] == "last epoch"


def test_a_result_of_another_training_than_the_model_beside_it_is_made_again(
    result, models, backbone, glue_dir, tmp_path, monkeypatch
):
    settings, kept = config(backbone), result.path.parents[1]
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    places = {"models": tmp_path / "models", "trajectories": tmp_path / "kept", "progress": False}
    monkeypatch.setattr(training, "train_stage", lambda *_: pytest.fail("it is trained already"))
    same = run(settings, glue_dir, tmp_path / "out", tmp_path / "work", **places)
    assert same.data == result.data
    other = load_kept(models / settings.key)
    torch.nn.init.normal_(next(other.model.encoder.parameters()))
    keep(other.model, settings, tmp_path / "models", other.training, other.origin)
    made = run(settings, glue_dir, tmp_path / "out", tmp_path / "work", **places)
    assert made["weights"] == other.model.ponder.weights_digest() != result["weights"]
    dev = tmp_path / "kept" / f"{settings.key}-dev.safetensors"
    assert Trajectory.load(dev).weights == made["weights"]
    dev.write_bytes(dev.read_bytes()[:100])  # a copy that broke off
    run(settings, glue_dir, tmp_path / "out", tmp_path / "work", **places)
    assert Trajectory.load(dev).weights == made["weights"]


def test_a_run_goes_on_from_its_last_checkpoint(backbone, glue_dir, tmp_path, monkeypatch):
    from ponder.integrations.transformers import PonderTrainer

    two = config(backbone, epochs=2)
    whole = run(two, glue_dir, tmp_path / "a", tmp_path / "w", progress=False)
    real, seen = PonderTrainer.training_step, []

    def cut_off(self, *arguments, **keywords):
        seen.append(self.state.epoch)
        if len(seen) == 6:  # in the second epoch: 54 examples are four steps of 16
            raise KeyboardInterrupt
        return real(self, *arguments, **keywords)

    monkeypatch.setattr(PonderTrainer, "training_step", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run(two, glue_dir, tmp_path / "b", tmp_path / "w", progress=False)
    left = tmp_path / "b" / f".{two.key}.json.1-00"  # where a writer made its result that was killed
    left.mkdir(parents=True)
    (left / "half").touch()
    resumed = run(two, glue_dir, tmp_path / "b", tmp_path / "w", progress=False)
    assert len(seen) == 6 + 4
    assert not left.exists()
    assert resumed["splits"] == whole["splits"]


def test_dev_takes_no_part_in_any_choice(backbone, glue_dir, tmp_path):
    turned = tmp_path / "glue"
    (turned / "RTE").mkdir(parents=True)
    for split in ("train", "dev", "test"):
        text = (glue_dir / "RTE" / f"{split}.tsv").read_text()
        if split == "dev":  # every label the other way round
            text = text.replace("\tnot_entailment", "\t?").replace("\tentailment", "\tnot_entailment")
            text = text.replace("\t?", "\tentailment")
        (turned / "RTE" / f"{split}.tsv").write_text(text)
    settings = config(backbone, epochs=2)
    one, other = (
        run(settings, folder, tmp_path / name, tmp_path / "work", progress=False)
        for name, folder in (("as it is", glue_dir), ("turned", turned))
    )
    dev, of_turned = (each["splits"]["dev"] for each in (one, other))
    assert dev["exits"]["accuracy"] == pytest.approx(1 - of_turned["exits"]["accuracy"])
    assert dev["predictions"] == of_turned["predictions"]
    assert one["splits"]["held_out"] == other["splits"]["held_out"]
    assert one["policy"] == other["policy"]
    for stage in (*one["training"], *other["training"]):
        stage.pop("seconds")
    assert one["training"] == other["training"]
    assert one.selection_score == other.selection_score


def test_policy_and_recipe_options_on_the_command_line(backbone, glue_dir, tmp_path):
    done = invoke(
        *(
            "run",
            "--task",
            "RTE",
            "--recipe",
            "palbert",
            "--backbone",
            backbone,
            "--glue-dir",
            glue_dir,
            "--epochs",
            1,
            "--quiet",
        ),
        *("--policy", "quantile:q=0.9", "--option", "hidden_concat=false", "--max-train", 30),
        *("--out", tmp_path / "out", "--work", tmp_path / "work"),
    )
    assert done.exit_code == 0, done.output
    (written,) = read_all(tmp_path / "out")
    assert written["policy"] == {"name": "quantile", "q": 0.9}
    assert written["config"]["recipe_options"] == {"hidden_concat": False}
    assert "palbert (hidden_concat=False)" in report([written], draw=False).markdown()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "XYZ"], "one of CoLA"),
        (["--task", "RTE", "--recipe", "nope"], "one of cosee"),
        (["--task", "RTE", "--recipe", "palbert", "--option", "qq=1"], "parameters q_exit, own_lambda_lr"),
        (["--task", "RTE", "--policy", "nope"], "one of"),
        (["--task", "RTE", "--policy", "quantile:q"], "field=value"),
        (["--task", "RTE", "--policy", "quantile:q=2"], r"number in \[0, 1\]"),
        (["--task", "RTE", "--epochs", "0"], "epochs"),
        (["--task", "RTE", "--lr", "0"], "lr"),
        (["--task", "RTE", "--readout", "nope"], "mean or pooler"),
        (["--task", "RTE", "--backbone", "no/such"], "backbone"),
    ],
)
def test_bad_arguments_are_named(arguments, message, glue_dir, tmp_path, backbone, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no hub is asked, again and again
    extra = [] if "--backbone" in arguments else ["--backbone", backbone]
    done = invoke(
        "run", *arguments, *extra, "--glue-dir", glue_dir, "--out", tmp_path, "--work", tmp_path / "w", "--quiet"
    )
    assert isinstance(done.exception, ArgumentError | ArgumentTypeError | CheckpointError), done.output
    with pytest.raises(type(done.exception), match=message):
        raise done.exception


def test_processes_that_train_together_do_not_wait_for_a_run_elsewhere(backbone, glue_dir, tmp_path, monkeypatch):
    """The first of them would, and the others would wait for it."""
    settings = config(backbone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    elsewhere = hold(tmp_path / "work" / f"{settings.key}.lock", wait=False)
    with elsewhere, pytest.raises(BusyError, match="another process is at work on it"):
        run(settings, glue_dir, tmp_path / "out", tmp_path / "work", progress=False)


def test_of_processes_that_train_together_the_first_does_not_train_what_another_has_just_written(
    result, backbone, glue_dir, tmp_path, monkeypatch
):
    """The others have not seen it: they would train alone, and wait for the first."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")

    def written_meanwhile(path, wait):
        shutil.copy(result.path, tmp_path / "out")
        return hold(path, wait=wait)

    monkeypatch.setattr("benchmarks.glue.run.hold", written_meanwhile)
    with pytest.raises(BusyError, match="another process has just written it"):
        run(config(backbone), glue_dir, tmp_path / "out", tmp_path / "work", progress=False)


def test_an_unwritable_folder_is_refused_before_training(backbone, glue_dir, tmp_path):
    (tmp_path / "file").touch()
    bad, good = tmp_path / "file" / "folder", tmp_path / "good"
    for option, places in (
        ("--out", {"out": bad, "work": good}),
        ("--work", {"out": good, "work": bad}),
        ("--trajectories", {"out": good, "work": good, "trajectories": bad}),
        ("--keep-model", {"out": good, "work": good, "models": bad}),
    ):
        with pytest.raises(ArgumentError, match=f"^{option}: "):
            run(config(backbone), glue_dir, **places, progress=False)


def test_main_prints_one_line_and_exits_with_2(monkeypatch, capsys):
    from benchmarks.glue import cli

    monkeypatch.setattr("sys.argv", ["benchmarks.glue", "run", "--task", "nope"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "task: expected one of CoLA" in capsys.readouterr().err


def test_brackets_in_an_error_are_shown(monkeypatch, capsys):
    from benchmarks import command_line

    def failing():
        raise DataError("pip install 'ponder-torch[ray]' [/red]")

    with pytest.raises(SystemExit):
        command_line.run_app(failing)
    assert "pip install 'ponder-torch[ray]' [/red]" in capsys.readouterr().err


def test_record_keeps_the_order_of_the_data_and_summarise_agrees_with_a_plain_loop(backbone, glue_dir):
    task = tasks.get("RTE")
    tokenizer = load_tokenizer(backbone)
    ready = tokenize(task.load(glue_dir)["dev"], tokenizer, 64)
    model, collate = build(config(backbone), 2).eval(), Collator(tokenizer)
    trajectory = record(model, ready, batch_size=7)
    assert trajectory.row_ids.tolist() == list(ready["idx"])
    assert trajectory.labels.tolist() == list(ready["labels"])
    policy = policies.Quantile(0.3)
    summary = summarise(task, trajectory, policy)
    steps, right = [], []
    for row in range(len(ready)):
        one = {k: v for k, v in collate([ready[row]]).items() if k != "labels"}
        out = model(**one, policy=policy)
        steps.append(out.exit_step.item())
        right.append(out.logits.argmax().item() == ready[row]["labels"])
    assert summary["mean_exit_step"] == pytest.approx(np.mean(steps))
    assert summary["exits"]["accuracy"] == pytest.approx(np.mean(right))
    assert summary["exit_histogram"] == [steps.count(step) for step in range(1, 5)]
    assert sum(summary["halting"]) == pytest.approx(1.0, abs=1e-6)


def test_speed_ups_in_steps_and_flops_follow_the_exits(backbone, glue_dir):
    tokenizer = load_tokenizer(backbone)
    ready = tokenize(tasks.get("RTE").load(glue_dir)["dev"], tokenizer, 64)
    model = build(config(backbone, recipe="vanilla"), 2).eval()
    collate, exits = Collator(tokenizer), torch.full((len(ready),), 2)
    costs = measure_costs(model, ready, collate)
    half = measure_speed_ups(model, ready, collate, policies.FixedStep(2), exits, costs, pairs=2)
    assert half["steps"] == 2.0
    assert half["flops"] == pytest.approx(2.0, rel=0.02)  # the head costs a little, and embeddings nothing
    assert half["wall_clock_range"][0] <= half["wall_clock"] <= half["wall_clock_range"][1]

    for row in range(len(ready)):  # each example at its own length
        alone = {k: v for k, v in collate([ready[row]]).items() if k not in ("labels", "row_ids")}
        assert costs[row] == measure(model.ponder, alone.pop("input_ids"), **alone)
    assert len(set(costs)) > 1
    assert mean_cost(costs).plain == pytest.approx(np.mean([cost.plain for cost in costs]))


def test_flops_are_those_of_each_example_of_dev_at_its_own_exit(backbone, glue_dir, tmp_path):
    settings = config(backbone, recipe="pondernet")  # exits are drawn, so they differ
    places = (tmp_path / "out", tmp_path / "work")
    done = run(settings, glue_dir, *places, models=tmp_path / "models", progress=False)
    kept = load_kept(tmp_path / "models" / settings.key)
    ready = tokenize(tasks.get("RTE").load(glue_dir)["dev"], kept.tokenizer, settings.max_length)
    collate, plain, spent, steps = Collator(kept.tokenizer), 0.0, 0.0, []
    for row in ready:
        one = {name: tensor for name, tensor in collate([row]).items() if name != "labels"}
        steps.append(kept.model(**one).exit_step.item())
        context = {name: one.get(name) for name in ("attention_mask", "token_type_ids")}
        cost = measure(kept.model.ponder, one["input_ids"], **context)
        plain, spent = plain + cost.plain, spent + float(cost.of(kept.model.policy.needs, steps[-1]))
    assert len(set(steps)) > 1
    assert done["speed_up"]["flops"] == pytest.approx(plain / spent)
    assert done["splits"]["dev"]["mean_exit_step"] == pytest.approx(np.mean(steps))


def test_a_kept_model_without_its_result_is_evaluated_and_not_trained(
    result, models, backbone, glue_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr("benchmarks.glue.training.train_stage", lambda *_: pytest.fail("it is trained already"))
    again = run(config(backbone), glue_dir, tmp_path / "out", tmp_path / "work", models=models, progress=False)
    assert again["splits"] == result["splits"]
    assert again["training"] == result["training"]


def test_results_that_cannot_be_trusted_are_refused(result, tmp_path):
    with pytest.raises(DataError, match="folder of results"):
        read_all(tmp_path / "none")
    (tmp_path / "half.json").write_text(result.path.read_text()[:100])
    with pytest.raises(DataError, match=r"half\.json"):
        read_all(tmp_path)
    (tmp_path / "half.json").unlink()
    shutil.copy(result.path, tmp_path / "copy.json")
    with pytest.raises(DataError, match=rf"copy\.json: expected the run of this name; got {result.path.stem}"):
        read_all(tmp_path)
    (tmp_path / "copy.json").unlink()

    splits, fields = result["splits"], result["config"]
    better = {**splits, "dev": {**splits["dev"], "exits": {"accuracy": 0.99, "score": 0.99}}}
    for changes, message in (
        ({"format": "another"}, "another"),
        ({"splits": better}, "it was edited since"),
        ({"splits": {}}, "expected scores of dev at the exits"),
        ({"config": {**fields, "lr": 0.5}}, "edited, or a copy"),
        ({"config": {**fields, "from_the_future": 1}}, rf"{result.path.name}: config: .*from_the_future"),
        ({"training": [{"objective": {"name": "final-step"}}], "digest": None}, "edited"),
        ({"recipe": "of-a-plug-in", "digest": None}, "edited"),
        ({"task": "CoLA"}, "edited, or a copy"),
        ({"backbone": "mpnet"}, "edited, or a copy"),
        ({"splits": []}, "got other contents"),
        ({"config": 1}, "no configuration of this version|got other contents"),
    ):
        (tmp_path / result.path.name).write_text(json.dumps({**result.data, **changes}))
        with pytest.raises(DataError, match=message):
            read_all(tmp_path)
    shutil.copy(result.path, tmp_path)
    assert len(read_all(tmp_path)) == 1
    without = {name: value for name, value in result.data.items() if name != "digest"}
    (tmp_path / result.path.name).write_text(json.dumps(without))
    with pytest.raises(DataError, match="it was edited since"):
        read_all(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"prior": priors.Uniform()},
        {"per_step_heads": True},
        {"own_lambda_lr": False},
        {"policy": policies.Quantile(0.4)},
        {"lambda_head": recipes.LambdaSpec(layers=1, history=2)},
        {"lambda_head": recipes.LambdaSpec(layers=3, history=2, start="prior")},
        {"stages": (recipes.Stage(objectives.FinalStep()),)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_result_of_a_recipe_that_has_changed_since_is_refused(change, result, monkeypatch):
    changed = dataclasses.replace(recipes.get("palbert"), **change)
    assert Result.of_run(result.path).data == result.data
    monkeypatch.setattr("benchmarks.glue.results.recipes.get", lambda name, **options: changed)
    with pytest.raises(DataError, match=f"'palbert' as it is; got one of it as it was, .*{next(iter(change))}"):
        Result.of_run(result.path)


def test_a_policy_is_read_as_it_is_written():
    assert parse_policy("last-step") == policies.LastStep()
    assert parse_policy("patience:patience=3,tolerance=0.5") == policies.Patience(3, 0.5)


def test_keys_differ_with_every_field():
    changed = {
        **{"task": "CoLA", "recipe": "vanilla", "backbone": "mpnet", "recipe_options": {"q": 0.3}, "readout": "pooler"},
        **{"policy": {"name": "last-step"}, "seed": 1, "epochs": 4, "lr": 1e-5, "lambda_lr": 1e-5, "batch_size": 8},
        **{"warmup": 0.0, "stop_after": 2, "held_out": 0.2, "max_train": 9, "max_length": 64, "bf16": True},
        **{
            "schedule": "constant",
            "selection": "dev",
            "head_lr": 1e-3,
        },
    }
    assert changed.keys() == {field.name for field in dataclasses.fields(RunConfig)}
    one = RunConfig("RTE")
    keys = {one.key, *(dataclasses.replace(one, **{name: value}).key for name, value in changed.items())}
    assert len(keys) == 1 + len(changed)
    assert one.key == RunConfig("RTE").key
    assert RunConfig("RTE", warmup=0).key == RunConfig("RTE", warmup=0.0).key


def test_a_result_of_a_recipe_that_is_not_here_is_named(tmp_path):
    for fields in ({"recipe": "of-a-plug-in"}, {"recipe_options": {"gone": 1}}):
        config = RunConfig("RTE", **{"recipe": "palbert", **fields})
        names = {"task": "RTE", "recipe": config.recipe, "backbone": "minilm", "num_steps": 6, "policy": {}}
        path = tmp_path / f"{config.key}.json"
        exits = {"dev": {"exits": {"score": 0.5}}}
        Result({"format": FORMAT, **names, "config": config.to_dict(), "splits": exits, "speed_up": {}}).save(path)
        with pytest.raises(DataError, match=f"{path.name}: expected a recipe that is here; "):
            read_all(tmp_path)
        path.unlink()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("epochs", value) for value in (0, 1.5, "abc", True)),
        *(("lr", value) for value in (0, 1.0, "fast")),
        *(("held_out", value) for value in (0, 1, 2)),
        *(("warmup", -3), ("seed", -1), ("max_train", 3), ("max_length", 0), ("bf16", 1)),
        ("head_lr", 1),
    ],
)
def test_fields_out_of_their_range_are_named(field, value):
    with pytest.raises(ArgumentError, match=f"^{field}: expected .*{value}"):
        RunConfig("RTE", **{field: value})


def test_kept_models_and_checkpoints_of_other_data_are_refused(models, backbone, glue_dir, tmp_path):
    """Folders go by the configuration, which says nothing of the data."""
    work, other = tmp_path / "work", tmp_path / "glue"
    shutil.copytree(glue_dir, other)
    train = other / "RTE" / "train.tsv"
    lines = train.read_text().splitlines()
    train.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    with pytest.raises(ArgumentError, match=r"--keep-model.*other data"):
        run(config(backbone), other, tmp_path / "b", work, models=models, progress=False)
    made = json.loads((models / config(backbone).key / "glue.json").read_text())
    kept = shutil.copytree(models / config(backbone).key, tmp_path / "models" / config(backbone).key)
    (kept / "glue.json").write_text(json.dumps({**made, "selected_on": "another"}))
    with pytest.raises(ArgumentError, match=r"--keep-model.*selected on other data"):
        run(config(backbone), glue_dir, tmp_path / "b", tmp_path / "work", models=tmp_path / "models", progress=False)
    (work / config(backbone).key).mkdir(parents=True)
    (work / config(backbone).key / "made-by.json").write_text(json.dumps({"selected_on": "another"}))
    with pytest.raises(ArgumentError, match=r"--work.*other data"):
        run(config(backbone), glue_dir, tmp_path / "c", work, progress=False)
    (work / config(backbone).key / "made-by.json").write_text('{"data": "another", "stages": []}')
    with pytest.raises(ArgumentError, match=r"--work.*another version of the recipe"):
        run(config(backbone), glue_dir, tmp_path / "c", work, progress=False)


def test_checkpoints_go_on_where_an_earlier_version_noted_less_of_the_recipe(backbone, glue_dir, tmp_path):
    note = tmp_path / "work" / config(backbone).key / "made-by.json"

    def begin():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "train_stage", stop)
            with pytest.raises(KeyboardInterrupt):
                run(config(backbone), glue_dir, tmp_path / "out", tmp_path / "work", progress=False)

    def stop(*_given):
        raise KeyboardInterrupt

    begin()
    noted = json.loads(note.read_text())
    assert {"data", "stages", "prior", "lambda_head"} <= set(noted)
    note.write_text(json.dumps({name: noted[name] for name in ("data", "stages")}))
    begin()
    note.write_text(json.dumps({**noted, "prior": {"name": "geometric", "rate": 0.9}}))
    with pytest.raises(ArgumentError, match=r"--work.*another version of the recipe"):
        run(config(backbone), glue_dir, tmp_path / "out", tmp_path / "work", progress=False)


@pytest.mark.parametrize("part", ["stages", "prior", "policy", "own_lambda_lr"])
def test_a_kept_model_of_a_recipe_that_has_changed_is_refused(models, backbone, glue_dir, tmp_path, monkeypatch, part):
    now = training.recipe_of

    def changed(*given):
        made = now(*given)
        stages = tuple(dataclasses.replace(stage, objective=2.0 * stage.objective) for stage in made.stages)
        other = {"stages": stages, "prior": priors.Geometric(0.4), "policy": Quantile(0.9), "own_lambda_lr": False}
        return dataclasses.replace(made, **{part: other[part]})

    monkeypatch.setattr(training, "recipe_of", changed)
    with pytest.raises(ArgumentError, match=r"--keep-model.*another version of the recipe"):
        run(config(backbone), glue_dir, tmp_path / "b", tmp_path / "work", models=models, progress=False)


def test_a_kept_model_with_a_policy_of_its_run_is_that_of_the_run(models, backbone, glue_dir, tmp_path):
    """Its recipe holds that policy, and the recipe as it is now another."""
    one, kept = config(backbone), config(backbone, policy={"name": "quantile", "q": 0.9})
    model = load_kept(models / one.key).model
    model.policy = Quantile(0.9)
    places = {"models": tmp_path / "models", "progress": False}
    keep(model, kept, tmp_path / "models", [{"objective": {"name": "final-step"}}])
    found = run(kept, glue_dir, tmp_path / "out", tmp_path / "work", **places)
    assert found["policy"] == {"name": "quantile", "q": 0.9}
    model.policy = Quantile(0.8)
    keep(model, kept, tmp_path / "models", [{"objective": {"name": "final-step"}}])
    with pytest.raises(ArgumentError, match=r"--keep-model.*another version of the recipe"):
        run(kept, glue_dir, tmp_path / "again", tmp_path / "work", **places)


def test_a_kept_model_of_another_run_is_refused(models, backbone, glue_dir, tmp_path):
    """A folder that was copied under the name of another run is not that run's model."""
    one, other = config(backbone), config(backbone, lr=2e-4)
    shutil.copytree(models / one.key, tmp_path / "models" / other.key)
    with pytest.raises(ArgumentError, match=rf"--keep-model.*got that of another run, {one.key}"):
        run(other, glue_dir, tmp_path / "b", tmp_path / "work", models=tmp_path / "models", progress=False)


def test_a_trajectory_that_is_missing_is_made(result, backbone, glue_dir, tmp_path):
    shutil.copytree(result.path.parents[1], tmp_path, dirs_exist_ok=True)
    saved = sorted((tmp_path / "kept").glob("*.safetensors"))
    saved[0].unlink()
    places = {"models": tmp_path / "models", "trajectories": tmp_path / "kept", "progress": False}
    done = run(config(backbone), glue_dir, tmp_path / "out", tmp_path / "work", **places)
    assert sorted((tmp_path / "kept").glob("*.safetensors")) == saved
    assert len(saved) == 2
    assert done.path.exists()


def test_switches_are_read_as_python_writes_them():
    """The trap: the tables say q_exit=False, and the word False is true."""
    assert parse_fields("--option", ["a=False", "b=True", "c=None", "d=false", "e=word"]) == {
        "a": False,
        "b": True,
        "c": None,
        "d": False,
        "e": "word",
    }


def test_a_task_is_known_however_it_is_spelt(backbone, glue_dir, tmp_path):
    """The trap: the run was trained to its end, and its own result refused as that of another."""
    found = run(config(backbone, task="rte"), glue_dir, tmp_path / "out", tmp_path / "work", progress=False)
    assert found.path.name == f"{config(backbone).key}.json"


def test_checkpoints_and_kept_models_of_another_encoder_are_refused(models, backbone, glue_dir, tmp_path):
    """The trap: the folder of the encoder holds other weights now, and the run went on from those of before."""
    kept = tmp_path / "models" / config(backbone).key
    shutil.copytree(models / config(backbone).key, kept)
    made = json.loads((kept / "glue.json").read_text())
    assert len(made["encoder"]) == 64
    (kept / "glue.json").write_text(json.dumps({**made, "encoder": "0" * 64}))
    with pytest.raises(ArgumentError, match=r"--keep-model.*began from other weights"):
        run(config(backbone), glue_dir, tmp_path / "a", tmp_path / "work", models=tmp_path / "models", progress=False)
    work = tmp_path / "work" / config(backbone).key
    work.mkdir(parents=True)
    (work / "made-by.json").write_text(json.dumps({"data": made["data"], "encoder": "0" * 64}))
    with pytest.raises(ArgumentError, match=r"--work.*from other weights"):
        run(config(backbone), glue_dir, tmp_path / "b", tmp_path / "work", progress=False)
    (kept / "glue.json").write_text(json.dumps({name: made[name] for name in made if name != "encoder"}))
    run(config(backbone), glue_dir, tmp_path / "c", tmp_path / "none", models=tmp_path / "models", progress=False)
