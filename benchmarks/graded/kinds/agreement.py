"""Subject-verb agreement at a distance: does the main verb agree with its subject?

Between the subject and its verb come prepositional phrases and relative clauses, each with a noun
that may or may not have the subject's number ("the key behind the boxes that the guard wants is
old"). The difficulty is their count; the label says whether the main verb agrees with the subject.
The numbers of all nouns are independent, so that from difficulty 1 on the noun next to the verb
says nothing about the label, and no word alone does either.
"""

from __future__ import annotations

from random import Random

from benchmarks.graded.grading import Example, GradedTask, register

__all__ = ["generate"]

_NOUNS = (
    ("key", "keys"), ("box", "boxes"), ("letter", "letters"), ("picture", "pictures"), ("chair", "chairs"),
    ("table", "tables"), ("book", "books"), ("bottle", "bottles"), ("lamp", "lamps"), ("basket", "baskets"),
    ("window", "windows"), ("door", "doors"), ("map", "maps"), ("mirror", "mirrors"), ("boat", "boats"),
)  # fmt: skip
_PEOPLE = (
    ("teacher", "teachers"), ("guard", "guards"), ("farmer", "farmers"), ("doctor", "doctors"),
    ("singer", "singers"), ("lawyer", "lawyers"), ("nurse", "nurses"), ("painter", "painters"),
)  # fmt: skip
_PREPOSITIONS = ("near", "behind", "beside", "under", "with", "above")
_LIKES = (("likes", "like"), ("knows", "know"), ("wants", "want"), ("needs", "need"))
_VERBS = (("is", "are"), ("was", "were"))
_ADJECTIVES = (
    "old", "new", "clean", "broken", "heavy", "strange", "pretty", "rare", "cheap", "famous", "dirty", "lost",
)  # fmt: skip
_TIMES = ("today", "yesterday", "this week", "this year")


def generate(rng: Random, difficulty: int) -> Example:
    """One sentence with `difficulty` phrases between its subject and its main verb."""
    number = rng.randrange(2)
    grammatical = rng.randrange(2)
    phrases = [_phrase(rng) for _ in range(difficulty)]
    verb = rng.choice(_VERBS)[number ^ (1 - grammatical)]
    words = ["the", rng.choice(_NOUNS)[number], *phrases, verb, rng.choice(_ADJECTIVES)]
    if rng.random() < 0.4:
        words = [_opening(rng), *words]
    text = " ".join(words)
    return Example(text[0].upper() + text[1:] + ".", grammatical)


def _phrase(rng: Random) -> str:
    """A prepositional phrase or a relative clause around one noun of either number."""
    number = rng.randrange(2)
    if rng.random() < 0.6:
        return f"{rng.choice(_PREPOSITIONS)} the {rng.choice(_NOUNS)[number]}"
    return f"that the {rng.choice(_PEOPLE)[number]} {rng.choice(_LIKES)[number]}"


def _opening(rng: Random) -> str:
    """Words before the subject, with a noun of either number or with none."""
    if rng.random() < 0.5:
        return f"{rng.choice(_TIMES)},"
    return f"{rng.choice(_PREPOSITIONS)} the {rng.choice(_NOUNS)[rng.randrange(2)]},"


register(
    GradedTask(
        name="agreement",
        labels=("ungrammatical", "grammatical"),
        levels=(0, 3),
        generate=generate,
    )
)
