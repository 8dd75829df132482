"""Parameter groups, and which parameters may be fused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ponder
from ponder.optim import may_fuse
from tests.ponder.checks import refused
from tests.toys import WIDTH, make_toy, wrap


def test_the_lambda_head_learns_at_its_own_rate() -> None:
    model = wrap(make_toy("stacked"))
    groups = ponder.parameter_groups(model, lr=2e-5, lambda_lr=1e-5)
    assert [(g["name"], g["lr"]) for g in groups] == [("model", 2e-5), ("lambda", 1e-5)]
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in model.lambda_head.parameters()}
    together = [id(p) for group in groups for p in group["params"]]
    assert sorted(together) == sorted(id(p) for p in model.parameters())
    torch.optim.AdamW(groups)


def test_one_rate_for_all_where_none_is_given() -> None:
    assert {g["lr"] for g in ponder.parameter_groups(wrap(make_toy("shared")), lr=1e-3)} == {1e-3}
    assert [g["lr"] for g in ponder.parameter_groups(wrap(make_toy("shared")), lr=1e-3, lambda_lr=0.0)] == [1e-3, 0.0]


def test_frozen_parameters_and_empty_groups_are_left_out() -> None:
    model = wrap(make_toy("shared"))
    model.steps.requires_grad_(False)
    model.lambda_head.requires_grad_(False)
    (group,) = ponder.parameter_groups(model, lr=1e-3)
    assert {id(p) for p in group["params"]} == {id(p) for p in model.head.parameters()}
    assert ponder.parameter_groups(nn.Tanh(), lr=1e-3) == []


def test_models_that_hold_one_and_heads_of_the_users_own() -> None:
    own = nn.Linear(WIDTH, 1)
    outer = nn.Sequential(nn.Linear(2, 2), wrap(make_toy("shared"), lambda_head=own))
    groups = {g["name"]: g["params"] for g in ponder.parameter_groups(outer, lr=1e-3)}
    assert {id(p) for p in groups["lambda"]} == {id(p) for p in own.parameters()}
    assert any(p is outer[0].weight for p in groups["model"])


@pytest.mark.parametrize(
    ("rates", "argument"),
    [
        ({"lr": -1.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"lr": 1.0, "lambda_lr": float("inf")}, "lambda_lr"),
        ({"lr": "1e-3"}, "lr"),
        ({"lr": True}, "lr"),
        ({"lr": 1.0, "head_lr": "1e-3"}, "head_lr"),
    ],
)
def test_rates_are_finite_numbers_that_are_not_negative(rates: dict[str, Any], argument: str) -> None:
    with refused(argument):
        ponder.parameter_groups(nn.Linear(2, 2), **rates)


def test_only_parameters_without_gaps_on_devices_that_have_the_kernels_may_be_fused() -> None:
    wide = torch.zeros(4, 6)
    assert may_fuse([nn.Parameter(wide), nn.Parameter(wide[:2])])
    assert may_fuse([nn.Parameter(wide.bfloat16())])
    for other in (wide[:, :3], wide.t(), wide.to(torch.complex64), wide.to("meta")):
        assert not may_fuse([nn.Parameter(wide), nn.Parameter(other)])
    assert not may_fuse([wide]), "what is no plain parameter may be laid out in any way"
