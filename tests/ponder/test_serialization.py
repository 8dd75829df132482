"""Files: what is written, what is refused, and a model that stays as it was."""

from __future__ import annotations

import builtins
import json
import os
import pickle
import shutil
import subprocess
import sys
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


def weights_of(folder: Path) -> Path:
    """The file that `ponder.json` names."""
    return folder / json.loads((folder / "ponder.json").read_text())["weights"]


def test_files_are_plain_json_and_safetensors(folder: Path) -> None:
    settings = json.loads((folder / "ponder.json").read_text())
    assert settings["format"] == "ponder-model-2"
    assert settings["policy"] == {"name": "quantile", "q": 0.5}
    assert settings["objective"]["name"] == "ponder"
    assert settings["num_steps"] == 5
    from safetensors.torch import load_file

    weights = load_file(weights_of(folder))
    assert weights.keys() == model().state_dict().keys()


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_follow_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        ponder.save(model(), tmp_path)
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask, path


def test_no_model_is_written_to_a_folder_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Trap: "", as of a variable that is not set, was the working directory.
    monkeypatch.chdir(tmp_path)
    for save in (ponder.save, lambda model, folder: ponder.export.onnx(model, folder, example=torch.zeros(2, WIDTH))):
        with refused("folder", "an empty one"):
            save(model(), "")
    assert not any(tmp_path.iterdir())


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
    weights_of(folder).write_bytes(pickle.dumps(Evil()))
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


def nested(depth: int) -> dict[str, Any]:
    policy: dict[str, Any] = {"name": "last-step"}
    for _ in range(depth):
        policy = {"name": "after", "policy": policy, "step": 1}
    return policy


