"""Guard an LLM: a cheap model passes what is surely harmless, and a guard model judges the rest.

Of the messages that the guard calls an attack, at most 5% pass, with 95% confidence.
The guard is any server of the OpenAI shape: LLM_URL=http://127.0.0.1:8000/v1
Run: python guard_for_an_llm.py messages.txt new.txt     (a message on each line)
"""

import os
import sys
from pathlib import Path

from ponder.cascade import Cascade, Student
from ponder.cascade.clients import ChatLabels


def main(seen: str, new: str) -> None:
    """Teach and certify on seen messages, and judge new ones."""
    labels = ["attack", "harmless"]
    guard = ChatLabels("guard", labels, base_url=os.environ["LLM_URL"])
    messages = Path(seen).read_text().splitlines()
    third = len(messages) // 3
    student = Student.fit(messages[:third], guard(messages[:third]))

    cascade = Cascade([student, guard], costs=[0, 1], classes=labels)
    report = cascade.certify(messages[third:], risk="missed", positive="attack", level=0.05)
    print(report.statement)

    fresh = Path(new).read_text().splitlines()
    answers = cascade.predict(fresh)
    for message, label, stage in zip(fresh, answers.labels, answers.stage, strict=True):
        print(label, "by the guard" if stage == 2 else "by the student", message, sep="\t")


if __name__ == "__main__":
    main(*sys.argv[1:3])
