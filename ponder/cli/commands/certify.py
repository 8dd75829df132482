"""The command `certify`: a threshold on the answers of any model, or when its steps may stop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ponder._utils.rows import content_ids
from ponder._utils.seals import write_sealed
from ponder.calibration.stopping import CertifiedSteps, certify_steps
from ponder.cli.answer_rows import AnswerRows
from ponder.cli.options import SHARE, Confidence, Json
from ponder.cli.outcome import Outcome
from ponder.cli.output import probe_file
from ponder.cli.show import show
from ponder.cli.texts import read_rows
from ponder.statistics.answers import THRESHOLD, certify_answers
from ponder.statistics.certificate import CONFIDENCE, LEVEL, count
from ponder.statistics.repeats import check_rows
from ponder.statistics.used import Used

__all__ = ["run"]


def run(
    answers: Annotated[
        Path,
        typer.Argument(
            help="A file with an answer, its confidence and a reference in each row; "
            "or, with --steps, with an item, a step and an answer.",
            metavar="ANSWERS",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The JSON file to write, for `ponder check`.")],
    answer: Annotated[str, typer.Option(help="The column of the answers.")] = "answer",
    confidence_column: Annotated[
        str, typer.Option(help="The column of their confidences, probabilities in [0, 1].")
    ] = "confidence",
    reference: Annotated[
        str,
        typer.Option(help="The column of the reference's answers; rows without one are left out."),
    ] = "reference",
    level: Annotated[
        float,
        typer.Option(
            "--level", "--disagreement", help="The share of answers that may differ.", **SHARE
        ),
    ] = LEVEL,
    confidence: Confidence = CONFIDENCE,
    finite: Annotated[
        bool,
        typer.Option(
            "--finite",
            help="Promise about the rows of ANSWERS alone, of which some were drawn at random "
            "and have a reference.",
        ),
    ] = False,
    steps: Annotated[
        str | None,
        typer.Option(
            help="The column with the number of the step, 1, 2, 3 …: certify when an item may stop "
            "and keep the answer of its whole budget.",
        ),
    ] = None,
    item: Annotated[str, typer.Option(help="With --steps: the column of the items.")] = "item",
    cost: Annotated[
        str, typer.Option(help="With --steps: the column of the cost of a step, if there is one.")
    ] = "cost",
    combine: Annotated[
        Literal["last", "votes", "mean"],
        typer.Option(
            help="With --steps: the answer to an item is the last one so far, the most frequent "
            "one, or the mean."
        ),
    ] = "last",
    tolerance: Annotated[
        float | None,
        typer.Option(help="With --combine mean: by how much a mean may differ.", min=0.0),
    ] = None,
    json: Json = False,
) -> None:
    """Certify a threshold on the confidences of any model: answers above it may be taken.

    The others are for a reference to answer. With --steps: when may votes, samples or traces stop?

    Example: `ponder certify answers.csv --answer label --reference llm --out threshold.json`

    Example: `ponder certify steps.jsonl --steps step --level 0.02 --out stop.json`
    """
    probe_file(out, [answers])
    if steps is not None:
        found = certify_steps(
            read_rows(answers, "ANSWERS"),
            combine=combine,
            tolerance=tolerance,
            level=level,
            confidence=confidence,
            columns={
                "item": item,
                "step": steps,
                "answer": answer,
                "confidence": confidence_column,
                "cost": cost,
            },
        )
        show(_save_steps(found, out), as_json=json)
        return
    columns = {"answer": answer, "confidence": confidence_column, "reference": reference}
    rows = AnswerRows.read(answers, columns)
    check_rows(content_ids(rows.keys), "ANSWERS")
    certified = certify_answers(
        rows.answers,
        rows.confidences,
        rows.references,
        level=level,
        confidence=confidence,
        finite=finite,
    )
    facts = {**vars(certified), "columns": columns}
    place = "nothing: there is no threshold"
    if certified.threshold is not None:
        used = Used.of(rows.keys).to_dict()
        write_sealed(out, THRESHOLD, {**facts, "used": used})
        place = str(out)
    table = [
        ("taken", f"{100 * certified.taken:.1f}% of {certified.rows} rows"),
        ("other answers", f"{100 * certified.observed:.2f}%"),
    ]
    if certified.to_ask is not None:
        table.append(("to ask", f"{certified.to_ask} of the {certified.without_reference} others"))
    elif certified.without_reference:
        without = count(certified.without_reference, "row")
        table.append(("left out", f"{without} without a reference"))
    table.append(("written to", place))
    show(Outcome(facts, [certified.statement], table), as_json=json)


def _save_steps(found: CertifiedSteps, out: Path) -> Outcome:
    """Write when items may stop, if anything was certified, and return what to show."""
    budget = found.stopper.budget
    place = "nothing: no early stop is certified"
    if found.met:
        found.stopper.save(out)
        place = str(out)
    facts = {
        "statement": found.statement,
        "met": found.met,
        "policy": found.policy.policy.to_dict(),
        "mean_exit_step": found.mean_exit_step,
        "budget": budget,
        "observed": found.observed,
    }
    table = [
        ("stop at", found.policy.words()),
        ("mean step", f"{found.mean_exit_step:.2f} of {budget}"),
        ("other answers", f"{100 * found.observed:.2f}%"),
        ("written to", place),
    ]
    return Outcome(facts, [found.statement], table)
