"""A looped solver: one block, applied until each bit has its answer, learns the parity of all bits so far.

Run: python looped_solver.py [updates]
"""

import sys
from typing import Any

import torch
from torch import Tensor, nn

import ponder
from ponder import objectives, policies


class Solver(nn.Module):
    """Bits to their running parities, `(batch, 8)` each, in at most eight steps."""

    def __init__(self) -> None:
        super().__init__()
        self.bits, self.places = nn.Embedding(2, 64), nn.Embedding(8, 64)
        self.loop = ponder.loops.Loop(ponder.loops.Block(64, heads=4), nn.Linear(64, 2))

    def forward(self, bits: Tensor, **call: Any) -> Any:
        """Run the loop."""
        return self.loop(self.bits(bits) + self.places.weight, max_steps=8, **call)


torch.manual_seed(0)
solver, every_step = Solver(), {"objective": objectives.DeepSupervision("linear")}
drawn = [torch.randint(2, (64, 8)) for _ in range(int(*sys.argv[1:2] or [800]))]
ponder.fit(solver, [(bits, every_step, bits.cumsum(1) % 2) for bits in drawn], epochs=1, lr=1e-3)
states = (solver.bits(torch.randint(2, (1000, 8))) + solver.places.weight).detach()
found = ponder.loops.control_risk(
    solver.loop, [{"hidden": states}], policies.Confidence, [0.9999, 0.999], max_steps=8, level=0.05
)
out = solver(fresh := torch.randint(2, (1000, 8)), policy=found.policy)
right = (out.outputs.argmax(-1) == fresh.cumsum(1) % 2).all(1).float().mean()
print(f"{found.statement}\n{right:.0%} solved, mean step {out.exit_step.float().mean():.2f} of 8")
