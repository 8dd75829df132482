"""Subject-verb agreement at a distance: does the main verb fit its subject, whatever stands in between?

Between the subject and its verb come phrases and relative clauses, each with an attractor: a noun whose number
differs from the subject's ("the key to the cabinets that the guards painted"). The difficulty is the number of
attractors; the label says whether the main verb agrees with the subject.

Words that fit the noun next to them are everywhere, so counting singulars and plurals does not give the answer:
an opening phrase and phrases with a noun of the subject's own number are strewn in as well.
"""

from __future__ import annotations

from random import Random

from benchmarks.graded.base import Example, GradedTask

__all__ = ["TASK"]

_NOUNS = (
    ("key", "keys"), ("box", "boxes"), ("letter", "letters"), ("picture", "pictures"), ("chair", "chairs"),
    ("table", "tables"), ("book", "books"), ("bottle", "bottles"), ("lamp", "lamps"), ("basket", "baskets"),
    ("window", "windows"), ("door", "doors"), ("map", "maps"), ("poster", "posters"), ("mirror", "mirrors"),
)  # fmt: skip
_PEOPLE = (
    ("teacher", "teachers"), ("guard", "guards"), ("farmer", "farmers"), ("doctor", "doctors"),
    ("singer", "singers"), ("lawyer", "lawyers"), ("nurse", "nurses"), ("painter", "painters"),
    ("driver", "drivers"), ("sailor", "sailors"),
)  # fmt: skip
_PREPOSITIONS = ("near", "behind", "beside", "under", "with", "above", "below")
_LIKES = (("likes", "like"), ("knows", "know"), ("wants", "want"), ("needs", "need"), ("watches", "watch"))
_VERBS = (("is", "are"), ("was", "were"), ("has been", "have been"), ("seems", "seem"), ("looks", "look"))
_ADJECTIVES = ("old", "new", "clean", "broken", "heavy", "strange", "pretty", "rare", "cheap", "famous")
_OPENINGS = ("according to", "to the surprise of", "in the opinion of", "like")


def generate(rng: Random, difficulty: int) -> Example:
    """One sentence with `difficulty` attractors between its subject and its main verb."""
    number = rng.randrange(2)
    grammatical = rng.random() < 0.5
    attracts = [True] * difficulty + [False] * rng.randint(0, 1)
    rng.shuffle(attracts)
    phrases = [_phrase(rng, number ^ attracts_) for attracts_ in attracts]
    verb = rng.choice(_VERBS)[number if grammatical else 1 - number]
    text = f"the {rng.choice(_NOUNS)[number]} {' '.join(phrases)} {verb} {rng.choice(_ADJECTIVES)}"
    if rng.random() < 0.5:
        text = f"{rng.choice(_OPENINGS)} the {rng.choice(_PEOPLE)[rng.randrange(2)]}, {text}"
    text = " ".join(text.split())
    return Example(text[0].upper() + text[1:] + ".", None, int(grammatical))


def _phrase(rng: Random, number: int) -> str:
    """A phrase or a relative clause around one noun of the given number (0 singular, 1 plural)."""
    if rng.random() < 0.5:
        return f"{rng.choice(_PREPOSITIONS)} the {rng.choice(_NOUNS)[number]}"
    return f"that the {rng.choice(_PEOPLE)[number]} {rng.choice(_LIKES)[number]}"


TASK = GradedTask(
    name="agreement",
    labels=("ungrammatical", "grammatical"),
    difficulty="attractors",
    levels=(0, 4),
    generate=generate,
)
