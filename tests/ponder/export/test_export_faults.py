"""What cannot be exported or answered is refused, and the message says what can be done."""

from __future__ import annotations

import builtins
import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

import ponder
from ponder import policies
from ponder._utils.columns import EXPORT_REPORT, fitted_columns
from ponder.errors import ArgumentError, ArgumentTypeError, CheckpointError, PonderError
from ponder.export import OnnxModel, runtime
from ponder.export.examples import open_tokenizer, read_rows
from ponder.export.policies import NumpyPolicy, read_policy
from ponder.export.policies.base import registry
from ponder.export.policies.joining import After, Any_
from ponder.export.source import ExportSource
from ponder.export.tokenizing import copy_tokenizer
from ponder.export.writing import copied
from ponder.integrations.transformers.tokenizing import tokenize
from ponder.parts.padding import Along
from ponder.policies import ExitPolicy, StepView
from ponder.serving import Limits
from ponder.serving.exported import open_export
from tests.ponder.checks import refused
from tests.ponder.export.exported import exported, folder_of
from tests.toys import WIDTH
from tests.word_tokenizer import VOCABULARY, save_tokenizer

pytest.importorskip("onnxruntime", reason="exports need the extra onnx")
pytest.importorskip("onnxscript", reason="exports need the extra onnx")
pytestmark = pytest.mark.slow  # exporting takes seconds


@dataclass(frozen=True)
class Unheard(ExitPolicy):
    """A user's own policy."""

    def to_dict(self) -> dict[str, Any]:
        return {"name": "unheard"}

    def decide(self, step: StepView, state: Any) -> tuple[Tensor | bool, Any]:
        return True, state


def small(**options: Any) -> ponder.PonderWrapper:
    return ponder.PonderWrapper(nn.Linear(WIDTH, WIDTH), num_steps=3, head=nn.Linear(WIDTH, 2), **options)


X = torch.randn(2, WIDTH)


@pytest.mark.parametrize(
    ("policy", "named"),
    [(Unheard(), "'unheard'"), (Unheard() | policies.LastStep(), "'unheard'"), (Unheard().after(2), "'unheard'")],
)
def test_a_policy_that_cannot_be_expressed_is_named_with_those_that_can(
    policy: ExitPolicy, named: str, tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match=f"certified, confidence, converged, energy, entropy.*got {named}"):
        ponder.export.onnx(small(policy=policy), tmp_path, example=X)
    assert not list(tmp_path.iterdir())


def test_sampling_without_a_seed_is_refused(tmp_path: Path) -> None:
    model = small(policy=policies.Bernoulli(), lambda_head=ponder.LambdaHead(WIDTH))
    with pytest.raises(ArgumentError, match="without a seed"):
        ponder.export.onnx(model, tmp_path, example=X)


def test_half_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"head.*torch.bfloat16|steps.*torch.bfloat16"):
        ponder.export.onnx(small().bfloat16(), tmp_path, example=X)


def test_a_model_needs_an_example_and_has_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="example"):
        ponder.export.onnx(small(), tmp_path)
    with pytest.raises(ArgumentTypeError, match="PonderWrapper"):
        ponder.export.onnx(nn.Linear(2, 2), tmp_path, example=X)


class Branching(nn.Module):
    """A step whose code depends on values, which no trace can follow."""

    def forward(self, hidden: Tensor) -> Tensor:
        return -hidden if float(hidden.sum()) > 0 else hidden + 1.0


def test_a_part_that_cannot_be_traced_is_named(tmp_path: Path) -> None:
    model = ponder.PonderWrapper(Branching(), num_steps=3, head=nn.Linear(WIDTH, 2))
    with pytest.raises(PonderError, match=r"(step_1|body|begin).*traceable"):
        ponder.export.onnx(model, tmp_path, example=X)


def test_an_export_leaves_modes_and_the_example_as_they_were(tmp_path: Path) -> None:
    model, before = small().train(), X.clone()
    model.head.eval()
    ponder.export.onnx(model, tmp_path, example=X[:1])
    assert (model.training, model.head.training) == (True, False)
    assert torch.equal(X, before)
    found = OnnxModel(tmp_path).predict(X.numpy())
    expected = model.eval()(X)
    np.testing.assert_allclose(found.outputs, expected.outputs.detach().numpy(), atol=1e-5)


class Traced(nn.Module):
    """A stem that gives an exporter something else than PyTorch, as code that looks at versions of tensors does."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([inputs, inputs]) if torch.compiler.is_compiling() else inputs


def test_a_graph_that_gives_another_shape_than_pytorch_is_named(tmp_path: Path) -> None:
    # Trap: shapes were stretched to one another by numpy before they were compared, or it raised an error of its own.
    with pytest.raises(PonderError, match=r"stem\.onnx: hidden is not what.*serve the model with PyTorch"):
        ponder.export.onnx(small(stem=Traced()), tmp_path, example=X)


class Scores(nn.Module):
    """A stem with a context that is as long as the sequences, whatever the padding says of it."""

    def forward(self, inputs: Tensor, attention_mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        hidden = inputs.unsqueeze(-1).expand(-1, -1, WIDTH).float()
        return hidden, {"attention_mask": attention_mask, "scores": torch.ones_like(inputs)}


class Scored(nn.Module):
    def forward(self, hidden: Tensor, scores: Tensor, attention_mask: Tensor) -> Tensor:
        return torch.tanh(hidden * scores.unsqueeze(-1))


class Windows(nn.Module):
    """Means over windows of four positions, as sequences of multiples of four have them."""

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        windows = hidden.reshape(hidden.shape[0], hidden.shape[1] // 4, 4, WIDTH)
        return (windows + windows.mean(2, keepdim=True)).reshape(hidden.shape)


class Spread(nn.Module):
    def forward(self, inputs: Tensor, attention_mask: Tensor) -> Tensor:
        return torch.sin(inputs.unsqueeze(-1) * torch.arange(1.0, WIDTH + 1))


def test_lengths_may_come_in_multiples(tmp_path: Path) -> None:
    model = ponder.PonderWrapper(
        Windows(),
        2,
        stem=Spread(),
        head=nn.Linear(WIDTH, 2),
        readout=ponder.readouts.mean,
        padding=ponder.Padding(),
    ).eval()
    ids = torch.arange(24).view(3, 8)
    opened = OnnxModel(ponder.export.onnx(model, tmp_path, example=(ids, {"attention_mask": torch.ones_like(ids)})))
    longer = torch.arange(24).view(2, 12)
    found = opened.predict({"inputs": longer.numpy(), "attention_mask": torch.ones_like(longer).numpy()})
    expected = model(longer, attention_mask=torch.ones_like(longer)).outputs.detach().numpy()
    np.testing.assert_allclose(found.outputs, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("declared", [True, False])
def test_a_graph_that_takes_one_length_alone_is_refused(declared: bool, tmp_path: Path) -> None:
    # Trap: graphs were run at the length of the example alone, and answered no other.
    padding = ponder.Padding(context={"scores": Along()} if declared else {})
    model = ponder.PonderWrapper(
        Scored(), 2, stem=Scores(), head=nn.Linear(WIDTH, 2), readout=ponder.readouts.mean, padding=padding
    ).eval()
    numbers = torch.arange(8).view(2, 4), {"attention_mask": torch.ones(2, 4, dtype=torch.long)}
    if not declared:
        with pytest.raises(PonderError, match=r"no other number of positions than 4.*Name every tensor of the context"):
            ponder.export.onnx(model, tmp_path, example=numbers)
        return
    opened = OnnxModel(ponder.export.onnx(model, tmp_path, example=numbers))
    for length in (1, 7):
        inputs, mask = torch.arange(3 * length).view(3, length), torch.ones(3, length, dtype=torch.long)
        expected = model(inputs, attention_mask=mask).outputs.detach().numpy()
        found = opened.predict({"inputs": inputs.numpy(), "attention_mask": mask.numpy()}).outputs
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


class Weighty(nn.Module):
    """A weight of its own, beside layers whose weights are read one way or another."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(WIDTH))
        self.inner, self.tied = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.tied.weight = self.inner.weight
        self.register_buffer("shift", torch.rand(WIDTH), persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        assert isinstance(self.shift, Tensor)
        return torch.addmm(self.shift, self.tied(hidden) * self.scale, self.inner.weight.t()).tanh()


def test_a_part_is_traced_with_what_it_reads_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH), Weighty()])
    model = ponder.PonderWrapper(layers, head=nn.Linear(WIDTH, 2)).eval()
    export, traced = torch.onnx.export, dict[int, set[Tensor]]()

    def noted(part: nn.Module, *arguments: Any, **options: Any) -> Any:
        traced[len(traced)] = set(part.parameters())
        return export(part, *arguments, **options)

    monkeypatch.setattr(torch.onnx, "export", noted)
    ponder.export.onnx(model, tmp_path, example=X)
    every = [set(layer.parameters()) for layer in (*layers, model.head)]
    assert [weights for weights in traced.values() if weights] == sorted(every, key=list(traced.values()).index)
    assert len(every) == 3
    found, expected = OnnxModel(tmp_path).predict(X.numpy()), model(X)
    np.testing.assert_allclose(found.outputs, expected.outputs.detach().numpy(), atol=1e-5)


