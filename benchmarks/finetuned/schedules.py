"""How the models are fine-tuned on which cascades, `advise` and lists of words are measured."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ROWS", "Schedule", "schedule"]

ROWS = {"Banking77": 5000, "CLINC150": 6000, "SST-2": 8000, "MRPC": 1800, "CoLA": 4000}
"""By task, the number of rows of the shuffled training split that train the model."""
_EPOCHS = {"Banking77": 5, "CLINC150": 4, "SST-2": 2, "MRPC": 4}
_RATES = {"minilm": 2e-4, "mpnet": 5e-5, "e5": 2e-4}


@dataclass(frozen=True)
class Schedule:
    """Number of training rows, number of epochs, and learning rate of the encoder."""

    rows: int
    epochs: int
    lr: float


def schedule(task: str, backbone: str, rows: int) -> Schedule:
    """Return the schedule of a backbone on a task whose training split has `rows` rows."""
    taught = ROWS.get(task, rows // 2)
    if (task, backbone) == ("MRPC", "e5"):
        # Four epochs at 2e-4 end with the larger class as the only answer.
        return Schedule(taught, epochs=8, lr=1e-4)
    epochs = _EPOCHS.get(task, 3)
    if backbone == "mpnet":
        epochs = max(2, epochs - 1)
    return Schedule(taught, epochs, _RATES.get(backbone, 5e-5))
