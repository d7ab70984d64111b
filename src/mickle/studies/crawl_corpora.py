"""The corpora that one controlled crawl gives: after each stage, all its text, its documents without a crawl.

Also the tokenizer that all of them share, and documents of modules that no crawl contains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from random import Random

from mickle.data.packing import TokenStream, stream_of
from mickle.data.refine import refine
from mickle.data.rules import Rules
from mickle.data.tokenizer import TextTokenizer, train_tokenizer
from mickle.studies.crawl import crawl
from mickle.studies.crawl_scores import Judged, judge, scores, text_before
from mickle.studies.prose import sources

COPIED = ("document", "document with buttons", "shared passage", "copy", "edited copy")  # kinds of real documents


@dataclass(frozen=True)
class Corpora:
    """One crawl as every arm has it: ``texts`` by arm, of these the ``real`` documents, and the stages' scores."""

    texts: dict[str, list[str]]
    real: dict[str, list[str]]
    scores: dict[str, float]


@lru_cache(2)
def corpora_of(pages: int, seed: int, packages: tuple[str, ...]) -> Corpora:
    """The crawl of a seed, through all stages once; the arms are what is there after each of them."""
    planted = list(crawl(pages, seed, packages))
    judged = judge(planted, refine((page.raw for page in planted), Rules(), seed))
    found = {
        "refined": [(page, page.text) for page in judged if not page.stage],
        "filtered": left_before(judged, "near duplicates"),
        "raw": left_before(judged, "repetitions"),
        "wet": [(page, all_text(page.truth.html)) for page in judged if page.truth.is_html],
    }
    found["raw-subset"] = subset(found["raw"], sum(len(text) for _, text in found["refined"]), seed)
    texts = {arm: [text for _, text in kept if text.strip()] for arm, kept in found.items()}
    real = {
        arm: [text for page, text in kept if page.truth.kind in COPIED and text.strip()] for arm, kept in found.items()
    }
    texts["curated"] = real["curated"] = curated(judged)
    return Corpora(texts, real, scores(judged))


def left_before(judged: Sequence[Judged], stage: str) -> list[tuple[Judged, str]]:
    """The pages that come to a stage, with their text as it is then."""
    return [(page, text_before(page, stage)) for page in judged if page.reaches(stage)]


def all_text(html: bytes) -> str:
    """All text of a page, menus and all, as a crawl's WET files have it; a line to each piece between tags."""
    from lxml import etree

    root = etree.fromstring(html, etree.HTMLParser(encoding="utf-8", remove_comments=True))
    pieces = root.xpath("//body//text()[not(ancestor::script or ancestor::style)]")
    lines = (" ".join(piece.split()) for piece in pieces)
    return "\n".join(line for line in lines if line)


def subset(pages: Sequence[tuple[Judged, str]], characters: int, seed: int) -> list[tuple[Judged, str]]:
    """Random pages with together about so many characters."""
    shuffled = Random(f"subset {seed}").sample(list(pages), len(pages))
    chosen = []
    for page, text in shuffled:
        if characters <= 0:
            break
        chosen.append((page, text))
        characters -= len(text)
    return chosen


def curated(judged: Sequence[Judged]) -> list[str]:
    """The documents behind the pages that should stay, without a crawl; a shared passage stands in the first only."""
    seen: set[str] = set()
    texts = []
    for page in judged:
        if page.truth.removed_by or not page.truth.text:
            continue
        paragraphs = [p for p in page.truth.text.split("\n\n") if p not in seen]
        seen.update(page.truth.shared)
        texts.append("\n\n".join(paragraphs))
    return texts


@cache
def tokenizer_of(packages: tuple[str, ...], vocabulary: int) -> TextTokenizer:
    """One tokenizer for all arms and seeds, of the real text that crawls draw on; nothing held out is in it."""
    texts = (
        paragraph
        for package in packages
        for source in sources(package)
        if not source.held_out
        for paragraph in source.paragraphs
    )
    return train_tokenizer(texts, vocabulary)


@cache
def held_out(packages: tuple[str, ...], crawled: tuple[str, ...], vocabulary: int) -> tuple[TokenStream, int]:
    """Documents of modules that no crawl contains, one to a module, with their number of bytes: of packages that are
    ``crawled`` the modules held out, of others all.
    """
    found = [source for p in packages for source in sources(p) if p not in crawled or source.held_out]
    texts = ["\n\n".join(source.paragraphs) for source in found]
    stream = stream_of_texts(texts, tokenizer_of(crawled, vocabulary))
    return stream, sum(len(text.encode()) for text in texts)


def stream_of_texts(texts: Sequence[str], tokenizer: TextTokenizer) -> TokenStream:
    """Texts as one stream of tokens."""
    return stream_of(tokenizer.encode_documents(list(texts)), tokenizer)
