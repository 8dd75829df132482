"""WNUT-17 behind `python -m benchmarks.text`: tiny files of its format, the committed results, and the real files."""

from __future__ import annotations

import itertools
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.checksum import is_intact, with_checksum
from benchmarks.examples import load_tokenizer
from benchmarks.text import tagging, wnut
from benchmarks.text.cli import app
from benchmarks.text.entities import score, spans
from benchmarks.text.tagging import TaggingConfig
from ponder import Trajectory
from ponder.errors import ArgumentError, DataError, NonFiniteError
from ponder.policies import LastStep

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "text"
SENTENCES = [("the one is true .", "O B-person I-person O O"), ("a not two", "B-group O B-location")] * 6


@pytest.fixture(scope="module")
def text_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for split in wnut.SPLITS:
        write(folder, split, SENTENCES)
    return folder


def write(folder: Path, split: str, sentences: list[tuple[str, str]]) -> None:
    (folder / "wnut17").mkdir(exist_ok=True)
    blocks = ["\n".join(map("\t".join, zip(w.split(), t.split(), strict=True))) for w, t in sentences]
    (folder / "wnut17" / f"{split}.conll").write_text("\n\n".join(blocks) + "\n")


def plain_spans(tags: list[str]) -> set[tuple[int, int, str]]:
    """Written apart: for each start, go on while the tags do."""
    found = set()
    for start, tag in enumerate(tags):
        kind = tag[2:]
        before = tags[start - 1] if start else "O"
        if tag == "O" or (tag[0] == "I" and before[2:] == kind):
            continue
        end = start + 1
        while end < len(tags) and tags[end] == f"I-{kind}":
            end += 1
        found.add((start, end, kind))
    return found


def test_spans_equal_the_oracle() -> None:
    for tags in itertools.product(["O", "B-a", "I-a", "B-b", "I-b"], repeat=5):
        assert spans(tags) == plain_spans(list(tags)), tags


def test_the_score_is_that_of_all_entities_together() -> None:
    draw = random.Random(0)
    gold, found = ([[draw.choice(wnut.TAGS) for _ in range(9)] for _ in range(40)] for _ in range(2))
    one, other = ({(n, *s) for n, tags in enumerate(each) for s in plain_spans(tags)} for each in (found, gold))
    made = score(found, gold)
    assert made.precision == pytest.approx(len(one & other) / len(one))
    assert made.recall == pytest.approx(len(one & other) / len(other))
    assert made.f1 == pytest.approx(2 * made.precision * made.recall / (made.precision + made.recall))
    assert score(gold, gold).f1 == 1.0
    assert score([["O"]], [["O"]]).f1 == 0.0


def test_tags_stand_at_first_pieces_and_come_back(text_dir: Path, backbone: str) -> None:
    sentences = wnut.load(text_dir, "train")
    assert sentences[0].words == ("the", "one", "is", "true", ".")
    tokenized = wnut.tokenize(sentences, load_tokenizer(backbone), 128)
    for row, sentence, first in zip(tokenized.rows, sentences, tokenized.first_pieces, strict=True):
        assert wnut.word_tags([max(label, 0) for label in row["labels"]], sentence, first) == list(sentence.tags)
        assert (row["labels"][0], row["labels"][-1]) == (-100, -100)
    cut = wnut.tokenize(sentences, load_tokenizer(backbone), 4)
    assert wnut.word_tags([3] * 4, sentences[0], cut.first_pieces[0]) == [wnut.TAGS[3]] * 2 + ["O"] * 3


def test_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--text-dir"):
        wnut.load(None, "train")
    with pytest.raises(DataError, match="--text-dir"):
        wnut.load(tmp_path, "train")
    write(tmp_path, "train", [("a", "B-planet")])
    with pytest.raises(DataError, match=r"train\.conll, line 1: expected a word, a tab and one of 13 tags"):
        wnut.load(tmp_path, "train")
    (tmp_path / "wnut17" / "train.conll").write_text("a\tO\n \tO\n")
    with pytest.raises(DataError, match=r"train\.conll, line 2: expected a word"):
        wnut.load(tmp_path, "train")
    (tmp_path / "wnut17" / "train.conll").write_text("\n\n")
    with pytest.raises(DataError, match="expected sentences; got none"):
        wnut.load(tmp_path, "train")
    for options in ({"epochs": 0}, {"max_length": 3}, {"lr": 0.0}, {"head_lr": 2.0}):
        with pytest.raises(ArgumentError, match=next(iter(options))):
            TaggingConfig(**options)


