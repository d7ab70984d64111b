"""Web pages whose main text is known: blocks of text put into page templates with all that surrounds text on the web.

Extraction is measured on them (arXiv 2306.01116, section 3.1, step 2): menus, sidebars, cookie notices, counters, "read
more" lines, related articles, comments, footers, scripts, forms. No two families share structure, class names or
boilerplate phrases between :data:`TUNING` (rules may be tuned on them) and :data:`HELDOUT` (only reported). A page
follows from its blocks, its family and its seed alone. The families stand in ``template_families``.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from random import Random

from mickle.studies import template_families as families
from mickle.studies.blocks import Block, Body
from mickle.studies.template_phrases import Filler

TUNING = ("portal", "weblog", "thread", "manual", "shop", "wiki", "tables", "soup")
HELDOUT = ("magazine", "diary", "helpdesk", "board", "handbook", "store", "homepage", "agency")


def wrap(blocks: Sequence[Block], seed: int, family: str) -> str:
    """HTML of a page of ``family`` whose main text is ``blocks``; the same seed gives the same page."""
    if family not in TUNING + HELDOUT:
        raise ValueError(f"no family {family!r}; there are {', '.join(TUNING + HELDOUT)}")
    random = Random(f"{family} {seed}")
    filler = Filler(random, heldout=family in HELDOUT)
    headings = [block.text for block in blocks if block.kind == "heading"]
    title = headings[0] if headings else "Untitled"
    return str(getattr(families, family)(filler, escape(title), Body(blocks, random)))
