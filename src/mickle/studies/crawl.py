"""A controlled crawl: web pages of which is known what they are and which stage should take them out.

Real English text (``prose``) is put into page templates (``templates``); around it stand planted pages of the
kinds that RefinedWeb's stages are meant for (arXiv 2306.01116, section 3), in the proportions of its figure 2, so
that about 12 of 100 pages' worth of text should survive. Because the truth is known, each stage has precision and
recall (``crawl_scores``); on a real crawl nobody knows them.

    for page in crawl(1000, seed=0):
        page.raw, page.removed_by, page.text

Pages follow from their number, the seed and the texts of this Python alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from mickle.errors import UsageError
from mickle.studies import junk
from mickle.studies.blocks import Block, truth
from mickle.studies.planted import Planted
from mickle.studies.prose import STDLIB, Source, sources
from mickle.studies.templates import HELDOUT, TUNING, wrap

# Pages of 100 HTML pages that each stage should take out: differences of the paper's kept shares (figure 2).
PLANTED = {
    "urls": 2.24,
    "extraction": 1.45,
    "language": 48.80,
    "repetitions": 11.54,
    "quality": 5.82,
    "lines": 6.81,
    "near duplicates": 8.84,
    "url duplicates": 0.30,
}
SHARING = 6.20  # pages of 100 with a passage that also stands elsewhere: about 3 of 100 pages' text is to be cut
NOT_PAGES = 2.0  # answers beside the 100 that are no pages: half of them errors, half of them no HTML

DOCUMENT, OWN, PASSAGE, SHORT = (220, 110, 90, 60)  # least words: a document, one beside a passage, a passage, a stub
OCCURRENCES = 4  # of a passage
EDITS = (0.0, 0.0, 0.02, 0.05, 0.10, 0.15)  # share of words changed in a copy; a third are verbatim
LARGEST_FAMILY, TAIL = (60, 0.6)  # copies of one document at most; exponent of the law that their number follows
LINES_ALLOWED = 0.03  # of a clean page's words may be boilerplate lines; RefinedWeb's limit is 0.05
FAMILIES = TUNING + HELDOUT


@dataclass(frozen=True)
class Draft:
    """A page before it is put into a template."""

    kind: str
    removed_by: str
    blocks: tuple[Block, ...] = ()
    noise: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    family: int = -1
    edits: float = 0.0
    url: str = ""


def crawl(pages: int, seed: int, packages: Sequence[str] = (STDLIB,)) -> Iterator[Planted]:
    """``pages`` HTML pages in a random order, and among them a few answers that are none.

    Raises :class:`UsageError` where the packages hold too little text for so many pages.
    """
    random = Random(f"crawl {pages} {seed}")
    drafts = World(pages, random, packages).drafts()
    for place, draft in enumerate(in_order(drafts, random)):
        yield publish(draft, place, random)


def counts(pages: int) -> dict[str, int]:
    """How many pages each stage should take out; the rest should stay."""
    return {stage: round(pages * share / 100) for stage, share in PLANTED.items()}


class World:
    """The pages of one crawl as drafts: real text is used once, except where a copy is planted."""

    def __init__(self, pages: int, random: Random, packages: Sequence[str]) -> None:
        self.pages, self.random = pages, random
        self.writer = Writer([s for p in packages for s in sources(p) if not s.held_out], random)
        self.vocabulary = self.writer.vocabulary()

    def drafts(self) -> list[Draft]:
        """All drafts, kind after kind."""
        wanted = counts(self.pages)
        sharing = round(self.pages * SHARING / 100)
        clean = max(1, self.pages - sum(wanted.values()) - sharing)
        documents = [self.document(number) for number in range(clean)]
        return [
            *documents,
            *self.sharing(sharing),
            *self.copies(documents, wanted["near duplicates"]),
            *self.addresses_again(documents, wanted["url duplicates"]),
            *(self.blocked(number) for number in range(wanted["urls"])),
            *(Draft("no text", "extraction") for _ in range(wanted["extraction"])),
            *(self.foreign(number) for number in range(wanted["language"])),
            *(self.made_up("repetitions", number) for number in range(wanted["repetitions"])),
            *(self.unreadable(number) for number in range(wanted["quality"])),
            *(self.buttons() for _ in range(wanted["lines"])),
            *(Draft("no page", "reading") for _ in range(round(self.pages * NOT_PAGES / 100))),
        ]

    def document(self, family: int) -> Draft:
        """A page that should stay; one in four has a line or two that should be taken out of it."""
        blocks = self.writer.document(DOCUMENT)
        noise: list[str] = []
        if self.random.random() < 0.25:
            allowed = LINES_ALLOWED * words_of(blocks)
            noise = [line for line in junk.boilerplate(self.random, 3) if len(line.split()) <= allowed][:2]
        kind = "document with buttons" if noise else "document"
        return Draft(kind, "", self.strewn(blocks, noise), tuple(noise), family=family)

    def strewn(self, blocks: Sequence[Block], lines: Sequence[str]) -> tuple[Block, ...]:
        """Blocks with lines of their own at random places after the heading."""
        mixed = list(blocks)
        for line in lines:
            mixed.insert(self.random.randint(1, len(mixed)), Block("paragraph", line))
        return tuple(mixed)

    def sharing(self, count: int) -> Iterator[Draft]:
        """Documents of their own, each with a passage that three others have as well."""
        for start in range(0, count - 1, OCCURRENCES):
            passage = Block("paragraph", " ".join(b.text for b in self.writer.paragraphs(PASSAGE)))
            # A last passage alone would be no repetition: it joins the ones before.
            last = count if count - start - OCCURRENCES < 2 else start + OCCURRENCES
            for _ in range(start, last):
                blocks = self.writer.document(OWN)
                place = self.random.randint(1, len(blocks))
                mixed = (*blocks[:place], passage, *blocks[place:])
                yield Draft("shared passage", "", mixed, shared=(passage.text,))
            if last == count:
                return

    def copies(self, documents: Sequence[Draft], count: int) -> Iterator[Draft]:
        """Re-posts and edited copies: few documents have many, most have none."""
        left = count
        for document in self.random.sample(list(documents), len(documents)):
            size = min(left, LARGEST_FAMILY, int(self.random.paretovariate(TAIL)))
            for _ in range(size):
                edits = self.random.choice(EDITS)
                blocks = self.edited(document, edits)
                kind = "edited copy" if edits else "copy"
                yield replace(document, kind=kind, removed_by="near duplicates", blocks=blocks, edits=edits)
            left -= size
            if not left:
                return

    def edited(self, document: Draft, share: float) -> tuple[Block, ...]:
        """A document's blocks with a share of its words changed, in runs of one to four, as people rewrite."""
        texts = [block.text.split() for block in document.blocks]
        places = [
            (number, place)
            for number, block in enumerate(document.blocks)
            for place in range(len(texts[number]))
            if block.text not in document.noise
        ]
        left = round(share * len(places))
        while left > 0:
            number, place = self.random.choice(places)
            length = min(left, self.random.randint(1, 4))
            words = texts[number]
            words[place : place + length] = self.random.sample(self.vocabulary, len(words[place : place + length]))
            left -= length
        return tuple(replace(block, text=" ".join(words)) for block, words in zip(document.blocks, texts, strict=True))

    def addresses_again(self, documents: Sequence[Draft], count: int) -> Iterator[Draft]:
        """An address that was crawled twice, its text rewritten in between."""
        for document in self.random.sample(list(documents), min(count, len(documents))):
            blocks = tuple(self.writer.document(OWN))
            yield Draft("address again", "url duplicates", blocks, family=document.family)

    def blocked(self, number: int) -> Draft:
        """An ordinary text at an address that should not even be read."""
        return Draft("refused address", "urls", tuple(self.writer.document(SHORT)), url=refused(number, self.random))

    def foreign(self, number: int) -> Draft:
        language = list(junk.GRAMMARS)[number % len(junk.GRAMMARS)]
        return Draft(language, "language", tuple(junk.foreign(self.random, language, self.random.randint(80, 300))))

    def made_up(self, stage: str, number: int) -> Draft:
        """A page of one of the kinds of junk."""
        kinds = junk.REPEATING if stage == "repetitions" else junk.UNREADABLE
        kind = kinds[number % len(kinds)]
        return Draft(kind.__name__.replace("_", " "), stage, tuple(kind(self.random, self.vocabulary)))

    def unreadable(self, number: int) -> Draft:
        """Every third one a stub, the others junk."""
        if number % 3:
            return self.made_up("quality", number // 3 * 2 + number % 3 - 1)
        text = " ".join(self.writer.borrowed().split()[: self.random.randint(8, 35)])
        return Draft("stub", "quality", (Block("heading", "Page under construction"), Block("paragraph", text)))

    def buttons(self) -> Draft:
        """A short text among lines that are none."""
        blocks = self.writer.document(SHORT)
        lines = junk.boilerplate(self.random, round(self.random.uniform(0.15, 0.6) * words_of(blocks)))
        return Draft("buttons and counters", "lines", self.strewn(blocks, lines), tuple(lines))


class Writer:
    """Hands out real text, module after module in a random order, each paragraph once."""

    def __init__(self, found: Sequence[Source], random: Random) -> None:
        self.random = random
        self.modules = random.sample(list(found), len(found))
        self.waiting: list[tuple[str, str]] = []  # module and paragraph, last first
        self.following = 0

    def vocabulary(self) -> list[str]:
        """The words in lower case of the modules, each once."""
        words = (w for m in self.modules for p in m.paragraphs for w in re.findall(r"\b[a-z]{3,12}\b", p))
        return sorted(set(words))

    def borrowed(self) -> str:
        """A paragraph that may be used again."""
        return self.random.choice(self.random.choice(self.modules).paragraphs)

    def paragraphs(self, words: int) -> list[Block]:
        """Successive paragraphs of at least so many words, of one module while it lasts."""
        taken: list[str] = []
        while sum(len(text.split()) for text in taken) < words:
            taken.append(self._next()[1])
        return [Block("paragraph", text) for text in taken]

    def document(self, words: int) -> list[Block]:
        """A heading and paragraphs."""
        begin = len(self.waiting) or self._refill()
        name = self.waiting[begin - 1][0]
        return [Block("heading", f"About {name.replace('_', ' ').replace('.', ' ').strip()}"), *self.paragraphs(words)]

    def _next(self) -> tuple[str, str]:
        if not self.waiting:
            self._refill()
        return self.waiting.pop()

    def _refill(self) -> int:
        if self.following == len(self.modules):
            raise UsageError(
                "The packages hold too little text for so many pages",
                expected="fewer pages, or more packages",
                todo="name further installed packages, such as torch",
            )
        module = self.modules[self.following]
        self.following += 1
        self.waiting = [(module.name, text) for text in reversed(module.paragraphs)]
        return len(self.waiting)


def in_order(drafts: Sequence[Draft], random: Random) -> list[Draft]:
    """Drafts in a random order; of a family the first drafted comes first, so that it is the copy to keep."""
    order = random.sample(range(len(drafts)), len(drafts))
    places: dict[int, list[int]] = {}
    for place, index in enumerate(order):
        if drafts[index].family >= 0:
            places.setdefault(drafts[index].family, []).append(place)
    for held in places.values():
        for place, index in zip(held, sorted(order[place] for place in held), strict=True):
            order[place] = index
    return [drafts[index] for index in order]


HOSTS = ("meadow", "harbour", "lantern", "pebble", "walnut", "feather", "copper", "willow", "granite", "saffron")
PATHS = ("articles", "notes", "pages", "archive", "posts", "guide", "topics")
REFUSED = (
    "https://{host}.example/online-casino/poker-bonus/{number}",
    "https://online-casino-{host}.example/{number}.html",
    "https://{host}.example/sports-betting-gambling/{number}",
    "https://en.wikipedia.org/wiki/{host}_{number}",
    "https://arxiv.org/abs/{number}",
)


def refused(number: int, random: Random) -> str:
    """An address that the default rules refuse: its words, or a source that is mixed in elsewhere."""
    return REFUSED[number % len(REFUSED)].format(host=random.choice(HOSTS), number=random.randint(10_000, 99_999))


def publish(draft: Draft, place: int, random: Random) -> Planted:
    """The draft as a page with an address."""
    address = (
        draft.url or f"https://{random.choice(HOSTS)}{random.randint(1, 400)}.example/{random.choice(PATHS)}/{place}"
    )
    if draft.kind == "address again" or (draft.family >= 0 and not draft.removed_by):
        host, path = HOSTS[draft.family % len(HOSTS)], PATHS[draft.family % len(PATHS)]
        address = f"https://{host}.example/{path}/d{draft.family}"
    if draft.kind == "no page":
        error = place % 2 == 0
        body = b"<html><body><h1>Not Found</h1></body></html>" if error else b"%PDF-1.4"
        media = "text/html" if error else "application/pdf"
        return Planted(address, draft.kind, "reading", body, status=404 if error else 200, media=media)
    family = random.choice(FAMILIES)
    html = wrap(draft.blocks, random.randrange(1 << 30), family) if draft.blocks else empty(random)
    text = truth([block for block in draft.blocks if block.text not in draft.noise])
    return Planted(
        address, draft.kind, draft.removed_by, html.encode(), text, draft.noise, draft.shared, draft.family, draft.edits
    )


def empty(random: Random) -> str:
    """A page of pictures."""
    images = "".join(f'<div class="tile"><img src="/{random.randrange(9999)}.jpg" alt=""></div>' for _ in range(12))
    return f'<!DOCTYPE html><html><head><title></title></head><body><div class="grid">{images}</div></body></html>'


def words_of(blocks: Sequence[Block]) -> int:
    """Words of blocks of text."""
    return sum(len(block.text.split()) for block in blocks)
