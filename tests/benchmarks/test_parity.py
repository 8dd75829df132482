"""The parity experiment: its task, ACT against a plain loop, its training, its command line, its page."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.checksum import check_copies, own_seed
from benchmarks.parity.act import ACT, act_weights
from benchmarks.parity.cli import app, main
from benchmarks.parity.config import PAPER, SMALL
from benchmarks.parity.experiment import LEARNERS, evaluation_sets, experiment, read_results
from benchmarks.parity.learners import PonderNet
from benchmarks.parity.report import markdown, write_page
from benchmarks.parity.task import Range, Sample, Scene, draw
from benchmarks.parity.training import measure, train
from ponder._utils.files import write_json
from ponder.engine.loop import Exits
from ponder.errors import ArgumentError, DataError, PonderError
from ponder.policies import Bernoulli

TINY = replace(SMALL, hidden=8, num_steps=4, steps=3, batch_size=16, examples=60)


@pytest.fixture(scope="module")
def of_seeds():
    """The experiment with two seeds."""
    return [experiment(TINY, seed) for seed in (0, 1)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_vectors_are_what_the_paper_says():
    sample = draw(9, Range(2, 5), 3000, generator())
    for vector, label, difficulty in zip(
        sample.inputs.tolist(), sample.labels.tolist(), sample.difficulty.tolist(), strict=True
    ):
        assert set(vector) <= {-1.0, 0.0, 1.0}
        assert sum(x != 0 for x in vector) == difficulty
        assert label == sum(x == 1 for x in vector) % 2
    counts = [int((sample.difficulty == k).sum()) for k in range(1, 7)]
    assert counts[0] == counts[5] == 0
    assert all(abs(count - 750) < 120 for count in counts[1:5])  # uniform: 5 standard deviations
    places = (sample.inputs != 0).double().mean(0)
    assert float((places - 3.5 / 9).abs().max()) < 0.05  # every place alike
    assert abs(float(sample.inputs.mean())) < 0.03  # signs alike
    again = draw(9, Range(2, 5), 3000, generator())
    assert torch.equal(sample.inputs, again.inputs)


@pytest.mark.parametrize(("low", "high"), [(0, 3), (4, 3)])
def test_ranges_that_mean_nothing(low, high):
    with pytest.raises(ArgumentError, match="range"):
        Range(low, high)


def test_a_scene_holds_its_difficulties():
    with pytest.raises(ArgumentError, match="at least 7 elements"):
        Scene("extrapolation", 6, Range(1, 3), Range(4, 7))


def act_oracle(halting, epsilon):
    """Graves 2016, Equations 6 to 9 and 13, for one row."""
    total, weights = 0.0, []
    for step, h in enumerate(halting, start=1):
        if total + h >= 1 - epsilon or step == len(halting):
            remainder = 1 - total
            return weights + [remainder] + [0.0] * (len(halting) - step), step, step + remainder
        total += h
        weights.append(h)
    raise AssertionError


@pytest.mark.parametrize("epsilon", [0.01, 0.2])
def test_act_against_a_plain_loop(epsilon):
    draws = random.Random(0)
    halting = [[draws.random() ** power for _ in range(6)] for power in (0.2, 1, 2, 4, 9) for _ in range(20)]
    halting += [[0.0] * 6, [1.0] * 6, [0.0, 0.0, 0.995, 0.3, 0.3, 0.3]]
    mixed = act_weights(torch.tensor(halting, dtype=torch.float64), epsilon)
    for row, one in enumerate(halting):
        weights, step, cost = act_oracle(one, epsilon)
        assert mixed.weights[row].tolist() == pytest.approx(weights)
        assert int(mixed.exit_step[row]) == step
        assert float(mixed.ponder_cost[row]) == pytest.approx(cost)
    assert {int(step) for step in mixed.exit_step} == {1, 2, 3, 4, 5, 6}


def test_the_gradient_of_the_ponder_cost_is_that_of_the_remainder():
    halting = torch.tensor([[0.3, 0.4, 0.5, 0.6]], requires_grad=True)
    act_weights(halting).ponder_cost.sum().backward()
    assert halting.grad.tolist() == [[-1.0, -1.0, 0.0, 0.0]]


def test_act_stops_early_at_first_and_its_loss_adds_the_cost():
    torch.manual_seed(0)
    sample = draw(8, Range(1, 8), 50, generator())
    free, costly = ACT(8, replace(TINY, tau=0.0)), ACT(8, replace(TINY, tau=2.0))
    costly.load_state_dict(free.state_dict())
    with torch.no_grad():
        _, mixed = free(sample.inputs)
        difference = costly.loss(sample) - free.loss(sample)
    assert float(mixed.exit_step.double().mean()) < 3
    assert float(difference) == pytest.approx(2 * float(mixed.ponder_cost.mean()), rel=1e-4)


def test_pondernet_samples_as_running_it_does():
    torch.manual_seed(0)
    learner = PonderNet(8, TINY).eval()
    inputs = draw(8, Range(1, 8), 50, generator()).inputs
    with torch.no_grad():
        answers, run = learner.answers(inputs), learner.model(inputs)
    assert learner.model.policy == Bernoulli(seed=0)
    assert torch.equal(answers["sampled"].exit_step, run.exit_step)
    assert torch.allclose(answers["sampled"].outputs, run.outputs, atol=1e-6)
    assert set(answers["last step"].exit_step.tolist()) == {4}
    assert len(set(answers["sampled"].exit_step.tolist())) > 1


@pytest.mark.parametrize("name", LEARNERS)
def test_a_task_of_one_bit_is_learnt(name):
    """One element out of one: the answer is its sign."""
    scene = Scene("interpolation", 1, Range(1, 1), Range(1, 1))
    torch.manual_seed(0)
    learner = LEARNERS[name](1, TINY)
    validation, _ = evaluation_sets(scene, 40)
    training = train(learner, scene, replace(TINY, steps=150, learning_rate=0.03), validation, seed=0)
    assert training.updates == 150
    assert len(training.history) >= 20
    for measured in measure(learner, validation).values():
        assert measured["accuracy"] == 1.0
        assert measured["steps_per_element"] == 0.0


def test_what_is_measured():
    class Fixed(PonderNet):
        def answers(self, inputs):
            right = (inputs == 1).sum(-1) % 2
            right[0] = 1 - right[0]  # one wrong answer
            steps = 1 + 2 * (inputs != 0).sum(-1)
            return {"fixed": Exits(torch.eye(2)[right], steps)}

    vectors = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [1.0, -1.0, 1.0], [1.0, 1.0, 1.0]])
    sample = Sample(vectors, torch.tensor([1, 0, 0, 1]), torch.tensor([1, 1, 3, 3]))
    measured = measure(Fixed(3, TINY), sample)["fixed"]
    assert measured == {
        "accuracy": 0.75,
        "mean_exit_step": 5.0,
        "steps_per_element": pytest.approx(2.0),
        "by_difficulty": [
            {
                "difficulty": 1,
                "examples": 2,
                "accuracy": 0.5,
                "mean_exit_step": 3.0,
                "by_ones": [
                    {"ones": 0, "examples": 1, "accuracy": 1.0},
                    {"ones": 1, "examples": 1, "accuracy": 0.0},
                ],
            },
            {
                "difficulty": 3,
                "examples": 2,
                "accuracy": 1.0,
                "mean_exit_step": 7.0,
                "by_ones": [
                    {"ones": 2, "examples": 1, "accuracy": 1.0},
                    {"ones": 3, "examples": 1, "accuracy": 1.0},
                ],
            },
        ],
    }


def test_a_result_is_a_function_of_the_seed(of_seeds):
    def measured(result):
        return [(run["test"], run["training"]["history"]) for run in result["runs"]]

    first, other = map(measured, of_seeds)
    torch.manual_seed(99)
    assert measured(experiment(TINY, 0)) == first
    assert other != first


def test_evaluation_sets_are_fixed_and_differ():
    for scene in (*SMALL.scenes, *PAPER.scenes):
        validation, test = evaluation_sets(scene, 50)
        assert torch.equal(test.inputs, evaluation_sets(scene, 50)[1].inputs)
        assert not torch.equal(validation.inputs, test.inputs)
        assert int(validation.difficulty.max()) <= scene.train.high
        assert int(test.difficulty.min()) >= scene.test.low


def test_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.parity.cli.SMALL", TINY)
    out, page = tmp_path / "out", tmp_path / "page.md"
    page.write_text(
        "# Title\n\nbefore\n\n<!-- results: written by the benchmark -->\nold\n<!-- end of results -->\n\nafter\n"
    )
    arguments = ["--seed", "3", "--seed", "10", "--seed", "3", "--steps", "2", "--out", str(out), "--page", str(page)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in out.iterdir()) == ["small-s10.json", "small-s3.json"]
    assert (tmp_path / "figures" / "parity-small.svg").read_text().count("elements that are not zero") == 2
    result = json.loads((out / "small-s3.json").read_text())
    assert [(run["scene"], run["learner"]) for run in result["runs"]] == [
        (scene, learner) for scene in ("interpolation", "extrapolation") for learner in ("PonderNet", "ACT")
    ]
    assert {run["training"]["updates"] for run in result["runs"]} == {2}
    assert result["environment"]["versions"]["torch"]
    text = page.read_text()
    assert text.startswith("# Title\n\nbefore")
    assert text.endswith("<!-- end of results -->\n\nafter\n")
    assert "old" not in text
    assert "seeds 3, 10;" in text
    assert "2 updates of each model" in text
    assert "](figures/parity-small.svg)" in text
    again = CliRunner().invoke(app, ["--report", "--out", str(out), "--page", str(page)])
    assert again.exit_code == 0, again.output
    assert page.read_text() == text  # writing again changes nothing

    monkeypatch.setattr("benchmarks.parity.cli.experiment", None)  # what is there is not trained again
    assert CliRunner().invoke(app, arguments).exit_code == 0
    mixed = CliRunner().invoke(app, [*arguments, "--seed", "5", "--beta", "0.1"])
    assert isinstance(mixed.exception, ArgumentError)
    assert "small-s10.json, which differs in beta" in str(mixed.exception)


def test_a_page_without_marks_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.parity.cli.experiment", lambda *given: pytest.fail("trained, and then refused"))
    (tmp_path / "page.md").write_text("# No marks\n")
    done = CliRunner().invoke(app, ["--out", str(tmp_path / "out"), "--page", str(tmp_path / "page.md")])
    assert isinstance(done.exception, PonderError)
    assert "expected the lines" in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_an_experiment_that_was_cut_off_goes_on_after_the_models_that_are_done(of_seeds, tmp_path, monkeypatch):
    from benchmarks.parity import experiment as module

    real, trained = module.train, []

    def cut_off(learner, scene, *arguments, **keywords):
        trained.append(scene.name)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return real(learner, scene, *arguments, **keywords)

    monkeypatch.setattr(module, "train", cut_off)
    with pytest.raises(KeyboardInterrupt):
        experiment(TINY, 0, parts=tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 2
    resumed = experiment(TINY, 0, parts=tmp_path)
    assert len(trained) == 3 + 2
    assert without_seconds(resumed) == without_seconds(of_seeds[0])
    other = experiment(replace(TINY, beta=0.3), 0, parts=tmp_path)  # nothing of another experiment is taken
    assert len(trained) == 3 + 2 + 4
    assert other["setting"]["beta"] == 0.3


def without_seconds(result):
    runs = [{**run, "training": {**run["training"], "seconds": 0.0}} for run in result["runs"]]
    return json.loads(json.dumps(runs))


def test_the_papers_size_is_an_option(tmp_path, monkeypatch):
    small = replace(TINY, name="paper", scenes=PAPER.scenes, num_steps=PAPER.num_steps, examples=200)
    monkeypatch.setattr("benchmarks.parity.cli.PAPER", small)
    done = CliRunner().invoke(app, ["--paper", "--steps", "1", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["paper-s0.json", "paper.svg"]
    config = json.loads((tmp_path / "paper-s0.json").read_text())["setting"]
    assert [(scene["size"], scene["train"]["high"], scene["test"]["high"]) for scene in config["scenes"]] == [
        (64, 64, 64),
        (96, 48, 96),
    ]


def test_the_page_counts_over_seeds(of_seeds):
    text = markdown(of_seeds)
    table = [line for line in text.splitlines() if line.startswith("| extrapolation | ACT")]
    assert len(table) == 1
    accuracies = [
        run["test"]["mixed"]["accuracy"]
        for result in of_seeds
        for run in result["runs"]
        if (run["scene"], run["learner"]) == ("extrapolation", "ACT")
    ]
    assert f"{100 * sum(accuracies) / 2:.1f}% ± {100 * abs(accuracies[0] - accuracies[1]) / 2**0.5:.1f}%" in table[0]


def test_the_committed_page_says_what_the_committed_results_do():
    root = Path(__file__).resolve().parents[2]
    results = read_results(root / "benchmarks" / "results" / "parity", "small")
    assert markdown(results) in (root / "docs" / "parity.md").read_text(encoding="utf-8")


def test_wrong_pages_and_folders(of_seeds, tmp_path):
    (tmp_path / "page.md").write_text("# No marks\n")
    with pytest.raises(PonderError, match="expected the lines"):
        write_page(tmp_path / "page.md", of_seeds[:1])
    with pytest.raises(DataError, match="no results"):
        read_results(tmp_path, "small")
    for seed, result in enumerate((of_seeds[0], experiment(replace(TINY, beta=0.2), 1))):
        write_json(tmp_path / f"small-s{seed}.json", result)
    with pytest.raises(DataError, match="seeds 0 and 1 differ in beta"):
        read_results(tmp_path, "small")
    edited = json.loads((tmp_path / "small-s0.json").read_text())
    edited["runs"][1]["test"]["mixed"]["accuracy"] = 0.99
    write_json(tmp_path / "small-s0.json", edited)
    with pytest.raises(DataError, match="it was edited since"):
        read_results(tmp_path, "small")
    (tmp_path / "small-s0.json").write_text('{"format": "another"}')
    with pytest.raises(DataError, match="another"):
        read_results(tmp_path, "small")


@pytest.mark.parametrize("option", [("--steps", "0"), ("--tau", "nan"), ("--minutes", "0"), ("--beta", "-1")])
def test_wrong_options_are_one_message(option, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.parity.cli.SMALL", TINY)
    monkeypatch.setattr("sys.argv", ["parity", *option, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert f"error: {option[0].removeprefix('--')}: expected" in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_a_copy_of_a_result_is_no_other_seed(tmp_path):
    assert own_seed(tmp_path / "small-s3.json", {"seed": 3}) == {"seed": 3}
    first, second = ({"seed": seed, "runs": [0.5], "digest": str(seed)} for seed in (3, 4))
    check_copies([(tmp_path / "small-s3.json", first), (tmp_path / "small-s5.json", {**second, "runs": [0.6]})])
    with pytest.raises(DataError, match=r"small-s4\.json: expected a run of its own; it is .*small-s3\.json but for"):
        check_copies([(tmp_path / "small-s3.json", first), (tmp_path / "small-s4.json", second)])
    for name in ("small-s9", "small-s13", "small"):
        with pytest.raises(DataError, match="expected the result of the seed that its name tells; got that of 3"):
            own_seed(tmp_path / f"{name}.json", {"seed": 3})
