"""The idea that the library is about: rows advance step by step, and a policy lets finished ones exit.

Four files, none of which needs PyTorch:

* `source`: what a loop asks of the rows that run (`Source`) and of a model that can start them
  (`SteppedModel`).
* `readings`: what a policy sees of a step, from hazards, outputs and features.
* `loop`: from the first step to the last exit; one loop for runs, replays, exports, rankers and
  cascades.
* `chunk`: several batches that a loop runs as one, merged as rows exit.
"""

from ponder.running.source import Source, SteppedModel

__all__ = ["Source", "SteppedModel"]
