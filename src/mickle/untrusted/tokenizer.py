"""Tokenizers from anywhere, opened: a ``tokenizer.json`` is a small program, with patterns and replacements.

What stands in it is counted. What it does with text (a pattern that never ends, a letter that becomes a book, a panic
of the library) is tried on awkward texts in a bounded process (``tokenizer_program.py``) before it is opened here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mickle.errors import UsageError
from mickle.untrusted.child import ask
from mickle.untrusted.values import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LARGEST = 64 << 20  # bytes; the largest in use have about 40 MB
MOST_VALUES = 6_000_000  # in the file; the largest in use have about 2 million
MOST_TOKENS = 2_000_000  # entries of a vocabulary, or merges; and ids lie below
MOST_ADDED = 100_000
LONGEST_TOKEN = 10_000  # characters
LONGEST_PADDING = 1 << 20  # tokens
LARGEST_PARTS = 64 << 10  # characters of JSON of all but model and added tokens, a table of characters aside
LARGEST_TABLE = 4 << 20
PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
# Parts that do the same to every text, in time that its length bounds; the others are tried.
PLAIN = {
    *("Sequence", "ByteLevel", "Digits", "Metaspace", "Whitespace", "WhitespaceSplit", "Punctuation", "Prepend"),
    *("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "StripAccents", "Strip", "BertNormalizer", "BertPreTokenizer"),
    *("ByteFallback", "Fuse", "WordPiece", "BPEDecoder", "CTC"),
    *("TemplateProcessing", "BertProcessing", "RobertaProcessing"),
}


def open_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer in a file, without its padding and truncation; UsageError where it is none, or a hostile one."""
    from tokenizers import Tokenizer

    parts = check_tokenizer(file)
    if said := _tried(json.dumps(parts)):
        _refuse(file, said)
    with failures(f"{file}"):
        tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@contextmanager
def failures(where: str, what: str = "tokenizer cannot be read") -> Iterator[None]:
    """Whatever the library raises, panics too, as a UsageError."""
    try:
        yield
    except BaseException as error:  # its panics lie outside Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UsageError(f"{what}: {str(error)[:200]}", where=where, expected="a tokenizers JSON file") from None


def check_tokenizer(file: Path) -> dict[str, Any]:
    """The parts of a tokenizer beside its model; UsageError where anything in it is absurdly large or malformed."""
    values = read_tokenizer(file)
    model = values.get("model") if isinstance(values, dict) else None
    if not isinstance(model, dict):
        raise UsageError("tokenizer holds no model", where=str(file), expected="a tokenizers JSON file")
    _check_model(model, file)
    added = values.get("added_tokens") or []
    if not isinstance(added, list) or len(added) > MOST_ADDED:
        _refuse(file, f"its added tokens are too many, or no list (at most {MOST_ADDED:,})")
    _check_texts((str(token.get("content")) for token in added if isinstance(token, dict)), file)
    _check_padding(values.get("padding"), file)
    parts = {name: values[name] for name in PARTS if values.get(name) is not None}
    _check_parts(parts, file)
    return parts


def read_tokenizer(file: Path) -> Any:
    """What a ``tokenizer.json`` holds, with room for the largest in use."""
    return read_json(file, LARGEST, MOST_VALUES)


def _check_model(model: dict[str, Any], file: Path) -> None:
    for part in ("vocab", "merges"):
        entries = model.get(part) or []
        if not isinstance(entries, (list, dict)) or len(entries) > MOST_TOKENS:
            _refuse(file, f"its {part} are too many, or no table (at most {MOST_TOKENS:,} entries)")
    vocabulary = model.get("vocab") or {}
    if isinstance(vocabulary, dict):
        if not all(type(number) is int and 0 <= number < MOST_TOKENS for number in vocabulary.values()):
            _refuse(file, f"a token's number is none from 0 to {MOST_TOKENS:,}")
        _check_texts(iter(vocabulary), file)
    else:
        _check_texts((str(entry[0]) for entry in vocabulary if isinstance(entry, list) and entry), file)
    _check_texts((value for value in model.values() if isinstance(value, str)), file)


def _check_texts(texts: Iterator[str], file: Path) -> None:
    if max(map(len, texts), default=0) > LONGEST_TOKEN:
        _refuse(file, f"a token has more than {LONGEST_TOKEN:,} characters")


def _check_padding(padding: Any, file: Path) -> None:
    strategy = padding.get("strategy") if isinstance(padding, dict) else None
    fixed = strategy.get("Fixed") if isinstance(strategy, dict) else None
    multiple = padding.get("pad_to_multiple_of") if isinstance(padding, dict) else None
    for number in (fixed, multiple):
        if number is not None and not (type(number) is int and 0 <= number <= LONGEST_PADDING):
            _refuse(file, f"it pads to {str(number)[:40]} tokens (at most {LONGEST_PADDING:,})")


def _check_parts(parts: dict[str, Any], file: Path) -> None:
    tables = [len(str(part.get("precompiled_charsmap") or "")) for part in _inside(parts)]
    if len(json.dumps(parts)) - sum(tables) > LARGEST_PARTS or sum(tables) > LARGEST_TABLE:
        _refuse(file, f"its normalizer, decoder and the like have more than {LARGEST_PARTS:,} characters")


def _inside(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a value."""
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _inside(item)


@lru_cache(64)
def _tried(parts: str) -> str:
    """What goes wrong where such parts are tried; "" where nothing does."""
    values = json.loads(parts)
    kinds = {str(part["type"]) for part in _inside(values) if isinstance(part.get("type"), (str, int))}
    if kinds <= PLAIN:
        return ""
    said, cause = ask("mickle.untrusted.tokenizer_program", values)
    return f"on a few thousand characters {cause}" if cause else str(said)


def _refuse(file: Path, what: str) -> NoReturn:
    raise UsageError(f"tokenizer cannot be used: {what}", where=str(file), todo="use the model's own tokenizer.json")
