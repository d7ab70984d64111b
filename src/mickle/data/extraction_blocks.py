"""A parsed page as a row of blocks: headings, paragraphs, list items, table rows and code, each with what tells main
text from boilerplate: its length, how much of it is links, where it stands, and what its elements are called.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal

from mickle.data.extraction_names import BELIEVED, HEADINGS, NEVER_HINTED, SORTS, Sort, meaning
from mickle.data.words import latin_length

if TYPE_CHECKING:
    from lxml.etree import _Element

DEEPEST = 200  # elements inside each other that are told apart; what is deeper is read as one row of lines

Kind = Literal["heading", "text", "item", "row", "code", "term"]
TEXTS = frozenset(("div", "td", "th", "body", "section", "article", "main"))
LAYOUT = ("table", "tr", "td", "h1", "h2", "h3", "h4", "pre", "form", "li", "script")
LONGEST_CELL = 600  # characters of a cell of data
KINDS: dict[str, Kind] = {"li": "item", "dd": "item", "dt": "term", **dict.fromkeys(HEADINGS, "heading")}
BREAK = "\0"  # stands for a line break inside a block; pages are parsed without NULs
STYLED_LINE = re.compile(r"display:\s*(?:block|list-item|table-row)")
CODE_LINE = re.compile(r"(?:^|[\s_-])line(?:\s|$)")
LITTLE = 200  # of a text outside links: what a tag calls furniture and holds no more is not looked into


@dataclass(slots=True)
class Block:
    """A piece of a page. ``size`` and ``links``, the part of it that stands in links, are Latin lengths; ``container``
    numbers the list, table or other element that holds it; ``level`` is a heading's, 1 to 6; ``region`` is 0, or the
    container around it whose tag, such as ``aside``, says that it is furniture.
    """

    kind: Kind
    text: str
    size: int
    links: int
    container: int
    level: int = 0
    region: int = 0

    @property
    def is_listed(self) -> bool:
        """Whether it is one of a list's items or a table's rows."""
        return self.kind in ("item", "row", "term")


class Reader:
    """One walk over a page in document order. ``blocks`` is what it found. Containers are numbered as they open, 0
    being the page: ``parent`` of each, and the ``last`` container inside each; ``welcome`` are those whose tag or
    name says that they hold the main text. With ``hints`` it passes over what tags, names, roles and styles call
    furniture, the elements ``passed``.
    """

    def __init__(self, hints: bool, tables: bool, code: bool) -> None:
        self.hints, self.tables, self.code = hints, tables, code
        self.blocks: list[Block] = []
        self.parent, self.last = [0], [0]
        self.welcome: set[int] = set()
        self.spine: set[_Element] = set()
        self.container = self.region = 0
        self.passed: list[_Element] = []
        self.words: list[str] = []  # of the block that is open
        self.links = 0  # of its size, that in links
        self.kind: Kind = "text"

    def page(self, root: _Element) -> None:
        """Reads a whole page."""
        self.spine = spine(root) if self.hints else set()
        self.read(root, 0, False)
        self.close()
        self.last[0] = len(self.parent) - 1

    def add(self, text: str | None, in_link: bool) -> None:
        """Text for the open block."""
        if text:
            self.words.append(text)
            if in_link:
                self.links += latin_length(text.strip())

    def close(self, level: int = 0) -> None:
        """Ends the open block, if it has text."""
        if self.words:
            text = "".join(self.words)
            if BREAK in text:
                lines = (" ".join(line.split()) for line in text.split(BREAK))
                text = (" " if level else "\n").join(line for line in lines if line)
            else:
                text = " ".join(text.split())
            self.put(self.kind, text, self.links, level)
            self.words = []
        self.links = 0

    def put(self, kind: Kind, text: str, links: int, level: int = 0) -> None:
        """A finished block, if it has text."""
        if text:
            size = latin_length(text)
            self.blocks.append(Block(kind, text, size, min(links, size), self.container, level, self.region))

    def read(self, element: _Element, depth: int, in_link: bool) -> None:
        """Reads an element's text and children, not its tail."""
        if text := element.text:
            self.add(text, in_link)
        broken = False
        for child in element:
            sort = SORTS.get(child.tag, "inline")
            if sort == "break":
                if broken:
                    self.close()
                else:
                    self.words.append(BREAK)
            elif sort != "unseen":
                self.visit(child, sort, depth + 1, in_link)
            text = child.tail
            broken = sort == "break" and not (text and text.strip())
            if text:
                self.add(text, in_link)

    def visit(self, element: _Element, sort: Sort, depth: int, in_link: bool) -> None:
        """Reads an element according to its tag and names, if these do not call it furniture."""
        tag, outer = element.tag, self.region
        hint, welcome = meaning(element) if element.keys() else (False, False)
        if tag == "noscript" and "javascript" in "".join(islice(element.itertext(), 20)).lower():
            return  # a request to switch it on; other text stands there for readers without it
        if (hint or tag in BELIEVED) and self.hints and not outer and self.is_furniture(element):
            self.passed.append(element)
            return
        if sort == "furniture" and not outer:
            if outside_links(element) < LITTLE:
                self.passed.append(element)
                return
            self.region = len(self.parent)
        if depth > DEEPEST:
            self.flat(element)
        elif sort == "inline":
            self.read(element, depth, in_link)
        elif sort == "link":
            address = element.get("href")
            # A heading's link to itself makes no teaser of it.
            is_link = address is not None and not (self.kind == "heading" and "#" in address)
            self.read(element, depth, in_link or is_link)
        elif sort == "listing" or element.get("class") == "fragment":  # Doxygen's listings
            self.close()
            self.listing(element)
        elif sort in ("line", "heading"):
            self.close()
            kind, self.kind = self.kind, KINDS.get(tag, self.kind)
            self.read(element, depth, in_link)
            self.close(int(tag[1]) if sort == "heading" else 0)
            self.kind = kind
        else:
            self.close()
            self.inside(element, tag, depth, in_link, (welcome and tag != "body") or tag in ("article", "main"))
        self.region = outer

    def is_furniture(self, element: _Element) -> bool:
        """Whether an element's names, which call it furniture, are believed."""
        return not (element.tag in NEVER_HINTED or element in self.spine or is_code(element))

    def inside(self, element: _Element, tag: str, depth: int, in_link: bool, welcome: bool) -> None:
        """Reads an element that holds blocks."""
        outer, kind = self.container, self.kind
        self.parent.append(outer)
        self.last.append(0)
        here = self.container = len(self.parent) - 1
        if welcome:
            self.welcome.add(here)
        rows = data_rows(element) if tag == "table" else None
        if rows is None:
            if tag in TEXTS:
                self.kind = "text"
            self.read(element, depth, in_link)
            self.close()
        elif self.tables:
            self.rows(rows)
        self.last[here] = len(self.parent) - 1
        self.container, self.kind = outer, kind

    def flat(self, element: _Element) -> None:
        """Reads an element's lines without its structure: Python's calls inside each other end somewhere."""
        for line in lines_of(element):
            self.close()
            self.words.append(line)

    def listing(self, element: _Element) -> None:
        """Code, or other text whose line breaks count."""
        if self.code:
            text = "\n".join(lines_of(element)).strip("\n")
            self.put("code", text if text.strip() else "", link_size(element))

    def rows(self, rows: list[_Element]) -> None:
        """The rows of a table of data, a block each."""
        for row in rows:
            cells = [" ".join(" ".join(lines_of(cell)).split()) for cell in row if isinstance(cell.tag, str)]
            if any(cells):
                self.put("row", " | ".join(cells), link_size(row))


