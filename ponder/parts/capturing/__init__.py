"""`ponder.capture`: any module that runs a list of layers, read as stem, steps and readout."""

from ponder.parts.capturing.captured import Captured, capture

__all__ = ["Captured", "capture"]
