"""Files: what is written, what is refused, and a model that stays as it was."""

from __future__ import annotations

import builtins
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ponder
from ponder import objectives, policies, priors
from ponder.errors import CheckpointError, PonderError
from tests.ponder.checks import assert_unchanged, refused, snapshot
from tests.toys import WIDTH, make_toy, wrap


def model(seed: int = 0, toy: str = "stacked", **parts: Any) -> ponder.PonderWrapper:
    return wrap(make_toy(toy, seed), **parts).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ponder.save(model(), tmp_path)
    return tmp_path


def test_files_are_plain_json_and_safetensors(folder: Path) -> None:
    settings = json.loads((folder / "ponder.json").read_text())
    assert settings["format"] == "ponder-model-1"
    assert settings["policy"] == {"name": "quantile", "q": 0.5}
    assert settings["objective"]["name"] == "ponder"
    assert settings["num_steps"] == 5
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == model().state_dict().keys()
    assert os.stat(folder / "ponder.json").st_mode & 0o777 == 0o644


def test_saving_again_replaces(folder: Path) -> None:
    other = model(seed=3)
    ponder.save(other, str(folder))
    loaded = ponder.load(model(), str(folder))
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_nothing_is_unpickled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(folder / "evil"),)

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, never)
    monkeypatch.setattr(torch, "load", never)
    ponder.load(model(), folder)
    (folder / "model.safetensors").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError):
        ponder.load(model(), folder)
    assert not (folder / "evil").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def edit(**changes: Any):
    def change(path: Path) -> None:
        settings = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in settings.items() if value is not ...}))

    return change


@pytest.mark.parametrize(
    ("file", "spoil", "message"),
    [
        ("model.safetensors", Path.unlink, "model.safetensors: missing"),
        ("model.safetensors", cut, "model.safetensors: missing, truncated"),
        ("model.safetensors", lambda path: path.write_bytes(b"\x80\x04"), "no safetensors file"),
        ("ponder.json", Path.unlink, "ponder.json: missing"),
        ("ponder.json", cut, "ponder.json: missing or no JSON"),
        ("ponder.json", lambda path: path.write_bytes(b"\xff\xfe"), "ponder.json: missing or no JSON"),
        ("ponder.json", lambda path: path.write_text("[1]"), "expected a JSON object; got list"),
        ("ponder.json", edit(format="other"), "not written by ponder.save"),
        ("ponder.json", edit(format=...), "not written by ponder.save"),
        ("ponder.json", edit(num_steps=6), "num_steps: the saved model has 6, this one 5"),
        ("ponder.json", edit(schedule=[0, 0, 0, 0, 0]), "schedule: the saved model"),
        ("ponder.json", edit(task="regression"), "task: the saved model has 'regression'"),
        ("ponder.json", edit(policy={"name": "unheard-of"}), "unheard-of"),
        ("ponder.json", edit(policy={"name": "quantile", "q": 7}), "q: expected a number in"),
        ("ponder.json", edit(policy={"name": "quantile", "level": 0.5}), "fields q"),
        ("ponder.json", edit(policy=3), "policy's 'name'"),
        ("ponder.json", edit(policy={"name": "after", "policy": {}, "step": 1}), "name"),
        ("ponder.json", edit(policy={"name": "patience", "patience": 9}), "less than the model's 5 steps"),
        ("ponder.json", edit(prior={"name": "categorical", "probabilities": [0.5, 0.5]}), "the model's 5 steps"),
        ("ponder.json", edit(prior=None), "no prior"),
        ("ponder.json", edit(prior=...), "prior"),
        ("ponder.json", edit(objective=...), "objective"),
    ],
)
def test_a_truncated_or_foreign_checkpoint_leaves_the_model_as_it_was(folder, file, spoil, message: str) -> None:
    spoil(folder / file)
    target = model(
        seed=9,
        policy=policies.Patience(2),
        objective=objectives.Ponder(0.1),
        prior=priors.Uniform(),
    )
    before, settings = snapshot(target), target.settings()
    with pytest.raises(CheckpointError, match=message.replace("[", r"\[")):
        ponder.load(target, folder)
    assert_unchanged(before, target)
    assert target.settings() == settings


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"lambda_head": None, "policy": policies.LastStep()}, "unknown .*lambda_head"),
        ({"lambda_head": ponder.LambdaHead(WIDTH, layers=3, history=2)}, "missing .*lambda_head.layers"),
        ({"outputs": 4}, "other shape .*head.weight"),
    ],
)
def test_weights_of_another_model_are_named(folder: Path, other: dict[str, Any], message: str) -> None:
    target = model(**other)
    before = snapshot(target)
    with pytest.raises(CheckpointError, match=message):
        ponder.load(target, folder)
    assert_unchanged(before, target)


def test_a_safetensors_file_of_another_program_is_refused(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({k: v.clone() for k, v in model().state_dict().items()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="expected a file of the format 'ponder-model-1'; got None"):
        ponder.load(model(), folder)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with refused("folder", "can be written", str(place), "Choose another"):
            ponder.save(model(), place)
    (tmp_path / "taken" / "ponder.json").mkdir(parents=True)
    with refused("folder", "ponder.json"):
        ponder.save(model(), tmp_path / "taken")
    assert sorted(p.name for p in (tmp_path / "taken").iterdir()) == ["ponder.json"]  # no half-written file


def test_a_failed_write_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / "ponder.json").read_text()

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with refused("folder", "No space left on device"):
        ponder.save(model(policy=policies.LastStep()), folder)
    assert (folder / "ponder.json").read_text() == before
    assert {p.name for p in folder.iterdir()} == {"ponder.json", "model.safetensors"}


def test_a_policy_without_a_name_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    class Nameless(policies.ExitPolicy):
        def decide(self, step, state):
            return False, state

    with pytest.raises(PonderError, match="registered"):
        ponder.save(model(policy=policies.LastStep() | Nameless()), tmp_path / "new")
    assert not (tmp_path / "new" / "ponder.json").exists()
    assert not (tmp_path / "new" / "model.safetensors").exists()


def tied(seed: int) -> ponder.PonderWrapper:
    torch.manual_seed(seed)
    steps = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
    steps[1].weight = steps[0].weight
    return ponder.PonderWrapper(steps, head=nn.Linear(4, 2)).eval()


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    a, b, x = tied(0), tied(1), torch.randn(3, 4)
    ponder.save(a, tmp_path)
    ponder.load(b, tmp_path)
    assert torch.equal(a(x).outputs, b(x).outputs)
    assert b.steps.fns[0].weight is b.steps.fns[1].weight
    loose = ponder.PonderWrapper([nn.Linear(4, 4), nn.Linear(4, 4)], head=nn.Linear(4, 2))
    with pytest.raises(CheckpointError, match=r"missing .*fns\.1\.weight"):
        ponder.load(loose, tmp_path)


def test_weights_are_read_into_the_models_precision(folder: Path) -> None:
    target = ponder.load(model(seed=4).double(), folder)
    assert all(p.dtype == torch.float64 for p in target.parameters())
    for own, saved in zip(target.parameters(), model().parameters(), strict=True):
        torch.testing.assert_close(own.float(), saved)


def test_without_safetensors_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("safetensors"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(PonderError, match=r"pip install 'ponder-torch\[save\]'"):
        ponder.save(model(), tmp_path)
