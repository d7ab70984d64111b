"""Main text of HTML: without menus, sidebars, notices, counters, related articles, comments and footers.

The RefinedWeb Dataset for Falcon LLM (Penedo et al. 2023, arXiv 2306.01116, section 3.1, text extraction) takes
trafilatura (Barbaresi 2021), with at most two consecutive newlines and addresses removed from the text. That is
``trafilatura`` here, in precision mode, without comments, paragraphs that a page repeats removed. Departure: its memory
of repeated paragraphs is emptied for every page, since otherwise a page's text depends on the pages before it.

``fast`` is ours. It reads a page into blocks (``extraction_blocks``) and chooses among them (``extraction_rules``):

1. Elements whose tag, role, class or id says that they are furniture are passed over, unless the page's title or its
   ``<main>`` is inside, most of their text is code, or another of their names, such as "article-body", says the
   contrary. An id that is an address (of a section, of several words) says nothing. A tag is not believed where its
   element, never closed perhaps, holds twice the sentences of all the rest.
2. The *frame* is the innermost container with nine tenths of the page's sentences, or half of them where its tag
   or name says that it holds the main text and no other such container rivals it. Where such containers hold
   sentences, it is not outside all of them. A standfirst before the frame is taken with its title.
3. What follows a heading that is "Related articles" or the like is left out up to the next heading of its rank or its
   container's end, unless that were more than three tenths of the frame; so is a heading that is a link, with what
   little stands below it.
4. A block is *strong* (a long one), *good* (a sentence), *short*, or *bad*: mostly links, a label such as "3 likes" or
   "read more", a teaser. Lists and tables are judged whole by their share of links. Lengths are those of Latin scripts.
5. Strong blocks stay, bad ones go; good ones stay between strong ones or in the same container; short ones only
   with both. Headings stay where text follows.
6. The page is *doubtful* where this took less than ``DOUBT_SHARE`` of its visible text and, told to ignore names
   and roles, would have taken five times as much (twice, where it found little), or where it found nothing in a page
   that is not mostly links. Then trafilatura decides.

All of it is linear in the page. ``benchmarks/curate_extraction.py`` holds both methods to pages whose text is known.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from mickle.config import Config
from mickle.data.extraction_blocks import Block, Reader, outside_links, text_size
from mickle.data.extraction_formulas import spell_formulas
from mickle.data.extraction_rules import select

if TYPE_CHECKING:
    from lxml.etree import _Element

PAGE_ENDS = re.compile(r"</(?:body|html)\s*>", re.IGNORECASE)
NESTING = re.compile(r"</?(?!(?:p|h[1-6]|br|hr|a|pre|script|style)\b)[a-z][^<>]*>", re.IGNORECASE)
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
LINE_NUMBERED = re.compile(r"linen|line-num|gutter|blob-num|hljs-ln|\blnt?\b", re.IGNORECASE)
# What programs that colour code call the elements that hold its line numbers.
LINE_NUMBERS = re.compile(
    r"(?:^|\s)(?:line-?(?:no|num|nr|number)s?|linenodiv|(?:rouge-)?gutter|lnt?|blob-num|diff-line-num|hljs-ln-numbers)(?:\s|$)",
    re.IGNORECASE,
)
NUMBERS = re.compile(r"[\d\s.:|]*")
ADDRESS = re.compile(r"[ \t]?(?:\bhttps?://|\bwww\.)[^\s<>\"']*[^\s<>\"'.,;:!?)\]]", re.IGNORECASE)
DOUBT_SHARE, DOUBT_SHORT_SHARE = 0.2, 0.5  # of a page's text outside links that was found, and of a short find
DOUBT_SIZE, DOUBT_SHORT = 200, 500  # characters: outside links where nothing was found; of a short find
DOUBT_LARGEST = 1 << 19  # characters of HTML: in a larger page ours decides, since trafilatura may take a minute
DOUBT_CONTAINERS = 4000  # and so in a page of more lists, tables and divisions: it takes their square
REPEATED_SIZE, REPEATED_MOST = 100, 2  # a block this long stands this often, as in trafilatura


class Extraction(Config):
    """How a page's main text is found in its HTML."""

    method: Literal["fast", "trafilatura"] = Field(
        "fast",
        description="fast: ours, and trafilatura where a page is doubtful; trafilatura: the paper's, five to "
        "ten times slower",
    )
    tables: bool = Field(True, description="keep tables of data, a line for each row")
    code: bool = Field(True, description="keep code blocks, with their line breaks")
    addresses: bool = Field(False, description="keep web addresses written out in the text; the paper removes them")


DEFAULT = Extraction()


