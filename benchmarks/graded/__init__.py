"""Text tasks whose difficulty is known by construction: generated English, the same on every machine.

A new task is one new file in `kinds`, which registers a `GradedTask`.
"""

from benchmarks.graded.base import Example, GradedTask, get, names, register
from benchmarks.graded.loading import DEV, EPOCHS, LEARNING_RATE, SPLITS, TEST, TRAIN, load, traffic

__all__ = [
    "DEV",
    "EPOCHS",
    "LEARNING_RATE",
    "SPLITS",
    "TEST",
    "TRAIN",
    "Example",
    "GradedTask",
    "get",
    "load",
    "names",
    "register",
    "traffic",
]