# ---- The folder ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder_of("gru-cell"), tmp_path / "export"))


def _edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "export.json"
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return damage


def _flip(path: Path) -> None:
    """Change one bit of a weight: the graph stays one, and its size is the same."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "export.json").unlink(),
        lambda folder: (folder / "export.json").write_text("{"),
        lambda folder: (folder / "step_1.onnx").unlink(),
        lambda folder: (folder / "step_1.onnx").write_bytes((folder / "step_1.onnx").read_bytes()[:100]),
        lambda folder: _flip(folder / "head.onnx"),
        lambda folder: (folder / "head.onnx").write_bytes(b"\0" * (folder / "head.onnx").stat().st_size),
        _edit(lambda data: data.update(format="other")),
        _edit(lambda data: data.pop("steps")),
        _edit(lambda data: data.update(unknown=1)),
        _edit(lambda data: data.update(schedule=[0, 0])),
        _edit(lambda data: data.update(schedule=[7] * 5)),
        _edit(lambda data: data.update(readout="../readout.onnx")),
    ],
)
def test_a_broken_or_foreign_folder_is_refused(damage: Callable[[Path], object], folder: Path) -> None:
    OnnxModel(folder)
    damage(folder)
    with pytest.raises(CheckpointError):
        OnnxModel(folder)


def test_an_export_of_before_digests_were_written_is_read(folder: Path) -> None:
    _edit(lambda data: data.pop("digests"))(folder)
    assert OnnxModel(folder).num_steps == OnnxModel(folder_of("gru-cell")).num_steps


def test_a_task_that_measures_answers_otherwise_is_never_converged(tmp_path: Path) -> None:
    class Weighted(ponder.tasks.Regression):
        name = "weighted"

        def distance(self, one: Tensor, other: Tensor, *, mask: Tensor | None = None) -> Tensor:
            return (one - other)[:, 0].abs()

    opened = OnnxModel(ponder.export.onnx(small(task=Weighted()), tmp_path, example=X))
    for policy in (policies.Converged(0.3), policies.Patience(1, 0.3)):
        with pytest.raises(ArgumentError, match="policy: expected a policy that compares no answers"):
            opened.check(policy)
    opened.check(policies.Converged(0.3, on="features"))


class Twin(NumpyPolicy):
    """A twin that answers with what it is told to."""

    needs = frozenset({"output"})

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        self.answer = answer

    def decide(self, step: Any, state: Any) -> Any:
        return self.answer(step.output), state


@pytest.mark.parametrize(
    "answer",
    [
        lambda output: (output[:, 0] > 0).any(),
        lambda output: (output[:, 0] > 0).astype(int),
        lambda output: output > 0,
        lambda output: output[:, :1] > 0,
        lambda output: None,
    ],
)
def test_a_mask_that_is_none_is_told(answer: Callable[[Any], Any]) -> None:
    opened, arrays = exported("gru-cell").onnx, exported("gru-cell").call(6)[2]
    before, inside = opened._policy, Any_((Twin(answer), read_policy(policies.Quantile(0.99).to_dict())))
    try:
        for policy in (Twin(answer), inside, After(Twin(answer), 1)):
            opened._policy = {}, policy
            with pytest.raises(PonderError, match="expected an exit mask of bool, one for each of 6 rows; got"):
                opened.predict(arrays)
    finally:
        opened._policy = before


def test_one_answer_for_all_rows_is_a_mask_and_what_a_policy_sees_cannot_be_changed() -> None:
    def in_place(output: Any) -> Any:
        output -= 5.0

    opened, arrays = exported("gru-cell").onnx, exported("gru-cell").call(6)[2]
    before = opened._policy
    try:
        opened._policy = {}, Twin(lambda output: True)
        assert opened.predict(arrays).exit_step.tolist() == [1] * 6
        opened._policy = {}, Twin(in_place)
        with pytest.raises(ValueError, match="read-only"):
            opened.predict(arrays)
    finally:
        opened._policy = before


def test_a_twin_keeps_a_field_that_others_leave_out(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Fitted(NumpyPolicy):
        fitted_on: float = 0.0

        def decide(self, step: Any, state: Any) -> Any:
            return False, state

    monkeypatch.setitem(registry._factories, "fitty", Fitted)
    assert read_policy({"name": "fitty", "fitted_on": 0.4}).fitted_on == 0.4  # type: ignore[attr-defined]


def test_a_function_is_no_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._factories, "made", lambda level: Twin(lambda output: True))
    with pytest.raises(ArgumentError, match=r"a class derived from ponder.export.policies.NumpyPolicy"):
        read_policy({"name": "made", "level": 0.4})


@pytest.mark.parametrize(
    "policy", [policies.Gate(1, ("margin",), "logistic", ()), policies.Expected(0.0, ((0.5,),), ((0.2, 0.9),), ())]
)
def test_a_model_of_one_step_is_exported(policy: ExitPolicy, tmp_path: Path) -> None:
    model = ponder.PonderWrapper(nn.Linear(WIDTH, WIDTH), num_steps=1, head=nn.Linear(WIDTH, 2), policy=policy)
    opened = OnnxModel(ponder.export.onnx(model, tmp_path, example=X))
    assert opened.manifest.single is not None
    assert opened.predict(X.numpy()).exit_step.tolist() == [1, 1]


def test_a_foreign_policy_in_the_folder_is_refused(folder: Path) -> None:
    _edit(lambda data: data.update(policy={"name": "unheard"}))(folder)
    with pytest.raises(ArgumentError, match="unheard"):
        OnnxModel(folder)


def test_a_certificate_that_somebody_changed_is_refused_as_in_pytorch(folder: Path) -> None:
    trajectory = ponder.Trajectory(torch.randn(300, 5, 2), None, torch.arange(300), task="classification")
    policy = ponder.control_risk(trajectory, policies.Confidence, level=0.4).policy
    opened = OnnxModel(folder)
    with pytest.warns(UserWarning, match="A part of this policy is certified"):
        opened.policy = policy.after(2)
    opened.save_policy()
    assert policies.from_dict(OnnxModel(folder).policy) == policy.after(2)
    _edit(lambda data: data["policy"]["policy"]["policy"].update(threshold=0.1))(folder)
    with pytest.raises(ArgumentError, match="certificate: expected a certified policy as it was written"):
        OnnxModel(folder)


def test_a_policy_that_is_read_is_a_copy() -> None:
    """The threshold was the old one when rows were answered, and the new one in the folder."""
    opened = OnnxModel(folder_of("gru-cell"))
    given = policies.Confidence(0.9).after(2).to_dict()
    opened.policy = given
    for taken in (opened.policy, given):
        taken["policy"]["threshold"] = 0.1
    assert opened.policy == policies.Confidence(0.9).after(2).to_dict()


class Screening(ponder.tasks.Classification):
    """Says the second class already where it has a fifth of the probability."""

    def predictions(self, outputs: Tensor) -> Tensor:
        return (outputs.softmax(-1)[..., 1] > 0.2).long()


class Mild(ponder.tasks.Classification):
    """Another loss, and the same answers."""

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return super().losses(outputs, labels) ** 2


def test_answers_of_a_users_own_are_compared_by_no_export(tmp_path: Path) -> None:
    """The largest logit was compared, and rows left at other steps than in PyTorch."""
    model = small(task=Screening(), policy=policies.Confidence(0.9))
    opened = OnnxModel(ponder.export.onnx(model, tmp_path / "own", example=X))
    for policy in (policies.Patience(1), policies.Voting(2), policies.LastStep() | policies.Patience(1)):
        with pytest.raises(ArgumentError, match="policy: expected a policy that compares no answers"):
            opened.policy = policy
    with pytest.raises(ArgumentError, match="compares no answers"):
        ponder.export.onnx(small(task=Screening(), policy=policies.Patience(1)), tmp_path / "none", example=X)
    assert not (tmp_path / "none").exists()
    with pytest.raises(ArgumentError, match="model: expected a task whose answers can be compared without PyTorch"):
        ponder.export.certify(opened, opened, X.numpy(), policies.Confidence, level=0.1)


@pytest.mark.parametrize(
    "task",
    [None, Mild(), ponder.tasks.Custom(classes=True), ponder.tasks.Custom(classes=False), "regression", "multilabel"],
)
def test_answers_that_an_export_finds_as_pytorch_does(task: Any, tmp_path: Path) -> None:
    policy = policies.Patience(1, tolerance=0.1)
    assert OnnxModel(ponder.export.onnx(small(task=task, policy=policy), tmp_path / "x", example=X)).policy["patience"]


class Grid(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features.reshape(-1, 2, WIDTH // 2)


def test_several_rows_of_classes_are_refused_as_in_pytorch(tmp_path: Path) -> None:
    model = ponder.PonderWrapper(nn.Linear(WIDTH, WIDTH), num_steps=3, head=Grid(), task="classification").eval()
    opened = OnnxModel(ponder.export.onnx(model, tmp_path / "grid", example=X))
    for policy in (policies.Entropy(0.9, normalize=True), policies.Patience(1), policies.Confidence(0.9).after(3)):
        with pytest.raises(ArgumentError, match="policy: expected"):
            model(X, policy=policy)
        with pytest.raises(ArgumentError, match=r"got outputs \(batch, 2, \d\)"):
            opened.check(policy)


def test_a_table_is_refused_and_so_are_its_missing_texts(tmp_path: Path) -> None:
    """A loop over a table gives the names of its columns, which were answered."""
    pandas = pytest.importorskip("pandas")
    save_tokenizer(tmp_path)
    opened = OnnxModel(ponder.export.onnx(Told(16), tmp_path / "out", tokenizer=tmp_path))
    table = pandas.DataFrame({"text": ["w1 w2", "w3", "w4"], "label": [0, 1, 0]})
    for read in (opened.predict, opened.record):
        with pytest.raises(ArgumentTypeError, match=r"got DataFrame, a table\. Pass one column"):
            read(table)
    assert len(opened.predict(table["text"])) == 3
    for missing in (None, float("nan"), ("w1", None), ["w1", float("nan")]):
        with pytest.raises(ArgumentError, match=r"examples\[1\]: expected a text, a pair of texts, or token ids; got"):
            opened.predict(["w1", missing])


def test_an_export_that_is_written_anew_is_not_read_in_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of one and tokens of the other: the tokenizer is read when the first text comes."""
    save_tokenizer(tmp_path)
    folder = ponder.export.onnx(Told(16), tmp_path / "out", tokenizer=tmp_path)
    other = ponder.export.onnx(Told(16), tmp_path / "other", tokenizer=tmp_path)
    tokens = json.loads((other / "tokenizer.json").read_text())
    tokens["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokens))
    opened = OnnxModel(folder)
    ponder.export.onnx(Told(16), folder, tokenizer=tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: of another export than the one that was opened"):
        opened.predict(["w1"])
    opened_graphs = runtime._Graphs.open

    def slowly(*arguments: Any) -> Any:
        made = opened_graphs(*arguments)
        copied(other, folder)
        return made

    monkeypatch.setattr(runtime._Graphs, "open", slowly)
    with pytest.raises(CheckpointError, match="another export was written there while it was opened"):
        OnnxModel(folder)
    assert len(OnnxModel(folder).predict(["w1"])) == 1


def test_the_tokenizer_of_a_saved_model_is_not_written_over(tmp_path: Path) -> None:
    """The export's took its place, and the next export there, of a model without texts, took it away."""
    save_tokenizer(tmp_path / "saved")
    (tmp_path / "saved" / "tokenizer.json").write_text((tmp_path / "saved" / "tokenizer.json").read_text() + "\n")
    before = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    with pytest.raises(ArgumentError, match=r"folder: expected one without a tokenizer of something else"):
        ponder.export.onnx(Told(16), tmp_path / "saved", tokenizer=tmp_path / "saved")
    assert {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()} == before
    folder = ponder.export.onnx(Told(16), tmp_path / "out", tokenizer=tmp_path / "saved")
    with pytest.raises(ArgumentError, match="tokenizer of something else"):
        copied(folder, ponder.export.onnx(small(), tmp_path / "saved", example=X))
    ponder.export.onnx(Told(16), folder, tokenizer=tmp_path / "saved" / "tokenizer.json")  # over an earlier export's
    assert (folder / "tokenizer.json").read_bytes() == before["tokenizer.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": X}, "calibration: expected None for an export in fp32"),
        ({"max_length": 5}, "max_length: expected None for an export without a tokenizer"),
    ],
)
def test_options_without_an_effect_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=message):
        ponder.export.onnx(small(), tmp_path / "out", example=X, **options)
    assert not (tmp_path / "out").exists()


