"""`predict` on what a tokenizer gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from encoders import FAMILIES, VOCABULARY, make_batch, make_model, segments
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast

from ponder.policies import Bernoulli
from tests.ponder.checks import refused


def rows_of(batch: dict[str, Any], lists: bool) -> list[dict[str, Any]]:
    """The rows of a batch, without padding, with columns that the model does not take."""
    rows = []
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        cut = {name: value[row, :length] for name, value in batch.items()}
        rows.append({**({k: v.tolist() for k, v in cut.items()} if lists else cut), "labels": 1, "idx": row, "s": "a"})
    return rows


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"max_tokens": 8}, {"sort_by_length": False}], ids=str)
def test_the_same_as_a_call(family: str, options: dict[str, Any]) -> None:
    model = make_model(family)
    batch = make_batch(model.encoder, rows=11)
    if family != "mpnet":
        batch["token_type_ids"] = segments(batch) * batch["attention_mask"]
    model.train()
    for lists in (True, False):
        found = model.predict(rows_of(batch, lists), policy=Bernoulli(1), **options)
        with torch.no_grad():
            out = model.eval()(**batch, policy=Bernoulli(1))
        assert found.exit_step.tolist() == out.exit_step.tolist()
        torch.testing.assert_close(found.outputs, out.logits, atol=1e-4, rtol=1e-4)
    assert len(set(found.exit_step.tolist())) > 1


def test_a_collator_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenizers import Tokenizer, models

    model = make_model("bert").train()
    batch = make_batch(model.encoder, rows=9)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0})), pad_token="a")
    rows = [{k: v for k, v in row.items() if k not in ("s", "idx")} for row in rows_of(batch, lists=True)]
    tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
    found = model.predict(rows, collate=DataCollatorWithPadding(tokenizer), batch_size=4)
    assert model.training
    assert model.encoder.training
    with torch.no_grad():
        out = model.eval()(**batch)
    assert found.exit_step.tolist() == out.exit_step.tolist()
    torch.testing.assert_close(found.outputs, out.logits, atol=1e-4, rtol=1e-4)


def test_a_data_loader_and_a_recording() -> None:
    from tokenizers import Tokenizer, models

    model = make_model("albert").train()
    batch = make_batch(model.encoder, rows=11)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0})), pad_token="a")
    tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
    rows = [{k: v for k, v in row.items() if k not in ("s", "idx", "labels")} for row in rows_of(batch, lists=True)]
    rows = [{**row, "label": place % 2} for place, row in enumerate(rows)]
    loader = DataLoader(rows, batch_size=4, collate_fn=DataCollatorWithPadding(tokenizer))  # type: ignore[arg-type]
    found = model.predict(rows, policy=Bernoulli(1))
    loaded = model.predict(loader, policy=Bernoulli(1), batch_size=3)
    assert loaded.exit_step.tolist() == found.exit_step.tolist()
    torch.testing.assert_close(loaded.outputs, found.outputs, atol=1e-4, rtol=1e-4)
    collated: dict[str, Any] = {"collate": DataCollatorWithPadding(tokenizer), "batch_size": 4}
    for data, options in ((rows, {}), (loader, {}), (rows, collated), (rows, {"labels": torch.arange(11) % 2})):
        trajectory = model.record(data, **options)
        assert model.training
        assert trajectory.labels.tolist() == [place % 2 for place in range(11)]
        exits = trajectory.replay(Bernoulli(1))
        assert exits.exit_step.tolist() == found.exit_step.tolist()
        torch.testing.assert_close(exits.outputs, found.outputs, atol=1e-4, rtol=1e-4)


def test_nothing_and_bad_examples() -> None:
    model = make_model("bert", num_labels=3)
    assert model.predict([]).outputs.shape == (0, 3)
    with refused("dataset[1]", "a dict with input_ids", "words"):
        model.predict([{"input_ids": [3, 4]}, {"words": [3, 4]}])
    with refused("dataset[0]", "IndexError"):
        model.predict([{"input_ids": [3, VOCABULARY]}])
    with refused("dataset", type_error=True):
        model.predict({"input_ids": torch.ones(2, 3)})
