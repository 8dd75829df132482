"""What a stage of training freezes does not move: no weight, no statistic of BatchNorm, no dropout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder import objectives, policies, recipes
from ponder.recipes import Stage

STEPS = 3


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.dropout = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.3)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.dropout(torch.relu(self.norm(self.conv(hidden))))


def pooled(hidden: Tensor) -> Tensor:
    return hidden.mean((2, 3))


def convolutional() -> ponder.PonderWrapper:
    stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.2))
    heads = ponder.PerStep(nn.Sequential(nn.Dropout(0.4), nn.Linear(4, 2)) for _ in range(STEPS))
    return ponder.PonderWrapper(
        [Block() for _ in range(STEPS)],
        head=heads,
        stem=stem,
        readout=pooled,
        objective=objectives.DeepSupervision("uniform"),
        task="classification",
    )


EARLY = Stage(objectives.DeepSupervision("uniform"), train="early_heads")
IMAGES = torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 3 + 1
LABELS = torch.arange(16) % 2


def full_depth(model: ponder.PonderWrapper) -> Tensor:
    model.eval()
    with torch.inference_mode():
        return model(IMAGES, policy=policies.LastStep()).outputs.clone()


@pytest.mark.parametrize("order", ["stage, train", "train, stage"])
def test_full_depth_does_not_move_by_training_a_frozen_stage(order: str) -> None:
    # Trap: requires_grad=False leaves the running statistics of BatchNorm moving at each forward pass.
    model = convolutional()
    before, state = full_depth(model), {name: value.clone() for name, value in model.state_dict().items()}
    if order == "stage, train":
        model.start_stage(EARLY)
        model.train()
    else:
        model.train()
        model.start_stage(EARLY)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        out = model(IMAGES, labels=LABELS)
        assert out.loss is not None
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, state[name])}
    assert moved == {f"head.heads.{step}.1.{kind}" for step in range(STEPS - 1) for kind in ("weight", "bias")}
    assert torch.equal(full_depth(model), before)


def test_dropout_of_frozen_parts_is_off_and_that_of_trained_heads_on() -> None:
    model = convolutional()
    model.start_stage(EARLY)
    model.train()
    first, second = model(IMAGES).trajectory, model(IMAGES).trajectory
    assert first is not None
    assert second is not None
    assert torch.equal(first.outputs[:, -1], second.outputs[:, -1])  # the encoder and the last head
    assert not torch.equal(first.outputs[:, 0], second.outputs[:, 0])  # an early head
    model.start_stage(Stage(objectives.DeepSupervision("uniform")))
    model.train()
    assert all(module.training for module in model.modules())


def test_a_part_of_which_one_weight_is_trained_trains() -> None:
    model = convolutional()
    model.start_stage(EARLY)
    model.steps.fns[1].norm.weight.requires_grad_(True)
    model.train()
    assert [fn.training for fn in model.steps.fns] == [False, True, False]


def test_freeze_for_leaves_other_modules_in_evaluation_mode() -> None:
    encoder = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    head = ponder.PerStep(nn.Linear(4, 2) for _ in range(2)).train()
    recipes.freeze_for(EARLY, encoder, head)
    x = torch.randn(8, 4)
    assert torch.equal(encoder(x), encoder(x))
    assert int(encoder[1].num_batches_tracked) == 0
    assert head.heads[0].training
    assert not head.heads[1].training


def test_dropout_alone_is_as_the_encoder_is_and_a_frozen_lambda_head_is_off() -> None:
    model = ponder.PonderWrapper(
        [nn.Linear(4, 4) for _ in range(STEPS)],
        stem=nn.Dropout(0.5),
        head=ponder.PerStep(nn.Linear(4, 2) for _ in range(STEPS)),
        lambda_head=ponder.LambdaHead(4, dropout=0.5),
        task="classification",
    )
    model.start_stage(recipes.get("deebert").stages[1])
    model.train()
    assert not model.stem.training
    assert not any(module.training for module in model.lambda_head.modules())
    assert any(head.training for head in model.head.heads)
    inputs = torch.randn(6, 4)
    first, second = (model(inputs).trajectory for _ in range(2))
    assert torch.equal(first.outputs, second.outputs)
    assert torch.equal(first.hazard_logits, second.hazard_logits)
    model.start_stage(recipes.get("vanilla").stages[0])
    assert model.train().stem.training


def test_a_readout_after_a_captured_encoder_is_as_the_encoder_is() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    parts = ponder.capture(nn.TransformerEncoder(layer, STEPS, enable_nested_tensor=False), torch.randn(2, 5, 8))
    heads = ponder.PerStep(nn.Linear(8, 2) for _ in range(STEPS))
    model = ponder.PonderWrapper(parts.steps, stem=parts.stem, readout=Pools(), head=heads, task="classification")
    model.start_stage(recipes.get("deebert").stages[1])
    model.train()
    assert not any(module.training for module in model.readout.modules())


class Pools(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, hidden: Tensor) -> Tensor:
        pooled: Tensor = self.dropout(hidden).mean(1)
        return pooled


HAZARDS = Stage(objectives.Ponder(0.5), train="lambda_head")
INPUTS = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))


def trained(model: ponder.PonderWrapper, stage: Stage) -> set[str]:
    """The names of all that moves in a stage, buffers included."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.start_stage(stage)
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    loss = model(INPUTS, labels=LABELS).loss
    assert loss is not None
    loss.backward()
    optimizer.step()
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize(("stage", "part"), [(EARLY, "head"), (HAZARDS, "lambda_head")])
def test_what_a_trained_part_shares_with_a_frozen_one_is_frozen(stage: Stage, part: str) -> None:
    # Trap: one part after the other, so that a later one thaws what an earlier one had frozen.
    norm = nn.BatchNorm1d(4)
    early = [nn.Sequential(norm if part == "head" else nn.Tanh(), nn.Linear(4, 2)) for _ in range(STEPS - 1)]
    hazards = nn.Sequential(norm if part == "lambda_head" else nn.Tanh(), nn.Linear(4, 1))
    model = ponder.PonderWrapper(
        [nn.Sequential(nn.Linear(4, 4), norm) for _ in range(STEPS)],
        head=ponder.PerStep([*early, nn.Linear(4, 2)]),
        lambda_head=hazards,
        task="classification",
    )
    moved = trained(model, stage)
    assert moved
    assert all(name.startswith(f"{part}.") for name in moved)
    assert norm.running_mean is not None
    assert not norm.running_mean.any()


