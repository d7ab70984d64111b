"""Rules that keep or remove one page, and how stages follow each other; here language and length.

Addresses (``urls.py``), repetitions, quality and lines of RefinedWeb (arXiv 2306.01116) stand beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from mickle.data.records import Failure, Page, Removed, remove

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

LANGUAGE_SAMPLE = 5000  # characters: enough to be sure, and bounded

# A stage gives the page, or the page as removed; before it, in a list, what it cut out of it.
Stage = Callable[[Page], Page | Removed | Sequence[Page | Removed]]


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
    page = replace(page, language=code, language_score=probability)
    if languages and code not in languages:
        return remove(page, "language", Failure("other language", probability, threshold))
    if probability < threshold:
        return remove(page, "language", Failure("language is not clear", probability, threshold))
    return page


def long_enough(page: Page, minimum: int) -> Page | Removed:
    """Removes pages whose text has fewer than ``minimum`` characters."""
    size = len(page.text)
    return remove(page, "length", Failure("text is too short", size, minimum)) if size < minimum else page


def apply(pages: Iterable[Page | Removed], *stages: Stage) -> Iterator[Page | Removed]:
    """Every page through the stages in order, until one removes it; pieces cut out come just before their page.

    Pages removed before pass untouched.
    """
    for page in pages:
        for stage in stages:
            if isinstance(page, Removed):
                break
            result = stage(page)
            if isinstance(result, Page):
                page = result
            else:
                *pieces, page = result
                yield from pieces
        yield page
