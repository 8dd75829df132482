"""The model card: the model, its policy and promise, and its measurements."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ponder.calibration.records import Ints, Metric
from ponder.policies import Certified, ExitPolicy
from ponder.trajectory import Trajectory

if TYPE_CHECKING:
    from ponder.integrations.transformers.saved_model import SavedModel

__all__ = ["Evaluation", "evaluate", "model_card", "write_card"]

_FILE = "README.md"
_TAG = "ponder"


class Evaluation(TypedDict):
    """A measurement of a policy on labelled rows, in plain JSON.

    `score` is that of the policy, `full_depth` that of full depth; both are of the `metric`.
    `speed_up` counts steps.
    """

    data: str
    rows: int
    metric: str
    policy: str
    score: float
    full_depth: float
    mean_exit_step: float
    speed_up: float


def write_card(model: SavedModel, folder: Path) -> None:
    """Write the card of a saved model, unless the folder has a README that the user wrote."""
    path = folder / _FILE
    if path.exists() and _TAG not in (_data_of(path).tags or []):
        return
    model_card(model, folder.resolve().name).save(path)


def model_card(model: SavedModel, name: str) -> ModelCard:
    """Return the card of a model with exits, under a name."""
    metadata = _metadata(model, name)
    kind = type(model).__name__
    config = model.config
    if config.finetuned:
        heads = "its own head, and early ones beside it"
    else:
        heads = f"the heads of `{model.recipe.name}`"
    promise = "Nothing: its policy is not certified."
    if isinstance(model.policy, Certified):
        promise = model.policy.certificate.sentence
    measured = "".join(_measured(row) for row in config.evaluations)
    text = f"""
# {name}

A `{config.encoder.model_type}` model of {model.ponder.num_steps} steps with {heads}. Each row of a
batch exits at the step that its policy chooses.

```python
# pip install 'ponder-torch[transformers]'
from ponder.integrations.transformers import {kind}

model = {kind}.from_pretrained("{name}")
```

* Policy: `{model.policy!r}`
* Promised of its exits: {promise}
{measured}"""
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n{text}")


def _metadata(model: SavedModel, name: str) -> ModelCardData:
    """Return the part of a card that the hub reads; license and language are the encoder's."""
    config = model.config
    base = str(config.encoder.name_or_path or config.name_or_path or "")
    of_base = ModelCardData()
    if base:
        of_base = _data_of(Path(base) / _FILE)
    base_model = of_base.base_model
    if base and not Path(base).is_absolute():  # the name of a model on the hub
        base_model = base
    results: list[EvalResult] = []
    for row in config.evaluations:
        results += _results(row, model.pipeline_tag)
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=model.pipeline_tag,
        tags=[_TAG, "early-exit", "adaptive-computation"],
        license=of_base.license,
        language=of_base.language,
        base_model=base_model,
        model_name=name,
        eval_results=results or None,
    )


def evaluate(
    trajectory: Trajectory, policy: ExitPolicy, data: str, metric: Metric | None = None
) -> Evaluation:
    """Return the scores of a policy and of full depth on labelled rows, as plain JSON."""
    steps = trajectory.exit_steps(policy)
    table = trajectory.score_table(metric)

    def score(exits: Ints) -> float:
        """Return the score of answers at some exits, `(rows,)`."""
        if table is not None:
            return float(table[np.arange(len(table)), exits - 1].mean())
        assert callable(metric)  # only a function of all answers has no table
        return float(metric(*trajectory.answers_at(exits)))

    return {
        "data": data,
        "rows": len(trajectory),
        "metric": trajectory.score_name(metric).replace("_", " "),
        "policy": repr(policy),
        "score": score(steps),
        "full_depth": score(np.full_like(steps, trajectory.num_steps)),
        "mean_exit_step": float(steps.mean()),
        "speed_up": trajectory.num_steps / float(steps.mean()),
    }


def _results(row: Evaluation, task: str) -> list[EvalResult]:
    """Return the score and the speed-up of a measurement, as the hub shows them."""
    name = row["data"]
    return [
        EvalResult(
            task_type=task,
            dataset_type=name,
            dataset_name=name,
            metric_type=row["metric"],
            metric_value=row["score"],
            metric_name=f"{row['metric']}, with exits",
        ),
        EvalResult(
            task_type=task,
            dataset_type=name,
            dataset_name=name,
            metric_type="speed_up",
            metric_value=row["speed_up"],
            metric_name="speed-up in steps",
        ),
    ]


def _measured(row: Evaluation) -> str:
    """Return a measurement as a line of the card."""
    return (
        f"* {row['data']} ({row['rows']} rows): {row['metric']} {row['score']:.4f} with exits, "
        f"{row['full_depth']:.4f} at full depth; mean exit step {row['mean_exit_step']:.2f}, "
        f"×{row['speed_up']:.2f} in steps\n"
    )


def _data_of(path: Path) -> ModelCardData:
    """Return the metadata of a card; empty if there is none."""
    if not path.is_file():
        return ModelCardData()
    data: ModelCardData = ModelCard.load(path).data
    return data
