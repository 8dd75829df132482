"""Gates that are fitted to kept models, beside certainties at the same mean exit step."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from test_glue_run import config, invoke

from benchmarks.checksum import is_intact
from benchmarks.glue import training
from benchmarks.glue.ensembles import averaged, ensembles, fitted_weights
from benchmarks.glue.gates import FORMAT, compare, measure
from benchmarks.glue.model import Origin, load_kept
from benchmarks.glue.run import run
from ponder import Trajectory
from ponder.errors import ArgumentError, CheckpointError


@pytest.fixture(scope="module")
def kept(backbone, glue_dir, tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("kept"), {}
    for task, recipe in (("RTE", "palbert"), ("STS-B", "pabee")):
        settings = config(backbone, task=task, recipe=recipe)
        run(settings, glue_dir, folder / "out", folder / "work", models=folder / "models", progress=False)
        made[task] = folder / "models" / settings.key
    return made


def rows(seed, count=400):
    """Three steps of two classes: the last is right; the first is as sure where it is wrong, which a feature tells."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator)
    wrong = torch.rand(count, generator=generator) < 0.5
    right = torch.nn.functional.one_hot(labels, 2) * 4.0 - 2.0
    first = torch.where(wrong.unsqueeze(1), -right, right)
    hidden = torch.zeros(count, 3, 1)
    hidden[:, 0, 0] = wrong.double()
    outputs = torch.stack([first, right, right], 1)
    return Trajectory(outputs, None, torch.arange(count), labels=labels, features=hidden, task="classification")


def accuracy(outputs, labels):
    return (outputs.argmax(-1) == labels).double().mean().item()


def test_a_gate_is_ahead_where_features_tell_what_the_answer_does_not():
    fitting, dev = rows(0), rows(1)
    wrong = dev.features[:, 0, 0] > 0
    found = compare(fitting, dev, accuracy)
    share = wrong.double().mean().item()
    at_mean = {1.5: 2.0, 2.0: 1.5, 3.0: 1.0}
    # Blind: step 1 has 1 − share, step 2 all; the coin between them has what lies on the line.
    assert found["blind"] == pytest.approx([1 - share * (2 - mean) for mean in at_mean.values()], abs=1e-6)
    assert found["confidence"][2] == pytest.approx(1 - share, abs=1e-6)  # all rows are equally sure
    assert found["gate, agreement, logistic, features"][0] == pytest.approx(1.0, abs=1e-6)
    assert found["gate, agreement, logistic, features"][1] > found["blind"][1] + 0.1


def test_one_command_measures_kept_models(kept, glue_dir, tmp_path):
    ran = invoke("gates", "--model", kept["RTE"], "--glue-dir", glue_dir, "--out", tmp_path)
    assert ran.exit_code == 0, ran.output
    path = tmp_path / f"{kept['RTE'].name}.json"
    made = json.loads(path.read_text())
    assert is_intact(made)
    assert made["format"] == FORMAT
    assert made["rows"] == {"fitted_on": 6, "dev": 20}
    names = [
        f"gate, {target}, {model}" for target in ("agreement", "error", "gain") for model in ("logistic", "boosted")
    ]
    certainties = ["confidence", "entropy", "margin", "energy"]
    averages = [f"ensemble, {weights}" for weights in ("uniform", "linear", "fitted")]
    assert list(made["scores"]) == ["blind", *certainties, *names, f"{names[0]}, features", *averages]
    assert all(name in ran.output for name in made["scores"])


def test_answers_are_averaged_over_the_steps_so_far():
    dev = rows(1, count=7)
    weights = torch.tensor([[1.0, 0.0, 0.0], [1.0, 3.0, 0.0], [1.0, 1.0, 2.0]])
    found = averaged(dev, weights).outputs.exp()
    p = dev.outputs.double().softmax(-1)
    for row in range(7):
        for step, shares in enumerate(([1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.25, 0.25, 0.5])):
            by_hand = sum(share * p[row, m] for m, share in enumerate(shares))
            torch.testing.assert_close(found[row, step].double(), by_hand, rtol=1e-5, atol=1e-7)
    names = dict(ensembles(rows(0), dev))
    assert list(names) == ["uniform", "linear", "fitted"]
    torch.testing.assert_close(names["uniform"].outputs[:, 2].exp().double(), p.mean(1), rtol=1e-5, atol=1e-7)


