"""`ponder.fit` trains a loop, or a module around one, and keeps the best weights on held-out batches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder import objectives, policies
from ponder.loops import Block, Loop
from ponder.loops.loop import LoopOutput
from tests.loops.models import WIDTH, make_batch, make_loop


class Copier(nn.Module):
    """Bits to the bit of the left neighbour."""

    def __init__(self, objective: objectives.Objective) -> None:
        super().__init__()
        self.objective = objective
        self.embed = nn.Embedding(2, WIDTH)
        self.places = nn.Parameter(torch.randn(6, WIDTH))
        head, hazards = nn.Linear(WIDTH, 2), ponder.LambdaHead(WIDTH)
        self.loop = Loop(Block(WIDTH, 2), head, hazards, policy=policies.Confidence(0.9))

    def forward(self, bits: Tensor, labels: Tensor | None = None) -> LoopOutput:
        hidden = self.embed(bits) + self.places
        return self.loop(hidden, max_steps=3, labels=labels, objective=self.objective)


def batches(count: int) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(count):
        bits = torch.randint(2, (64, 6))
        yield bits, bits.roll(1, 1)


@pytest.mark.parametrize(
    "objective", [objectives.DeepSupervision("uniform"), objectives.Ponder(0.01)], ids=str
)
def test_a_module_around_a_loop_learns(objective: objectives.Objective) -> None:
    torch.manual_seed(0)
    model = Copier(objective)
    held_out = list(batches(2))
    rates = {"lr": 5e-3, "head_lr": 5e-3, "lambda_lr": 1e-3}
    report = ponder.fit(model, list(batches(60)), epochs=4, held_out=held_out, seed=0, **rates)
    assert len(report.epochs) == 4
    assert report.epochs[-1].loss < 0.5 * report.epochs[0].loss
    assert not model.training
    assert model.loop.progress is None
    bits, labels = held_out[0]
    with torch.no_grad():
        out = model(bits, labels)
        losses = [float(model(*batch).loss) for batch in held_out]
    assert (out.outputs.argmax(-1) == labels).float().mean() > 0.95
    assert report.score == pytest.approx(-sum(losses) / 2, abs=1e-5)
    assert report.score == max(epoch.score for epoch in report.epochs)


def test_a_loop_alone_is_trained_from_states() -> None:
    loop = make_loop(policy=policies.Confidence(0.6))
    hidden, mask = make_batch()
    labels = torch.randint(3, mask.shape)
    batch = {"hidden": hidden, "attention_mask": mask, "max_steps": 4, "labels": labels}
    report = ponder.fit(loop, [batch] * 20, epochs=2, held_out=[batch], lr=1e-3, seed=0)
    assert report.epochs[1].loss < report.epochs[0].loss
    with torch.no_grad():
        out = loop(hidden, max_steps=4, attention_mask=mask, labels=labels)
    assert report.score == pytest.approx(-float(out.loss), abs=1e-5)
    kept = next(epoch for epoch in report.epochs if epoch.kept)
    assert kept.exit_step == pytest.approx(float(out.exit_step[mask].double().mean()))


def test_rates_of_the_parts_of_a_loop() -> None:
    model = Copier(objectives.Ponder(0.01))
    groups = ponder.parameter_groups(model, lr=1.0, head_lr=2.0, lambda_lr=3.0)
    counts = {group["lr"]: len(group["params"]) for group in groups}
    inside = model.loop
    own = {2.0: len(list(inside.head.parameters()))}
    own[3.0] = len(list(inside.lambda_head.parameters()))
    assert counts == {1.0: len(list(model.parameters())) - own[2.0] - own[3.0], **own}
