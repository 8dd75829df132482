"""A policy of your own, certified beside confidence: the margin counts once two steps give the same class."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import ponder
from ponder import policies
from ponder.testing import check_policy


@policies.register("agreed-margin")
@dataclass(frozen=True)
class AgreedMargin(policies.ThresholdPolicy):
    """The margin of the best class, 0 while it differs from that of the step before."""

    threshold: float
    needs = frozenset({"output"})
    tunable = policies.Threshold("threshold", "above")

    def init(self, first: policies.StepView) -> Tensor:
        """Return no class for each row, so that the first answer agrees with nothing."""
        return torch.full_like(first.index, -1)

    def statistic(self, step: policies.StepView, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the margin of each row, `(batch,)`, and the classes, for the next step."""
        (best, second), classes = step.output.softmax(-1).topk(2).values.T, step.output.argmax(-1)
        return (best - second) * (classes == state), classes


check_policy(AgreedMargin(0.3))
torch.manual_seed(0)
x = torch.randn(3000, 16)
labels = (x[:, :4].square().sum(1) > 4).long() + (x[:, 4] > 1).long()
steps = [nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(4)]
model = ponder.PonderWrapper.from_recipe(steps, "pabee", num_outputs=3, example=x[:2])
batches = [(x[n : n + 32], labels[n : n + 32]) for n in range(0, 1600, 32)]
ponder.fit(model, batches, epochs=3, lr=1e-2)
for policy in (AgreedMargin, policies.Confidence):
    print(ponder.control_risk(model.record(x[1600:]), policy, level=0.02).statement)
