"""The gate for taggers lets texts without an entity go, and its risk counts texts with one."""

from __future__ import annotations

from pathlib import Path

import torch

import ponder
from benchmarks.tagger.data import read_texts, tags_of
from benchmarks.tagger.gate import MissedEntities, NoEntity


def record() -> ponder.Trajectory:
    """Four texts of three tokens, the last of the third padding; four steps; class 0 is outside."""
    inside = torch.tensor(  # at step 2 and at full depth
        [
            [[0, 0, 0], [0, 0, 0]],
            [[0, 9, 0], [0, 9, 0]],
            [[0, 0, 9], [0, 0, 9]],
            [[0, 0, 0], [9, 0, 0]],
        ]
    ).float()
    early, full = inside.unbind(1)
    entity = torch.stack([early, early, full, full], dim=1)
    outputs = torch.stack([torch.full_like(entity, 4.0), entity], dim=-1)
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[2, 2] = False
    ids = torch.arange(4)
    return ponder.Trajectory(outputs, None, ids, task="token_classification", mask=mask)


def test_a_text_goes_if_no_token_looks_like_an_entity() -> None:
    assert record().replay(NoEntity(0.5)).exit_step.tolist() == [2, 4, 2, 2]
    assert record().replay(NoEntity(0.5, at=3)).exit_step.tolist() == [3, 4, 3, 4]
    assert record().replay(NoEntity(0.0)).exit_step.tolist() == [4, 4, 4, 4]


def test_the_risk_is_about_texts_with_an_entity() -> None:
    risk = MissedEntities([1])
    assert risk.rows(record()).tolist() == [False, True, False, True]
    assert risk.losses(record())[:, 1].tolist() == [0.0, 0.0, 0.0, 1.0]


def test_a_gate_is_certified_by_it() -> None:
    joined = ponder.Trajectory.cat([record()] * 200)
    joined = ponder.Trajectory(
        joined.outputs, None, torch.arange(800), task=joined.task, mask=joined.mask
    )
    loose = ponder.control_risk(joined, NoEntity, risk=MissedEntities([1]), level=0.6)
    assert loose.met
    assert loose.certificate.rows == 400
    assert loose.observed == 0.5
    strict = ponder.control_risk(joined, NoEntity, risk=MissedEntities([1]), level=0.4)
    assert strict.observed == 0.0  # a threshold at which nothing goes


def test_texts_are_read_with_their_tags(tmp_path: Path) -> None:
    path = tmp_path / "train.conll"
    path.write_text("in\tO\nRome\tB-location\n\nhello\tO\n")
    texts = read_texts(path)
    assert [text.words for text in texts] == [("in", "Rome"), ("hello",)]
    assert tags_of(texts) == ["O", "B-location"]
