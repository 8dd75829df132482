"""Label texts with an LLM, and pay for a part: a cheap model learns from its answers as they come.

At most 2% of the labels differ from what the LLM would have said, with 95% confidence, in any order of the texts.
What was paid is in labels.db, so a run that stops goes on. LLM_URL=http://127.0.0.1:8000/v1
Run: python label_with_an_llm.py texts.txt labels.txt out.csv     (a text, and a label, on each line)
"""

import csv
import os
import sys
from pathlib import Path

import ponder
from ponder.cascade.asking import Asking
from ponder.cascade.clients import ChatLabels


def main(texts_file: str, labels_file: str, out: str) -> None:
    """Label the texts of a file."""
    texts = Path(texts_file).read_text().splitlines()
    labels = Path(labels_file).read_text().splitlines()
    ask = ChatLabels("my-llm", labels, base_url=os.environ["LLM_URL"])
    asking = Asking(concurrency=8, attempts=3)
    with ponder.Live(ask, level=0.02, path="labels.db", asking=asking) as live:
        found = live.answer(texts, ids=range(len(texts)), finite=True)
        print(live.statement)

    with open(out, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "source"])
        writer.writerows(zip(texts, found.labels, found.source, strict=True))
    for row, error in found.errors.items():
        print(f"no answer for {texts[row]!r}: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:4])
