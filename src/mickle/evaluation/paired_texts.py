"""What two models are held beside each other on: pages, or the answers of conversations, in one tokenizer's tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mickle.data.tokenizer import TextTokenizer
from mickle.errors import UsageError
from mickle.evaluation.inputs import pages_to_measure


@dataclass(frozen=True)
class ScoredText:
    """One page or conversation: its tokens [n], which of them are scored [n], and the UTF-8 bytes of those."""

    tokens: np.ndarray
    scored: np.ndarray
    bytes: int


def texts_to_score(data: Path | None, most: int | None, folder: Path, tokenizer: TextTokenizer) -> list[ScoredText]:
    """Pages with all their tokens, or conversations and completions with their answers.

    most: tokens to score; the first texts that hold them are taken.
    """
    if _holds_pages(data):
        pages = [page.text for page in pages_to_measure(data, folder)]
        found = _pages(pages, tokenizer)
    else:
        assert data is not None
        found = _answers(data, folder, tokenizer)
    found = [text for text in found if text.scored.any()]
    if not found:
        raise UsageError("there is nothing to score here", where=str(data or folder))
    if most is None:
        return found
    counts = np.cumsum([text.scored.sum() for text in found])
    return found[: int(np.searchsorted(counts, most)) + 1]


def _holds_pages(data: Path | None) -> bool:
    """A folder of pages, or a Parquet file with a column of texts; all else is read as rows of examples."""
    if data is None or (data / "pages").is_dir():
        return True
    if data.is_dir():
        data = min(data.glob("*.parquet"), default=data)
    if data.suffix.lower() != ".parquet":
        return False
    from pyarrow import ArrowException, parquet

    try:
        return "text" in parquet.read_schema(data).names
    except (ArrowException, OSError):
        return True  # said by the reader of pages


def _pages(pages: Sequence[str], tokenizer: TextTokenizer) -> list[ScoredText]:
    found = []
    for page, ids in zip(pages, tokenizer.encode(pages), strict=True):
        tokens = np.concatenate([[tokenizer.start], ids]).astype(np.int64)
        scored = np.ones(len(tokens), dtype=bool)
        scored[0] = False
        found.append(ScoredText(tokens, scored, len(page.encode("utf-8", "replace"))))
    return found


def _answers(data: Path, folder: Path, tokenizer: TextTokenizer) -> list[ScoredText]:
    from mickle.data.chat_template import open_template
    from mickle.data.conversations import read_conversations
    from mickle.data.examples import encode_examples
    from mickle.models.adapters import tokenizer_folder

    reading = read_conversations(data)
    if reading.form == "text":
        return _pages([example.text for example in reading.examples], tokenizer)
    chats = any(example.form == "messages" for example in reading.examples)
    template = open_template(tokenizer_folder(folder), tokenizer) if chats else None
    encoded = encode_examples(reading.examples, tokenizer, template, longest=1 << 30)
    found = []
    for tokens, trained in zip(encoded.tokens, encoded.trained, strict=True):
        trained = trained.copy()
        trained[0] = False
        size = len(tokenizer.decode(tokens[trained]).encode("utf-8", "replace"))
        found.append(ScoredText(tokens, trained, size))
    return found


def refuse_other_tokens(first: TextTokenizer, second: TextTokenizer, folder: Path, other: Path) -> None:
    """UsageError where two tokenizers cut a text in different tokens. Special tokens, which no text has, may differ."""
    if _cutting(first) != _cutting(second):
        raise UsageError(
            "the two models read text in different tokens, so their predictions do not compare",
            where=f"{folder} and {other}",
            expected="the same tokenizer.json",
            todo="compare their bits per byte with --task loss",
        )


def _cutting(tokenizer: TextTokenizer) -> list[Any]:
    """All that decides which tokens a text becomes."""
    settings = json.loads(tokenizer.tokenizer.to_str())
    added = [token for token in settings["added_tokens"] if not token["special"]]
    return [tokenizer.start, added, *(settings.get(part) for part in ("model", "normalizer", "pre_tokenizer"))]