class Added(nn.Module):
    def forward(self, hidden: Tensor, **context: Tensor) -> Tensor:
        return hidden + sum(context.values())


@pytest.mark.parametrize("name", ["go", "output"])
def test_a_name_that_graphs_have_themselves_is_no_fault_of_the_numbers(name: str, tmp_path: Path) -> None:
    model = ponder.PonderWrapper(Added(), num_steps=3, head=nn.Linear(WIDTH, 2))
    with pytest.raises(
        PonderError, match=r"model\.onnx: onnxruntime cannot read it .* Is a tensor of the example called"
    ):
        ponder.export.onnx(model, tmp_path / "out", example=(X, {name: X}))


def test_what_is_no_policy_and_no_export_is_told(folder: Path) -> None:
    opened = OnnxModel(folder)
    with pytest.raises(ArgumentError, match="policy: expected a policy that runs without PyTorch"):
        opened.policy = policies.Confidence
    for given in ((folder, opened), (opened, folder)):
        with pytest.raises(ArgumentTypeError, match=r"Open the folder: ponder\.export\.OnnxModel"):
            ponder.export.certify(*given, X.numpy(), policies.Confidence, level=0.1)  # type: ignore[arg-type]


def test_without_onnxruntime_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    plain = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "onnxruntime":
            raise ImportError(name)
        return plain(name, *arguments, **options)

    path = folder_of("gru-cell")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(PonderError, match=r"ponder-torch\[onnx\]"):
        OnnxModel(path)


