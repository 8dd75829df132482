"""Stages: what each freezes and teaches, and that a block leaves nothing behind; and groups of parameters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder import objectives, priors
from ponder.recipes import Stage
from ponder.training import run_stage

WIDTH = 4
STEPS = 3
INPUTS = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8).remainder(2)


class Wide(nn.Module):
    """A step with a norm that keeps statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear(self.norm(hidden))


def build(**options: object) -> ponder.PonderWrapper:
    return ponder.PonderWrapper(
        [Wide() for _ in range(STEPS)],
        head=ponder.PerStep(nn.Linear(WIDTH, 2) for _ in range(STEPS)),
        lambda_head=ponder.LambdaHead(WIDTH),
        task="classification",
        **options,
    )


TRAINED = {
    "all": lambda name: True,
    "early_heads": lambda name: name.startswith(("head.heads.0", "head.heads.1")),
    "lambda_head": lambda name: name.startswith(("lambda_head", "prior_weights")),
}


@pytest.mark.parametrize("train", TRAINED)
def test_a_stage_moves_what_it_trains_and_freezes_the_rest(train: str) -> None:
    model = build(prior=priors.Learned(STEPS))
    objective = objectives.Ponder(0.5) + objectives.DeepSupervision("uniform")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with run_stage(model, Stage(objective, train=train)):
        optimizer = torch.optim.SGD(
            [weight for weight in model.parameters() if weight.requires_grad], lr=0.5
        )
        model.train()(INPUTS, labels=LABELS).loss.backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != TRAINED[train](name), name
    assert all(weight.requires_grad for weight in model.parameters())


def test_a_block_leaves_nothing_behind_even_after_an_exception() -> None:
    model = build()
    stages = (
        Stage(objectives.FinalStep()),
        Stage(objectives.DeepSupervision("uniform"), train="early_heads"),
    )
    model.stages = stages
    model.teacher = lambda inputs: inputs
    model.head.heads[0].requires_grad_(False)
    learned = [weight.requires_grad for weight in model.parameters()]
    teacher = model.teacher

    def interrupted() -> None:
        with run_stage(model, stages[1]):
            assert model.objective == stages[1].objective
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    assert (model.stages, model.objective, model.teacher) == (stages, stages[0].objective, teacher)
    assert [weight.requires_grad for weight in model.parameters()] == learned


def test_the_previous_stage_teaches_as_a_frozen_copy() -> None:
    model = build()
    model.teacher = build()
    stage = Stage(objectives.Distillation(teacher="frozen"), teacher="previous")
    with run_stage(model, stage):
        teacher = model.teacher
        assert isinstance(teacher, ponder.PonderWrapper)
        assert teacher.teacher is None
        assert not any(weight.requires_grad for weight in teacher.parameters())
        assert all(
            torch.equal(value, teacher.state_dict()[name])
            for name, value in model.state_dict().items()
        )
        model.train()(INPUTS, labels=LABELS).loss.backward()
        assert all(weight.grad is None for weight in teacher.parameters())


@pytest.mark.parametrize("train", ["early_heads", "lambda_head"])
def test_a_stage_needs_the_part_that_it_trains(train: str) -> None:
    model = ponder.PonderWrapper([nn.Linear(4, 4)], head=nn.Linear(4, 2))
    with (
        pytest.raises(ponder.errors.ArgumentError, match=r"ponder\.PerStep"),
        run_stage(model, Stage(objectives.FinalStep(), train=train)),
    ):
        pass
    assert all(weight.requires_grad for weight in model.parameters())


def test_a_module_that_early_heads_share_with_the_last_one_is_frozen() -> None:
    shared = nn.Linear(WIDTH, WIDTH)
    heads = ponder.PerStep(nn.Sequential(shared, nn.Linear(WIDTH, 2)) for _ in range(STEPS))
    model = ponder.PonderWrapper([Wide() for _ in range(STEPS)], head=heads)
    with run_stage(model, Stage(objectives.DeepSupervision("uniform"), train="early_heads")):
        assert [shared.weight.requires_grad, heads.heads[0][1].weight.requires_grad] == [
            False,
            True,
        ]


def test_each_kind_of_parameter_has_its_rate() -> None:
    model = nn.Sequential(build(prior=priors.Learned(STEPS)), nn.LayerNorm(2))
    model[0].steps.fns[0].requires_grad_(False)
    groups = ponder.parameter_groups(model, 1.0, lambda_lr=2.0, head_lr=3.0, weight_decay=0.1)
    kinds = {(g["name"], g["lr"], g["weight_decay"]): {id(w) for w in g["params"]} for g in groups}
    wrapper = model[0]
    for part, name, rate in (
        (wrapper.lambda_head, "lambda", 2.0),
        (wrapper.prior_weights, "lambda", 2.0),
        (wrapper.head, "head", 3.0),
        (wrapper.steps.fns[1], "model", 1.0),
        (model[1], "model", 1.0),
    ):
        for weight in part.parameters():
            assert id(weight) in kinds[name, rate, 0.1 if weight.dim() > 1 else 0.0]
    counted = [weight for group in groups for weight in group["params"]]
    assert (
        len(counted)
        == len({id(weight) for weight in counted})
        == sum(w.requires_grad for w in model.parameters())
    )
    plain = ponder.parameter_groups(build(), lr=1.0)
    assert {(group["name"], group["lr"]) for group in plain} == {
        ("model", 1.0),
        ("head", 1.0),
        ("lambda", 1.0),
    }
