"""A looped model of your own on `ponder.loops.Loop`, built as Huginn is (arXiv 2502.05171).

The core reads the embedded text again at every step, and each position halts by itself once its
next-token distribution changes little, KL(p_{n−1} ‖ p_n) < threshold.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import ponder
from ponder import policies
from ponder.testing import check_policy


class InjectedCore(nn.Module):
    """One step, h ← core(adapter([h, e])) with e, the embedded text."""

    def __init__(self, core: nn.Module, width: int) -> None:
        super().__init__()
        self.core = core
        self.adapter = nn.Linear(2 * width, width, bias=False)

    def forward(self, hidden: Tensor, embedded: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the states after a step, `(batch, length, width)`."""
        return self.core(self.adapter(torch.cat([hidden, embedded], dim=-1)), attention_mask)


@policies.register("output-change")
@dataclass(frozen=True)
class OutputChange(policies.ThresholdPolicy):
    """The change of the class probabilities since the step before; infinite at the first step."""

    threshold: float = 1e-3
    needs = frozenset({"output"})
    tunable = policies.Threshold("threshold", "below")

    def init(self, first: policies.StepView) -> Tensor:
        """Return log-probabilities, `(positions, words)`; those before step 1 are never compared."""
        return first.output.float().log_softmax(-1)

    def statistic(self, step: policies.StepView, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the change of each position, `(positions,)`, and its log-probabilities."""
        now = step.output.float().log_softmax(-1)
        return torch.where(step.index > 1, (state.exp() * (state - now)).sum(-1), torch.inf), now


check_policy(OutputChange())
torch.manual_seed(0)
embed, words = nn.Embedding(100, 64), nn.Linear(64, 100)
core = InjectedCore(ponder.loops.Block(64, heads=4, causal=True), 64)
loop = ponder.loops.Loop(core, words, policy=OutputChange(), halted="frozen").eval()
tokens = torch.randint(100, (8, 20))
mask = torch.arange(20) < torch.randint(5, 21, (8, 1))
embedded = embed(tokens)
with torch.no_grad():
    out = loop(torch.randn_like(embedded), max_steps=32, embedded=embedded, attention_mask=mask)
for text, exits, real in zip(tokens, out.exit_step, mask, strict=True):
    print(len(text[real]), "tokens, steps of each:", *exits[real].tolist())
