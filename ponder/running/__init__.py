"""The core of the library: rows advance step by step, and a policy lets finished rows exit.

Four files, none of which needs PyTorch:

* `source`: the protocols of the running rows (`Source`) and of a model that starts them
  (`SteppedModel`).
* `readings`: what a policy sees of a step, from hazards, outputs and features.
* `loop`: from the first step to the last exit; one loop for runs, replays, exports, rankers and
  cascades.
* `chunk`: several batches that a loop runs as one, merged as rows exit.
"""

from ponder.running.source import Source, SteppedModel

__all__ = ["Source", "SteppedModel"]
