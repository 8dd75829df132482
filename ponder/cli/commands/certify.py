"""The command `certify`: a threshold on the answers of any model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ponder._utils.rows import content_ids
from ponder._utils.seals import write_sealed
from ponder.cli.answer_rows import AnswerRows
from ponder.cli.options import Confidence, Json, Level
from ponder.cli.outcome import Outcome
from ponder.cli.output import probe_file
from ponder.cli.show import show
from ponder.deploy.used import Used
from ponder.statistics.answers import THRESHOLD, certify_answers
from ponder.statistics.certificate import CONFIDENCE, LEVEL, count
from ponder.statistics.repeats import check_rows

__all__ = ["run"]


def run(
    answers: Annotated[
        Path,
        typer.Argument(
            help="A file with an answer, its confidence and a reference in each row.",
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
    disagreement: Level = LEVEL,
    confidence: Confidence = CONFIDENCE,
    finite: Annotated[
        bool,
        typer.Option(
            "--finite",
            help="Promise about the rows of ANSWERS alone, of which some were drawn at random "
            "and have a reference.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Certify a threshold on the confidences of any model: answers above it may be taken.

    The others are for a reference to answer.

    Example: `ponder certify answers.csv --answer label --reference llm --out threshold.json`
    """
    probe_file(out, [answers])
    columns = {"answer": answer, "confidence": confidence_column, "reference": reference}
    rows = AnswerRows.read(answers, columns)
    check_rows(content_ids(rows.keys), "ANSWERS")
    certified = certify_answers(
        rows.answers,
        rows.confidences,
        rows.references,
        level=disagreement,
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
