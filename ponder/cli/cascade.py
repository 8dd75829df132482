"""The command `cascade`: a student in front of a classifier, with a bar between them and a promise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ponder._utils.files import replace_text
from ponder._utils.rows import content_ids, split
from ponder.cascade import Cascade, Embeddings, Student
from ponder.cascade.stages import read_stage
from ponder.cli.output import CARD, probe_folder, short, show
from ponder.cli.texts import count, read_texts

__all__ = ["run"]

_SHARES = (0.6, 0.4)  # to teach the student; to choose and certify


def run(
    model: Path, texts: Path, out: Path, reading: Mapping[str, Any], options: Mapping[str, Any], *, as_json: bool
) -> None:
    """Teach a student the model's answers, certify the cascade, and write the folder.

    Args:
        model: A folder of a classifier, of exits, of an export or of a cascade.
        texts: The file of texts.
        out: The folder to write.
        reading: Arguments of `read_texts`.
        options: Arguments of `Cascade.certify`.
        as_json: Print JSON instead of a table.
    """
    probe_folder(out, "cascade", model)
    found = read_texts(texts, **reading).without_empty()
    stage = read_stage(model)
    once = np.unique(content_ids(found.texts), return_index=True)[1]
    teach, rest = (once[side] for side in split(content_ids([found.texts[n] for n in once]), _SHARES))
    classes = stage.classes or ()
    taught = stage.probabilities([found.texts[n] for n in teach], classes).argmax(1)
    student = Student.fit(
        [found.texts[n] for n in teach], [classes[n] for n in taught], embeddings=_embeddings(stage.model)
    )
    cascade = Cascade([student, stage])
    report = cascade.certify([found.texts[n] for n in rest], **options)
    cascade.save(out)
    facts = {
        name: getattr(report, name)
        for name in ("statement", "met", "observed", "speed_up", "chosen_on", "certified_on")
    }
    card = {"command": "cascade", "columns": list(found.columns), **facts, "shares": list(report.shares)}
    replace_text(out / CARD, json.dumps({**card, "seconds": list(report.seconds)}, indent=1) + "\n")
    rows = [
        (
            "texts",
            f"{count(len(once), 'text')}: teach {len(teach)}, choose {report.chosen_on}, certify {report.certified_on}",
        ),
        ("policy", short(getattr(report.policy, "policy", report.policy))),
        ("student answers", f"{100 * report.shares[0]:.1f}%"),
        ("other answers", f"{100 * report.observed:.2f}% of {report.certified_on} texts that chose nothing"),
        ("seconds", f"×{report.speed_up:.2f}, as measured while certifying"),
        ("written to", str(out)),
    ]
    show(card, [report.statement], rows, as_json=as_json)


def _embeddings(model: Any) -> Embeddings | None:
    """The input embeddings of a model of Transformers with a fast tokenizer."""
    fast = getattr(getattr(model, "tokenizer", None), "backend_tokenizer", None)
    if fast is None or not hasattr(model, "encoder"):
        return None
    weights = model.encoder.get_input_embeddings().weight.detach().float().numpy()
    return Embeddings(fast.to_str(), np.ascontiguousarray(weights))