def pools(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width))


def test_the_readout_of_the_lambda_head_is_trained_and_frozen_with_it() -> None:
    readout = pools()
    model = ponder.PonderWrapper(
        [nn.Linear(4, 4) for _ in range(STEPS)],
        head=ponder.PerStep(nn.Linear(4, 2) for _ in range(STEPS)),
        lambda_head=ponder.LambdaHead(4),
        readout=readout,
        halting_readout=nn.Sequential(readout, pools()),
        task="classification",
    )
    assert all(name.startswith("head.heads.") for name in trained(model, EARLY))
    assert model.halting_readout is not None
    assert not model.halting_readout.training
    moved = trained(model, HAZARDS)
    assert {name.partition(".")[0] for name in moved} == {"lambda_head", "halting_readout"}  # not the shared part
    assert any("running_mean" in name for name in moved)
    model.requires_grad_(False)
    assert not any(module.training for module in model.train().halting_readout.modules())


def test_a_step_that_is_dropout_alone_is_as_the_encoder_is() -> None:
    steps = [nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4)]
    model = ponder.PonderWrapper(
        steps, head=ponder.PerStep(nn.Linear(4, 2) for _ in range(STEPS)), task="classification"
    )
    model.start_stage(EARLY)
    assert [step.training for step in model.train().steps.fns] == [False] * STEPS
    model.start_stage(Stage(objectives.FinalStep()))
    assert [step.training for step in model.train().steps.fns] == [True] * STEPS


class Quantised(nn.Module):
    """A layer some of whose weights are whole numbers, which no gradient can move."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.Parameter(torch.arange(16, dtype=torch.uint8).view(4, 4), requires_grad=False)
        self.linear = nn.Linear(4, 4)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(hidden @ (self.whole.float() / 16) + self.linear(hidden))


def test_weights_that_are_whole_numbers_go_through_every_stage() -> None:
    # Trap: requires_grad_(True) of a module raises where one of its parameters is an integer.
    layers = [Quantised() for _ in range(STEPS)]
    model = ponder.PonderWrapper.from_recipe(layers, "ponder", num_outputs=2, example=INPUTS)
    assert any(stage.mixing < 1 for stage in model.stages)
    for stage in model.stages:
        assert any("linear" in name for name in trained(model, stage))
        model.finish_stage(stage)
    assert not any(layer.whole.requires_grad for layer in layers)
