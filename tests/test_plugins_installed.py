"""A package of plug-ins is installed by pip, beside ponder, and used from processes of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ponder
from ponder.errors import CheckpointError
from tests.plugin_package.report import model

SOURCE = Path(__file__).parent / "plugin_package"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the package was installed, offline."""
    source = tmp_path_factory.mktemp("source") / "package"  # building leaves files behind
    shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("__pycache__", "report.py"))
    target = tmp_path_factory.mktemp("site")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return target


def run(what: str, folder: Path, installed: Path) -> dict[str, Any]:
    path = os.pathsep.join(filter(None, (str(installed), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, str(SOURCE / "report.py"), what, str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, cwd=installed)
    assert ran.returncode == 0, ran.stderr
    report: dict[str, Any] = json.loads(ran.stdout)
    return report


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def report(installed: Path, saved: Path) -> dict[str, Any]:
    return run("use", saved, installed)


def test_import_ponder_imports_no_plug_in_and_no_testing(report: dict[str, Any]) -> None:
    assert report["after import ponder"] == []
    assert report["listing"]["imported"] == []


def test_names_lists_what_is_installed(report: dict[str, Any]) -> None:
    names = report["listing"]["names"]
    assert {"steady-hazard", "broken-on-import", "quantile"} <= set(names["policies"])
    assert "Bad Name" not in names["policies"]
    assert names["policies"].count("quantile") == 1
    assert "linear" in names["priors"]
    assert "worst-step" in names["objectives"]
    assert "steady" in names["recipes"]


def test_names_says_what_cannot_be_had(report: dict[str, Any]) -> None:
    taken, badly_named = sorted(report["listing"]["warnings"], key=lambda text: "is no name" in text)
    for words in (
        "good:MyQuantile",
        "of the package 'ponder-plugin-sample'",
        "'quantile'",
        "halting.Quantile",
        "ignored",
    ):
        assert words in taken
    for words in ("good:BadlyNamed", "of the package 'ponder-plugin-sample'", "'Bad Name'", "lower-case", "Rename it"):
        assert words in badly_named


def test_get_gives_the_good_ones_and_they_passed_the_contract_suites(report: dict[str, Any]) -> None:
    assert report["got"] == ["SteadyHazard(level=0.45, times=2)", "Linear()", "WorstStep()"]
    assert report["recipe"] == ["SteadyHazard(level=0.3, times=2)", True]


def test_a_class_that_only_an_entry_point_names_is_written_under_that_name(report: dict[str, Any]) -> None:
    """Also where the object was built directly and nobody asked for the name before."""
    assert report["written without get"] == {"name": "steady-hazard", "level": 0.4, "times": 2}


def test_a_broken_plug_in_fails_when_it_is_asked_for(report: dict[str, Any]) -> None:
    kind, message = report["refusals"]["broken"]
    assert kind == "PonderError"
    for words in (
        "'broken-on-import'",
        "ponder_plugin_sample.broken:Broken",
        "ImportError",
        "a library that",
        "package",
    ):
        assert words in message


def test_a_bad_name_is_refused(report: dict[str, Any]) -> None:
    kind, message = report["refusals"]["bad name"]
    assert kind == "PonderError"
    assert "'Bad Name', which is no name: it takes lower-case letters" in message
    assert "'ponder-plugin-sample'" in message


def test_a_built_in_name_stays_with_its_owner(report: dict[str, Any]) -> None:
    assert report["built-in"] == "Quantile(q=0.5)"
    told = [
        report["refusals"]["built-in with the plug-in's argument"],
        report["of the taken name"],
        report["check of the taken name"],
    ]
    assert [kind for kind, _ in told] == ["ArgumentTypeError", "PonderError", "ContractError"]
    for _, message in told:
        assert "'ponder_plugin_sample.good:MyQuantile' of the package 'ponder-plugin-sample'" in message
        assert "a name that <class 'ponder.policies.halting.Quantile'> has. It is ignored" in message


def test_an_unknown_name_lists_the_installed_ones(report: dict[str, Any]) -> None:
    kind, message = report["refusals"]["unknown"]
    assert kind == "ArgumentError"
    assert "steady-hazard" in message
    assert "Bad Name" not in message


def test_a_model_with_plug_ins_is_loaded_by_a_process_that_has_imported_none(
    report: dict[str, Any], installed: Path, saved: Path
) -> None:
    loaded = run("load", saved, installed)
    assert loaded["imported"] == []
    assert loaded["exits"] == report["exits"]
    assert len(set(loaded["exits"])) > 1
    assert loaded["settings"]["policy"] == {"name": "steady-hazard", "level": 0.45, "times": 2}
    assert loaded["settings"]["prior"] == {"name": "linear"}
    assert loaded["settings"]["objective"]["objectives"][1] == {"name": "worst-step"}


def test_it_cannot_be_loaded_where_the_package_is_not_installed(report: dict[str, Any], saved: Path) -> None:
    """As it is not in this process."""
    with pytest.raises(CheckpointError, match=r"'steady-hazard'|'linear'"):
        ponder.load(model(), saved)
