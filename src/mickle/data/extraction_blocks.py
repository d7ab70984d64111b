"""A parsed page as a row of blocks: headings, paragraphs, list items, table rows and code, each with what tells main
text from boilerplate: its length, how much of it is links, and where it stands.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lxml.etree import _Element

DEEPEST = 300  # elements inside each other; libxml2 itself stops at 255

Kind = Literal["heading", "text", "item", "row", "code", "term"]

# fmt: off
UNSEEN = frozenset((
    "script", "style", "noscript", "template", "head", "title", "svg", "math", "canvas", "iframe", "frame", "frameset",
    "object", "embed", "applet", "audio", "video", "select", "option", "button", "input", "textarea", "nav", "footer",
    "aside", "menu", "dialog", "label", "map", "link", "meta", "param", "source", "datalist", "figcaption",
    "marquee"))
HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
CONTAINERS = frozenset((
    "html", "body", "div", "section", "article", "main", "td", "th", "tr", "table", "tbody", "thead", "tfoot", "center",
    "form", "fieldset", "details", "dl", "blockquote", "ul", "ol", "hgroup", "header", "figure", "address"))
LINES = frozenset(("p", "li", "dt", "dd", "caption", "summary", "hr", "legend", "noframes"))
NEVER_HINTED = frozenset(("html", "body", "main", "article", "h1", "h2", "h3", "code", "em", "strong", "b", "i", "pre"))
HINTS = frozenset((
    "ad", "ads", "adsbygoogle", "advert", "advertisement", "advertising", "sponsor", "sponsored", "promo", "promotion",
    "nav", "navbar", "navbox", "navigation", "subnav", "menu", "submenu", "topnav", "sidenav", "breadcrumb",
    "breadcrumbs", "crumbs", "crumb", "pagination", "pager", "paging", "paginator", "toc", "sidebar", "sphinxsidebar",
    "footer", "foot", "pagefooter", "siteinfo", "colophon", "copyright", "masthead", "topbar", "toolbar",
    "comment", "comments", "commentlist", "disqus", "respond", "reply", "replies", "reviews", "review", "rating",
    "ratings", "votes", "vote", "share", "sharing", "shares", "sharedaddy", "social", "follow", "likes", "related",
    "relatedposts", "recommended", "recommendations", "upsell", "popular", "trending", "teaser",
    "teasers", "cookie", "cookies", "consent", "gdpr", "newsletter", "subscribe", "subscription", "signup", "login",
    "signin", "modal", "popup", "search", "searchbox", "searchform", "byline", "author", "postprofile",
    "profile", "userinfo", "entrymeta", "postmeta", "tags", "tagcloud", "taglist", "catlinks",
    "widgets", "skip", "invisible", "noprint", "printfooter", "editsection", "headerlink",
    "signature", "cart", "basket", "price", "wishlist", "language", "languages", "dropdown", "jumpbox", "tooltip"))
CONTENT = frozenset(("content", "body", "article", "main", "text", "story", "post"))
WELCOME = frozenset((
    "articlebody", "entry-content", "post-content", "article-content", "article-body", "post-body", "story-body",
    "bodycontent", "mw-content-text", "page-content", "main-content", "postbody", "markdown-body", "entry", "post"))
# fmt: on
TEXTS = frozenset(("div", "td", "th", "body", "section", "article", "main"))
LISTINGS = frozenset(("pre", "listing", "xmp", "plaintext"))
LAYOUT = ("table", "tr", "td", "h1", "h2", "h3", "h4", "pre", "form", "li", "script")
LONGEST_CELL = 600  # characters of a cell of data
KINDS: dict[str, Kind] = {"li": "item", "dd": "item", "dt": "term", **dict.fromkeys(HEADINGS, "heading")}
HINTED_ROLES = frozenset(("navigation", "search", "dialog", "alertdialog", "contentinfo", "banner", "complementary"))
BREAK = "\0"  # stands for a line break inside a block; pages are parsed without NULs
WORD = re.compile(r"(?<![^\W_])[a-zA-Z]+(?![^\W_])")
CAMEL = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
LONGEST_NAMES = 300  # characters of class and id looked at


@dataclass(slots=True)
class Block:
    """A piece of a page. ``links`` of its ``size`` characters stand in links; ``container`` numbers the list, table
    or other element that holds it; ``level`` is a heading's, 1 to 6.
    """

    kind: Kind
    text: str
    size: int
    links: int
    container: int
    level: int = 0

    @property
    def is_listed(self) -> bool:
        """Whether it is one of a list's items or a table's rows."""
        return self.kind in ("item", "row", "term")


@lru_cache(maxsize=4096)
def is_hint(names: str) -> bool:
    """Whether class and id say that an element is no main text: one of them, its first or its last word (also of
    ``camelCase``) is in ``HINTS``, unless another such as "article-body" ends in one of ``CONTENT``. A name with a
    digit in its words is a build tool's and says nothing.
    """
    hint = False
    for name in names.split():
        words = [part.lower() for word in WORD.findall(name) for part in CAMEL.findall(word)]
        if not words:
            continue
        if words[0] in HINTS or words[-1] in HINTS or "".join(words) in HINTS:
            hint = True
        elif words[-1] in CONTENT and len(words) > 1:
            return False
    return hint


class Reader:
    """One walk over a page in document order. ``blocks`` is what it found. Containers are numbered as they open, 0
    being the page: ``parent`` of each, and the ``last`` container inside each; ``welcome`` are those whose tag or
    name says that they hold the main text. With ``hints`` it passes over what :func:`is_hint`.
    """

    def __init__(self, hints: bool, tables: bool, code: bool) -> None:
        self.hints, self.tables, self.code = hints, tables, code
        self.blocks: list[Block] = []
        self.parent, self.last = [0], [0]
        self.welcome: set[int] = set()
        self.spine: set[_Element] = set()
        self.container = 0
        self.words: list[str] = []  # of the block that is open
        self.links = 0  # of its characters, those in links
        self.kind: Kind = "text"

    def page(self, root: _Element) -> None:
        """Reads a whole page."""
        self.spine = spine(root) if self.hints else set()
        self.read(root, 0, False)
        self.close()
        self.last[0] = len(self.parent) - 1

    def close(self, level: int = 0) -> None:
        """Ends the open block, if it has text."""
        if self.words:
            text = "".join(self.words)
            if BREAK in text:
                lines = (" ".join(line.split()) for line in text.split(BREAK))
                text = (" " if level else "\n").join(line for line in lines if line)
            else:
                text = " ".join(text.split())
            if text:
                links = min(self.links, len(text))
                self.blocks.append(Block(self.kind, text, len(text), links, self.container, level))
            self.words = []
        self.links = 0

    def read(self, element: _Element, depth: int, in_link: bool) -> None:
        """Reads an element's text and children, not its tail."""
        if text := element.text:
            self.words.append(text)
            if in_link:
                self.links += len(text.strip())
        broken = False
        for child in element:
            tag = child.tag
            if tag == "br":
                if broken:
                    self.close()
                else:
                    self.words.append(BREAK)
            elif self.is_seen(child, tag) and depth < DEEPEST:
                self.visit(child, tag, depth + 1, in_link)
            text = child.tail
            broken = tag == "br" and not (text and text.strip())
            if text:
                self.words.append(text)
                if in_link:
                    self.links += len(text.strip())

    def is_seen(self, element: _Element, tag: object) -> bool:
        """Whether an element is looked into: not where its tag, or with hints its names, role or style, say that
        it is no main text.
        """
        if tag in UNSEEN or not isinstance(tag, str):
            return False
        if not self.hints or tag in NEVER_HINTED or not element.attrib or element in self.spine:
            return True
        return not has_hint(element)

    def visit(self, element: _Element, tag: str, depth: int, in_link: bool) -> None:
        """Reads an element according to its tag."""
        if tag == "a":
            address = element.get("href")
            # A heading's link to itself makes no teaser of it.
            is_link = address is not None and not (self.kind == "heading" and address.startswith("#"))
            self.read(element, depth, in_link or is_link)
        elif tag == "div" and (lines := code_lines(element)):
            self.listing(element, "\n".join(lines))
        elif tag in CONTAINERS:
            self.inside(element, tag, depth, in_link)
        elif tag in LINES or tag in HEADINGS:
            self.close()
            outer, self.kind = self.kind, KINDS.get(tag, self.kind)
            self.read(element, depth, in_link)
            self.close(int(tag[1]) if tag in HEADINGS else 0)
            self.kind = outer
        elif tag in LISTINGS:
            self.listing(element, "".join(element.itertext()))
        else:
            self.read(element, depth, in_link)

    def inside(self, element: _Element, tag: str, depth: int, in_link: bool) -> None:
        """Reads an element that holds blocks."""
        self.close()
        outer, kind = self.container, self.kind
        self.parent.append(outer)
        self.last.append(0)
        here = self.container = len(self.parent) - 1
        if is_welcome(element, tag):
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

    def listing(self, element: _Element, text: str) -> None:
        """Code, or other text whose line breaks count."""
        self.close()
        text = text.strip("\n")
        if self.code and text.strip():
            links = min(link_size(element), len(text))
            self.blocks.append(Block("code", text, len(text), links, self.container))

    def rows(self, rows: list[_Element]) -> None:
        """The rows of a table of data, a block each."""
        for row in rows:
            cells = [" ".join("".join(cell.itertext()).split()) for cell in row if isinstance(cell.tag, str)]
            if size := sum(map(len, cells)):
                links = min(link_size(row), size)
                self.blocks.append(Block("row", " | ".join(cells), size, links, self.container))


