"""Exports of users' own tasks: a service and the commands answer as PyTorch does, or refuse."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

import ponder
from ponder import policies
from ponder.cli import predict
from ponder.errors import ArgumentError, CheckpointError, PonderError
from ponder.export import OnnxModel
from ponder.serving import Limits, Service
from ponder.serving.answers import answer_of
from ponder.serving.exported import open_export
from tests.ponder.checks import refused
from tests.ponder.export.test_export_faults import TOKENS, Mixes, Reads, Screening, X, small, text_model
from tests.toys import WIDTH
from tests.word_tokenizer import save_tokenizer


class Focal(ponder.tasks.Classification):
    name = "focal"


class Marked(ponder.tasks.Multilabel):
    name = "marked"


def absolute(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs - labels).abs().mean(-1)


def exported_texts(folder: Path, **options: Any) -> Path:
    save_tokenizer(folder)
    made = ponder.export.onnx(
        text_model(**options), folder / "out", example=TOKENS, tokenizer=folder / "tokenizer.json"
    )
    return Path(made)


def answer(folder: Path, text: str = "w1 w2") -> dict[str, Any]:
    served = open_export(folder, {})
    batcher = served.start(Limits())
    found = batcher.submit(served.tokenize([text]).examples[0]).result(30)
    batcher.close()
    return answer_of(served.task, served.labels, found, truncated=False)


@pytest.mark.parametrize(
    ("task", "kind"),
    [(Focal(), "label"), (Marked(), "labels"), (ponder.tasks.Custom(absolute, classes=False), "values")],
)
def test_a_task_of_ones_own_is_answered_as_what_it_is(task: Any, kind: str, tmp_path: Path) -> None:
    """Trap: by its name it was taken for classes, and a number was served as "label 0, score 1.0"."""
    told = answer(exported_texts(tmp_path, task=task))
    assert next(iter(told)) == kind


def test_answers_in_code_of_ones_own_are_served_by_no_export(tmp_path: Path) -> None:
    folder = exported_texts(tmp_path, task=Screening())
    with pytest.raises(CheckpointError, match="in code of its own"):
        open_export(folder, {})
    texts = tmp_path / "texts.csv"
    texts.write_text("text\nw1 w2\n")
    with pytest.raises(CheckpointError, match="in code of its own"):
        predict.run(folder, texts, tmp_path / "out.csv", (), as_json=True)


def test_what_an_export_cannot_run_of_its_own_tokens_is_no_fault_of_the_client(tmp_path: Path) -> None:
    # Trap: an argument error is what a client did wrong, and the answer told him to repair examples that he never sent.
    save_tokenizer(tmp_path)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    raw["model"]["vocab"]["unheard"] = 60  # the model has no row for it
    tokenizer = Tokenizer.from_str(json.dumps(raw))
    served = open_export(ponder.export.onnx(text_model(), tmp_path / "out", example=TOKENS, tokenizer=tokenizer), {})

    async def asked() -> list[Any]:
        service = Service(served)
        found = await asyncio.gather(
            *(service.predict([text]) for text in ("w1 w2", "w3 unheard", "w4")), return_exceptions=True
        )
        await service.close()
        return found

    good, bad, other = asyncio.run(asked())
    assert isinstance(bad, PonderError)
    assert not isinstance(bad, ArgumentError)  # so that it is answered by 500, and logged
    assert "its tokenizer made of a text" in str(bad)
    assert "the model can run" in str(bad)
    assert len(good.answers) == len(other.answers) == 1


def test_certify_takes_what_can_be_compared_and_says_what_cannot(tmp_path: Path) -> None:
    """Trap: the remedy was to export twice, which had been done."""
    examples = np.random.default_rng(0).normal(size=(300, WIDTH)).astype(np.float32)
    focal = OnnxModel(ponder.export.onnx(small(task=Focal(), policy=policies.LastStep()), tmp_path / "own", example=X))
    found = ponder.export.certify(focal, focal, examples, policies.Confidence, level=0.3, confidence=0.9)
    assert found.policy.rows == 300
    for name, task in (("numbers", "regression"), ("custom", ponder.tasks.Custom(absolute, classes=False))):
        model = small(task=task, policy=policies.LastStep())
        opened = OnnxModel(ponder.export.onnx(model, tmp_path / name, example=X))
        with refused("model", "which has other answers"):
            ponder.export.certify(opened, opened, examples, policies.FixedStep, level=0.1)


def test_ids_below_zero_are_refused_whatever_the_input_is_called(tmp_path: Path) -> None:
    """Trap: the graph counted them from the end of its table of embeddings, where PyTorch refuses them."""
    opened = OnnxModel(ponder.export.onnx(text_model(), tmp_path / "out", example=TOKENS))
    with refused("examples[1]", "-1"):
        opened.predict([{"inputs": [2, 5, 3]}, {"inputs": [2, -1, 3]}])


class MeanOfPositions(nn.Module):
    """A head that pools the positions itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 3)

    def forward(self, features: Tensor) -> Tensor:
        made: Tensor = self.linear(features.mean(1))
        return made


def test_a_head_that_pools_positions_takes_any_number_of_them(tmp_path: Path) -> None:
    """Trap: it was exported for the length of the example alone."""
    model = ponder.PonderWrapper(
        Mixes(),
        3,
        stem=Reads(),
        head=MeanOfPositions(),
        readout=lambda hidden: hidden,
        padding=ponder.Padding(pooled=False),
    ).eval()
    opened = OnnxModel(ponder.export.onnx(model, tmp_path / "out", example=TOKENS))
    ids = torch.tensor([[2, 5, 6, 7, 8, 3]])
    expected = model(ids, attention_mask=torch.ones_like(ids)).outputs.detach().numpy()
    found = opened.predict([{"inputs": ids[0].numpy()}]).outputs
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_it_is_copied_and_pickled_with_its_policy(tmp_path: Path) -> None:
    folder = Path(ponder.export.onnx(small(policy=policies.LastStep()), tmp_path / "out", example=X))
    opened = OnnxModel(folder, threads=1)
    opened.policy = policies.FixedStep(2)
    for again in (copy.deepcopy(opened), pickle.loads(pickle.dumps(opened))):
        assert again.policy == opened.policy
        np.testing.assert_array_equal(again.predict(X.numpy()).outputs, opened.predict(X.numpy()).outputs)
    kept = pickle.dumps(opened)
    ponder.export.onnx(small(policy=policies.LastStep()), folder, example=X)
    with pytest.raises(CheckpointError, match="another export"):
        pickle.loads(kept)


class Bucketed(nn.Module):
    """A stem whose −1 is the last bucket, in PyTorch too."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(7, WIDTH))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.table[inputs]


def test_numbers_below_zero_that_pytorch_takes_are_answered(tmp_path: Path) -> None:
    model, buckets = small(stem=Bucketed()).eval(), torch.tensor([0, 3, -1])
    opened = OnnxModel(ponder.export.onnx(model, tmp_path / "out", example=buckets))
    expected = model(buckets).outputs.detach().numpy()
    np.testing.assert_allclose(opened.predict(buckets.numpy()).outputs, expected, rtol=1e-4, atol=1e-5)
