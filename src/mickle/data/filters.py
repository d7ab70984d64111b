"""Rules that keep or remove one page: each a pure function ``Page -> Page | Removed`` with the value it
measured.

Here: language and length. URL, repetition, quality and line rules of RefinedWeb (arXiv 2306.01116) have their
place beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from mickle.data.records import Page, Removed, remove

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

LANGUAGE_SAMPLE = 5000  # characters: enough to be sure, and bounded

Stage = Callable[[Page], Page | Removed]


@cache
def _identifier() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def language_of(text: str) -> tuple[str, float]:
    """ISO 639-1 code and its probability among 97 languages (py3langid's naive Bayes over byte n-grams)."""
    code, probability = _identifier().classify(" ".join(text[:LANGUAGE_SAMPLE].split()))
    return str(code), float(probability)


def identify_language(page: Page, languages: Sequence[str], threshold: float) -> Page | Removed:
    """Sets ``language``; removes pages of other languages and those whose language is not clear.

    An empty list keeps every language. The measured value is the probability of the likeliest.
    """
    code, probability = language_of(page.text)
    page = replace(page, language=code)
    if languages and code not in languages:
        return remove(page, "language", "other language", probability)
    if probability < threshold:
        return remove(page, "language", "language is not clear", probability)
    return page


def long_enough(page: Page, minimum: int) -> Page | Removed:
    """Removes pages whose text has fewer than ``minimum`` characters."""
    size = len(page.text)
    return remove(page, "length", "text is too short", float(size)) if size < minimum else page


def apply(pages: Iterable[Page | Removed], *stages: Stage) -> Iterator[Page | Removed]:
    """Every page through the stages in order, until one removes it. Pages removed before pass untouched."""
    for page in pages:
        for stage in stages:
            if isinstance(page, Removed):
                break
            page = stage(page)
        yield page
