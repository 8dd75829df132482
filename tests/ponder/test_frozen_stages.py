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
