"""A text of any length in pieces, so that what reads it needs memory and time in proportion to a piece.

A piece ends before a space that follows no other, where tokenizers split in any case: byte-level BPE finds the same
tokens in the pieces as in the whole. Without such a space it ends between a letter and other white space, else between
a letter and a sign, where the patterns of GPT-2 and most of its descendants split too; without any of these, anywhere.
"""

import re
from collections.abc import Iterator, Sequence

LONGEST = 1 << 20  # characters; a tokenizer takes some 120 bytes for each
_ENDS = [re.compile(end, re.DOTALL) for end in (r".*\S(?= )", r".*[^\W_](?=\s)", r".*[^\W_](?=[^\w\s])")]


def pieces(text: str, longest: int = LONGEST) -> Iterator[str]:
    """``text`` in pieces of ``longest`` characters or somewhat less; a shorter text is one piece."""
    at = 0
    while len(text) - at > longest:
        found = next(filter(None, (end.match(text, at, at + longest) for end in _ENDS)), None)
        cut = found.end() if found else at + longest
        yield text[at:cut]
        at = cut
    yield text[at:]


def single_spaced(text: str) -> Iterator[str]:
    """``" ".join(text.split())`` in pieces."""
    begun = apart = False
    for piece in pieces(text):
        if words := " ".join(piece.split()):
            yield " " + words if begun and (apart or piece[0].isspace()) else words
            begun, apart = True, False
        apart = apart or piece[-1:].isspace()


def portions(texts: Sequence[str]) -> Iterator[list[tuple[int, str]]]:
    """The pieces of texts with the number of their text, so many at a time that they have LONGEST characters in all."""
    some: list[tuple[int, str]] = []
    size = 0
    for number, text in enumerate(texts):
        for piece in pieces(text):
            if some and size + len(piece) > LONGEST:
                yield some
                some, size = [], 0
            some.append((number, piece))
            size += len(piece)
    if some:
        yield some