def test_without_the_libraries_nothing_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Trap: the tokenizer was there already, so that the next try met a folder that was not empty.
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(PonderError, match=r"ponder-torch\[onnx\]"):
        ponder.export.onnx(small(), tmp_path / "out", example=X)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"export": nn.Linear(2, 2)}, ArgumentTypeError, "export: expected the folder of an export; got Linear"),
        ({"int8": False}, ArgumentError, "int8: expected True or 'all'; got False"),
        ({"calibration": np.full((2, WIDTH), np.inf)}, ArgumentError, "finite"),
        ({"calibration": np.zeros((0, WIDTH))}, ArgumentError, "calibration: .*got none"),
        ({"calibration": ["a text"]}, ArgumentError, "no tokenizer"),
    ],
)
def test_a_refused_quantisation_leaves_nothing(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    # Trap: the copy in fp32 was there by then, a valid export in the folder that was to hold int8.
    with pytest.raises(error, match=message):
        ponder.export.quantized(**{"export": folder_of("gru-cell"), "folder": tmp_path / "int8", **options})
    assert not (tmp_path / "int8").exists()


def test_quantising_in_place_or_twice_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="folder: expected another"):
        ponder.export.quantized(folder, folder)
    int8 = ponder.export.quantized(folder, tmp_path / "int8")
    with pytest.raises(ArgumentError, match="in 8 bits"):
        ponder.export.quantized(int8, tmp_path / "again")


def test_what_8_bits_would_leave_as_it_is_is_refused(tmp_path: Path) -> None:
    # Trap: onnxruntime quantises no product of float64, and the export said that it was in 8 bits.
    model = small().double()
    with refused("model", "torch.float64"):
        ponder.export.onnx(model, tmp_path / "int8", int8=True, example=X.double())
    fp64 = ponder.export.onnx(model, tmp_path / "fp64", example=X.double())
    with refused("export", "float64"):
        ponder.export.quantized(fp64, tmp_path / "int8")
    bare = ponder.PonderWrapper(nn.Tanh(), num_steps=3, head=nn.Linear(WIDTH, 2)).eval()
    with pytest.raises(PonderError, match="no step has a matrix product"):
        ponder.export.onnx(bare, tmp_path / "int8", int8=True, example=X)
    assert not (tmp_path / "int8").exists()


def test_an_export_that_cannot_be_read_is_the_one_that_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Trap: an OSError in copying was told as one of the new folder, "choose another, or make room".
    read = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path == folder / "readout.onnx":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    with pytest.raises(CheckpointError, match=r"readout\.onnx: cannot be read \(Input/output error\)"):
        ponder.export.quantized(folder, tmp_path / "int8")
    assert not (tmp_path / "int8").exists()


def test_an_export_over_another_leaves_no_file_of_it(folder: Path) -> None:
    # Trap: a model.onnx of before lay beside the new graphs, and servers that take one file would have answered by it.
    (folder / "notes.txt").write_text("the user's own")
    assert (folder / "model.onnx").is_file()
    ponder.export.onnx(small(), folder, int8=True, example=X)
    named = OnnxModel(folder).manifest.files()
    assert {path.name for path in folder.iterdir()} == {*named, "export.json", "notes.txt"}
    assert "model.onnx" not in named


def test_an_export_that_fails_leaves_the_one_that_was_there(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(PonderError, match="traceable"):
        ponder.export.onnx(ponder.PonderWrapper(Branching(), num_steps=3, head=nn.Linear(WIDTH, 2)), folder, example=X)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# ---- The examples ----------------------------------------------------------------------------------------------------


def _words(**own: Any) -> dict[str, Any]:
    return {"inputs": [[1, 2], [3, 4]], "src_key_padding_mask": [[False, False], [False, True]], **own}


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ("a text", "a list of texts"),
        (7, "texts, arrays"),
        (["a text"], r"examples\[0\].*no tokenizer.*Export the model again with tokenizer="),
        ([{"src_key_padding_mask": [False]}], r"examples\[0\].*'inputs'"),
        ([{"inputs": [1, 2], "other": 3}], r"examples\[0\].*also other"),
        ([[1, 2], [0.5, 1.5]], r"examples\[1\].*int64"),
        ([[[1, 2]]], r"examples\[0\].*shape"),
        ([[]], r"examples\[0\].*at least 1"),
        ([[1, 2], ["a", "b"]], r"examples\[1\].*no tokenizer"),
        (_words(src_key_padding_mask=[[True, True], [False, True]]), r"examples\[0\].*hides all"),
        (_words(src_key_padding_mask=[[False], [False]]), r"examples\[0\].*one length"),
        (_words(inputs=[[1, 2]]), "same number of rows"),
    ],
)
def test_examples_that_cannot_be_read_are_refused_by_their_position(examples: Any, message: str) -> None:
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        exported("words").onnx.predict(examples)


def test_numbers_that_are_not_finite_and_rows_of_another_width_are_refused() -> None:
    model = exported("gru-cell").onnx
    with pytest.raises(ArgumentError, match=r"examples\[1\].*finite"):
        model.predict(np.array([[0.0] * WIDTH, [np.nan] * WIDTH]))
    with pytest.raises(ArgumentError, match=rf"\({WIDTH},\)"):
        model.predict(np.zeros((2, WIDTH + 1)))


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"row_ids": [1]}, {"row_ids": [0.5, 1.5]}, {"policy": 3}])
def test_options_that_cannot_be_used_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(options))):
        exported("gru-cell").onnx.predict(np.zeros((2, WIDTH)), **options)


def test_a_policy_that_the_model_cannot_serve_is_refused() -> None:
    model = exported("regression").onnx
    with pytest.raises(ArgumentError, match="no Lambda head"):
        model.policy = policies.Quantile(0.5)


@pytest.mark.parametrize("name", ["regression", "multilabel", "gru-cell"])
@pytest.mark.parametrize(
    "policy",
    [
        policies.Confidence(0.4),
        policies.Entropy(0.2),
        policies.Margin(0.1).after(2),
        policies.Voting(2) | policies.LastStep(),
        policies.Voting(99),
        policies.Patience(2),
        policies.Patience(2, 0.1),
        policies.Patience(99, 0.1),
        policies.FixedStep(99),
        policies.FixedStep(2),
        policies.Quantile(0.4).after(40),
        policies.Quantile(0.4).before(9),
        policies.Quantile(0.4).before(2),
        policies.Tempered(policies.Confidence(0.9), (1.0, 2.0)),
    ],
    ids=str,
)
def test_an_export_refuses_the_policies_that_pytorch_refuses(name: str, policy: ExitPolicy) -> None:
    found = exported(name)
    refusals = []
    for check in (found.model.checked, found.onnx.check):
        try:
            check(policy)
            refusals.append(None)
        except ArgumentError as error:
            refusals.append(str(error).split(":")[0])
    assert refusals[0] == refusals[1]


