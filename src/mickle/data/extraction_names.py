"""What tag, names, role and style of an element say of it: furniture of the site, or its main text."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lxml.etree import _Element

Said = Literal["nothing", "furniture", "teaser", "body", "post", "part"]
Sort = Literal["unseen", "break", "inline", "link", "holder", "furniture", "line", "heading", "listing"]
HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")

# fmt: off
UNSEEN = (
    "script", "style", "template", "head", "title", "svg", "canvas", "iframe", "frame", "frameset", "object", "embed",
    "applet", "audio", "video", "select", "option", "button", "input", "textarea", "label", "map", "link", "meta",
    "param", "rp", "rt", "source", "datalist", "marquee", "img")
FURNITURE = ("nav", "aside", "menu")  # often not closed, or used for the main text
BELIEVED = ("footer", "dialog", "figcaption")
HOLDERS = (
    "html", "body", "div", "section", "article", "main", "td", "th", "tr", "table", "tbody", "thead", "tfoot", "center",
    "form", "fieldset", "details", "dl", "blockquote", "ul", "ol", "hgroup", "header", "figure", "address")
LINES = ("p", "li", "dt", "dd", "caption", "summary", "hr", "legend", "noframes")
LISTINGS = ("pre", "listing", "xmp", "plaintext")
SORTS: dict[object, Sort] = {
    "br": "break", "a": "link", **dict.fromkeys(UNSEEN, "unseen"), **dict.fromkeys(FURNITURE, "furniture"),
    **dict.fromkeys(HEADINGS, "heading"), **dict.fromkeys((*HOLDERS, *BELIEVED), "holder"),
    **dict.fromkeys(LINES, "line"), **dict.fromkeys(LISTINGS, "listing")}
NEVER_HINTED = frozenset(("html", "body", "main", "article", "code", "em", "strong", "b", "i", *HEADINGS, *LISTINGS))
HINTS = frozenset((
    "ad", "ads", "adsbygoogle", "advert", "advertisement", "advertising", "sponsor", "sponsored", "promo", "promotion",
    "nav", "navbar", "navbox", "navigation", "subnav", "menu", "submenu", "topnav", "sidenav", "breadcrumb",
    "breadcrumbs", "crumbs", "crumb", "pagination", "pager", "paging", "paginator", "toc", "sidebar", "sphinxsidebar",
    "footer", "foot", "pagefooter", "siteinfo", "colophon", "copyright", "masthead", "topbar", "toolbar",
    "comment", "comments", "commentlist", "disqus", "respond", "reply", "replies", "reviews", "review", "rating",
    "ratings", "votes", "vote", "share", "sharing", "shares", "sharedaddy", "social", "follow", "likes", "related",
    "relatedposts", "recommended", "recommendations", "upsell", "popular", "trending",
    "teasers", "cookie", "cookies", "consent", "gdpr", "newsletter", "subscribe", "subscription", "signup", "login",
    "signin", "modal", "popup", "search", "searchbox", "searchform", "byline", "author", "postprofile",
    "profile", "userinfo", "entrymeta", "postmeta", "tags", "tagcloud", "taglist", "catlinks",
    "widgets", "skip", "invisible", "noprint", "printfooter", "editsection", "headerlink", "signature", "caption",
    "captions", "cart", "basket", "price", "wishlist", "language", "languages", "dropdown", "jumpbox", "tooltip"))
CONTENT = frozenset(("content", "body", "article", "main", "text", "story", "post"))
WELCOME = frozenset((
    "articlebody", "entry-content", "post-content", "article-content", "article-body", "post-body", "story-body",
    "bodycontent", "mw-content-text", "page-content", "main-content", "postbody", "markdown-body", "entry", "post"))
# fmt: on
NO_SECTIONS = frozenset(("comment", "comments", "related", "sidebar", "footer"))
ENDINGS = ("content", "body", "text")
SUBJECTS = frozenset(("article", "post", "entry", "story", "news", "main", "blog"))
HINTED_ROLES = frozenset(("navigation", "search", "dialog", "alertdialog", "contentinfo", "banner", "complementary"))
CAMEL = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
HIDDEN = re.compile(r"display\s*:\s*none", re.IGNORECASE)
PHRASE = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+){2,}")
SECTION = re.compile(r"(?:^|\s)(?:section|sect\d|level\d)(?:\s|$)")
LONGEST_NAMES = 300  # characters of class and id looked at


def words_of(name: str) -> list[str]:
    """The words of a class or id, also of ``camelCase``. One with a digit is a build tool's and left out."""
    parts = [part for part in name.replace("_", "-").split("-") if part.isalpha()]
    return parts if name.islower() else [word.lower() for part in parts for word in CAMEL.findall(part)]


