"""How many tokens there are to read: of a corpus, for any size of model, or as a number that was given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mickle.errors import UsageError
from mickle.events import Emit, Started
from mickle.training.pretrain_plan import derived_share, derived_vocabulary

PREVIEW_BYTES = 4 << 20  # text from which the tokens of a corpus are estimated


@dataclass(frozen=True)
class Supply:
    """What there is to read: tokens of one epoch, and how many of them are left when copies count once."""

    tokens: float
    distinct: float
    vocabulary: int
    estimated: bool


Reader = Callable[[str | int], Supply]  # the text as a model of this size reads it


def counted(tokens: float) -> Reader:
    """Text of which only the number of tokens is known, the same for every vocabulary."""
    return lambda size: Supply(tokens, tokens, derived_vocabulary(size), False)


def of_corpus(data: Path, emit: Emit) -> Reader:
    """The training side of a corpus, for any size of model: its bytes, and tokens by a tokenizer trained on the first
    pages.
    """
    from mickle.data.heldout import content_hash, page_count, training_texts
    from mickle.data.tokenizer import train_tokenizer

    share = derived_share(page_count(data))
    emit(Started("reading the corpus", 0, "pages"))
    seen: set[int] = set()
    total = distinct = kept = 0
    first: list[str] = []
    for batch in training_texts(data, share):
        for text in batch:
            length, key = len(text.encode("utf-8")), content_hash(text)
            total += length
            if key not in seen:
                seen.add(key)
                distinct += length
                if kept < PREVIEW_BYTES:
                    first.append(text)
                    kept += length
    if not first:
        raise UsageError("There is no page with text to train on.", where=str(data))

    @cache
    def counted_for(vocabulary: int) -> Supply:
        tokenizer = train_tokenizer(first, vocabulary, or_fewer=True)
        a_byte = sum(map(len, tokenizer.encode_documents(first))) / kept
        return Supply(total * a_byte, distinct * a_byte, tokenizer.size, True)

    return lambda size: counted_for(derived_vocabulary(size))
