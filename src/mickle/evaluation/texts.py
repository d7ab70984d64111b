"""What a causal model is measured on: pages with all their tokens, conversations with those of their answers.

A conversation is laid out by the chat template of the model's folder, as ``tune`` lays it out, and the tokens that
``tune`` would train are scored: what the assistant says, and the mark that ends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mickle.data.records import Page
from mickle.data.tokenizer import TextTokenizer
from mickle.errors import UsageError
from mickle.evaluation.measure import pages_to_measure
from mickle.events import Emit, Noted, as_warnings
from mickle.storage import HELDOUT_EXAMPLES


@dataclass(frozen=True)
class ScoredText:
    """One page or conversation: its tokens [n], which of them are scored [n], and the UTF-8 bytes of those, marks left
    out; the text that they are, and for answers all that stands around them.
    """

    tokens: np.ndarray
    scored: np.ndarray
    bytes: int
    text: str = ""
    around: str = ""
    domain: str = ""


def texts_to_score(
    data: Path | None, most: int | None, folder: Path, tokenizer: TextTokenizer, emit: Emit = as_warnings
) -> list[ScoredText]:
    """Pages with all their tokens, or conversations and completions with their answers.

    most: tokens to score; the first texts that hold them are taken. emit: what was found in rows, and what was dropped.
    """
    data = data or own_examples(folder)
    if data is None or holds_pages(data):
        found = page_texts(pages_to_measure(data, folder), tokenizer)
    else:
        found = _answers(data, folder, tokenizer, emit)
    found = [text for text in found if text.scored.any()]
    if not found:
        raise UsageError("there is nothing to score here", where=str(data or folder))
    if most is None:
        return found
    counts = np.cumsum([text.scored.sum() for text in found])
    return found[: int(np.searchsorted(counts, most)) + 1]


def own_examples(folder: Path) -> Path | None:
    """The examples that the tuning of a model held out; None where it kept none."""
    own = folder / HELDOUT_EXAMPLES
    return own if own.is_file() else None


def holds_pages(data: Path) -> bool:
    """A folder of pages, or a Parquet file with a column of texts; all else is read as rows of examples."""
    if (data / "pages").is_dir():
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


def page_texts(pages: Sequence[Page], tokenizer: TextTokenizer) -> list[ScoredText]:
    """Pages, of which every token is scored but the mark that opens them."""
    found = []
    for page, ids in zip(pages, tokenizer.encode([page.text for page in pages]), strict=True):
        tokens = np.concatenate([[tokenizer.start], ids]).astype(np.int64)
        scored = np.arange(len(tokens)) > 0
        size = len(page.text.encode("utf-8", "replace"))
        found.append(ScoredText(tokens, scored, size, page.text, domain=page.domain))
    return found


def _answers(data: Path, folder: Path, tokenizer: TextTokenizer, emit: Emit) -> list[ScoredText]:
    from mickle.data.arrow import HELDOUT, split_of
    from mickle.data.chat_template import open_template
    from mickle.data.conversations import read_conversations
    from mickle.data.examples import encode_examples
    from mickle.models.adapters import tokenizer_folder

    reading = read_conversations(split_of(data, HELDOUT))
    for line in reading.lines():
        emit(Noted(line))
    if reading.form == "text":
        return page_texts([Page("", "", "", example.text) for example in reading.examples], tokenizer)
    chats = any(example.form == "messages" for example in reading.examples)
    template = open_template(tokenizer_folder(folder), tokenizer) if chats else None
    encoded = encode_examples(reading.examples, tokenizer, template, longest=1 << 30)
    for line in encoded.lines():
        emit(Noted(line))
    return [_answer(*pair, tokenizer) for pair in zip(encoded.tokens, encoded.trained, strict=True)]


def _answer(tokens: np.ndarray, trained: np.ndarray, tokenizer: TextTokenizer) -> ScoredText:
    scored = trained & (np.arange(len(tokens)) > 0)
    written = ~np.isin(tokens, list(tokenizer.special))
    text, around = (tokenizer.decode(tokens[some & written]) for some in (scored, ~scored))
    return ScoredText(tokens, scored, len(text.encode("utf-8", "replace")), text, around)
