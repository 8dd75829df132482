"""Every example of a docstring runs and prints what it says, with the names at hand that the reference announces."""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ponder
import ponder.integrations
from ponder import objectives, policies, priors, recipes

MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages(ponder.__path__, "ponder.", onerror=lambda name: None)
)


@pytest.fixture(scope="module", autouse=True)
def _in_an_empty_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("examples"))
    yield
    os.chdir(before)


def names() -> dict[str, Any]:
    """Names that examples begin with; of the record, a third of the rows is right from step 1, 2 and 3 on each."""
    model = ponder.PonderWrapper(
        nn.Linear(8, 8),
        4,
        head=nn.Linear(8, 3),
        lambda_head=ponder.LambdaHead(8),
        policy=policies.Confidence(0.9),
    ).eval()
    inputs = torch.randn(300, 8)
    labels = torch.arange(300) % 3
    known = torch.arange(1, 5) > labels.unsqueeze(1)
    outputs = 6.0 * known.unsqueeze(2) * nn.functional.one_hot(labels, 3).unsqueeze(1)
    return {
        **{
            "torch": torch,
            "nn": nn,
            "ponder": ponder,
            "model": model,
            "inputs": inputs,
            "labels": labels,
        },
        **{"policies": policies, "priors": priors, "objectives": objectives, "recipes": recipes},
        **{
            name: getattr(ponder, name)
            for name in ("Trajectory", "PonderWrapper", "LambdaHead", "PerStep")
        },
        "trajectory": ponder.Trajectory(outputs, None, torch.arange(300), labels=labels),
    }


def names_of_transformers() -> dict[str, Any]:
    """A tiny encoder with random weights, for the examples of the integrations."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        BertModel,
        PreTrainedTokenizerFast,
    )

    from ponder.integrations.transformers import PonderForSequenceClassification

    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    config = BertConfig(vocab_size=40, num_labels=3, **sizes)
    encoder = BertModel(config).eval()
    words = Tokenizer(
        models.WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2, "short": 3, "text": 4}, unk_token="[UNK]")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return {
        "config": config,
        "encoder": encoder,
        "model": PonderForSequenceClassification.from_encoder(
            encoder, "palbert", num_labels=3
        ).eval(),
        "batch": {
            "input_ids": torch.randint(2, 40, (5, 7)),
            "attention_mask": torch.ones(5, 7, dtype=torch.long),
        },
        "tokenizer": PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]"
        ),
        "BertForSequenceClassification": BertForSequenceClassification,
        "PonderForSequenceClassification": PonderForSequenceClassification,
    }


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        if test.examples:
            torch.manual_seed(0)
            test.globs = {**vars(module), **names()}
            if name.startswith("ponder.integrations"):
                test.globs.update(names_of_transformers())
            assert runner.run(test).failed == 0, f"{test.name}: see the output above"
