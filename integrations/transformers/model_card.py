"""What `save_pretrained` lays beside the weights: a model card, and the file by which Auto classes find the package.

The card says what the model is, when it exits, what is promised of its exits, what was measured, and how to load it. A
README without the marker of this file is its owner's, and is never touched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ponder._utils.columns import EXITS_REPORT
from ponder._utils.markdown import markdown_table
from ponder.analysis.metrics import MetricLike, as_metric
from ponder.analysis.sweeps import measure
from ponder.errors import ArgumentError
from ponder.integrations.transformers.configuration import AUTO_FILE
from ponder.policies import ExitPolicy, LastStep
from ponder.policies.certified import Certified
from ponder.trajectory import Trajectory

__all__ = ["EXITS_TITLE", "evaluation_of", "remove_card", "remove_reports", "write_beside"]

EXITS_TITLE = "Exits for"
"""How the heading of the card begins that `ponder exits` writes."""
_CARD = "README.md"
_MARKER = "<!-- Written by ponder with every save. Remove this line, and your own text stays. -->"
_AUTO_TEXT = '''"""Where Transformers finds the classes of this model: in the installed package ponder-torch."""

try:
    from ponder.integrations.transformers import PonderConfig
except ImportError as error:
    raise ImportError("This model needs ponder: pip install 'ponder-torch[transformers]'") from error
'''


def write_beside(model: Any, part: Path, folder: Path) -> None:
    """Write the files that a save has besides weights and configuration.

    Args:
        model: A `PonderPreTrainedModel`.
        part: The folder in which the files of this save are gathered.
        folder: The folder in which they will stand, with what stands there already.
    """
    (part / AUTO_FILE).write_text(_AUTO_TEXT, encoding="utf-8")
    before = folder / _CARD
    if not (part / _CARD).exists() and (not before.exists() or _is_ours(before)):
        (part / _CARD).write_text(_card(model, folder.resolve().name), encoding="utf-8")


def remove_card(folder: Path) -> None:
    """Remove what a save, or `ponder exits`, wrote about a model that the folder holds no more."""
    (folder / AUTO_FILE).unlink(missing_ok=True)
    remove_reports(folder)
    card = folder / _CARD
    if card.is_file() and _is_ours(card):
        card.unlink()


def remove_reports(folder: Path) -> None:
    """Remove what `ponder exits` measured of exits that the folder holds no more."""
    if (folder / EXITS_REPORT).is_file():
        for name in (EXITS_REPORT, "report.html"):
            (folder / name).unlink(missing_ok=True)


def evaluation_of(trajectory: Trajectory, policy: ExitPolicy, data: str, metric: MetricLike | None) -> dict[str, Any]:
    """What a policy came to on labelled rows, beside full depth, as plain JSON; see `analysis.sweeps.measure`."""
    score = as_metric(metric, trajectory)
    if score is None:
        raise ArgumentError(
            "trajectory",
            expected="rows with labels, or metric=… where the task has no score of its own",
            got="none",
            remedy="Record them with their labels: model.record(rows).",
        )
    exits, full = (measure(trajectory, each, metric=metric) for each in (policy, LastStep()))
    return {
        "data": data,
        "rows": len(trajectory),
        "metric": score.name.replace("_", " "),
        "policy": repr(policy),
        "score": exits.score,
        "full_depth": full.score,
        "mean_exit_step": exits.mean_exit_step,
        "speed_up": trajectory.num_steps / exits.mean_exit_step,
    }


def _card(model: Any, name: str) -> str:
    kind, config = type(model), model.config
    policy = model.recipe.policy  # as it is saved
    sections = [
        _front_matter(kind.pipeline_tag),
        _MARKER,
        f"# {name or kind.__name__}",
        f"A `{config.encoder.get('model_type')}` encoder of {model.ponder.num_steps} steps that stops early where its "
        "policy lets it: each row of a batch leaves at a step of its own.",
        "## Load it",
        f"```python\nfrom ponder.integrations.transformers import {kind.__name__}\n\n"
        f'model = {kind.__name__}.from_pretrained("{name}")\n'
        "out = model(**inputs)  # out.exit_step: the step at which each row left\n```",
        "`pip install 'ponder-torch[transformers]'` first. Transformers' Auto classes know the model after "
        "`import ponder.integrations.transformers`, or with `trust_remote_code=True`, which runs the one file of this "
        "folder that imports the package.",
        "## What it is",
        "\n".join(
            markdown_table(
                ("", ""),
                [
                    ("Recipe", f"`{model.recipe.name}` ({model.recipe.paper})"),
                    ("Policy", f"`{policy!r}`"),
                    ("Reads", f"`{config.readout}`"),
                    ("Answers", _answers(model)),
                ],
            )
        ),
        "## What is promised of its exits",
        *(
            [f"{policy.statement} ({policy.rows} calibration rows, {policy.bound})"]
            if isinstance(policy, Certified)
            else ["Nothing: its policy is not certified. `ponder.control_risk` certifies one."]
        ),
        "## What was measured",
        _measured(config.evaluations),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(pipeline_tag: str) -> str:
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: {pipeline_tag}\n"
        "tags:\n- ponder\n- early-exit\n- adaptive-computation\n---"
    )


def _answers(model: Any) -> str:
    task = model.ponder.task.name.replace("_", " ")
    names = [str(name) for _, name in sorted((model.config.id2label or {}).items())]
    shown = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    return f"{task}: {shown}" if model.ponder.task.classes and names else task


def _measured(evaluations: list[dict[str, Any]]) -> str:
    if not evaluations:
        return "Nothing was noted. `model.note_evaluation(model.record(rows), data=…)` measures and notes it."
    columns = ("Data", "Rows", "Policy", "Score", "At full depth", "Mean exit step", "Speed-up in steps")
    cells = [
        (
            row["data"],
            row["rows"],
            f"`{row['policy']}`",
            f"{row['score']:.4f} ({row['metric']})",
            f"{row['full_depth']:.4f}",
            f"{row['mean_exit_step']:.2f}",
            f"{row['speed_up']:.2f}",
        )
        for row in evaluations
    ]
    note = "A speed-up in steps is N ÷ the mean exit step; embeddings and heads are left out of it."
    return "\n".join([*markdown_table(columns, cells), "", note])


def _is_ours(card: Path) -> bool:
    text = _text(card)
    return _MARKER in text or text.startswith(f"# {EXITS_TITLE} ")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
