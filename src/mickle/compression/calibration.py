"""Calibration text: pages or a text file as equally long sequences, none of them text the model is measured on."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import xxhash
from torch import Tensor

from mickle.errors import UsageError

if TYPE_CHECKING:
    from mickle.data.tokenizer import TextTokenizer

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py")
LARGEST_TEXT = 256 << 20  # bytes of a text file
CHARACTERS_A_TOKEN = 8  # more than texts have; so much is kept while pages are drawn


@dataclass(frozen=True)
class Calibration:
    """ids int64 [n, length]; pages they come from, and pages left out because the model holds them out."""

    ids: Tensor
    pages: int
    left_out: int

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self.ids.numel()


def read_calibration(
    data: Path, tokenizer: TextTokenizer, heldout: list[str], *, samples: int, length: int, seed: int
) -> Calibration:
    """At most `samples` sequences of `length` tokens from the pages that a hash with `seed` puts first.

    A text with fewer tokens than one sequence gives one shorter one. UsageError where all pages are the model's own
    held-out pages, where a page shares 13 words in a row with them in a text file, and where there is no text.
    """
    from mickle.data.heldout import content_hash
    from mickle.data.overlap import overlap

    hidden = {content_hash(text) for text in heldout}
    wanted = samples * length * CHARACTERS_A_TOKEN
    kept: list[tuple[int, str]] = []
    size = left_out = found = 0
    for text in _texts(data):
        found += 1
        if content_hash(text) in hidden:
            left_out += 1
            continue
        place = xxhash.xxh3_64_intdigest(text.encode("utf-8", "replace"), seed=seed)
        heapq.heappush(kept, (-place, text))
        size += len(text)
        while len(kept) > 1 and size - len(kept[0][1]) >= wanted:
            size -= len(heapq.heappop(kept)[1])
    if not kept:
        raise UsageError(
            "all calibration pages are the model's held-out pages" if left_out else "there is no calibration text",
            where=str(data),
            todo="name other text with --data: never calibrate on what the model is measured on",
        )
    if found == 1 and heldout:
        met = overlap([kept[0][1]], heldout)
        if met.places:
            raise UsageError(
                f"the calibration text holds text of {len(met.places):,} of the model's held-out pages",
                where=str(data),
                todo="name other text with --data: never calibrate on what the model is measured on",
            )
    texts = [text for _, text in sorted(kept, reverse=True)]
    stream = np.concatenate(tokenizer.encode_documents(texts))
    length = min(length, len(stream))
    count = min(samples, len(stream) // length)
    ids = torch.from_numpy(stream[: count * length].reshape(count, length))
    return Calibration(ids, len(texts), left_out)


def said(calibration: Calibration | None) -> str:
    """What the calibration text is, in a line."""
    if calibration is None:
        return "no calibration text"
    rows, length = calibration.ids.shape
    left_out = f"; {calibration.left_out:,} held-out pages of the model left out" if calibration.left_out else ""
    return f"calibration: {rows:,} sequences of {length:,} tokens from {calibration.pages:,} pages{left_out}"


def _texts(data: Path) -> Iterator[str]:
    """Page by page; a text file is one page."""
    from mickle.data.heldout import read_pages

    if data.is_file() and data.suffix.lower() in TEXT_SUFFIXES:
        if data.stat().st_size > LARGEST_TEXT:
            raise UsageError("the text file is too large", where=str(data), expected="at most 256 MB, or a corpus")
        text = data.read_text(encoding="utf-8", errors="replace")
        yield from [text] if text.strip() else []
        return
    if data.is_file() and data.suffix.lower() != ".parquet":
        raise UsageError(
            f"calibration text cannot be read from {data.suffix or 'this file'}",
            where=str(data),
            expected=f"a corpus folder, .parquet, or one of {', '.join(TEXT_SUFFIXES)}",
        )
    for batch in read_pages(data):
        yield from (page.text for page in batch)
