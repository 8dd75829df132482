"""Checkpoints of a stage that may be cut off at any moment: only whole ones are kept in mind.

`Trainer` writes a checkpoint file by file, and removes older ones file by file, so after a kill a folder may be there
in part. Here a folder counts only while it holds a mark, which is written last and removed first.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["KeepWhole", "epochs_where_it_ended", "last_whole"]

_MARK = "complete"


class KeepWhole(TrainerCallback):
    """Marks each checkpoint that has been written, and removes those that are neither the last nor the best.

    Use with `save_total_limit=None`: `Trainer` itself would remove old checkpoints before the new one is marked.
    """

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Called once the files of a checkpoint are there."""
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir or ".")
        last = folder / f"checkpoint-{state.global_step}"
        (last / _MARK).touch()
        best = None if state.best_model_checkpoint is None else Path(state.best_model_checkpoint).name
        for other in _checkpoints(folder):
            if other.name not in (last.name, best):
                _remove(other)


def last_whole(folder: Path) -> Path | None:
    """The last checkpoint that was written to its end, or None; what is there in part is removed."""
    checkpoints = _checkpoints(folder)
    whole = [path for path in checkpoints if (path / _MARK).exists()]
    for path in checkpoints:
        if path not in whole:
            _remove(path)
    return whole[-1] if whole else None


def epochs_where_it_ended(checkpoint: Path) -> float | None:
    """The number of epochs after which training had been stopped early when this was written; None where it had not.

    `Trainer` itself forgets that it was about to stop, and would train for one epoch more.
    """
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    control = state.stateful_callbacks.get("TrainerControl", {})
    stopped = isinstance(control, dict) and control.get("args", {}).get("should_training_stop", False)
    return state.epoch if stopped else None


def _checkpoints(folder: Path) -> list[Path]:
    """By step."""
    steps = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.glob("checkpoint-*")}
    return sorted((path for path, step in steps.items() if step), key=lambda path: int(path.name[11:]))


def _remove(checkpoint: Path) -> None:
    (checkpoint / _MARK).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)