def main_text(html: str, settings: Extraction = DEFAULT) -> str:
    """The main text of an HTML page, tidied; empty where there is none."""
    text = fast(html, settings)[0] if settings.method == "fast" else reference(html, settings)
    if not settings.addresses and ("://" in text or "www." in text.lower()):  # asked first, as it is quick
        text = ADDRESS.sub("", text)
    return tidy(text)


def tidy(text: str) -> str:
    """Composed characters (NFC), plain newlines and at most one empty line, no control characters, no spaces
    at line ends.
    """
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = CONTROL.sub("", text).replace("\u00a0", " ").replace("\ufeff", "")
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def reference(html: str, settings: Extraction) -> str:
    """Main text by trafilatura with the paper's settings."""
    import trafilatura
    from trafilatura.deduplication import LRUCache

    text = trafilatura.extract(
        html,
        favor_precision=True,
        include_comments=False,
        include_tables=settings.tables,
        deduplicate=LRUCache(maxsize=4096),
        prune_xpath=None if settings.code else "//pre",
    )
    return str(text or "")


def fast(html: str, settings: Extraction) -> tuple[str, bool]:
    """Main text by our rules, and whether the page was doubtful, so that trafilatura decided."""
    root = parse(html)
    if root is None:
        return "", False
    reader = Reader(True, settings.tables, settings.code)
    reader.page(root)
    chosen = select(reader)
    if len(html) <= DOUBT_LARGEST and is_doubtful(root, reader, chosen):
        return reference(html, settings), True
    return written(chosen), False


def parse(html: str) -> _Element | None:
    """A page's tree by libxml2; none where there is no element. What follows an early end of the page belongs to it, as
    in browsers. It stops at 2048 elements inside each other: such a page is read without those that nest.
    """
    from lxml import etree

    parser = etree.HTMLParser(
        encoding="utf-8", remove_comments=True, remove_pis=True, collect_ids=False, huge_tree=True
    )
    html = PAGE_ENDS.sub("", html.replace("\0", ""))
    try:
        root: _Element | None = etree.fromstring(html.encode("utf-8", "replace"), parser)
        error = parser.error_log.last_error
        if error and error.type_name == "ERR_RESOURCE_LIMIT":
            root = etree.fromstring(NESTING.sub(" ", html).encode("utf-8", "replace"), parser)
    except etree.XMLSyntaxError:
        return None
    if root is not None:
        if any(word in html for word in ("math", "latex", "katex")):
            spell_formulas(root)
        if LINE_NUMBERED.search(html):
            drop_line_numbers(root)
        etree.strip_elements(root, "script", "style", "template", "svg", "select", "button", with_tail=False)
    return root


def drop_line_numbers(root: _Element) -> None:
    """Empties the elements beside code that hold nothing but the numbers of its lines."""
    for element in root.iter("td", "th", "div", "span", "pre", "a"):
        if LINE_NUMBERS.search(element.get("class") or "") and NUMBERS.fullmatch("".join(element.itertext())):
            element.clear(keep_tail=True)


def is_doubtful(root: _Element, reader: Reader, chosen: Sequence[Block]) -> bool:
    """Whether two views of the page, with and without the hints of names and roles, disagree; see rule 6."""
    size = sum(block.size for block in chosen)
    rest = sum(block.size - block.links for block in reader.blocks)
    least = DOUBT_SHORT_SHARE if size < DOUBT_SHORT else DOUBT_SHARE
    for count in (text_size, outside_links):  # the first is quick, and mostly enough
        if size >= least * (rest + sum(map(count, reader.passed))):
            return False
    other = Reader(False, reader.tables, reader.code)
    other.page(root)
    if len(other.parent) > DOUBT_CONTAINERS:
        return False
    if not chosen:
        total, links = sum(b.size for b in other.blocks), sum(b.links for b in other.blocks)
        return total - links > DOUBT_SIZE and links < 0.5 * total
    return size < least * sum(block.size for block in select(other))


def written(blocks: Sequence[Block]) -> str:
    """Blocks as text: an empty line between them, none inside a list or a table; ``- item`` for a list's item."""
    pieces: list[str] = []
    before: Block | None = None
    seen: Counter[str] = Counter()
    for block in blocks:
        if block.size > REPEATED_SIZE:
            seen[block.text] += 1
            if seen[block.text] > REPEATED_MOST:
                continue
        if before is not None:
            together = block.is_listed and before.is_listed and block.container == before.container
            pieces.append("\n" if together else "\n\n")
        pieces.append(f"- {block.text}" if block.kind == "item" else block.text)
        before = block
    return "".join(pieces).replace("\u00ad", "")  # soft hyphens are no text
