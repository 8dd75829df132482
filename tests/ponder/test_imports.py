"""What a fresh process loads, and what the packages export."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import ponder

PARTNERS = ("transformers", "safetensors", "datasets", "accelerate", "sklearn", "scipy", "pandas", "matplotlib")
MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages(ponder.__path__, "ponder.")
    if not name.startswith("ponder.integrations")
)


def in_a_fresh_process(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code elsewhere, with the `ponder` that these tests import."""
    here = {**os.environ, "PYTHONPATH": str(Path(ponder.__file__).parents[1])}
    arguments = [sys.executable, "-c", code]
    return subprocess.run(arguments, cwd=folder, env=here, capture_output=True, text=True, check=True)


@pytest.mark.parametrize("statement", ["import ponder", "import ponder.integrations"])
def test_importing_loads_no_partner_library(statement: str, tmp_path: Path) -> None:
    code = f"import sys, json\n{statement}\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    ran = in_a_fresh_process(code, tmp_path)
    loaded = json.loads(ran.stdout)
    assert not {"torch", "einops", *PARTNERS} & set(loaded)  # names are loaded when they are first used


def test_using_every_name_loads_pytorch_and_no_partner_library(tmp_path: Path) -> None:
    code = (
        "import sys, json, ponder, ponder.plots\n[getattr(ponder, name) for name in ponder.__all__]\n"
        "print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    )
    ran = in_a_fresh_process(code, tmp_path)
    loaded = set(json.loads(ran.stdout))
    assert {"torch", "einops"} <= loaded
    assert not {*PARTNERS, "matplotlib"} & loaded  # which figures load when they are drawn


def test_names_are_listed_before_they_are_loaded_and_unknown_ones_are_refused() -> None:
    assert set(ponder.__all__) <= set(dir(ponder))
    assert ponder.trajectory.Trajectory is ponder.Trajectory
    with pytest.raises(AttributeError, match="has no attribute 'ponderous'"):
        ponder.ponderous  # noqa: B018


@pytest.mark.parametrize("name", ["ponder", *MODULES])
def test_what_is_exported_exists(name: str) -> None:
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        assert not public.startswith("_")
        assert getattr(module, public) is not None


def test_the_fixed_names_are_there() -> None:
    from ponder import objectives, policies, priors, readouts, recipes

    for package, names in (
        (ponder, "PonderWrapper Steps PerStep LambdaHead Shared StepDistribution parameter_groups save load"),
        (policies, "Bernoulli Quantile Patience Entropy Confidence Margin FixedStep LastStep ExitPolicy register get"),
        (objectives, "Ponder DeepSupervision FinalStep Distillation register get from_dict names"),
        (priors, "Geometric Uniform Poisson Normal Categorical register get from_dict names"),
        (readouts, "first_token mean last"),
        (recipes, "get names Recipe"),
    ):
        for name in names.split():
            assert hasattr(package, name), name
    assert (Path(ponder.__file__).parent / "py.typed").exists()
    assert ponder.__version__
