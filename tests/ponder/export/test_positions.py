"""Exports whose outputs have positions: a class at each token, or where an answer starts and ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder import policies
from ponder.errors import ArgumentError, PonderError
from ponder.export import OnnxModel, certify, to_trajectory
from ponder.parts.tasks import Span, TokenClassification
from ponder.policies import ExitPolicy
from tests.ponder.export.exported import AT_POSITIONS, exported
from tests.toys import WIDTH

pytest.importorskip("onnxruntime", reason="exports need the extra onnx")
pytest.importorskip("onnxscript", reason="exports need the extra onnx")
pytestmark = pytest.mark.slow  # exporting takes seconds

OF_ALL: list[ExitPolicy] = [
    policies.Quantile(0.5),
    policies.Bernoulli(7),
    policies.Patience(1),
    policies.Converged(0.5),
    policies.FixedStep(2),
    policies.LastStep(),
]
OF_CLASSES: list[ExitPolicy] = [
    policies.Confidence(0.5),
    policies.Margin(0.2) | policies.Patience(2),
    policies.Entropy(0.9),
    policies.Voting(2),
    policies.Tempered(policies.Confidence(0.4), (2.0,)),
]
CASES = [
    *[("token_classification", policy) for policy in [*OF_ALL, *OF_CLASSES]],
    *[("span", policy) for policy in OF_ALL],
]


def rows_of(name: str, size: int, seed: int) -> tuple[list[Any], dict[str, Any]]:
    """Examples for PyTorch, and the same as named arrays."""
    inputs, context, arrays = exported(name).call(size, seed)
    mask = context["src_key_padding_mask"]
    return [(inputs[row], {"src_key_padding_mask": mask[row]}) for row in range(size)], arrays


@pytest.mark.parametrize(("name", "policy"), CASES, ids=repr)
def test_exits_and_outputs_are_those_of_pytorch(name: str, policy: ExitPolicy) -> None:
    made = exported(name)
    examples, arrays = rows_of(name, 24, seed=5)
    expected = ponder.predict(made.model, examples, policy=policy)
    for batch_size in (7, 24):
        found = made.onnx.predict(arrays, policy=policy, batch_size=batch_size)
        assert found.exit_step.tolist() == expected.exit_step.tolist()
        np.testing.assert_allclose(found.outputs, expected.outputs.detach().numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", AT_POSITIONS)
def test_the_policies_of_the_test_tell_rows_apart(name: str) -> None:
    _, arrays = rows_of(name, 24, seed=5)
    tried = [policy for of, policy in CASES if of == name]
    spread = [len(set(exported(name).onnx.predict(arrays, policy=policy).exit_step.tolist())) for policy in tried]
    assert sum(steps > 1 for steps in spread) >= len(tried) - 2


@pytest.mark.parametrize("name", AT_POSITIONS)
def test_a_record_is_that_of_pytorch(name: str) -> None:
    made = exported(name)
    examples, arrays = rows_of(name, 12, seed=3)
    expected = made.model.record(examples)
    found = to_trajectory(made.onnx.record(arrays, batch_size=5), task=name)
    assert torch.equal(found.mask, expected.mask)
    torch.testing.assert_close(found.outputs, expected.outputs, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.hazard_logits, expected.hazard_logits, rtol=0, atol=1e-4)
    for policy in (policies.Patience(1), policies.Quantile(0.5)):
        assert torch.equal(found.replay(policy).exit_step, expected.replay(policy).exit_step)


@pytest.mark.parametrize("name", AT_POSITIONS)
def test_what_an_example_has_behind_its_end_changes_nothing(name: str) -> None:
    made = exported(name)
    _, arrays = rows_of(name, 9, seed=4)
    lengths = (~arrays["src_key_padding_mask"]).sum(1)
    cut = [{key: value[row, : lengths[row]] for key, value in arrays.items()} for row in range(9)]
    longer = {key: np.pad(value, ((0, 0), (0, 3)), constant_values=key != "inputs") for key, value in arrays.items()}
    whole = made.onnx.predict(arrays, policy=policies.Patience(1))
    assert whole.outputs.shape[1] == lengths.max()
    for row, length in enumerate(lengths):
        assert (whole.outputs[row, length:] == made.model.task.blank).all()
    for other in (cut, longer):
        found = made.onnx.predict(other, policy=policies.Patience(1))
        assert found.exit_step.tolist() == whole.exit_step.tolist()
        np.testing.assert_allclose(found.outputs, whole.outputs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", AT_POSITIONS)
def test_masks_with_holes(name: str) -> None:
    made = exported(name)
    inputs, _, _ = made.call(40, seed=9)
    hidden = torch.rand(inputs.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    hidden[:, 3] &= ~hidden.all(1)
    examples = [(inputs[row], {"src_key_padding_mask": hidden[row]}) for row in range(40)]
    for policy in (policies.Patience(1), policies.Converged(0.3), policies.Quantile(0.5)):
        expected = ponder.predict(made.model, examples, policy=policy)
        arrays = {"inputs": inputs.numpy(), "src_key_padding_mask": hidden.numpy()}
        found = made.onnx.predict(arrays, policy=policy, batch_size=9)
        assert found.exit_step.tolist() == expected.exit_step.tolist()
        np.testing.assert_allclose(found.outputs, expected.outputs.detach().numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", AT_POSITIONS)
def test_no_rows_have_no_outputs(name: str) -> None:
    model = exported(name).onnx
    assert model.predict([]).outputs.shape == (0, 0, model.manifest.outputs[-1])
    assert model.record([]).outputs.shape == (0, model.num_steps, 0, model.manifest.outputs[-1])


def test_there_is_no_graph_of_one_row() -> None:
    """It would count padding as answers: nothing tells it where a row ends but the batch that it is in."""
    assert exported("token_classification").onnx.manifest.single is None
    assert exported("words").onnx.manifest.single is not None


@pytest.mark.parametrize(
    ("name", "policy"), [("token_classification", policies.Confidence), ("span", policies.Patience)]
)
def test_a_threshold_is_certified_against_full_depth(name: str, policy: Any) -> None:
    model = exported(name).onnx
    _, arrays = rows_of(name, 300, seed=6)
    found = certify(model, model, arrays, policy, level=0.2, confidence=0.9)
    assert found.met
    examples, _ = rows_of(name, 300, seed=6)
    seen = exported(name).model.record(examples)
    own = found.policy.policy
    exits = seen.replay(own)
    task, at = seen.meaning, torch.arange(300)
    last = task.predictions(seen.read_outputs()[:, -1])
    early = task.predictions(seen.read_outputs()[at, exits.exit_step - 1])
    share = (~task.same(early, last, mask=seen.mask)).double().mean().item()
    chosen = next(row for row in found.policy.path if row[0] == found.policy.threshold_value)
    assert chosen[1] == pytest.approx(share, abs=2 / 300)
    assert 0 < share < 0.2


def test_an_export_of_another_kind_is_no_reference() -> None:
    _, arrays = rows_of("span", 20, seed=6)
    for model, reference in [("span", "token_classification"), ("words", "token_classification")]:
        with pytest.raises(ArgumentError, match="reference: expected an export of the task"):
            certify(exported(model).onnx, exported(reference).onnx, arrays, policies.Patience, level=0.2)


def small(**parts: Any) -> Any:
    made = {
        "num_steps": 3,
        "head": nn.Linear(WIDTH, 3),
        "readout": ponder.readouts.identity,
        "task": "token_classification",
        "policy": policies.Patience(1),
    }
    return ponder.PonderWrapper(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()), **{**made, **parts}).eval()


X = torch.randn(4, 5, WIDTH, generator=torch.Generator().manual_seed(0))


def test_positions_that_never_vary_need_no_mask(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = small()
    exported_model = OnnxModel(ponder.export.onnx(model, tmp_path, example=X[:2]))
    found, expected = exported_model.predict(X.numpy()), model(X)
    assert found.exit_step.tolist() == expected.exit_step.tolist()
    np.testing.assert_allclose(found.outputs, expected.outputs.detach().numpy(), rtol=0, atol=1e-5)
    assert exported_model.record(X.numpy()).mask is None


class _Twice(nn.Module):
    def forward(self, inputs: Tensor, attention_mask: Tensor) -> Any:
        return torch.cat([inputs, inputs], 1), {"attention_mask": torch.cat([attention_mask, attention_mask], 1)}


class _Lengths(nn.Module):
    def forward(self, inputs: Tensor) -> Any:
        return inputs, {"attention_mask": (inputs[..., 0] > -2).long()}


class _Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return torch.tanh(self.layer(hidden))


def test_lengths_that_no_mask_tells_are_known_all_the_same(tmp_path: Path) -> None:
    """Where the example has none, rows of one length run together, and what fills up the shorter ones is no answer."""
    torch.manual_seed(0)
    parts = {"head": nn.Linear(WIDTH, 3), "readout": ponder.readouts.identity, "task": "token_classification"}
    model = ponder.PonderWrapper(_Masked(), num_steps=3, padding=ponder.Padding(), **parts).eval()
    found = OnnxModel(ponder.export.onnx(model, tmp_path, example=X[:2])).record([X[0].numpy(), X[1, :3].numpy()])
    expected = model.record([X[0], X[1, :3]])
    assert found.mask is not None
    assert torch.equal(torch.from_numpy(found.mask), expected.mask)
    np.testing.assert_allclose(found.outputs, expected.outputs.numpy(), rtol=0, atol=1e-5)


def test_padding_that_an_export_cannot_know_is_refused(tmp_path: Path) -> None:
    mask = torch.tensor([[1, 1, 1, 1, 0]]).expand(2, 5)
    parts = {"head": nn.Linear(WIDTH, 3), "readout": ponder.readouts.identity, "task": "token_classification"}
    model = ponder.PonderWrapper(_Masked(), num_steps=3, **parts).eval()
    with pytest.raises(ArgumentError, match=r"example: expected a call with the mask.*that no padding names"):
        ponder.export.onnx(model, tmp_path / "a", example=(X[:2], {"attention_mask": mask}))
    declared = ponder.PonderWrapper(_Masked(), num_steps=3, padding=ponder.Padding(), stem=_Twice(), **parts).eval()
    with pytest.raises(ArgumentError, match=r"model: expected outputs \(batch, 5, …\)"):
        ponder.export.onnx(declared, tmp_path / "b", example=(X[:2], {"attention_mask": mask}))
    unsaid = ponder.PonderWrapper(_Masked(), num_steps=3, padding=ponder.Padding(), stem=_Lengths(), **parts).eval()
    with pytest.raises(ArgumentError, match=r"example: expected a call with the mask.*that the stem makes"):
        ponder.export.onnx(unsaid, tmp_path / "c", example=X[:2])
    assert not list(tmp_path.iterdir())


def test_positions_that_nobody_named_are_no_answers_of_one_shape(tmp_path: Path) -> None:
    # Trap: a batch of rows of one position was stretched over those of five.
    masked = ponder.Padding(pooled=False)
    parts = {"head": nn.Linear(WIDTH, 3), "readout": ponder.readouts.identity, "padding": masked}
    model = ponder.PonderWrapper(_Masked(), num_steps=3, policy=policies.FixedStep(2), **parts).eval()
    mask = torch.ones(2, 5, dtype=torch.long)
    found = OnnxModel(ponder.export.onnx(model, tmp_path, example=(X[:2], {"attention_mask": mask})))
    rows = [{"inputs": X[0].numpy()}, {"inputs": X[1, :1].numpy()}]
    for call in (found.predict, found.record):
        with pytest.raises(PonderError, match=r"have several shapes.*name its task"):
            call(rows, batch_size=1)


class Weighted(TokenClassification):
    name = "weighted"


class Spread(Span):
    name = "spread"

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs.argmin(-2)


class Blanked(Span):
    name = "blanked"

    def without_padding(self, outputs: Tensor, mask: Tensor | None) -> Tensor:
        return outputs


def test_tasks_of_ones_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = small(task=Weighted())
    mine = OnnxModel(ponder.export.onnx(model, tmp_path / "weighted", example=X[:2]))
    assert mine.predict(X.numpy()).exit_step.tolist() == model(X).exit_step.tolist()
    assert certify(mine, mine, X.numpy(), policies.Patience, level=0.9, confidence=0.5).met
    for task in (Spread(), Blanked()):
        with pytest.raises(ArgumentError, match="compares no answers"):
            ponder.export.onnx(small(task=task, head=nn.Linear(WIDTH, 2)), tmp_path / task.name, example=X[:2])


def test_a_description_of_before_has_one_answer_a_row(tmp_path: Path) -> None:
    made = exported("words")
    folder = tmp_path / "before"
    folder.mkdir()
    for path in made.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    data = json.loads((folder / "export.json").read_text())
    for name in ("per_token", "per_position", "blank"):
        del data[name]
    (folder / "export.json").write_text(json.dumps(data))
    again = OnnxModel(folder)
    assert again.manifest == made.onnx.manifest