@pytest.mark.parametrize(
    "policy", [{"name": "confidence", "threshold": -3}, {"name": "entropy", "threshold": 1.5, "normalize": True}]
)
def test_a_threshold_out_of_range_is_refused(policy: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="threshold"):
        exported("gru-cell").onnx.check(policy)


def test_operators_that_there_are_not_in_float64_are_told_with_their_part(tmp_path: Path) -> None:
    # Trap: a file that was gone by then was to blame, and "Export again" to help.
    step = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU())
    model = ponder.PonderWrapper(step, num_steps=3, head=nn.Linear(WIDTH, 2)).double()
    with pytest.raises(PonderError, match=r"^step_1\.onnx: .*Erf.*float32.*\.float\(\)") as caught:
        ponder.export.onnx(model, tmp_path / "out", example=X.double())
    assert not isinstance(caught.value, CheckpointError)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("[")
    for tokenizer in (tmp_path / "nowhere", tmp_path, 7):
        with pytest.raises(PonderError, match="tokenizer"):
            ponder.export.onnx(small(), tmp_path / "out", example=X, tokenizer=tokenizer)


def test_one_number_is_no_class(tmp_path: Path) -> None:
    model = ponder.PonderWrapper(nn.Linear(WIDTH, WIDTH), num_steps=3, head=nn.Linear(WIDTH, 1))
    made = OnnxModel(ponder.export.onnx(model, tmp_path / "out", example=X))
    for policy in (policies.Confidence(0.9), policies.Patience(1), policies.Voting(2)):
        with pytest.raises(ArgumentError, match="task='regression'"):
            made.check(policy)


def test_float64_is_answered_in_float64(tmp_path: Path) -> None:
    model = small(policy=policies.Confidence(0.6)).double().eval()
    inputs = torch.randn(6, WIDTH, dtype=torch.float64)
    folder = ponder.export.onnx(model, tmp_path / "out", example=inputs[:2])
    found, expected = OnnxModel(folder).predict(inputs.numpy()), model(inputs)
    assert found.exit_step.tolist() == expected.exit_step.tolist()
    np.testing.assert_allclose(found.outputs, expected.outputs.detach().numpy(), rtol=1e-9)


class Scaled(nn.Module):
    """A step with a table that all rows share."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, table: Tensor) -> Tensor:
        return torch.tanh(self.linear(hidden)) * table


def test_what_all_rows_share_is_given_once(tmp_path: Path) -> None:
    model = ponder.PonderWrapper(Scaled(), 3, head=nn.Linear(WIDTH, 3), policy=policies.Margin(0.1)).eval()
    inputs, table = torch.randn(WIDTH, WIDTH), torch.randn(WIDTH)  # as many rows as numbers in the table
    folder = ponder.export.onnx(model, tmp_path / "out", example=(inputs[:2], {"table": ponder.Shared(table)}))
    made, expected = OnnxModel(folder), model(inputs, table=ponder.Shared(table))
    rows = [{"inputs": row.numpy(), "table": table.numpy()} for row in inputs]
    for given in ({"inputs": inputs.numpy(), "table": table.numpy()}, rows):
        for size in (3, 8):
            found = made.predict(given, batch_size=size)
            assert found.exit_step.tolist() == expected.exit_step.tolist()
            np.testing.assert_allclose(found.outputs, expected.outputs.detach().numpy(), rtol=1e-4, atol=1e-5)
    rows[1]["table"] = rows[1]["table"] + 1
    with pytest.raises(ArgumentError, match="one 'table' for all rows"):
        made.predict(rows)


class Reads(nn.Module):
    """A stem on token ids and their mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(VOCABULARY), WIDTH)

    def forward(self, inputs: Tensor, attention_mask: Tensor) -> Tensor:
        return self.embedding(inputs) * attention_mask.unsqueeze(-1)


class Mixes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        return torch.tanh(self.linear(hidden)) * attention_mask.unsqueeze(-1)


def test_texts_reach_a_model_whatever_its_input_is_called(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    model = ponder.PonderWrapper(
        Mixes(), 3, stem=Reads(), head=nn.Linear(WIDTH, 2), readout=ponder.readouts.mean, padding=ponder.Padding()
    ).eval()
    ids, mask = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    folder = ponder.export.onnx(
        model, tmp_path / "out", example=(ids, {"attention_mask": mask}), tokenizer=tmp_path / "tokenizer.json"
    )
    expected = model(ids, attention_mask=mask).outputs.detach().numpy()
    for texts in (["w0 w1", "w2"], np.array(["w0 w1", "w2"])):
        found = OnnxModel(folder).predict(texts)  # opened anew: nothing is left of the call before
        np.testing.assert_allclose(found.outputs, expected, rtol=1e-4, atol=1e-5)
    served = open_export(folder, {})
    batcher = served.start(Limits())
    answer = batcher.submit(served.tokenize(["w0 w1"]).examples[0]).result(30)
    batcher.close()
    np.testing.assert_allclose(answer.output, expected[0], rtol=1e-4, atol=1e-5)
    pair = OnnxModel(folder).predict([["w0", "w1"]])
    np.testing.assert_array_equal(pair.outputs, OnnxModel(folder).predict([("w0", "w1")]).outputs)


def test_a_tokenizer_for_a_model_of_numbers_is_refused(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    with pytest.raises(ArgumentError, match="tokenizer: expected None"):
        ponder.export.onnx(small(), tmp_path / "out", example=X, tokenizer=tmp_path / "tokenizer.json")
    assert not (tmp_path / "out" / "export.json").exists()


def text_model(**options: Any) -> Any:
    """A model of texts of at most five tokens, in which the side on which they are cut tells."""
    torch.manual_seed(0)
    return ponder.PonderWrapper(
        Mixes(),
        3,
        stem=Reads(),
        head=nn.Linear(WIDTH, 2),
        readout=ponder.readouts.mean,
        padding=ponder.Padding(),
        **options,
    ).eval()


TOKENS = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]]), {"attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])}


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_are_cut_where_their_tokenizer_cuts_them(side: str, tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path, truncation_side=side, model_max_length=5)
    tokenizer.save_pretrained(tmp_path)
    model, text = text_model(), "w0 w1 w2 w3 w4 w5"
    ids = tokenizer(text, truncation=True, return_tensors="pt").input_ids
    expected = model(ids, attention_mask=torch.ones_like(ids)).outputs.detach().numpy()
    for given in (tokenizer, tmp_path, tmp_path / "tokenizer.json"):
        folder = ponder.export.onnx(model, tmp_path / "out", example=TOKENS, tokenizer=given)
        np.testing.assert_allclose(OnnxModel(folder).predict([text]).outputs, expected, rtol=1e-4, atol=1e-5)
        assert OnnxModel(folder).manifest.truncation_side == side


def test_an_example_of_one_position_is_refused(tmp_path: Path) -> None:
    # Trap: its graphs took texts of one token, and no other.
    ids, context = TOKENS
    short = ids[:, :1], {"attention_mask": context["attention_mask"][:, :1]}
    with refused("example", "(2, 1)"):
        ponder.export.onnx(text_model(), tmp_path, example=short)
    assert not list(tmp_path.iterdir())


class ReadsTypes(Reads):
    """A stem that tells the two texts of a pair apart."""

    def __init__(self) -> None:
        super().__init__()
        self.types = nn.Embedding(2, WIDTH)

    def forward(self, inputs: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Any:
        hidden = super().forward(inputs, attention_mask) + self.types(token_type_ids)
        return hidden, {"attention_mask": attention_mask}


@pytest.mark.parametrize(
    ("named", "by"), [*product([True, False, None], ["folder", "object"]), (None, "file"), (None, "source")]
)
def test_a_pair_is_given_what_its_tokenizer_names_alone(named: bool | None, by: str, tmp_path: Path) -> None:
    # Trap: in Transformers the tokenizer left token types out, and the export gave them to the model; by the default
    # of its class (None here), which no file of its folder names, too.
    save_tokenizer(tmp_path)
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if named else [])]
    said = {} if named is None else {"model_input_names": names}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path, **said)
    tokenizer.save_pretrained(tmp_path)
    assert said.keys() <= json.loads((tmp_path / "tokenizer_config.json").read_text()).keys()
    torch.manual_seed(0)
    model = ponder.PonderWrapper(
        Mixes(),
        2,
        stem=ReadsTypes(),
        head=nn.Linear(WIDTH, 2),
        readout=ponder.readouts.mean,
        padding=ponder.Padding(context={"token_type_ids": Along()}),
    ).eval()
    ids, context = TOKENS[0], {**TOKENS[1], "token_type_ids": torch.zeros_like(TOKENS[0])}
    file = tmp_path / "tokenizer.json"
    source = ExportSource(
        model, ids, context, "input_ids", {"attention_mask": 1.0, "token_type_ids": 0.0}, tokenizer=file
    )

    class Told:
        def export_source(self) -> ExportSource:
            return source

    given = {"folder": tmp_path, "file": file, "object": tokenizer, "source": None}[by]
    folder = ponder.export.onnx(Told(), tmp_path / "out", tokenizer=given)
    made = tokenizer("w0 w1", "w2", return_tensors="pt")
    called = {"token_type_ids": torch.zeros_like(made["input_ids"]), **made}
    expected = model(called.pop("input_ids"), **called).outputs.detach().numpy()
    np.testing.assert_allclose(OnnxModel(folder).predict([("w0 w1", "w2")]).outputs, expected, rtol=1e-4, atol=1e-5)
    assert ("token_type_ids" in made) == bool(named)
    if not named:  # exports of before said nothing, and their tokenizers gave all
        _edit(lambda data: data.pop("tokenizer_inputs"))(folder)
        assert abs(OnnxModel(folder).predict([("w0 w1", "w2")]).outputs - expected).max() > 1e-3


