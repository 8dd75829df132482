"""Folders of models and rerankers after a kill at any point of saving: the old, the new, or refused."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from ponder.errors import CheckpointError
from ponder.integrations.transformers import PonderForSequenceClassification, fit_exits
from ponder.integrations.transformers.rerank import CrossEncoder
from ponder.policies import Certified
from tests.integrations.encoders import make_plain, make_tokenizer, some_texts
from tests.kills import check_outcomes, kills
from tests.rerank.test_rerank import plain, pools

__all__ = ["exits", "print_outcomes", "ranker"]

Save = Callable[[Path], object]


def exits(seed: int) -> Save:
    """Return what saves a model with certified exits."""
    model = PonderForSequenceClassification.from_finetuned(make_plain())
    model.tokenizer = make_tokenizer()
    fit_exits(model, some_texts(200), disagreement=0.4, epochs=1, seed=seed)
    return model.save_pretrained


def ranker(seed: int) -> Save:
    """Return what saves a reranker with certified exits."""
    made = CrossEncoder(plain(), tokenizer=make_tokenizer())
    made.fit_exits(pools(120, 200 * seed), top_k=2, changed=0.4)
    return made.save


def read_policy(folder: Path) -> Any:
    if (folder / "rerank.json").is_file():
        return CrossEncoder.load(folder).settings.policy
    return PonderForSequenceClassification.from_pretrained(folder).policy


def print_outcomes(make: Callable[[int], Save]) -> None:
    """Print which of two models each kill leaves: its weights and its promise are of one."""
    place, policies, weights = Path(sys.argv[1]), list[Any](), list[Any]()
    for seed in (0, 1):
        make(seed)(place / f"whole_{seed}")
        policies.append(read_policy(place / f"whole_{seed}"))
        weights.append(load_file(place / f"whole_{seed}" / "model.safetensors"))
    assert all(isinstance(policy, Certified) for policy in policies)
    assert policies[0] != policies[1]
    save = make(1)
    for folder in kills(lambda folder: shutil.copytree(place / "whole_0", folder), save, 9):
        assert (folder / "notes.txt").read_text() == "of the user"
        try:
            number = policies.index(read_policy(folder))
        except (OSError, CheckpointError):  # the former are of Transformers
            print("refused")
            continue
        found = load_file(folder / "model.safetensors")
        assert all(bool((found[name] == value).all()) for name, value in weights[number].items())
        print(number)


@pytest.mark.parametrize("kind", ["exits", "ranker"])
def test_a_kill_leaves_the_old_model_or_the_new_one(kind: str, tmp_path: Path) -> None:
    code = f"""
import warnings
from tests.integrations.transformers.test_kills import {kind}, print_outcomes
warnings.simplefilter("error", UserWarning)
print_outcomes({kind})
"""
    check_outcomes(code, tmp_path, fewest=10)
