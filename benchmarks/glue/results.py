"""Results: one JSON file a run, with everything that is needed to trust and to repeat it.

Files are read as plain data: recipes and policies of earlier versions, which there are no more,
stay names.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.files import DataError, is_intact, read_json, with_digest, write_json

__all__ = ["FORMAT", "Result", "read_all"]

FORMAT = "ponder-glue-1"
_REQUIRED = ("config", "task", "recipe", "backbone", "num_steps", "policy", "splits", "speed_up")


@dataclass(frozen=True)
class Result:
    """One run: the contents of its file, and where that was read from."""

    data: dict[str, Any]
    path: Path | None = None

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read the file of a run.

        Raises:
            DataError: It is half-written, edited, or of another format.
        """
        data = read_json(path)
        if data.get("format") != FORMAT or any(name not in data for name in _REQUIRED):
            raise DataError(f"{path}: expected a result of the format {FORMAT!r}. Move it away.")
        if not is_intact(data):
            raise DataError(f"{path}: the file was edited since it was written. Run it again.")
        return cls(data, path)

    def __getitem__(self, key: str) -> Any:
        return self.data[key]

    def save(self, path: Path) -> None:
        """Write the file in one act, with a digest by which a later edit is seen."""
        write_json(path, with_digest(self.data))

    @property
    def config(self) -> dict[str, Any]:
        """The fields of the configuration."""
        return dict(self.data["config"])

    @property
    def seed(self) -> int:
        """The seed."""
        return int(self.data["config"]["seed"])

    @property
    def reported(self) -> list[dict[str, Any]]:
        """Measurements of the reported splits: dev (two for MNLI), and not the held-out one."""
        return [split for name, split in self.data["splits"].items() if name != "held_out"]

    @property
    def held_out(self) -> Result:
        """The run as if its held-out rows were reported: what a default may be chosen on."""
        split = self.data["splits"]["held_out"]
        return Result({**self.data, "splits": {"held-out": split, "held_out": split}}, self.path)

    @property
    def is_mean(self) -> bool:
        """Whether the score is a mean over rows, so that mixtures of policies have the mean score."""
        measured = set(self.reported[0]["full_depth"])
        return measured - {"score", "out_of_scope_recall"} == {"accuracy"}

    def score(self, where: str) -> float:
        """Return the score of the reported splits, ``"full_depth"`` or at the ``"exits"``."""
        return statistics.fmean(split[where]["score"] for split in self.reported)

    @property
    def per_step(self) -> list[float]:
        """The score of each step's answers on the reported splits."""
        return [
            statistics.fmean(scores)
            for scores in zip(*(s["per_step"] for s in self.reported), strict=True)
        ]

    @property
    def mean_exit_step(self) -> float:
        """Mean exit step over the reported examples."""
        sizes = [split["examples"] for split in self.reported]
        return statistics.fmean((split["mean_exit_step"] for split in self.reported), weights=sizes)


def read_all(folder: Path) -> list[Result]:
    """Return every result in a folder, by file name, which is determined by the configuration."""
    if not folder.is_dir():
        raise DataError(
            f"{folder}: expected a folder of results. Make some with `python -m benchmarks.glue run`."
        )
    return [Result.read(path) for path in sorted(folder.glob("*.json"))]
