"""Web pages whose main text is known: blocks of text put into page templates with all that surrounds text on
the web.

Extraction is measured on them (arXiv 2306.01116, section 3.1, step 2): menus, sidebars, cookie notices,
counters, "read more" lines, related articles, comments, footers, scripts, forms. No two families share structure,
class names or boilerplate phrases between :data:`TUNING` (rules may be tuned on them) and :data:`HELDOUT` (only
reported). A page follows from its blocks, its family and its seed alone. The families stand in
``template_families``.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from random import Random
from typing import Literal

from mickle.data.installed import STDLIB, package_folder, parsed
from mickle.studies import template_families as families
from mickle.studies.template_phrases import Filler

TUNING = ("portal", "weblog", "thread", "manual", "shop", "wiki", "tables", "soup")
HELDOUT = ("magazine", "diary", "helpdesk", "board", "handbook", "store", "homepage", "agency")

Kind = Literal["heading", "paragraph", "list", "code", "table"]


@dataclass(frozen=True)
class Block:
    """A piece of main text: ``text`` for heading, paragraph and code; ``items`` for a list, and for a table its
    rows, cells apart by tabs.
    """

    kind: Kind
    text: str = ""
    items: tuple[str, ...] = ()


def truth(blocks: Sequence[Block]) -> str:
    """The main text that a perfect extractor gives: blocks apart by empty lines, items as ``- item``, rows as
    ``a | b``, code with its line breaks.
    """
    texts = []
    for block in blocks:
        if block.kind == "list":
            texts.append("\n".join(f"- {item}" for item in block.items))
        elif block.kind == "table":
            texts.append("\n".join(" | ".join(row.split("\t")) for row in block.items))
        else:
            texts.append(block.text)
    return "\n\n".join(texts)


def wrap(blocks: Sequence[Block], seed: int, family: str) -> str:
    """HTML of a page of ``family`` whose main text is ``blocks``; the same seed gives the same page."""
    if family not in TUNING + HELDOUT:
        raise ValueError(f"no family {family!r}; there are {', '.join(TUNING + HELDOUT)}")
    random = Random(f"{family} {seed}")
    filler = Filler(random, heldout=family in HELDOUT)
    headings = [block.text for block in blocks if block.kind == "heading"]
    title = headings[0] if headings else "Untitled"
    return str(getattr(families, family)(filler, escape(title), Body(blocks, random)))


class Body:
    """Blocks as HTML in the manner a family asks for: ``Body.html(...)`` once per page."""

    def __init__(self, blocks: Sequence[Block], random: Random) -> None:
        self.blocks, self.random = list(blocks), random

    def html(
        self, paragraph: str = "<p>{}</p>", heading: str = "<h2>{}</h2>", code: str = "<pre>{}</pre>"
    ) -> list[str]:
        """One piece of HTML per block; the first heading is an ``h1`` where headings are ``h2``."""
        pieces = []
        for place, block in enumerate(self.blocks):
            if block.kind == "paragraph":
                pieces.append(paragraph.format(self.inline(block.text)))
            elif block.kind == "heading":
                shape = heading if place else heading.replace("h2", "h1").replace("h3", "h1")
                pieces.append(shape.format(escape(block.text)))
            elif block.kind == "code":
                pieces.append(code.format(escape(block.text)))
            elif block.kind == "list":
                tag = self.random.choice(("ul", "ul", "ol"))
                pieces.append(f"<{tag}>" + "\n".join(f"<li>{self.inline(i)}</li>" for i in block.items) + f"</{tag}>")
            else:
                pieces.append(self.table(block))
        return pieces

    def table(self, block: Block) -> str:
        """A table whose first row may be a head."""
        head = self.random.random() < 0.5
        rows = []
        for number, row in enumerate(block.items):
            tag = "th" if head and number == 0 else "td"
            rows.append("<tr>" + "".join(f"<{tag}>{escape(c)}</{tag}>" for c in row.split("\t")) + "</tr>")
        return '<table class="data">' + "\n".join(rows) + "</table>"

    def inline(self, text: str) -> str:
        """Text with now and then a link or emphasis, and broken into source lines."""
        words = [escape(word, quote=False) for word in text.split()]
        for place, word in enumerate(words):
            chance = self.random.random()
            if chance < 0.02:
                words[place] = f'<a href="/{self.random.randrange(9999)}">{word}</a>'
            elif chance < 0.04:
                tag = self.random.choice(("em", "strong", "b", "i", "span"))
                words[place] = f"<{tag}>{word}</{tag}>"
        lines = [" ".join(words[start : start + 14]) for start in range(0, len(words), 14)]
        return "\n".join(lines)


@cache
def _library() -> dict[str, list[str]]:
    """Paragraphs, headings and code of the running Python's standard library, read and never run."""
    pool: dict[str, list[str]] = {"paragraph": [], "heading": [], "code": []}
    folder = package_folder(STDLIB)
    for path in sorted(folder.glob("[a-z]*.py")) + sorted(folder.glob("[a-z]*/__init__.py")):
        tree = parsed(path) if path.stat().st_size <= 200_000 else None
        if tree is None:
            continue
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        for node in ast.walk(tree):
            if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                continue
            for text in (ast.get_docstring(node) or "").split("\n\n"):
                words = text.split()
                prose = sum(word.isalpha() for word in words) > 0.7 * len(words) and ">>>" not in text
                if prose and 25 <= len(words) <= 150:
                    pool["paragraph"].append(" ".join(words))
                elif prose and 3 <= len(words) <= 12 and text == text.strip():
                    pool["heading"].append(" ".join(words).rstrip(".:"))
            if isinstance(node, ast.FunctionDef) and 3 <= (node.end_lineno or 0) - node.lineno <= 12:
                pool["code"].append(textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno])))
    return {kind: list(dict.fromkeys(texts)) for kind, texts in pool.items()}


def articles(count: int, seed: int, technical: float = 0.5) -> Iterator[list[Block]]:
    """Articles of 3 to 20 blocks put together from the standard library's documentation, for which no paragraph
    stands in two of them while there are enough; a share ``technical`` has code and tables.
    """
    random, pool = Random(seed), _library()
    paragraphs = random.sample(pool["paragraph"], len(pool["paragraph"]))
    place = 0

    def some(kind: str, least: int, most: int) -> tuple[str, ...]:
        return tuple(random.sample(pool[kind], random.randint(least, most)))

    def one(kind: Literal["heading", "code"]) -> Block:
        return Block(kind, random.choice(pool[kind]))

    for _ in range(count):
        blocks = [one("heading")]
        is_technical = random.random() < technical
        for number in range(random.randint(2, 14)):
            if number and random.random() < 0.2:
                blocks.append(one("heading"))
            blocks.append(Block("paragraph", paragraphs[place % len(paragraphs)]))
            place += 1
            chance = random.random()
            if chance < 0.12:
                blocks.append(Block("list", items=some("heading", 2, 8)))
            elif is_technical and chance < 0.3:
                blocks.append(one("code"))
            elif is_technical and chance < 0.38:
                rows = [f"{name}\t{random.randrange(1000)}" for name in some("heading", 2, 6)]
                blocks.append(Block("table", items=("Name\tNumber", *rows)))
        yield blocks
