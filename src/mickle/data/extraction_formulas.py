"""Formulas of a page as words: their TeX where a page has it, else what MathML draws, written in a line."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lxml.etree import _Element

IMAGES = frozenset(("math", "tex", "latex", "mwe-math-fallback-image-inline", "mwe-math-fallback-image-display"))
SIGNS = {"msub": "_", "msup": "^", "munder": "_", "mover": "^", "mfrac": "/"}  # between two parts
TWO_SIGNS = {"msubsup", "munderover"}
DEEPEST = 50  # elements inside each other that are told apart


def spell_formulas(root: _Element) -> None:
    """Makes each formula a word: its TeX, or what its signs are, once, whatever a page holds to draw it."""
    for formula in list(root.iter("script")):
        kind = formula.get("type") or ""
        if kind.startswith("math/"):
            for drawn in formula.itersiblings(preceding=True):
                if not (drawn.get("class") or "").startswith("MathJax"):
                    break
                drawn.clear(keep_tail=True)
            source = formula.text or ""
            set_word(formula, _from_source(source) if kind.startswith("math/mml") else source)
    for formula in list(root.iter("math")):
        notes = {note.get("encoding", ""): note.text for note in formula.iter("annotation", "annotation-xml")}
        set_word(formula, notes.get("application/x-tex") or formula.get("alttext") or in_a_line(formula))
    for drawn in list(root.iter("span", "img")):
        names = (drawn.get("class") or "").split()
        before = drawn.getprevious()
        said = "" if before is None else "".join(before.itertext())
        if drawn.tag == "img" and IMAGES.intersection(names) and (text := drawn.get("alt", "")) not in said:
            set_word(drawn, text)
        elif "katex-html" in names and not said:
            set_word(drawn, "".join(drawn.itertext()))


def set_word(element: _Element, text: str) -> None:
    """An element as nothing but text, also where it stands hidden, for programs that read pages aloud."""
    element.clear(keep_tail=True)
    element.tag, element.text = "span", text
    around = element.getparent()
    if around is not None and around.tag == "span":
        around.attrib.clear()


def _from_source(source: str) -> str:
    """A formula whose MathML stands as text."""
    from lxml import etree, html

    try:
        return in_a_line(html.fragment_fromstring(source, create_parent="math"))
    except (etree.ParserError, etree.XMLSyntaxError):
        return ""


def in_a_line(formula: _Element) -> str:
    """MathML as people type it: (a+b)/2, x^2, a_(i+1), √(2r); rows of a table between semicolons."""
    return " ".join(_written(formula, 0).split())


def _written(element: _Element, depth: int) -> str:
    tag = str(element.tag)
    if depth > DEEPEST or not len(element):
        return "".join(element.itertext())
    children = [child for child in element if not str(child.tag).startswith(("annotation", "mphantom"))]
    parts = [_written(child, depth + 1) for child in children]
    if tag in SIGNS and len(parts) == 2:
        return SIGNS[tag].join(map(_grouped, parts))
    if tag in TWO_SIGNS and len(parts) == 3:
        return "{}_{}^{}".format(*map(_grouped, parts))
    if tag == "msqrt":
        return f"\u221a{_grouped(''.join(parts))}"
    if tag == "mroot" and len(parts) == 2:
        return f"{_grouped(parts[0])}^(1/{parts[1].strip()})"
    if tag in ("mtr", "mtable"):
        return (", " if tag == "mtr" else "; ").join(map(str.strip, parts))
    between = [element.text or "", *(child.tail or "" for child in children)]
    return between[0] + "".join(part + after for part, after in zip(parts, between[1:], strict=True))


def _grouped(text: str) -> str:
    """A part that a sign must not tear apart, in brackets."""
    text = text.strip()
    return (
        text if len(text) < 2 or text.isalnum() or (text[0] == "(" and text.find(")") == len(text) - 1) else f"({text})"
    )
