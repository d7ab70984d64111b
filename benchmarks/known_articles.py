"""Articles of real text as the blocks of pages whose main text is known: to measure extraction, and for its tests."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from functools import cache
from random import Random
from typing import Literal

from mickle.data.installed import STDLIB, package_folder, parsed
from mickle.studies.blocks import Block


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
