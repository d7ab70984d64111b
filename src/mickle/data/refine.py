"""What happens to pages: the stages of RefinedWeb in the paper's order (``rules.py``).

"The RefinedWeb Dataset for Falcon LLM: Outperforming Curated Corpora with Web Data, and Web Data Only" (arXiv
2306.01116), section 3 and appendix G. Stages that look at one page (``refine_page``) come first; those that
compare pages (``comparing.decide``) come after. A stage never loses anything: what it takes out is a
:class:`Removed` with rule, value and limit.

Departures: pages are compared over the whole corpus and not in 100 parts of a crawl; lengths are counted in
words and word-like tokens where the paper counts those of GPT-2's tokenizer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from mickle.data.decontamination import decontaminate
from mickle.data.filters import identify_language, long_enough
from mickle.data.lines import Lines, correct_lines
from mickle.data.pages import RawPage, Skipped, extract
from mickle.data.quality import find_low_quality
from mickle.data.records import Failure, Page, Removed, piece, remove
from mickle.data.repetitions import find_repetition
from mickle.data.rules import Outcome, Rules
from mickle.data.urls import url_filter

# A stage gives the page, or the page as removed; before it, in a list, what it cut out of it.
Stage = Callable[[Page], Page | Removed | Sequence[Page | Removed]]


def refine_page(raw: RawPage, rules: Rules, seconds: dict[str, float] | None = None) -> list[Outcome]:
    """One page through extraction and the stages that look at one page.

    The last outcome is the page's, kept or removed; before it come the pieces cut out of it. ``seconds`` is told
    what each stage took.
    """
    seconds = {} if seconds is None else seconds
    begun = time.perf_counter()
    page = extract(raw, rules.largest_page, rules.extraction)
    seconds["extraction"] = time.perf_counter() - begun
    return [page] if isinstance(page, Skipped) else through(page, page_stages(rules), seconds)


def through(page: Page | Removed, stages: Iterable[tuple[str, Stage]], seconds: dict[str, float]) -> list[Outcome]:
    """A page through stages in order, until one removes it, after the pieces cut out of it."""
    pieces: list[Outcome] = []
    for name, stage in stages:
        if isinstance(page, Removed):
            break
        begun = time.perf_counter()
        result = stage(page)
        seconds[name] = time.perf_counter() - begun
        *gone, page = [result] if isinstance(result, Page) else result
        pieces += gone
    return [*pieces, page]


def page_stages(rules: Rules) -> list[tuple[str, Stage]]:
    """The chosen stages that look at one page, in order, ready to be called with a page."""
    works: dict[str, Stage] = {
        "length": partial(long_enough, minimum=rules.minimum_characters),
        "language": partial(identify_language, languages=rules.languages, threshold=rules.language_threshold),
        "repetitions": _rule("repetitions", lambda page: find_repetition(page.text, rules.repetitions)),
        "quality": _rule("quality", lambda page: find_low_quality(page.text, rules.quality, page.language)),
        "lines": partial(correct, settings=rules.lines),
        "decontamination": partial(decontaminate, settings=rules.decontamination),
    }
    return [(stage, works[stage]) for stage in rules.chosen() if stage in works]


def correct(page: Page, settings: Lines) -> list[Page | Removed]:
    """Line-wise corrections: the pieces taken out, then the page; the page removed where they are too many."""
    corrected = correct_lines(page.text, settings)
    if corrected.failure:
        return [remove(page, "lines", corrected.failure)]
    if not corrected.text.strip():
        return [remove(page, "lines", Failure("no text is left", 0, 1))]
    pieces = [piece(page, "lines", failure, start, text) for start, text, failure in corrected.pieces]
    return [*pieces, replace(page, text=corrected.text)]


def refine(raws: Iterable[RawPage | Removed | Skipped], rules: Rules, seed: int = 0) -> Iterator[Outcome]:
    """Pages that fit in memory through all chosen stages, in this process; order is kept.

    The same outcomes as ``mickle curate``, which does it in bounded memory, in parallel, and can be killed.
    """
    from mickle.data.comparing import compare_pages

    found = refused(raws, rules)
    outcomes = [o for raw in found for o in (refine_page(raw, rules) if isinstance(raw, RawPage) else [raw])]
    yield from compare_pages(outcomes, rules, seed)


def refused(found: Iterable[RawPage | Removed | Skipped], rules: Rules) -> Iterator[RawPage | Removed | Skipped]:
    """The same, pages whose address the stage ``urls`` refuses as removed: they stay unread."""
    check = url_filter(rules.urls).check if rules.runs("urls") else None
    for item in found:
        if check and isinstance(item, RawPage) and (failure := check(item.url)):
            yield remove(Page(item.url, item.domain, "", "", date=item.date), "urls", failure)
        else:
            yield item


def _rule(stage: str, find: Callable[[Page], Failure | None]) -> Stage:
    def check(page: Page) -> Page | Removed:
        failure = find(page)
        return remove(page, stage, failure) if failure else page

    return check
