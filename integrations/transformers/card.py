"""The model card: the model, its policy and promise, and its measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ponder.policies import Certified, ExitPolicy
from ponder.trajectory import Trajectory

__all__ = ["evaluate", "model_card", "write_card"]

_FILE = "README.md"
_TAG = "ponder"


def write_card(model: Any, folder: Path) -> None:
    """Write the card of a saved model, unless the folder has a README that the user wrote."""
    path = folder / _FILE
    if path.exists() and _TAG not in (_data_of(path).tags or []):
        return
    model_card(model, folder.resolve().name).save(path)


def model_card(model: Any, name: str) -> ModelCard:
    """Return the card of a model with exits, under a name."""
    config = model.config
    kind = type(model)
    policy = model.policy
    base = str(config.encoder.name_or_path or config.name_or_path or "")
    of_base = ModelCardData()
    if base:
        of_base = _data_of(Path(base) / _FILE)
    base_model = of_base.base_model
    if base and not Path(base).is_absolute():
        base_model = base
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=kind.pipeline_tag,
        tags=[_TAG, "early-exit", "adaptive-computation"],
        license=of_base.license,
        language=of_base.language,
        base_model=base_model,
        model_name=name,
        eval_results=[
            result for row in config.evaluations for result in _results(row, kind.pipeline_tag)
        ]
        or None,
    )
    if isinstance(policy, Certified):
        promise = policy.statement
    else:
        promise = "Nothing: its policy is not certified."
    if config.finetuned:
        heads = "its own head, and early ones beside it"
    else:
        heads = f"the heads of `{model.recipe.name}`"
    text = f"""
# {name}

A `{config.encoder.model_type}` model of {model.ponder.num_steps} steps with {heads}. Each row of a
batch exits at the step that its policy chooses.

```python
# pip install 'ponder-torch[transformers]'
from ponder.integrations.transformers import {kind.__name__}

model = {kind.__name__}.from_pretrained("{name}")
```

* Policy: `{policy!r}`
* Promised of its exits: {promise}
{"".join(map(_measured, config.evaluations))}"""
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{text}")


def evaluate(
    trajectory: Trajectory, policy: ExitPolicy, data: str, metric: Any = None
) -> dict[str, Any]:
    """Return the scores of a policy and of full depth on labelled rows, as plain JSON."""
    steps = trajectory.exit_steps(policy)
    table = trajectory.score_table(metric)

    def score(at: Any) -> float:
        if table is None:
            return float(metric(*trajectory.answers_at(at)))
        return float(table[np.arange(len(table)), at - 1].mean())

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


def _results(row: dict[str, Any], task: str) -> list[EvalResult]:
    where = {"task_type": task, "dataset_type": row["data"], "dataset_name": row["data"]}
    return [
        EvalResult(
            **where,
            metric_type=row["metric"],
            metric_value=row["score"],
            metric_name=f"{row['metric']}, with exits",
        ),
        EvalResult(
            **where,
            metric_type="speed_up",
            metric_value=row["speed_up"],
            metric_name="speed-up in steps",
        ),
    ]


def _measured(row: dict[str, Any]) -> str:
    return (
        f"* {row['data']} ({row['rows']} rows): {row['metric']} {row['score']:.4f} with exits, "
        f"{row['full_depth']:.4f} at full depth; mean exit step {row['mean_exit_step']:.2f}, "
        f"×{row['speed_up']:.2f} in steps\n"
    )


def _data_of(path: Path) -> ModelCardData:
    if not path.is_file():
        return ModelCardData()
    data: ModelCardData = ModelCard.load(path).data
    return data