def test_a_folder_of_transformers_is_read_by_it(tmp_path: Path) -> None:
    # Trap: `do_lower_case` in the configuration changes what the file does, and the export followed the file alone.
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "Hello"]
    made = BertTokenizer(vocab={word: place for place, word in enumerate(words)}, do_lower_case=True)
    made.save_pretrained(tmp_path)
    path, out = tmp_path / "tokenizer_config.json", tmp_path / "out"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_lower_case": False}))
    out.mkdir()
    told = copy_tokenizer(Told(16).export_source(), tmp_path, None, out)
    ids = [Tokenizer.from_file(str(each / "tokenizer.json")).encode("Hello").ids for each in (out, tmp_path)]
    assert ids == [[2, 6, 3], [2, 5, 3]]
    assert ids[0] == AutoTokenizer.from_pretrained(tmp_path)("Hello")["input_ids"]
    assert told["tokenizer_inputs"] == ("input_ids", "token_type_ids", "attention_mask")
    path.write_text("[")
    with refused("tokenizer", "a folder whose tokenizer Transformers reads", "Tokenizer.from_file("):
        copy_tokenizer(Told(16).export_source(), tmp_path, None, out)


@pytest.mark.parametrize("beside", ["config.json", "tokenizer_config.json"])
def test_a_tokenizer_that_is_named_by_its_file_is_copied_as_it_is(beside: str, tmp_path: Path) -> None:
    # Trap: Transformers built the class of the encoder's `config.json` from its vocabulary, and lower-cased.
    raw = Tokenizer(models.WordPiece({"[UNK]": 0, "hello": 1, "Hello": 2}, unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=False)
    raw.save(str(tmp_path / "tokenizer.json"))
    said = {"model_type": "bert"} if beside == "config.json" else {"tokenizer_class": "BertTokenizer"}
    (tmp_path / beside).write_text(json.dumps(said))
    text, out = (tmp_path / "tokenizer.json").read_text(), tmp_path / "out"
    out.mkdir()
    for given in (tmp_path, tmp_path / "tokenizer.json")[beside != "config.json" :]:  # its folder is Transformers' then
        told = copy_tokenizer(ExportSource(text_model(), *TOKENS), given, None, out)
        assert (out / "tokenizer.json").read_text() == text
    assert bool(told["tokenizer_inputs"]) == (beside != "config.json")


@pytest.mark.parametrize("by", ["folder", "file"])
@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "BertTokenizer"])
def test_without_a_known_limit_texts_are_cut_as_the_file_says(kind: str, by: str, tmp_path: Path) -> None:
    # Trap: what Transformers had read was not cut at all, and longer texts had no positions.
    save_tokenizer(tmp_path)
    path, out = tmp_path / "tokenizer.json", tmp_path / "out"
    raw = Tokenizer.from_file(str(path))
    raw.enable_truncation(6, direction="left")
    raw.save(str(path))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    out.mkdir()
    given = {"folder": tmp_path, "file": path}[by]
    told = copy_tokenizer(ExportSource(text_model(), *TOKENS), given, None, out)
    assert (told["max_length"], told["truncation_side"]) == (6, "left")
    assert copy_tokenizer(Told(10**10).export_source(), given, None, out)["max_length"] == 512, "as its folder does"