def test_fitted_weights_leave_out_what_is_wrong():
    weights = fitted_weights(rows(0))  # half of the first answers are wrong, all later ones right
    assert weights.sum(1).tolist() == pytest.approx([1.0] * 3)
    assert bool((weights.triu(1) == 0).all())
    assert float(weights[1, 0]) < 0.01
    assert float(weights[2, 0]) < 0.01


def numbers(seed, count=300):
    """Three steps of one number: the first is far off in half of the rows, and then the second moves it."""
    generator = torch.Generator().manual_seed(seed)
    labels, off = torch.randn(count, generator=generator), torch.rand(count, generator=generator) < 0.5
    first = labels + torch.where(off, 3.0, 0.01) * torch.randn(count, generator=generator)
    outputs = torch.stack([first, labels + 0.01, labels], 1).unsqueeze(-1)
    hazards = torch.where(off, -4.0, 4.0).unsqueeze(1).expand(count, 3).clone()
    return Trajectory(outputs, hazards, torch.arange(count), labels=labels, task="regression")


def error(outputs, labels):
    return -float(((outputs.squeeze(-1) - labels) ** 2).mean())


def test_of_numbers_a_lambda_head_that_knows_is_ahead():
    found = compare(numbers(0), numbers(1), error)
    gates = [f"gate, gain of {delta}, {model}" for delta in ("0.1", "0.3") for model in ("logistic", "boosted")]
    assert list(found) == ["blind", "patience, by tolerance", "q-exit", *gates]
    assert found["q-exit"][1] > found["blind"][1] + 1.0
    assert found[gates[0]][1] > found["blind"][1] + 1.0
    assert found["patience, by tolerance"][2] is None  # it cannot leave at the first step


def test_models_of_numbers_are_measured_and_those_that_held_out_nothing_refused(kept, glue_dir, tmp_path):
    made = json.loads(measure(load_kept(kept["STS-B"]), glue_dir, tmp_path).read_text())
    assert "patience, by tolerance" in made["scores"]
    assert "q-exit" not in made["scores"]  # it has no Lambda head
    model = load_kept(kept["RTE"])
    on_dev = replace(model, config=replace(model.config, selection="dev"))
    with pytest.raises(ArgumentError, match="--model: expected a model whose training held out a part of train"):
        measure(on_dev, glue_dir, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(ArgumentError, match=r"--model: .* on this data, .* got one that was trained on other data"):
        measure(replace(model, origin=Origin("0" * 16)), glue_dir, tmp_path / "none")
    assert not list((tmp_path / "none").glob("*.json"))


def test_models_that_an_earlier_version_kept(kept, glue_dir, tmp_path, monkeypatch):
    """They do not tell their data; those of a recipe that has changed would be measured under the name of the new."""
    folder = shutil.copytree(kept["RTE"], tmp_path / "model")
    made = json.loads((folder / "glue.json").read_text())
    before = {"format": made["format"], "config": made["config"], "training": made["training"]}
    (folder / "glue.json").write_text(json.dumps(before))
    assert measure(load_kept(folder), glue_dir, tmp_path / "out").exists()

    now = training.recipe_of

    def changed(*given):
        made = now(*given)
        return replace(made, stages=tuple(replace(one, objective=2.0 * one.objective) for one in made.stages))

    monkeypatch.setattr(training, "recipe_of", changed)
    with pytest.raises(ArgumentError, match=r"--model: .* got one by another version of the recipe"):
        measure(load_kept(folder), glue_dir, tmp_path / "out")

    for fields in ({**made["config"], "knob": "other"}, None):
        (folder / "glue.json").write_text(json.dumps({**before, "config": fields}))
        with pytest.raises(CheckpointError, match=r"glue\.json: expected the configuration of a run of this version"):
            load_kept(folder)
    (folder / "glue.json").write_text(json.dumps({"format": made["format"]}))
    with pytest.raises(CheckpointError, match=r"glue\.json: expected the configuration of a run of this version"):
        load_kept(folder)
