"""What a type checker tells the authors of other programs: where `ponder` is, and what a model gives and takes."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

import ponder
from ponder import policies

ROOT = Path(__file__).resolve().parents[2]

GOOD = """
import torch
from torch import nn
import ponder
from ponder import policies, priors

model = ponder.PonderWrapper(
    nn.Linear(8, 8), num_steps=4, head=nn.Linear(8, 3), lambda_head=ponder.LambdaHead(8), prior=priors.Geometric(0.1)
)
out = model(torch.randn(2, 8), policy=policies.Quantile(0.5))
reveal_type(out)
reveal_type(out.exit_step)
reveal_type(model.unroll(torch.randn(2, 8)))
reveal_type(ponder.load(model, "folder"))
"""
BAD = """
import torch
from torch import nn
import ponder
from ponder import policies

model = ponder.PonderWrapper(nn.Linear(8, 8), num_steps=4, head=nn.Linear(8, 3), polcy=None)  # line 7
policies.Quantile(level=0.5)  # line 8
model(torch.randn(2, 8)).outputz  # line 9
model(torch.randn(2, 8), labels="a")  # line 10
ponder.PonderWrap  # line 11
"""
REVEALED = [
    "ponder.wrapper.PonderOutput",
    "torch._tensor.Tensor",
    "ponder.trajectory.Trajectory",
    "ponder.wrapper.PonderWrapper",
]


def users_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "user"
    folder.mkdir()
    (folder / "good.py").write_text(GOOD)
    (folder / "bad.py").write_text(BAD)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what mypy learnt of PyTorch when `make types` ran, if it did: half a minute less."""
    copy = tmp_path_factory.mktemp("mypy") / "cache"
    if (ROOT / ".mypy_cache").is_dir():
        shutil.copytree(ROOT / ".mypy_cache", copy)
    return copy


def mypy(folder: Path, place: Path, cache: Path) -> str:
    """What mypy says of a user's files, where `ponder` lies in `place`; strict as for us, or it would read all anew."""
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(cache)]
    command = [sys.executable, "-m", "mypy", *options, "good.py", "bad.py"]
    ran = subprocess.run(
        command, cwd=folder, env={**os.environ, "MYPYPATH": str(place)}, capture_output=True, text=True
    )
    return ran.stdout + ran.stderr


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
@pytest.mark.parametrize("place", ["checkout", "wheel"])  # as an editable installation and a wheel put it on the path
def test_a_users_file_by_mypy(place: str, tmp_path: Path, wheel: Path, cache: Path) -> None:
    # Trap: calls of nn.Module are typed Any, so that nothing after a call is checked.
    with zipfile.ZipFile(wheel) as files:
        files.extractall(tmp_path / "installed")
    told = mypy(users_folder(tmp_path), ROOT if place == "checkout" else tmp_path / "installed", cache)
    assert not re.search(r"good\.py:\d+: error", told), told
    assert re.findall(r'good\.py:\d+: note: Revealed type is "([\w.]+)', told) == REVEALED, told
    lines = {int(number) for number in re.findall(r"bad\.py:(\d+): error", told)}
    assert lines == {7, 8, 9, 10, 11}, told
    for word in ("polcy", "level", "outputz", "PonderWrap"):
        assert word in told, told


def test_a_call_is_typed_as_forward_is() -> None:
    """`PonderWrapper.__call__`, which only type checkers see, takes what `forward` takes."""
    tree = ast.parse((ROOT / "ponder" / "wrapper.py").read_text())
    (wrapper,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "PonderWrapper")
    told = {
        node.name: f"{ast.unparse(node.args)} -> {ast.unparse(node.returns)}"
        for node in ast.walk(wrapper)
        if isinstance(node, ast.FunctionDef) and node.returns is not None
    }
    assert told["__call__"] == told["forward"]


def test_the_same_mistakes_at_run_time() -> None:
    # Trap: a stem that takes **context swallows a misspelt policy, and the model exits by its own without a word.
    steps, head = nn.Linear(8, 8), nn.Linear(8, 3)
    with pytest.raises(TypeError, match="polcy"):
        ponder.PonderWrapper(steps, num_steps=4, head=head, polcy=None)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="level"):
        policies.Quantile(level=0.5)  # type: ignore[call-arg]
    model = ponder.PonderWrapper(steps, num_steps=4, head=head).eval()
    with pytest.raises(ValueError, match="Did you mean 'policy'"):
        model(torch.randn(2, 8), polcy=policies.FixedStep(1))
    with pytest.raises(TypeError, match="labels"):
        model(torch.randn(2, 8), labels="a")  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match="PonderWrap"):
        ponder.PonderWrap  # type: ignore[attr-defined] # noqa: B018


@pytest.mark.skipif(shutil.which("pyright") is None, reason="pyright is not installed (it needs node)")
def test_a_users_file_by_pyright(tmp_path: Path) -> None:
    folder = users_folder(tmp_path)
    command = ["pyright", "--pythonpath", sys.executable]
    (folder / "pyrightconfig.json").write_text(f'{{"extraPaths": ["{ROOT}"]}}')
    ran = subprocess.run([*command, "good.py", "bad.py"], cwd=folder, capture_output=True, text=True)
    if "error" not in ran.stdout:
        pytest.skip(f"pyright does not run here: {(ran.stdout + ran.stderr)[-300:]}")
    assert not re.search(r"good\.py:\d+:\d+ - error", ran.stdout), ran.stdout
    told = [name.rpartition(".")[2] for name in REVEALED]
    assert re.findall(r'Type of ".*" is "(\w+)"', ran.stdout) == told, ran.stdout
    lines = {int(number) for number in re.findall(r"bad\.py:(\d+):\d+ - error", ran.stdout)}
    assert lines == {7, 8, 9, 10, 11}, ran.stdout