def spine(root: _Element) -> set[_Element]:
    """The elements around a page's title and its main part: names do not speak against them."""
    found: set[_Element] = set()
    for element in root.iter("h1", "main"):
        above = element.getparent()
        while above is not None and above not in found:
            found.add(above)
            above = above.getparent()
    return found


def has_hint(element: _Element) -> bool:
    """Whether an element's names, role or style say that it is no main text."""
    get = element.get
    names = f"{get('class') or ''} {get('id') or ''}"
    if names != " " and is_hint(names[:LONGEST_NAMES]):
        return True
    if get("role") in HINTED_ROLES or get("aria-hidden") == "true":
        return True
    style = get("style")
    return bool(style) and "display:none" in style.replace(" ", "").lower()


def is_welcome(element: _Element, tag: str) -> bool:
    """Whether a container's tag, role or names say that it holds the main text."""
    if tag in ("article", "main"):
        return True
    if not element.attrib:
        return False
    if element.get("role") in ("main", "article") or element.get("itemprop") == "articleBody":
        return True
    names = f"{element.get('class') or ''} {element.get('id') or ''}".lower()
    return any(name in WELCOME for name in names.split())


def code_lines(element: _Element) -> list[str]:
    """The lines of a listing in which each is an element, as Doxygen writes them; none of another element."""
    if element.get("class") != "fragment":
        return []
    return ["".join(line.itertext()) for line in element if line.tag == "div"]


def link_size(element: _Element) -> int:
    """Characters in links inside an element."""
    return sum(len(text) for link in element.iter("a") if link.get("href") for text in link.itertext())


def data_rows(table: _Element) -> list[_Element] | None:
    """Rows of a table that holds data; none where it is there for the layout: a single row, tables, headings, code
    or lists inside, or long cells.
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
        elif element is not table:
            return None
    return rows if len(rows) > 1 else None
