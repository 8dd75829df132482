"""`benchmarks.speed` where it compiles what it times."""

import json

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.speed import cli, overhead
from benchmarks.speed.figures import Options
from benchmarks.speed.page import MARK
from benchmarks.speed.subjects import albert_base, minilm
from ponder.errors import ArgumentError

QUICK = Options(quick=True, pairs=1)


@pytest.fixture(autouse=True)
def _as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch._dynamo.reset()


@pytest.mark.parametrize("make", [albert_base, minilm])
def test_plain_and_wrapped_models_give_the_same_answers(make):
    subject = make(QUICK)
    batch = subject.batch(3, 7)
    assert torch.equal(subject.run_plain(batch)(), subject.run_wrapped(batch)())
    compiled = subject.compiled(backend="eager")
    torch.testing.assert_close(compiled.run_plain(batch)(), compiled.run_wrapped(batch)())
    torch.testing.assert_close(compiled.run_plain(batch)(), subject.run_plain(batch)())
    assert subject.to(torch.bfloat16).run_wrapped(batch)().dtype == torch.bfloat16
    assert subject.run_wrapped(batch)().dtype == torch.float32


def test_the_command_line(tmp_path, glue_dir, monkeypatch):
    monkeypatch.setattr(overhead, "BATCHES", (2, 8))  # for a batch of one row all is compiled once more
    out, page = tmp_path / "out", tmp_path / "page.md"
    page.write_text(f"# Speed\n\nProse.\n\n{MARK}\n\nold figures\n")
    arguments = ["--sections", "1,2, 3", "--quick", "--pairs", "1", "--threads", "1", "--glue-dir", str(glue_dir)]
    done = CliRunner().invoke(cli.app, [*arguments, "--out", str(out), "--page", str(page)])
    assert done.exit_code == 0, done.output
    assert "threads: 1" in done.output
    figures = {}
    for name in ("overhead", "exiting", "predictor"):
        result = json.loads((out / f"{name}.json").read_text())
        assert result["environment"]["threads"] == 1
        assert result["quick"]
        figures[name] = result["figures"]
        assert all(told["section"] == name and told["value"] > 0 for told in figures[name]), figures[name]
        assert all(told["low"] <= told["value"] <= told["high"] for told in figures[name])
    assert len(figures["overhead"]) == 2 * (3 + 2 + 3 + 1)
    assert len(figures["exiting"]) == 2 * 4
    assert len(figures["predictor"]) == 2 * (2 + 1)
    text = page.read_text()
    assert text.startswith("# Speed\n\nProse.\n\n")
    assert "old figures" not in text
    rows = 2 * 3 + (2 + 3)  # heads of a table each, and the table of the goals
    assert text.count("\n| ") == sum(map(len, figures.values())) + rows
    with pytest.raises(ArgumentError, match="sections: expected numbers out of 1, 2, 3"):
        CliRunner().invoke(cli.app, ["--sections", "1,x", "--out", str(out)], catch_exceptions=False)
