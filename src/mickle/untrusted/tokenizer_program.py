"""Tries what a tokenizer does to awkward texts, run as a program: its parts without its model, in bounds.

One line of JSON holds the parts (``tokenizer.py``), one line of JSON answers what went wrong, "" for nothing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads would each take address space

from tokenizers import Tokenizer

from mickle.untrusted.child import MEMORY_BYTES, allow, serve

SECONDS = 0.5  # of processor time for all texts
LENGTH = 400  # characters of a text
GROWTH = 64  # characters or tokens that come of one
USUAL = "aA1 \n\t'!-_\x00\u00e9\u4e2d\u0e01\u0301\U0001f600"
ENDS = ("", "!?", "b\x01")  # what keeps a pattern from matching shows whether it then tries every other way
MOST_CHARACTERS, MOST_WORDS = 64, 16  # that are taken from the parts
MODEL = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}


def answer(parts: dict[str, Any]) -> str:
    """What goes wrong with a tokenizer of these parts; "" where nothing does."""
    allow(SECONDS, MEMORY_BYTES)
    try:
        tokenizer = Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [], "model": MODEL, **parts}))
        said = (_tried(tokenizer, text) for text in texts(json.dumps(parts, ensure_ascii=False)))
        return next(filter(None, said), "")
    except BaseException as error:  # the library's panics lie outside Exception
        return f"{str(error)[:200]}"


def texts(parts: str) -> Iterator[str]:
    """Long runs of the characters and words in the parts and of usual ones, with endings; and one of each character."""
    characters = dict.fromkeys(USUAL + parts)
    words = dict.fromkeys(re.findall(r"[^\W\d_]{2,12}", parts))
    for unit in (*list(characters)[: len(USUAL) + MOST_CHARACTERS], *list(words)[-MOST_WORDS:]):
        yield from (unit * (LENGTH // len(unit)) + end for end in ENDS)
    yield "".join(map(chr, range(1, 0x3100)))


def _tried(tokenizer: Any, text: str) -> str:
    most = GROWTH * (len(text) + 100)
    normal = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    tokens = len(tokenizer.encode(text).ids) if len(normal) <= most else 0
    back = tokenizer.decoder.decode([text]) if tokenizer.decoder else ""
    return f"one character becomes more than {GROWTH}" if max(len(normal), tokens, len(back)) > most else ""


if __name__ == "__main__":
    serve(answer, {})