def test_without_transformers_a_tokenizer_is_read_as_its_files_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    save_tokenizer(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert copy_tokenizer(Told(16).export_source(), tmp_path, None, out)["tokenizer_inputs"] == ()
    assert (out / "tokenizer.json").read_text() == (tmp_path / "tokenizer.json").read_text()


def test_tokens_that_the_model_does_not_have_are_refused_by_their_position(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    opened = OnnxModel(
        ponder.export.onnx(text_model(), tmp_path / "out", example=TOKENS, tokenizer=tmp_path / "tokenizer.json")
    )
    good = {"inputs": [2, 5, 3], "attention_mask": [1, 1, 1]}
    for bad in (-1, -100):
        with pytest.raises(ArgumentError, match=rf"examples\[1\].*numbers from 0 on.*{bad}"):
            opened.predict([good, {**good, "inputs": [2, bad, 3]}])
    for run in (opened.predict, opened.record):
        with pytest.raises(ArgumentError, match=r"examples\[2\].*the model can run"):
            run([good, good, {**good, "inputs": [2, 4000, 3]}])
    with pytest.raises(ArgumentError, match=r"examples\[0\].*Unicode"):
        opened.predict(["\ud800"])


class Bytes(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.float() / 255


def test_numbers_that_do_not_fit_the_type_of_an_input_are_refused(tmp_path: Path) -> None:
    example = torch.zeros(2, WIDTH, dtype=torch.uint8)
    opened = OnnxModel(ponder.export.onnx(small(stem=Bytes()), tmp_path / "bytes", example=example))
    for value in (300, -1):
        with pytest.raises(ArgumentError, match=rf"examples\[0\].*numbers from 0 to 255.*{value}"):
            opened.predict(np.array([[value, *[0] * (WIDTH - 1)]]))
    floats = OnnxModel(ponder.export.onnx(small(), tmp_path / "floats", example=X))
    with pytest.raises(ArgumentError, match=r"examples\[0\].*finite.*float32"):
        floats.predict(np.full((1, WIDTH), 1e39))


def test_a_policy_is_saved_into_the_export_that_was_opened_alone(folder: Path, tmp_path: Path) -> None:
    opened, moved = OnnxModel(folder), tmp_path / "moved"
    opened.policy = policies.FixedStep(2)
    shutil.move(folder, moved)
    with pytest.raises(CheckpointError):
        opened.save_policy()
    assert not folder.exists()
    ponder.export.onnx(small(), folder, example=X)
    with pytest.raises(CheckpointError, match="another export"):
        opened.save_policy()
    assert OnnxModel(folder).policy["name"] == "last-step"
    shutil.rmtree(folder)
    shutil.move(moved, folder)
    opened.save_policy()
    assert OnnxModel(folder).policy == {"name": "fixed-step", "step": 2}


@pytest.mark.parametrize(
    ("columns", "given", "told"),
    [(("text",), ("a", "b"), r"a text, to which .* \(text\)"), (("one", "other"), "a", r"a pair of texts, to which")],
)
def test_texts_of_another_kind_than_the_exits_were_fitted_to_are_refused(
    columns: tuple[str, ...], given: Any, told: str
) -> None:
    manifest = replace(exported("words").onnx.manifest, columns=columns)
    with pytest.raises(ArgumentError, match=rf"^examples\[0\]: expected {told}"):
        read_rows([given], manifest, None)
    if columns == ("text",):
        with pytest.raises(ArgumentError, match="no tokenizer"):  # the next thing that is looked at
            read_rows([["a"]], manifest, None)


def test_a_certificate_and_a_report_do_not_go_on_to_what_they_are_not_about(tmp_path: Path) -> None:
    sure = torch.randn(300, 3, 2)
    trajectory = ponder.Trajectory(sure, None, torch.arange(300), task="classification")
    policy = ponder.control_risk(trajectory, policies.Confidence, level=0.4).policy
    assert policy.rows == 300
    folder = ponder.export.onnx(small(policy=policy.after(2)), tmp_path / "fp32", example=X)
    assert OnnxModel(folder).policy["policy"]["name"] == "certified"
    (folder / EXPORT_REPORT).write_text('{"columns": ["question", "answer"]}')
    for int8 in (
        ponder.export.quantized(folder, tmp_path / "int8"),
        ponder.export.onnx(small(policy=policy.after(2)), tmp_path / "again", example=X, int8=True),
    ):
        assert OnnxModel(int8).policy == policy.policy.after(2).to_dict()
    assert fitted_columns(tmp_path / "int8") == ("question", "answer")
    assert fitted_columns(ponder.export.onnx(small(), folder, example=X)) == ()


def test_a_certificate_of_other_weights_is_not_exported(tmp_path: Path) -> None:
    model = small()
    made = ponder.control_risk(model.record(torch.cat([X] * 40)), policies.Confidence, level=0.9).policy
    with pytest.warns(UserWarning, match="A part of this policy is certified"):
        model.policy = made.after(2)
    with torch.no_grad():
        model.head.weight.add_(0.5)
    with pytest.warns(UserWarning, match="changed after its policy was certified"):
        folder = ponder.export.onnx(model, tmp_path, example=X)
    assert OnnxModel(folder).policy == made.policy.after(2).to_dict()


def test_a_length_beyond_the_models_positions_is_refused(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    with pytest.raises(ArgumentError, match="max_length: expected at most 16 tokens"):
        ponder.export.onnx(Told(16), tmp_path / "out", tokenizer=tmp_path, max_length=64)


def test_a_length_that_special_tokens_fill_is_refused(tmp_path: Path) -> None:
    # Trap: with two special tokens and max_length=2 all texts were alike, in silence.
    save_tokenizer(tmp_path)
    made = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    marks = [("[CLS]", 0), ("[SEP]", 1)]
    made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B", special_tokens=marks)
    for length in (1, 2):
        with pytest.raises(ArgumentError, match=f"max_length: expected more than 2, the special.* got {length}"):
            ponder.export.onnx(Told(16), tmp_path / "out", tokenizer=made, max_length=length)
    copy_tokenizer(Told(16).export_source(), made, 3, tmp_path)


@dataclass(frozen=True)
class Told:
    """A model that says how many tokens it takes."""

    longest: int

    def export_source(self) -> ExportSource:
        return ExportSource(text_model(), *TOKENS, max_length=self.longest)


def test_without_a_limit_texts_are_cut_as_in_the_folder(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    tokenizer, long = PreTrainedTokenizerFast.from_pretrained(tmp_path), "w1 " * 600
    tokenizer("w0 w1 w2", truncation=True, max_length=4)  # what its file keeps is this
    folder = ponder.export.onnx(Told(10**10), tmp_path / "out", tokenizer=tokenizer)
    manifest = OnnxModel(folder).manifest
    (row,) = tokenize(tokenizer, [(long,)], 10**10).rows
    assert open_tokenizer(folder, manifest).encode(long).ids == row["input_ids"]
    assert manifest.max_length == len(row["input_ids"]) == 512
    before = replace(manifest, max_length=None)  # as exports were written: not cut, by no call that was before
    assert len(open_tokenizer(folder, before).encode(long).ids) == 602


def test_a_tokenizer_that_is_none_of_transformers_cuts_as_its_file_says(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    raw = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    raw.enable_truncation(4)
    folder = ponder.export.onnx(text_model(), tmp_path / "out", example=TOKENS, tokenizer=raw)
    assert len(open_tokenizer(folder, OnnxModel(folder).manifest).encode("w1 " * 600).ids) == 4


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ({"name": "any", "policies": []}, "policy"),
        ({"name": "any", "policies": 5}, "policy"),
        (
            {"name": "tempered", "policy": {"name": "confidence", "threshold": 0.5}, "temperatures": [0.0]},
            "temperatures",
        ),
        (
            {"name": "tempered", "policy": {"name": "confidence", "threshold": 0.5}, "temperatures": ["x"]},
            "temperatures",
        ),
    ],
)
def test_policies_that_somebody_wrote_by_hand(policy: dict[str, Any], says: str) -> None:
    with pytest.raises((ArgumentError, ArgumentTypeError), match=says):
        exported("gru-cell").onnx.check(policy)


@pytest.mark.parametrize(
    "change", [{"max_length": -3}, {"max_length": "x"}, {"labels": ["one"]}, {"truncation_side": "up"}]
)
def test_a_description_that_somebody_wrote_by_hand(change: dict[str, Any], folder: Path) -> None:
    told = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps({**told, **change}))
    with pytest.raises(CheckpointError, match="damaged"):
        OnnxModel(folder)


class Tabular(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, WIDTH)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(inputs.float())


def test_negative_numbers_that_are_no_tokens_are_answered(tmp_path: Path) -> None:
    model, numbers = small(stem=Tabular()).eval(), torch.randint(-50, 50, (6, 5))
    opened = OnnxModel(ponder.export.onnx(model, tmp_path / "out", example=numbers))
    expected = model(numbers).outputs.detach().numpy()
    np.testing.assert_allclose(opened.predict(numbers.numpy()).outputs, expected, rtol=1e-4, atol=1e-4)


def test_a_certificate_of_another_number_of_steps_serves_no_export(folder: Path) -> None:
    trajectory = ponder.Trajectory(torch.randn(300, 7, 2), None, torch.arange(300), task="classification")
    policy = ponder.control_risk(trajectory, policies.Confidence, level=0.4).policy
    with pytest.raises(ArgumentError, match=r"certified for \d steps; got a certificate for 7"):
        OnnxModel(folder).policy = policy


class Longer(nn.Module):
    """A stem that puts a token in front, and hands on the mask of its own sequences."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, width)

    def forward(self, inputs: Tensor, attention_mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        longer = torch.nn.functional.pad(inputs, (1, 0), value=1)
        return self.embedding(longer), {"attention_mask": torch.nn.functional.pad(attention_mask, (1, 0), value=1)}


class Around(nn.Module):
    """A step in which positions see those that are real."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        if attention_mask is None:
            return torch.tanh(self.linear(hidden) + hidden.mean(1, keepdim=True))
        real = attention_mask.to(hidden.dtype).unsqueeze(-1)
        return torch.tanh(self.linear(hidden) + (hidden * real).sum(1, keepdim=True) / real.sum(1, keepdim=True))


def test_a_stem_that_lengthens_sequences_loses_no_token(tmp_path: Path) -> None:
    """The trap: batches were cut to the lengths before the stem, and the last token of the longest row was lost."""
    torch.manual_seed(0)
    ids = [torch.randint(1, 20, (length,)) for length in (12, 3, 7, 5, 9, 4)]
    model = ponder.PonderWrapper(
        [Around() for _ in range(3)],
        head=nn.Linear(WIDTH, 3),
        stem=Longer(),
        readout=ponder.readouts.mean,
        padding=ponder.Padding(),
        policy=policies.Confidence(0.45),
    ).eval()
    example = {"attention_mask": torch.ones(2, 6, dtype=torch.long)}
    folder = ponder.export.onnx(model, tmp_path, example=(torch.randint(1, 20, (2, 6)), example))
    made = OnnxModel(folder)
    expected = model.predict([(row, {"attention_mask": torch.ones(len(row)).long()}) for row in ids], batch_size=1)
    assert len(set(expected.exit_step.tolist())) > 1
    rows = [{"inputs": row.numpy(), "attention_mask": np.ones(len(row), dtype=np.int64)} for row in ids]
    for size in (1, 6):
        found = made.predict(rows, batch_size=size)
        assert found.exit_step.tolist() == expected.exit_step.tolist()
        np.testing.assert_allclose(found.outputs, expected.outputs, atol=1e-5)


def test_an_export_without_a_mask_reads_all_positions_and_no_padding(tmp_path: Path) -> None:
    """The traps: without a mask every row was cut to no position, and a mask that was given was dropped."""
    torch.manual_seed(0)
    model = ponder.PonderWrapper(
        [Around() for _ in range(2)],
        head=nn.Linear(WIDTH, 3),
        readout=ponder.readouts.mean,
        padding=ponder.Padding(),
        policy=policies.LastStep(),
    ).eval()
    rows = torch.randn(4, 5, WIDTH)
    folder = ponder.export.onnx(model, tmp_path / "x", example=rows[:2])
    made = OnnxModel(folder)
    for given in (rows, rows[:, :3]):
        np.testing.assert_allclose(made.predict(given.numpy()).outputs, model(given).outputs.detach(), atol=1e-5)
    mixed = made.predict([rows[0].numpy(), rows[1, :2].numpy(), rows[2].numpy()])
    np.testing.assert_allclose(mixed.outputs[1], model(rows[1:2, :2]).outputs[0].detach(), atol=1e-5)
    real = np.ones(5, dtype=np.int64)
    given = {"inputs": rows[0].numpy(), "attention_mask": real}
    np.testing.assert_allclose(made.predict([given]).outputs, model(rows[:1]).outputs.detach(), atol=1e-5)
    with refused("examples[0]", "no padding: the model was exported without a mask"):
        made.predict([{**given, "attention_mask": np.array([1, 1, 0, 0, 0])}])


def test_a_part_whose_code_fixes_the_number_of_rows_is_named(tmp_path: Path) -> None:
    """The trap: len(x) is a plain number while a part is traced, and onnxruntime alone spoke."""

    def counting(inputs: torch.Tensor) -> torch.Tensor:
        return inputs + torch.zeros(len(inputs), 4)

    model = ponder.PonderWrapper(
        nn.Linear(4, 4), num_steps=2, head=nn.Linear(4, 2), stem=counting, task="classification"
    ).eval()
    with pytest.raises(ponder.PonderError, match=r"(?s)stem\.onnx.*x\.shape\[0\] where it says len\(x\)"):
        ponder.export.onnx(model, tmp_path / "out", example=torch.randn(3, 4))


class Blend(nn.Module):
    """A step that adds the sum of a table, which has no rows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, hidden: Tensor, table: Any = None, **others: Any) -> Tensor:
        return torch.tanh(self.linear(hidden) + (0.0 if table is None else table.sum()))


@pytest.mark.parametrize("readout", [ponder.readouts.mean, ponder.readouts.last])
@pytest.mark.parametrize("shared", [True, False])
def test_a_mask_with_a_name_of_its_own_keeps_padding_out_of_exported_readouts(
    readout: Any, shared: bool, tmp_path: Path
) -> None:
    """Trap: exports handed readouts only the two names that they know, and the check while writing did so too."""
    torch.manual_seed(0)
    steps: dict[str, Any] = {"steps": Blend(), "num_steps": 3} if shared else {"steps": [Blend() for _ in range(3)]}
    model = ponder.PonderWrapper(
        **steps,
        head=nn.Linear(8, 3),
        lambda_head=ponder.LambdaHead(8),
        task="classification",
        readout=readout,
        halting_readout=ponder.readouts.mean,
        padding=ponder.Padding(mask="real"),
        policy=policies.Quantile(0.4),
    ).eval()
    inputs, real = torch.randn(6, 5, 8), (torch.arange(5) < torch.tensor([5, 4, 3, 2, 1, 5])[:, None]).long()
    for rows in ([0, 5], [3, 4]):  # an example with no padding, and one with some
        folder = ponder.export.onnx(model, tmp_path / str(rows), example=(inputs[rows], {"real": real[rows]}))
        found, expected = (
            OnnxModel(folder).predict({"inputs": inputs.numpy(), "real": real.numpy()}),
            model(inputs, real=real),
        )
        assert found.exit_step.tolist() == expected.exit_step.tolist()
        np.testing.assert_allclose(found.outputs, expected.outputs.detach().numpy(), atol=1e-5)


def test_what_a_stem_is_given_as_shared_and_hands_on_stays_shared(tmp_path: Path) -> None:
    """Trap: it was written down as having rows, which left with the rows where they were as many."""
    torch.manual_seed(0)
    model = ponder.PonderWrapper(
        [Blend() for _ in range(3)],
        stem=lambda inputs, table: (inputs + 1.0, {"table": table}),
        head=nn.Linear(8, 3),
        task="classification",
    ).eval()
    inputs, table = torch.randn(12, 8), torch.randn(2, 1) / 10
    first = model.unroll(inputs, table=ponder.Shared(table)).outputs[:, 0]
    model.policy = policies.Confidence(first.softmax(-1).amax(-1).median().item())
    folder = ponder.export.onnx(model, tmp_path / "out", example=(inputs[:2], {"table": ponder.Shared(table)}))
    expected, made = model(inputs, table=ponder.Shared(table)), OnnxModel(folder)
    assert len(set(expected.exit_step.tolist())) > 1, "rows leave at several steps"
    found = made.predict({"inputs": inputs.numpy(), "table": table.numpy()})
    assert found.exit_step.tolist() == expected.exit_step.tolist()
    np.testing.assert_allclose(found.outputs, expected.outputs.detach().numpy(), atol=1e-5)
