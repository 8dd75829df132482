"""Text tasks whose difficulty is known by construction: generated English, the same on every machine.

A new task is one new file in `kinds`, which registers a `GradedTask`.
"""

from benchmarks.graded.grading import (
    SPLITS,
    Example,
    GradedTask,
    get,
    load,
    names,
    register,
    traffic,
)

__all__ = ["SPLITS", "Example", "GradedTask", "get", "load", "names", "register", "traffic"]
