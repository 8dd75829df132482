"""The simulation of risk control: its command line, its counting, its page."""

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import ponder
from benchmarks.risk.cli import app
from benchmarks.risk.simulation import GRID, Outcome, real_scene, simulate, split_scene, synthetic_scene
from ponder.policies import Quantile
from tests.ponder.test_sweep import recorded


def test_the_command_line(tmp_path):
    for part, seed in (("dev", 0), ("held_out", 1)):
        recorded(90, seed=seed).save(tmp_path / f"{part}.safetensors")
    arguments = [f"--trajectory={tmp_path / part}.safetensors" for part in ("dev", "held_out")]
    page = tmp_path / "page.md"
    arguments += ["--trials", "3", "--rows", "60", "--name", "toy", "--out", str(tmp_path / "out"), "--page", str(page)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    outcomes = json.loads((tmp_path / "out" / "risk.json").read_text())["outcomes"]
    assert {outcome["scene"] for outcome in outcomes} == {"synthetic", "toy, resampled", "toy, split in halves"}
    assert len(outcomes) == 3 * 3 * 4
    assert {outcome["rows"] for outcome in outcomes} == {60, 90}
    assert page.read_text().count("\n| ") == len(outcomes) + 2  # a heading and a rule
    assert (
        "Here are 3 certificates for each line. A promise with confidence 95% may be broken in 5%" in page.read_text()
    )


def test_a_trajectory_that_cannot_be_replayed_is_refused_before_anything_is_counted(tmp_path):
    replace(recorded(30), hazard_logits=None).save(tmp_path / "dev.safetensors")
    arguments = ["--trajectory", str(tmp_path / "dev.safetensors"), "--trials", "3", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code
    assert "Lambda head" in str(done.exception)
    assert "synthetic" not in done.output


def test_a_result_of_other_settings_and_a_page_that_is_a_folder_are_refused_first(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.risk.cli._shown", lambda *given: [])
    arguments = ["--trials", "3", "--out", str(tmp_path)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    before = (tmp_path / "risk.json").read_bytes()
    monkeypatch.setattr("benchmarks.risk.cli._shown", lambda *given: pytest.fail("counted, and then refused"))
    other = CliRunner().invoke(app, [*arguments, "--rows", "50"])
    assert "--out: expected a folder without a result of other settings" in str(other.exception)
    paged = CliRunner().invoke(app, [*arguments, "--page", str(tmp_path)])
    assert "--page: expected a file; got the folder" in str(paged.exception)
    assert (tmp_path / "risk.json").read_bytes() == before
    (tmp_path / "risk.json").write_text('{"outcomes": []}')  # as older ones are
    older = CliRunner().invoke(app, arguments)
    assert "settings that it does not tell" in str(older.exception)
    typo = CliRunner().invoke(app, ["--trajectory", str(tmp_path / "typo"), "--out", str(tmp_path / "other")])
    assert typo.exit_code
    assert not (tmp_path / "other").exists()


def test_a_broken_promise_fails_the_command():
    told = {"scene": "s", "risk": "error", "bound": "betting", "level": 0.1, "confidence": 0.95, "trials": 100}
    seen = {"rows": 9, "mean_risk": 0.1, "risk_error": 0.01, "mean_exit_step": 1.0, "saving": 1.0}
    assert Outcome(**told, **seen, violations=0.05, exact=True).kept
    assert not Outcome(**told, **seen, violations=0.2, exact=True).kept
    assert Outcome(**told, **seen, violations=0.2, exact=False).kept
    told["confidence"] = None
    assert not Outcome(**told, **{**seen, "mean_risk": 0.2}, violations=0.9, exact=True).kept


def test_a_bound_that_always_says_yes_is_caught(monkeypatch):
    monkeypatch.setattr(
        "ponder.calibration.control._fixed_sequence", lambda losses, *_: (losses.shape[1], [0.0] * losses.shape[1])
    )
    assert not any(outcome.kept for outcome in simulate(synthetic_scene(50), 4) if outcome.confidence is not None)


def test_truths_of_a_recorded_world():
    world = recorded(70)
    calibration, truth = real_scene("toy", world, 30).draw(torch.Generator().manual_seed(0))
    assert len(calibration) == 30
    exits = world.replay(Quantile(GRID[40]))
    wrong = (exits.outputs.argmax(-1) != world.labels).double().mean()
    assert truth("error", False, GRID[40]) == pytest.approx((float(wrong), float(exits.exit_step.double().mean())))
    full = (world.outputs[:, -1].argmax(-1) != world.labels).double().mean()
    assert truth("error", False, None) == pytest.approx((float(full), 6.0))
    assert truth("error_gap", True, None) == pytest.approx((0.0, 6.0))
    first, rest = split_scene("toy", world).draw(torch.Generator().manual_seed(0))
    assert len(first) == 35
    assert isinstance(first, ponder.Trajectory)
    assert rest("disagreement", False, None) == (0.0, 6.0)


def test_savings_are_shares_of_what_is_possible():
    scene = synthetic_scene(4000)
    outcomes = {(o.risk, o.bound): o for o in simulate(scene, 3)}
    for outcome in outcomes.values():
        assert outcome.mean_exit_step < 2
        assert 0.3 < outcome.saving < 1.2


def test_masks_and_the_mode_of_the_run_are_kept(tmp_path, monkeypatch):
    tokens = ponder.Trajectory(
        torch.randn(40, 4, 5, 3),
        None,
        torch.arange(40),
        labels=torch.randint(3, (40, 5)),
        task="token_classification",
        mask=torch.arange(5) < torch.arange(1, 41)[:, None] % 5 + 1,
        training=True,
    )
    tokens.save(tmp_path / "tokens.safetensors")
    seen = []
    monkeypatch.setattr("benchmarks.risk.cli.synthetic_scene", lambda rows: None)
    monkeypatch.setattr("benchmarks.risk.cli.real_scene", lambda name, whole, rows: seen.append(whole))
    monkeypatch.setattr("benchmarks.risk.cli.split_scene", lambda name, whole: seen.append(whole))
    monkeypatch.setattr("benchmarks.risk.cli._shown", lambda *given: [])
    done = CliRunner().invoke(app, [f"--trajectory={tmp_path / 'tokens.safetensors'}", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    for whole in seen:
        assert torch.equal(whole.mask, tokens.mask)
        assert whole.training
    assert len(seen) == 2