@pytest.mark.parametrize("recipe", ["palbert", "vanilla"])
def test_a_run_is_written_once_and_told(recipe: str, backbone: str, text_dir: Path, tmp_path: Path) -> None:
    given = ["run", "wnut17", "--text-dir", str(text_dir), "--recipe", recipe, "--backbone", backbone, "--quiet"]
    options = [*given, "--epochs", "1", "--max-train", "8", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    (path,) = tmp_path.glob("*.json")
    result = json.loads(path.read_text())
    assert is_intact(result)
    test = result["splits"]["test"]
    assert (test["sentences"], test["entities"], len(test["per_step"])) == (12, 18, 4)
    assert sum(test["exits"]["exit_histogram"]) == 12
    assert (result["policy_by_dev"] is None) == (recipe == "vanilla")
    before = path.stat().st_mtime_ns
    again = CliRunner().invoke(app, options)
    assert "entity F1 on test" in again.output
    assert path.stat().st_mtime_ns == before

    # One by the recipe as it was, with all of its fields or (as older versions wrote it) with its policy alone.
    fields = {**result["recipe_fields"], "policy": {"name": "fixed-step", "step": 2}}
    older = {name: value for name, value in result.items() if name not in ("recipe_fields", "digest")}
    for stale in ({**result, "recipe_fields": fields}, {**older, "policy": fields["policy"]}):
        path.write_text(json.dumps(with_checksum(stale)))
        refused = CliRunner().invoke(app, options)
        assert isinstance(refused.exception, DataError)
        assert f"the recipe '{recipe}' as it is; got one of it as it was" in str(refused.exception)
    path.write_text(json.dumps(with_checksum(older)))
    assert "entity F1 on test" in CliRunner().invoke(app, options).output


def test_answers_that_are_nan_have_no_score(text_dir: Path, backbone: str) -> None:
    """Trap: their argmax is the class "O", and a threshold at which all leave at once kept 99% of that."""
    sentences = wnut.load(text_dir, "dev")[:4]
    ready = wnut.tokenize(sentences, load_tokenizer(backbone), 32)
    outputs = torch.zeros(4, 3, 32, len(wnut.TAGS))
    measured = tagging._Measured(sentences, ready, tagging_record(outputs))
    assert measured.summary(LastStep(), None)["per_step"] == [0.0] * 3
    outputs[1, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="1 of 4 sentences have an answer that is NaN"):
        tagging._Measured(sentences, ready, tagging_record(outputs))


def tagging_record(outputs: torch.Tensor) -> Trajectory:
    rows, length = len(outputs), outputs.shape[2]
    mask = torch.ones(rows, length, dtype=torch.bool)
    return Trajectory(outputs, None, torch.arange(rows), task="token_classification", mask=mask)


@pytest.mark.parametrize(("recipe", "rate"), [("pondernet", None), ("palbert", 1e-4)])
def test_the_lambda_head_has_a_rate_of_its_own_where_the_recipe_gives_it_one(
    recipe: str, rate: float | None, backbone: str, text_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Told(Exception):
        """What the trainer was given."""

    def trainer(**options: Any) -> None:
        raise Told(options["lambda_lr"], options["head_lr"])

    monkeypatch.setattr(tagging, "PonderTrainer", trainer)
    with pytest.raises(Told) as told:
        tagging.run(TaggingConfig(recipe=recipe, backbone=backbone, max_train=8), text_dir, progress=False)
    assert told.value.args == (rate, 1e-3)


def test_another_task_says_where_it_is() -> None:
    done = CliRunner().invoke(app, ["run", "banking77"])
    assert isinstance(done.exception, ArgumentError)
    assert "benchmarks.glue" in str(done.exception)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("wnut17-*.json")), ids=lambda path: path.stem)
def test_committed_results_are_whole(path: Path) -> None:
    result: dict[str, Any] = json.loads(path.read_text())
    assert is_intact(result)
    config = TaggingConfig(**result["config"])
    assert config.key == path.stem
    if config.policy is None:
        assert result["policy"] == tagging.recipe_of(config, result["num_steps"]).policy.to_dict()
    assert result["environment"]["command"].startswith("python -m benchmarks.text run wnut17")
    assert result["splits"]["test"]["sentences"] == 1287


def test_the_page_shows_what_was_measured() -> None:
    def at(told: dict[str, Any] | None) -> str:
        return f"{told['f1']:.3f} at {told['mean_exit_step']:.1f} steps" if told else ""

    page = (RESULTS.parents[2] / "docs" / "transformers.md").read_text()
    for path in RESULTS.glob("wnut17-*.json"):
        result = json.loads(path.read_text())
        test, recipe = result["splits"]["test"], result["config"]["recipe"]
        full, exits = f"{test['full_depth']['f1']:.3f}", "" if recipe == "vanilla" else at(test["exits"])
        cells = [*(f"{test['per_step'][step]:.3f}" for step in (1, 2, 3)), full, exits, at(test["exits_by_dev"])]
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{recipe}`") and "0." in line]
        assert [cell.strip() for cell in row.split("|")[2:-1]] == cells


def test_the_real_files() -> None:
    given = os.environ.get("TEXT_DIR")
    folder = Path(given) if given else Path(__file__).parents[2].parent / "shared" / "text"
    if not (folder / "wnut17").is_dir():
        pytest.skip(f"no folder {folder / 'wnut17'}: set TEXT_DIR to one with wnut17")
    assert {split: len(wnut.load(folder, split)) for split in wnut.SPLITS} == {"train": 3394, "dev": 1009, "test": 1287}
