"""What papers report, to stand beside ours: another backbone, and not comparable digit by digit."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.glue.report.groups import task_order
from benchmarks.glue.report.page import Block, Heading, Table, Text

__all__ = ["published"]

_FILE = Path(__file__).parents[1] / "published.json"


def published() -> list[Block]:
    """The published tables, every row marked."""
    blocks: list[Block] = [Heading("Published, on ALBERT-base")]
    for source in json.loads(_FILE.read_text(encoding="utf-8")):
        tasks = task_order(source["rows"][0]["scores"])
        macro = any("macro" in row for row in source["rows"])
        speed = any("speed_up_steps" in row for row in source["rows"])
        rows = [
            [
                f"{row['method']} *(published)*",
                *([f"×{row['speed_up_steps']:.2f}"] if speed else []),
                *(str(row["scores"][task]) for task in tasks),
                *([str(row["macro"])] if macro else []),
            ]
            for row in source["rows"]
        ]
        head = ["method", *(["×steps"] if speed else []), *tasks, *(["macro"] if macro else [])]
        blocks += [Text(f"[{source['source']}]({source['url']}):"), Table(head, rows)]
    return blocks