@pytest.mark.parametrize(
    ("file", "spoil", "message"),
    [
        ("weights", Path.unlink, "the weights that ponder.json names are not to be read .*: missing"),
        ("weights", cut, "the weights that ponder.json names are truncated"),
        ("weights", lambda path: path.write_bytes(b"\x80\x04"), "not those that were saved with it"),
        ("ponder.json", Path.unlink, "ponder.json: missing"),
        ("ponder.json", cut, "ponder.json: missing or no JSON"),
        ("ponder.json", lambda path: path.write_bytes(b"\xff\xfe"), "ponder.json: missing or no JSON"),
        ("ponder.json", lambda path: path.write_text("[1]"), "expected a JSON object; got list"),
        ("ponder.json", edit(format="other"), "not written by ponder.save"),
        ("ponder.json", edit(format=...), "not written by ponder.save"),
        ("ponder.json", edit(weights=...), "not written by ponder.save"),
        ("ponder.json", edit(weights="../elsewhere.safetensors"), "not written by ponder.save"),
        ("ponder.json", edit(digest=3), "not those that were saved with it"),
        ("ponder.json", lambda path: path.write_text('{"format": NaN}'), "NaN is no JSON"),
        ("ponder.json", lambda path: path.write_text('{"format": 1e999}'), "1e999 is no JSON"),
        ("ponder.json", lambda path: path.write_text("[" * 100_000), "missing or no JSON"),
        ("ponder.json", edit(policy=nested(300)), "cannot be used"),
        ("ponder.json", edit(policy={"name": "fixed-step", "step": 10**12}), "from 1 to 5"),
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
    spoil(weights_of(folder) if file == "weights" else folder / file)
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


def test_a_model_that_cannot_be_written_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies.Confidence, "to_dict", lambda self: {"name": "confidence", "threshold": float("inf")})
    with refused("data", "NaN or infinity", "ponder.json"):
        ponder.save(model(policy=policies.Confidence(0.9)), tmp_path / "new" / "folder")
    assert not list(tmp_path.iterdir())


def test_a_safetensors_file_of_another_program_is_refused(folder: Path) -> None:
    import hashlib

    from safetensors.torch import save_file

    path = weights_of(folder)
    save_file({k: v.clone() for k, v in model().state_dict().items()}, path)
    with pytest.raises(CheckpointError, match="not those that were saved with it"):
        ponder.load(model(), folder)
    edit(digest=hashlib.sha256(path.read_bytes()).hexdigest())(folder / "ponder.json")
    with pytest.raises(CheckpointError, match="expected a file of the format 'ponder-model-2'; got None"):
        ponder.load(model(), folder)


def test_weights_of_another_kind_of_numbers_are_refused(folder: Path) -> None:
    target = model()
    target.head.weight = nn.Parameter(target.head.weight.detach().to(torch.complex64))
    with pytest.raises(CheckpointError, match=r"other shape .*head\.weight"):
        ponder.load(target, folder)


# One save is one unit


def test_the_weights_of_another_save_are_refused(folder: Path, tmp_path: Path) -> None:
    # Trap: the policy of one save with the weights of another, without a word.
    ponder.save(model(seed=3, policy=policies.LastStep()), tmp_path / "other")
    shutil.copy(weights_of(tmp_path / "other"), weights_of(folder))
    with pytest.raises(CheckpointError, match="not those that were saved with it"):
        ponder.load(model(), folder)
    shutil.copy(tmp_path / "other" / "ponder.json", folder / "ponder.json")
    with pytest.raises(CheckpointError, match="not to be read"):
        ponder.load(model(), folder)


@pytest.mark.parametrize("name", ["write_json", "digest_of", "write_tensors"])
def test_a_save_that_is_broken_off_leaves_the_one_before(folder: Path, monkeypatch, name: str) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"ponder.serialization.{name}", stop)
    with pytest.raises(KeyboardInterrupt):
        ponder.save(model(seed=3, policy=policies.LastStep()), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    monkeypatch.undo()
    assert ponder.load(model(seed=9), folder).policy == policies.Quantile(0.5)


def test_what_killed_savers_left_goes_and_what_living_ones_write_stays(folder: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = folder / f".model.{dead.pid}-0a1b2c3d"
    left.mkdir()
    (left / "model.safetensors").write_text("half")
    (folder / f".ponder.json.{dead.pid}-0a1b2c3d").write_text("half")
    unnamed = folder / f"model-{'0' * 16}.safetensors"  # of a saver that was killed before it wrote ponder.json
    unnamed.write_text("never named")
    living, own = folder / f".model.{os.getppid()}-0a1b2c3d", folder / "notes-1.txt"
    living.write_text("going on")
    own.write_text("the user's")
    ponder.save(model(seed=3), folder)
    assert {p.name for p in folder.iterdir()} == {"ponder.json", weights_of(folder).name, living.name, own.name}


def test_a_save_over_the_layout_of_version_0_1_replaces_it(tmp_path: Path) -> None:
    shutil.copytree(Path(__file__).parents[1] / "saved" / "0.1.0" / "wrapper", tmp_path / "old")
    ponder.save(model(), tmp_path / "old")
    assert {p.name for p in (tmp_path / "old").iterdir()} == {"ponder.json", weights_of(tmp_path / "old").name}
    ponder.load(model(seed=3), tmp_path / "old")


def test_without_locks_only_the_weights_of_the_save_before_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ponder._utils.files.fcntl", None)
    old, foreign = weights_of(folder), folder / f"model-{'0' * 16}.safetensors"  # of another saver, perhaps
    foreign.write_text("")
    ponder.save(model(seed=3), folder)
    assert foreign.exists()
    assert not old.exists()
    ponder.load(model(), folder)


def test_a_load_while_another_process_saves_reads_the_new_save(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ponder import serialization

    real, other, calls = serialization.digest_of, model(seed=3), []

    def digest(path: Path) -> str:
        if not calls:
            calls.append(path)
            ponder.save(other, folder)  # between reading ponder.json and reading the weights that it names
        return real(path)

    monkeypatch.setattr(serialization, "digest_of", digest)
    loaded = ponder.load(model(seed=9), folder)
    assert torch.equal(loaded.head.weight, other.head.weight)


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

    names = {p.name for p in folder.iterdir()}
    monkeypatch.setattr(os, "replace", full)
    with refused("folder", "No space left on device"):
        ponder.save(model(policy=policies.LastStep()), folder)
    assert (folder / "ponder.json").read_text() == before
    assert {p.name for p in folder.iterdir()} == names


def test_a_policy_without_a_name_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    class Nameless(policies.ExitPolicy):
        def decide(self, step, state):
            return False, state

    with pytest.raises(PonderError, match="registered"):
        ponder.save(model(policy=policies.LastStep() | Nameless()), tmp_path / "new")
    assert not (tmp_path / "new" / "ponder.json").exists()
    assert not (tmp_path / "new").exists()


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


def test_hidden_files_of_the_user_stay(tmp_path: Path) -> None:
    for name in (".env.20240105-backup", ".notes.2024999-draft", f".a.{10**20}-{'0' * 8}"):
        (tmp_path / name).write_text("mine")
    (tmp_path / ".data.99999999-old").mkdir()
    before = set(tmp_path.iterdir())
    ponder.save(model(), tmp_path)
    assert before < set(tmp_path.iterdir())


def test_weights_of_their_own_are_not_read_into_shared_ones(tmp_path: Path) -> None:
    loose, target = ponder.PonderWrapper([nn.Linear(4, 4), nn.Linear(4, 4)], head=nn.Linear(4, 2)), tied(1)
    ponder.save(loose, tmp_path)
    x = torch.randn(3, 4)
    before = target(x).outputs
    with pytest.raises(CheckpointError, match=r"fns\.1\.weight had weights of their own; got one that shares them"):
        ponder.load(target, tmp_path)
    assert torch.equal(target(x).outputs, before)
    with torch.no_grad():
        loose.steps.fns[1].weight.copy_(loose.steps.fns[0].weight)
    ponder.save(loose, tmp_path)
    assert ponder.load(target, tmp_path) is target


class Keeping(nn.Linear):
    """A step that keeps something beside its weights."""

    def __init__(self, kept: str) -> None:
        super().__init__(4, 4)
        self.kept = kept
        if kept == "part":
            self.register_buffer("all", torch.arange(8.0))
            self.register_buffer("part", self.all[:4])
        if kept == "expanded":
            self.register_buffer("all", torch.ones(1).expand(4))


class Told(Keeping):
    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 1}

    def set_extra_state(self, state: Any) -> None:
        pass


def test_what_cannot_be_saved_is_named_and_parts_of_tensors_can(tmp_path: Path) -> None:
    for step, name in ((Told("none"), "dict as 'steps.fns.0._extra_state'"), (Keeping("expanded"), "an expanded")):
        with refused("model", name):
            ponder.save(ponder.PonderWrapper(step, 2, head=nn.Linear(4, 2)), tmp_path / "no")
    made = [ponder.PonderWrapper(Keeping("part"), 2, head=nn.Linear(4, 2)).eval() for _ in range(2)]
    ponder.save(made[0], tmp_path)
    ponder.load(made[1], tmp_path)
    x = torch.randn(3, 4)
    assert torch.equal(made[0](x).outputs, made[1](x).outputs)


def test_a_model_without_memory_is_named(folder: Path) -> None:
    for call in (lambda: ponder.load(model().to("meta"), folder), lambda: ponder.save(model().to("meta"), folder)):
        with refused("model", "meta device", "to_empty"):
            call()


def test_stages_that_the_model_no_longer_trains_are_read_all_the_same(tmp_path: Path) -> None:
    layers = [nn.Linear(4, 4) for _ in range(2)]
    made = ponder.PonderWrapper.from_recipe(layers, "pondernet", num_outputs=2, example=torch.randn(2, 4))
    made.objective, made.prior = objectives.FinalStep(), None
    ponder.save(made, tmp_path)
    assert ponder.load(made, tmp_path).stages == made.stages


# What no weight tells


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"readout": ponder.readouts.last}, "readout: the saved model has 'mean', this one 'last'"),
        ({"readout": ponder.readouts.Pooled(None, ponder.readouts.last)}, "readout: .*, this one 'last'"),
        ({"halting_readout": ponder.readouts.first_token}, "halting_readout: the saved model has 'mean'"),
        ({"lambda_head": ponder.LambdaHead(WIDTH, 2, 2, activation="relu")}, "halting_activation: .*'tanh'"),
        ({"lambda_head": ponder.LambdaHead(WIDTH, 2, 2, initial="zeros")}, "halting_initial: .*'stem'"),
    ],
)
def test_a_model_that_reads_otherwise_is_refused(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    # Trap: these have no weights, so that all names and shapes fit, and every answer is another.
    def sequences(**parts: Any) -> ponder.PonderWrapper:
        usual = {"readout": ponder.readouts.mean, "lambda_head": ponder.LambdaHead(WIDTH, 2, 2), **parts}
        return ponder.PonderWrapper(nn.Linear(WIDTH, WIDTH), 3, head=nn.Linear(WIDTH, 2), **usual)

    ponder.save(sequences(), tmp_path)
    target = sequences(**parts)
    before = snapshot(target)
    with pytest.raises(CheckpointError, match=message):
        ponder.load(target, tmp_path)
    assert_unchanged(before, target)
    ponder.load(sequences(readout=lambda hidden: hidden[:, 0]), tmp_path)  # of which nobody knows what it does
    ponder.load(sequences(halting_readout=ponder.readouts.mean), tmp_path)  # the same, said twice
    ponder.load(sequences(readout=ponder.readouts.Pooled(None, ponder.readouts.mean)), tmp_path)  # and otherwise


def test_files_of_before_do_not_say_how_they_were_read(folder: Path) -> None:
    edit(readout=..., halting_readout=..., halting_activation=..., halting_initial=...)(folder / "ponder.json")
    assert ponder.load(model(), folder).policy == policies.Quantile(0.5)


def test_a_layer_without_a_shape_is_named(tmp_path: Path) -> None:
    model = ponder.PonderWrapper(nn.Linear(4, 4), num_steps=2, head=nn.LazyLinear(3))
    with refused("model", "Run the model once"):
        ponder.save(model, tmp_path)


def test_a_model_whose_heads_teach_otherwise_is_another(tmp_path: Path) -> None:
    """The trap: it loads, and goes on training by another recipe."""

    def made(scales: tuple[float, ...] | None) -> ponder.PonderWrapper:
        heads = ponder.PerStep([nn.Linear(4, 3) for _ in range(2)], scales)
        return ponder.PonderWrapper([nn.Linear(4, 4), nn.Linear(4, 4)], head=heads)

    ponder.save(made((0.5, 1.0)), tmp_path)
    ponder.load(made((0.5, 1.0)), tmp_path)
    with pytest.raises(
        CheckpointError, match=r"gradient_scales: the saved model has \[0.5, 1.0\], this one \[1.0, 1.0\]"
    ):
        ponder.load(made(None), tmp_path)
