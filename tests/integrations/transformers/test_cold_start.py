"""What the import of the integration loads: its own files, and nothing that a model of Transformers does not need."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ponder.integrations import transformers as integration
from tests.ponder.test_imports import in_a_fresh_process

LATE = ("pandas", "datasets", "peft", "pyarrow", "sklearn", "matplotlib", "accelerate", "sentence_transformers")


def test_the_import_adds_its_own_files_and_little_of_others(tmp_path: Path) -> None:
    """The time is measured elsewhere; modules are counted here, which no load of the machine changes."""
    code = (
        "import json, sys, torch, transformers\n"
        "from transformers import AutoModel, PreTrainedModel\n"
        "before = set(sys.modules)\n"
        "import ponder.integrations.transformers\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    added = set(json.loads(in_a_fresh_process(code, tmp_path).stdout.splitlines()[-1]))
    others = {name for name in added if name.split(".")[0] not in ("ponder", "einops")}
    assert not {name.split(".")[0] for name in added} & set(LATE)
    assert len(others) < 100, sorted(others)
    assert len(added) < 350, "more files of this package are loaded than a model needs"
    late = {"integrations.transformers.trainer", "integrations.transformers.exits", "calibration", "export.runtime"}
    assert not added & {f"ponder.{name}" for name in late}


@pytest.mark.parametrize("name", ["ExitReport", "PonderTrainer", "fit_exits", "pipeline"])
def test_what_is_loaded_late_is_there(name: str) -> None:
    assert name in integration.__all__
    assert getattr(integration, name) is getattr(integration, name)
    assert name in vars(integration), "and is found at once from then on"


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'PonderTrainr'"):
        integration.PonderTrainr  # noqa: B018
