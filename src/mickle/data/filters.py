"""Rules that keep or remove one page; here language and length.

Addresses (``urls.py``), repetitions, quality and lines of RefinedWeb (arXiv 2306.01116) stand beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from mickle.data.records import Failure, Page, Removed, remove
from mickle.data.words import latin_length

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

LANGUAGE_SAMPLE = 5000  # characters: enough to be sure, and bounded
# Languages that the identifier tells from the one whose code (ISO 639's macrolanguage) covers them.
COVERED = {"wuu": "zh", "yue": "zh", "nn": "no", "ary": "ar", "arz": "ar", "hr": "sh", "sr": "sh", "bs": "sh"}


@cache
def _identifier() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def language_of(text: str) -> tuple[str, float]:
    """ISO 639-1 code and its probability among 140 languages (py3langid's naive Bayes over byte n-grams)."""
    return next(iter(languages_of(text).items()))


def languages_of(text: str) -> dict[str, float]:
    """The probability of each of 140 languages, the likeliest first."""
    ranked = _identifier().rank(" ".join(text[:LANGUAGE_SAMPLE].split()))
    return {str(code): float(probability) for code, probability in ranked}


def identify_language(page: Page, languages: Sequence[str], threshold: float) -> Page | Removed:
    """Sets ``language`` to the likeliest of ``languages``; removes pages in none of them, by what they are together.

    The measured value is the probability that the page is in one of them: of near languages (Croatian, Serbian,
    Bosnian) each may be unlikely, and their sum certain. A code that covers others ("zh", "no", "ar", "sh") stands for
    all of them. An empty list keeps every page and measures the likeliest.
    """
    found = languages_of(page.text)
    code, probability = next(iter(found.items()))
    if not languages:
        return replace(page, language=code, language_score=probability)
    wanted: dict[str, float] = {}
    for each, chance in found.items():
        name = each if each in languages else COVERED.get(each, each)
        if name in languages:
            wanted[name] = wanted.get(name, 0.0) + chance
    together = min(1.0, sum(wanted.values()))
    if probability > together:
        page = replace(page, language=code, language_score=probability)
        return remove(page, "language", Failure("other language", probability, threshold))
    page = replace(page, language=max(wanted, key=wanted.__getitem__), language_score=together)
    if together < threshold:
        return remove(page, "language", Failure("language is not clear", together, threshold))
    return page


def long_enough(page: Page, minimum: int) -> Page | Removed:
    """Removes pages whose text has fewer than ``minimum`` characters, counted as :func:`latin_length` does."""
    size = latin_length(page.text)
    return remove(page, "length", Failure("text is too short", size, minimum)) if size < minimum else page
