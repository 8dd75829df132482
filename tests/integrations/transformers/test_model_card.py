"""What lies beside saved weights: a model card that says what is known, and the file by which Auto classes find us."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification

import ponder
from ponder.errors import ArgumentError
from ponder.integrations.transformers import PonderForSequenceClassification, PonderModel
from ponder.integrations.transformers.model_card import evaluation_of
from ponder.policies import Confidence, LastStep, Quantile
from tests.integrations.transformers.encoders import make_batch, make_model
from tests.ponder.checks import refused

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.fixture(scope="module")
def model() -> Any:
    made = make_model("bert", num_labels=3, id2label={0: "no|thing", 1: "some", 2: "all"})
    made.config.evaluations = []
    return made


def card_in(folder: Path) -> ModelCard:
    return ModelCard((folder / "README.md").read_text())


def test_it_says_what_the_model_is_and_how_to_load_it(model: Any, tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    model.save_pretrained(folder)
    card = card_in(folder)
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-classification"
    assert "early-exit" in card.data.tags
    for said in (
        "# my-model",
        "`bert` encoder of 5 steps",
        'PonderForSequenceClassification.from_pretrained("my-model")',
        "| Recipe | `palbert` (PALBERT: Teaching ALBERT to Ponder",
        "| Policy | `Quantile(q=0.5)` |",
        "classification: no\\|thing, some, all",
        "its policy is not certified",
        "Nothing was noted.",
    ):
        assert said in card.text, said
    assert str(tmp_path) not in str(card)
    code = card.text.split("```python\n")[1].split("```")[0].split("out = ")[0].replace('"my-model"', repr(str(folder)))
    names: dict[str, Any] = {}
    exec(code, names)
    assert type(names["model"]) is PonderForSequenceClassification


def test_what_was_measured_and_what_is_promised_stand_on_it_and_come_back(model: Any, tmp_path: Path) -> None:
    batch = make_batch(model.encoder)
    trajectory = model.unroll(**batch, labels=LABELS)
    noted = model.note_evaluation(trajectory, "toy, six rows")
    exits = trajectory.replay(Quantile(0.5))
    right = trajectory.outputs.argmax(-1) == LABELS[:, None]
    assert noted["score"] == pytest.approx(float((exits.outputs.argmax(-1) == LABELS).float().mean()))
    assert noted["full_depth"] == pytest.approx(float(right[:, -1].float().mean()))
    assert noted["speed_up"] == pytest.approx(5 / float(exits.exit_step.float().mean()))
    kept = model.policy
    control = ponder.control_risk(trajectory, Confidence, level=0.9, confidence=0.5)
    model.policy = control.policy
    model.note_evaluation(trajectory, "toy, six rows")
    model.note_evaluation(trajectory, "toy, six rows")  # once more: it takes the place of the one before
    try:
        model.save_pretrained(tmp_path)
        text = card_in(tmp_path).text
        assert control.policy.statement in text
        assert f"| toy, six rows | 6 | `Quantile(q=0.5)` | {noted['score']:.4f} (accuracy) |" in text
        again = PonderForSequenceClassification.from_pretrained(tmp_path)
        assert len(again.config.evaluations) == 2
        again.save_pretrained(tmp_path / "again")
        assert control.policy.statement in card_in(tmp_path / "again").text
    finally:
        model.policy, model.config.evaluations = kept, []


def test_rows_without_labels_measure_nothing(model: Any) -> None:
    with pytest.raises(ArgumentError, match="trajectory: expected rows with labels"):
        model.note_evaluation(model.unroll(**make_batch(model.encoder)), "no labels")


def test_what_asks_that_all_labels_of_a_row_be_right_is_called_so() -> None:
    outputs, labels = torch.tensor([[[1.0, 1.0]], [[1.0, -1.0]]]), torch.ones(2, 2)
    trajectory = ponder.Trajectory(outputs, None, torch.arange(2), labels=labels, task="multilabel")
    noted = evaluation_of(trajectory, LastStep(), "two rows", None)
    assert (noted["metric"], noted["score"]) == ("exact match", 0.5)


def test_a_readme_of_the_owners_stays(model: Any, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Mine\n")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# Mine\n"


def test_its_own_is_written_anew_and_an_edited_one_without_the_marker_is_kept(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    readme = tmp_path / "README.md"
    kept = model.policy
    model.policy = LastStep()
    try:
        model.save_pretrained(tmp_path)
        assert "`LastStep()`" in readme.read_text()
        readme.write_text(readme.read_text().replace("<!-- Written by ponder", "<!-- Once written by ponder"))
        model.policy = kept
        model.save_pretrained(tmp_path)
        assert "`LastStep()`" in readme.read_text()
    finally:
        model.policy = kept


def test_features_have_a_card_too(tmp_path: Path) -> None:
    PonderModel.from_encoder(make_model("bert").encoder, "vanilla").save_pretrained(tmp_path)
    assert card_in(tmp_path).data.pipeline_tag == "feature-extraction"


def test_pushing_to_the_hub_sends_the_files_of_a_save(
    model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`push_to_hub` is that of Transformers; here, what it would send is looked at instead of sent."""
    sent: dict[str, Any] = {}

    def look(self: Any, folder: str, repo: str, **_: Any) -> str:
        sent.update({path.name: path.read_text() for path in Path(folder).iterdir() if path.suffix != ".safetensors"})
        return repo

    hub = "transformers.utils.hub"
    monkeypatch.setattr(f"{hub}.hf_api", lambda: type("Api", (), {"create_repo": staticmethod(_named)}))
    monkeypatch.setattr(
        f"{hub}.create_and_tag_model_card", lambda *_, **__: ModelCard("---\ntags: [a]\n---\n# Theirs\n")
    )
    monkeypatch.setattr(PonderForSequenceClassification, "_upload_modified_files", look)
    assert model.push_to_hub("me/my-model") == "me/my-model"
    assert sent.keys() == {"README.md", "config.json", "ponder_classes.py"}
    assert json.loads(sent["config.json"])["model_type"] == "ponder"