def lines_of(element: _Element) -> list[str]:
    """An element's text, cut where elements and ``br`` begin and end a line; as written between."""
    from lxml.etree import iterwalk

    if not any(map(is_own_line, element.iterdescendants())):
        return [text_of(element)]
    pieces: list[str] = []
    is_new = True  # at the beginning of a line
    for event, node in iterwalk(element, events=("start", "end")):
        if node is element and event == "end":
            break
        ends = event == "end"
        is_line = is_own_line(node) and node is not element and (ends or node.tag != "br")
        if is_line and (not is_new or (ends and not node.text and not len(node))):
            pieces.append(BREAK)
            is_new = True
        text = node.tail if ends else node.text
        if text and is_line and ends and is_new:
            text = text.removeprefix("\n")  # the source's, beside the element's
        if text:
            pieces.append(text)
            is_new = text.endswith("\n")
    return [line.removesuffix("\n") for line in "".join(pieces).removesuffix(BREAK).split(BREAK)]


def is_own_line(element: _Element) -> bool:
    """Whether an element stands in a line of its own, or is a ``br``."""
    sort = SORTS.get(element.tag, "inline")
    if sort == "inline" and element.tag == "span":
        if element.get("style") and STYLED_LINE.search(element.get("style", "")):
            return True
        following = element.getnext()  # a ``br`` after each line breaks it itself
        return bool(CODE_LINE.search(element.get("class", ""))) and (following is None or following.tag != "br")
    return sort not in ("inline", "link", "unseen")


def is_code(element: _Element) -> bool:
    """Whether most of an element's text is code: then its names speak of a language, or of the buttons beside."""
    size = sum(map(text_size, element.iter("pre")))
    return size > 0 and 2 * size > text_size(element)


def spine(root: _Element) -> set[_Element]:
    """The elements around a page's title and its main part: names do not speak against them."""
    found: set[_Element] = set()
    for element in root.iter("h1", "main"):
        above = element.getparent()
        while above is not None and above not in found:
            found.add(above)
            above = above.getparent()
    return found


def text_of(element: _Element) -> str:
    """All text inside an element, as it stands in the source."""
    from lxml.etree import tostring

    return tostring(element, method="text", encoding="unicode", with_tail=False)


def text_size(element: _Element) -> int:
    """Characters inside an element."""
    return len(text_of(element))


def link_size(element: _Element) -> int:
    """How much of an element's text stands in links."""
    return sum(latin_length(text_of(link)) for link in element.iter("a") if link.get("href"))


def outside_links(element: _Element) -> int:
    """How much of an element's text stands in no link, its spaces counted once."""
    return len(" ".join(text_of(element).split())) - link_size(element)


def data_rows(table: _Element) -> list[_Element] | None:
    """Rows of a table that holds data; none where it is there for the layout: a single row, tables, headings, code
    or lists of links inside, or long cells.
    """
    rows: list[_Element] = []
    for element in table.iter(*LAYOUT):
        if element.tag == "tr":
            rows.append(element)
        elif element.tag == "td":
            size = 0
            for text in element.itertext():
                size += len(text)
                if size > LONGEST_CELL:
                    return None
        elif element is not table and not (element.tag == "li" and next(element.iter("a"), None) is None):
            return None
    return rows if len(rows) > 1 else None
