"""int8 weights, by torchao where it is installed and by PyTorch's own dynamic quantisation: exits work as before."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from ponder.integrations.transformers import PonderForSequenceClassification
from ponder.integrations.transformers.families import FAMILIES, tiny_encoder
from ponder.policies import FixedStep, LastStep
from tests.integrations.transformers.encoders import make_batch, make_encoder, rows_computed

BY_NAME = {family.name: family for family in FAMILIES}
Quantise = Callable[[nn.Module], nn.Module]


def by_torch(module: nn.Module) -> nn.Module:
    dynamic = pytest.importorskip(
        "torch.ao.quantization", reason="this PyTorch has no quantisation of its own any more"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated for torchao
        made: nn.Module = dynamic.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)
    return made


def by_torchao(module: nn.Module) -> nn.Module:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed: pip install torchao")
    made = deepcopy(module)
    part = made.encoder if isinstance(made, PonderForSequenceClassification) else made
    quantization.quantize_(part, quantization.Int8WeightOnlyConfig())  # what has two names would be quantised twice
    return made


@pytest.mark.parametrize("quantise", [by_torch, by_torchao], ids=["torch", "torchao"])
@pytest.mark.parametrize("name", ["bert", "albert", "roberta", "modernbert"])
@torch.no_grad()
def test_a_quantised_model_exits_and_is_the_quantised_encoder_at_full_depth(name: str, quantise: Quantise) -> None:
    encoder = tiny_encoder(BY_NAME[name]) if name in ("roberta", "modernbert") else make_encoder(name)
    torch.manual_seed(3)
    model = PonderForSequenceClassification.from_encoder(encoder, num_labels=3, readout="mean").eval()
    batch = make_batch(encoder)
    plain = quantise(encoder)
    small: Any = quantise(model)
    states, mask = plain(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
    expected = small.ponder.head((states * mask).sum(1) / mask.sum(1))
    found = small(**batch, policy=LastStep()).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    assert not torch.equal(found, model(**batch, policy=LastStep()).logits), "the weights are others"
    trajectory = small.unroll(**batch)
    for policy in (None, FixedStep(2)):
        out = small(**batch, policy=policy)
        replayed = trajectory.replay(small.policy if policy is None else policy)
        assert torch.equal(out.exit_step, replayed.exit_step)
        torch.testing.assert_close(out.logits, replayed.outputs, atol=0.05, rtol=0.05)  # int8 looks at the whole batch
    if name == "bert":
        with rows_computed(list(small.encoder.encoder.layer)) as calls:
            out = small(**batch)
        assert sum(calls) == out.exit_step.sum()