def _named(name: str, **_: Any) -> Any:
    return type("Repo", (), {"repo_id": name})


def _elsewhere(code: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh process that has imported nothing of this package."""
    here = {**os.environ, "PYTHONPATH": str(Path(ponder.__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
    here["HF_HOME"] = str(folder / "home")
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments], cwd=folder, env=here, capture_output=True, text=True
    )


def test_auto_classes_find_it_without_the_import_where_the_user_trusts_it(model: Any, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    model.save_pretrained(folder)
    code = (
        "import sys\nfrom transformers import AutoConfig, AutoModelForSequenceClassification as Auto\n"
        "try:\n    Auto.from_pretrained(sys.argv[1], trust_remote_code=False)\n"
        "except ValueError as error:\n    print('refused')\n"
        "assert 'ponder' not in sys.modules\n"
        "model = Auto.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "print(type(model).__name__, type(model).__module__)\n"
        "model.save_pretrained('again')\n"
    )
    ran = _elsewhere(code, tmp_path, str(folder))
    assert ran.returncode == 0, ran.stderr
    kind = "PonderForSequenceClassification ponder.integrations.transformers.sequence_classification"
    assert ran.stdout.splitlines() == ["refused", kind]
    again = tmp_path / "again"
    assert sorted(path.name for path in again.iterdir()) == sorted(path.name for path in folder.iterdir())
    assert json.loads((again / "config.json").read_text())["auto_map"] == {"AutoConfig": "ponder_classes.PonderConfig"}


def test_after_the_import_nothing_of_the_folder_is_run(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / "ponder_classes.py").write_text("raise AssertionError('it was run')\n")
    for trusted in (None, False, True):
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path, trust_remote_code=trusted)
        assert type(again) is PonderForSequenceClassification


def test_what_was_measured_of_other_weights_is_neither_noted_nor_kept(tmp_path: Path) -> None:
    """Trap: the card of a model that was trained on told the scores of the model of before."""
    made = make_model("bert", num_labels=3)
    rows = [{"input_ids": [5, 6, 7 + place], "labels": place % 3} for place in range(6)]
    before = made.record(rows)
    made.note_evaluation(before, "of before")
    made.save_pretrained(tmp_path)
    assert "of before" in card_in(tmp_path).text
    again = PonderForSequenceClassification.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path)
    assert "of before" in card_in(tmp_path).text
    averaged = {name: value * 1.5 if value.is_floating_point() else value for name, value in again.state_dict().items()}
    with pytest.warns(UserWarning, match="1 of 1 noted evaluations are left out"):
        again.save_pretrained(tmp_path / "averaged", state_dict=averaged)
    assert "Nothing was noted." in card_in(tmp_path / "averaged").text
    with torch.no_grad():
        next(made.ponder.head.parameters()).mul_(2.0)
    with refused("trajectory", "other weights"):
        made.note_evaluation(before, "too late")
    with pytest.warns(UserWarning, match="Record again"):
        made.save_pretrained(tmp_path)
    assert "Nothing was noted." in card_in(tmp_path).text
