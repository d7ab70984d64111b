"""A small web for tests: real sentences in varied order, with a page for every stage to take out."""

from __future__ import annotations

import random

CONTENT_WORDS = """
river bridge winter market village doctor letter garden harbour teacher engine forest island lantern window crosses
follows remembers repairs carries watches answers gathers measures paints opens borrows weather kitchen story morning
copper ladder sister question mountain paper station candle apple wooden narrow quiet early broken distant careful
honest yellow heavy simple ancient sudden walking reading building singing waiting turning history number country water
evening family science picture travel machine problem silver friend council music bread summer office captain
neighbour valley corner shadow pocket blanket button journey signal thunder
"""
FUNCTION_WORDS = "the of and to that with in for from by under over after before when where because while which the the"
CONTENT, FUNCTION = CONTENT_WORDS.split(), FUNCTION_WORDS.split()


def sentence(draw: random.Random) -> str:
    """A dozen English words or more that make no sense, few of them twice in the same order."""
    words: list[str] = []
    for _ in range(draw.randrange(6, 11)):
        words += [draw.choice(FUNCTION), draw.choice(CONTENT)]
        if draw.random() < 0.3:
            words.append(draw.choice(CONTENT))
    return " ".join(words).capitalize() + "."


def paragraph(draw: random.Random, count: int = 5) -> str:
    return " ".join(sentence(draw) for _ in range(count))


def article(seed: int, paragraphs: int = 4) -> str:
    draw = random.Random(seed)
    return "\n\n".join(paragraph(draw) for _ in range(paragraphs))


def html(text: str) -> bytes:
    body = "".join(f"<p>{part}</p>" for part in text.split("\n\n"))
    return (
        "<html><head><title>A page</title></head><body><nav><ul><li><a href='/'>Home</a></li><li><a href='/about'>"
        f"About us</a></li></ul></nav><article>{body}</article><footer>All rights reserved</footer></body></html>"
    ).encode()


def edited(text: str, seed: int, share: float = 0.01) -> str:
    """The text with some words replaced."""
    draw = random.Random(seed)
    words = text.split(" ")
    for place in draw.sample(range(len(words)), max(1, int(share * len(words)))):
        words[place] = "otherwise"
    return " ".join(words)


SPAM = "Buy the best cheap tickets here today and save."
SHORT = "A page of few words that is too short for the corpus, with nothing in it that comes twice, and hard to find."
GERMAN = (
    "Der Fluss fließt an der alten Stadt vorbei, und niemand erinnert sich an einen kälteren Winter als diesen. "
    "Die Leute gehen über die Brücke, kaufen auf dem Markt ein und reden über das Wetter, das sich nicht ändert. "
)


def pages(count: int = 40) -> list[tuple[str, bytes, str]]:
    """(address, HTML, stage that takes it out or ""), good pages first."""
    found = [(f"https://a{i % 7}.org/{i}", html(article(i)), "") for i in range(count)]
    shared = paragraph(random.Random(999), 8)
    found += [
        ("https://casino-poker-betting.example/win", html(article(900)), "urls"),
        ("https://en.wikipedia.org/wiki/River", html(article(901)), "urls"),
        ("https://b.org/de", html(GERMAN * 4), "language"),
        ("https://b.org/spam", html("\n\n".join([SPAM] * 30)), "repetitions"),
        ("https://b.org/short", html(SHORT), "quality"),
        ("https://c.org/near", html(edited(article(3), 1)), "near duplicates"),
        ("https://c.org/copy", html(article(5)), "near duplicates"),
        ("https://d.org/1", html(article(910) + "\n\n" + shared), ""),
        ("https://d.org/2", html(article(911) + "\n\n" + shared), ""),
        ("https://a1.org/1/#top", html(article(912)), "url duplicates"),
    ]  # fmt: skip
    return found
