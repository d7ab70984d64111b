"""Exact duplicates among pages, by the hash of their text. The first page in reading order is kept.

Near-duplicates and repeated text stand in ``near_duplicates`` and ``repeated_text``; ``comparing`` runs all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from mickle.data.records import Failure, Page, Removed, remove


def content_hash(text: str) -> bytes:
    """128 bits of the text with all runs of white space made one space: layout does not make a page another
    page.
    """
    return hashlib.blake2b(" ".join(text.split()).encode("utf-8", "replace"), digest_size=16).digest()


def exact_duplicates(pages: Iterable[Page | Removed]) -> Iterator[Page | Removed]:
    """Removes every later page with the text of an earlier kept one, naming its twin; the value counts its
    copies so far.

    Holds one hash, count and url per distinct page (about 250 bytes). Pages removed before pass untouched.
    """
    kept: dict[bytes, tuple[str, int]] = {}
    for page in pages:
        if isinstance(page, Removed):
            yield page
            continue
        digest = content_hash(page.text)
        url, copies = kept.get(digest, (page.url, 0))
        kept[digest] = (url, copies + 1)
        yield (
            remove(page, "exact duplicates", Failure("same text as a kept page", copies, 1), url) if copies else page
        )
