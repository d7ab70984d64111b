"""An invented language with agreement across a known distance, whose minimal pairs have a known answer.

A sentence is: subject, as many times as its distance says a preposition with a noun, verb, object, and half of the
time an adverb. The verb has its subject's number, whatever the nouns between them have, and its object belongs to the
verb's class. Nouns have an adjective before them three times in ten. Words follow Zipf's law. Nouns and verbs end in -s
or -p for their number; noun i and verb i belong to class i mod 4.

The wrong sentence of a pair has the verb's other number, or an object of another class. It cannot occur, so whoever
knows the language prefers the right one always: the best accuracy is 1, and chance is a half.
"""

from __future__ import annotations

import random
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mickle.data.tokenizer import TextTokenizer

NOUNS, VERBS, ADJECTIVES, PREPOSITIONS, ADVERBS, CLASSES = 24, 12, 8, 4, 6, 4
DISTANCES = (0, 1, 2)  # nouns between a subject and its verb
WEIGHTS = (4, 3, 2)  # how often


class Sentence(NamedTuple):
    """Its words, where the verb and the object stand, and the subject's number ("s" or "p")."""

    words: list[str]
    verb: int
    object: int
    number: str


def sentence(draw: random.Random, distance: int | None = None) -> Sentence:
    """A sentence, of a given distance or a random one."""
    number = draw.choice("sp")
    words = _noun(draw, number)
    for _ in range(draw.choices(DISTANCES, weights=WEIGHTS)[0] if distance is None else distance):
        words += [f"p{_word(draw, PREPOSITIONS)}", *_noun(draw, draw.choice("sp"))]
    at, verb = len(words), _word(draw, VERBS)
    words += [f"v{verb}{number}", *_noun(draw, draw.choice("sp"), verb % CLASSES)]
    last = len(words) - 1
    if draw.random() < 0.5:
        words.append(f"r{_word(draw, ADVERBS)}")
    return Sentence(words, at, last, number)


def _noun(draw: random.Random, number: str, kind: int | None = None) -> list[str]:
    stem = _word(draw, NOUNS)
    if kind is not None:
        stem = (stem + (kind - stem) % CLASSES) % NOUNS
    before = [f"a{_word(draw, ADJECTIVES)}"] if draw.random() < 0.3 else []
    return [*before, f"n{stem}{number}"]


def _word(draw: random.Random, count: int) -> int:
    """A rank from 0, with probability proportional to 1 / (rank + 1)."""
    return draw.choices(range(count), weights=[1 / rank for rank in range(1, count + 1)])[0]


def sentences(count: int) -> list[str]:
    """Texts to train on and to hold out; always the same."""
    draw = random.Random(0)
    return [" ".join(sentence(draw).words) for _ in range(count)]


@cache
def minimal_pairs(count: int) -> list[tuple[str, str, str]]:
    """``count`` (right, wrong, kind) of each kind: ``agreement-0``, ``-1``, ... by distance, and ``object``."""
    draw = random.Random(1)
    found = []
    for distance in (*DISTANCES, None):
        for _ in range(count):
            made = sentence(draw, distance)
            wrong = list(made.words)
            if distance is not None:
                wrong[made.verb] = wrong[made.verb][:-1] + ("p" if made.number == "s" else "s")
            else:
                stem, number = int(wrong[made.object][1:-1]), wrong[made.object][-1]
                wrong[made.object] = f"n{(stem + draw.randrange(1, CLASSES)) % NOUNS}{number}"
            kind = "object" if distance is None else f"agreement-{distance}"
            found.append((" ".join(made.words), " ".join(wrong), kind))
    return found


def lexicon() -> list[str]:
    """All words of the language."""
    inflected = [f"{letter}{i}{n}" for letter, k in (("n", NOUNS), ("v", VERBS)) for i in range(k) for n in "sp"]
    plain = (("a", ADJECTIVES), ("p", PREPOSITIONS), ("r", ADVERBS))
    return inflected + [f"{letter}{i}" for letter, k in plain for i in range(k)]


@cache
def tokenizer() -> TextTokenizer:
    """A token for each word, with a document mark and a mask token before them."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from mickle.data.tokenizer import END_OF_DOCUMENT, MASK, TextTokenizer

    marks = [END_OF_DOCUMENT, MASK]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*marks, *lexicon()])}))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(marks)
    return TextTokenizer(words, 0, 0, {}, 1)
