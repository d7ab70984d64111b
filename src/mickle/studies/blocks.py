"""A text as blocks, and its HTML inside a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from random import Random
from typing import Literal

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