@lru_cache(maxsize=1 << 14)
def said_by(name: str) -> Said:
    """What a single class or id says of its element: "furniture" where its first or last word is in ``HINTS``,
    "body" where it is known to hold the main text, "part" where it ends so; "post" may hold all that belongs to one.
    """
    words = words_of(name)
    if not words:
        return "nothing"
    if words[0] in HINTS or words[-1] in HINTS or "".join(words) in HINTS:
        return "furniture"
    if name.lower() in WELCOME or (words[-1] in ENDINGS and not SUBJECTS.isdisjoint(words)):
        return "post" if name == "post" else "body"
    if "teaser" in (words[0], words[-1]):
        return "teaser"
    return "part" if len(words) > 1 and words[-1] in CONTENT else "nothing"


@lru_cache(maxsize=1 << 14)
def said_of(names: str) -> tuple[Said, bool]:
    """Whether class and id say that an element is "furniture", or a "teaser", one of them and none the contrary; and
    whether one says that it holds the main text.
    """
    said = {said_by(name) for name in names.split()}
    welcome = not said.isdisjoint(("body", "post"))
    if "body" in said or "part" in said:
        return "nothing", welcome
    return "furniture" if "furniture" in said else "teaser" if "teaser" in said else "nothing", welcome


def meaning(element: _Element) -> tuple[bool, bool]:
    """Whether an element's attributes say that it is no main text, and whether that it holds it."""
    names = identity = ""
    hint = welcome = False
    for key, value in element.items():
        if key == "class":
            names = value[:LONGEST_NAMES]
        elif key == "id":
            identity = value[:LONGEST_NAMES]
        elif key == "role":
            hint, welcome = value in HINTED_ROLES, value in ("main", "article")
        elif key == "itemprop" and value == "articleBody":
            welcome = True
        elif (key == "aria-hidden" and value == "true") or (key == "style" and HIDDEN.search(value)):
            hint = True
    if not names and not identity:
        return hint, welcome
    said, body = said_of(f"{names} {identity}")
    if said == "teaser" and not hint:
        hint = next(element.iter("a"), None) is not None  # one without a link is the standfirst
    elif said == "furniture" and not hint:
        hint = said_of(names)[0] == said or not is_address(identity, element)
    return hint, welcome or body


def is_address(identity: str, element: _Element) -> bool:
    """Whether an id is there to be linked to and says nothing of its element: a phrase of three words and more, the
    words of the first heading inside, or the id of a document's section, which begins with its heading.
    """
    if PHRASE.fullmatch(identity):
        return True
    first = next(iter(element), None)
    if first is not None and first.tag in HEADINGS and is_section(element):
        return identity.lower() not in NO_SECTIONS
    heading = next(element.iter(*HEADINGS), None)
    words = re.findall(r"[^\W_]+", identity.lower())
    return heading is not None and re.findall(r"\w+", "".join(heading.itertext()).lower()) == words


def is_section(element: _Element) -> bool:
    """Whether an element is a section of a document, as HTML, docutils and pandoc mark them."""
    return element.tag == "section" or bool(SECTION.search(element.get("class", "")))
