"""Examples as a person sees them before training: which tokens are trained, and which only look like marks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mickle.data.chat_template import pattern_of, spellings_of
from mickle.data.example_batches import Encoded
from mickle.data.tokenizer import TextTokenizer


def preview(encoded: Encoded, tokenizer: TextTokenizer, most: int = 3, longest: int = 400) -> str:
    """The first examples as Rich markup: trained tokens on a coloured ground, the others dim.

    Where a special token is only spelt, the numbers of the tokens that it became stand in its place, so that it cannot
    be taken for one.
    """
    shown = []
    for tokens, trained in list(zip(encoded.tokens, encoded.trained, strict=True))[:most]:
        counts = trained.copy()
        counts[:1] = False  # nothing stands before the first token, so it is never predicted
        rest = "" if len(tokens) <= longest else f"[dim] ... {len(tokens) - longest:,} more tokens[/]"
        ids = tokens[:longest].tolist()
        spelt = _spelt(tokenizer, ids)
        pieces = coloured(tokenizer, ids, counts[:longest].tolist())
        marked = (f"[red]{number} [/]" if at in spelt else piece for at, (number, piece) in enumerate(zip(ids, pieces)))
        shown.append("".join(marked) + rest)
    return "\n\n".join(shown)


def coloured(tokenizer: TextTokenizer, ids: Sequence[int], trained: Sequence[bool]) -> Iterator[str]:
    """Rich markup of a token sequence: trained tokens on alternating backgrounds, the others dim.

    A token that is only part of a character is shown by its bytes' stand-ins, as it stands in the vocabulary.
    """
    for position, (token, counts) in enumerate(zip(ids, trained, strict=True)):
        piece = tokenizer.decode([token])
        if "\ufffd" in piece:
            piece = tokenizer.tokenizer.id_to_token(int(token)) or piece
        piece = piece.replace("\\", "\\\\").replace("[", "\\[")
        style = ("black on green" if position % 2 else "black on bright_green") if counts else "dim"
        yield f"[{style}]{piece}[/]"


def _spelt(tokenizer: TextTokenizer, ids: list[int]) -> set[int]:
    """Places of the ordinary tokens that spell a special one together."""
    texts = ["\0" if token in tokenizer.special else tokenizer.decode([token]) for token in ids]
    ends = np.cumsum([len(text) for text in texts])
    pattern = pattern_of(spellings_of(tokenizer))
    marks = pattern.finditer("".join(texts)) if pattern else ()
    return {
        at
        for mark in marks
        for at in range(int(np.searchsorted(ends, mark.start(), "right")), int(np.searchsorted(ends, mark.end())) + 1)
    }
