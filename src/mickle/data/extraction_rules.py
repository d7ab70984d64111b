"""Which blocks of a page are its main text: rules 2 to 5 of ``extraction``."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice, takewhile
from typing import Literal

from mickle.data.extraction_blocks import Block, Reader
from mickle.data.extraction_phrases import SECTIONS, is_phrase, is_prose

Verdict = Literal["strong", "good", "short", "bad", "heading"]

# Latin lengths of a sentence; a list's mean item that is none; no sentence at all; a paragraph.
SENTENCE, SHORT, FEW, STRONG = 60, 30, 15, 100
TEASER, TEASER_LINE = 500, 250  # of what stands below a headline that is a link, and of one line of a row of such
TITLE_SIZE = 300  # a longer block is no heading
FRAME_SHARE, WELCOME_SHARE, RIVAL_SHARE, SECTION_SHARE = 0.9, 0.5, 0.2, 0.3
OVERRULED = 2  # times the sentences of all the rest in an element show that its tag is wrong, or was never closed

ENDED = re.compile(
    "[.!?:;\u2026\u3002\uff01\uff1f\uff1a\uff1b\uff0e\uff61\u0964\u0965\u061f\u06d4\u1362\u104b\u17d4\u0589\u0f0d\u0f0e]"
    "[\"'\u00bb\u201c\u201d\u2019\u203a)\\]}\u300d\u300f\uff09\u3011\u300b]*$"
    "|[\u0e00-\u0eff][\u0e00-\u0eff\\s]{19,}$"  # Thai and Lao sentences end in letters; labels are shorter
)


def weight(block: Block) -> float:
    """How much a block speaks for the containers that it stands in: its characters, less two for each in a link;
    a tenth where it is too short for a sentence.
    """
    if block.kind == "heading":
        return 0.0
    own = max(block.size - 2 * block.links, 0)
    return own if own > SENTENCE or block.kind in ("code", "row") else 0.1 * own


def is_headline(block: Block) -> bool:
    """Whether a block is nothing but a link, and long enough to be another article's headline."""
    return block.size > SHORT and block.links > 0.8 * block.size


class Sums:
    """Sums over blocks inside each container: ``weight``; ``welcome``, the weight in containers that are said to
    hold main text; ``size`` and ``links``; how many ``blocks``; ``count`` of texts and headings, and of those the
    ``teasers``, which are nothing but links.
    """

    def __init__(self, blocks: Sequence[Block], reader: Reader) -> None:
        all_sums = [[0.0] * len(reader.parent) for _ in range(7)]
        self.weight, self.welcome, self.size, self.links, self.blocks, self.count, self.teasers = all_sums
        for block in blocks:
            place = block.container
            self.weight[place] += weight(block)
            self.size[place] += block.size
            self.links[place] += block.links
            self.blocks[place] += 1
            if block.kind in ("text", "heading"):
                self.count[place] += 1
                self.teasers[place] += is_headline(block)
        for place in range(len(reader.parent) - 1, 0, -1):  # a container's number is above its parent's
            if place in reader.welcome:
                self.welcome[place] = self.weight[place]
            above = reader.parent[place]
            for sums in all_sums:
                sums[above] += sums[place]

    def is_teasers(self, place: int) -> bool:
        """Whether a container is a row of teasers: headlines that are links, each with a line of text."""
        teasers = self.teasers[place]
        return teasers > 1 and 4 * teasers >= self.count[place] and self.links[place] > 0.2 * self.size[place]


def select(reader: Reader) -> list[Block]:
    """Blocks of the main text, in order."""
    seen = without_furniture(reader.blocks)
    sums = Sums(seen, reader)
    place = frame(reader, sums)
    blocks = without_sections([b for b in seen if place <= b.container <= reader.last[place]], reader, sums, place)
    kept = keep(blocks, judge(blocks, reader, sums, place), homes(blocks, reader, sums), reader, place)
    return lead(seen, kept) + kept


def without_furniture(blocks: Sequence[Block]) -> list[Block]:
    """Blocks less those in elements that a tag calls furniture. It is not believed where its element holds
    most of the page's sentences.
    """
    weights: dict[int, float] = defaultdict(float)
    for block in blocks:
        weights[block.region] += weight(block)
    limit = OVERRULED * weights[0]
    seen = {region for region, held in weights.items() if region > 0 and held > limit} | {0}
    return [block for block in blocks if block.region in seen]


def lead(seen: Sequence[Block], kept: Sequence[Block]) -> list[Block]:
    """A title and its standfirst that stand before the frame: from the last heading of the first rank on, what is
    neither a label, a link nor said again. A title alone is the page's name, not its text.
    """
    if not kept or any(block.level == 1 for block in kept):
        return []
    first = next(place for place, block in enumerate(seen) if block is kept[0])
    rank = min((block.level for block in seen[:first] if 0 < block.level <= 2), default=0)
    title = max((place for place in range(first) if rank and seen[place].level == rank), default=-1)
    if title < 0 or not is_prose(seen[title]):
        return []
    there = {block.text for block in kept}
    standfirst = [
        block
        for block in seen[title + 1 : first]
        if block.kind != "code" and block.size > SENTENCE and block.text not in there and is_prose(block)
    ]
    return [seen[title], *standfirst] if standfirst else []


def homes(blocks: Sequence[Block], reader: Reader, sums: Sums) -> list[int]:
    """The container that each block belongs to: where it is alone in an element, the one around that."""
    return [
        reader.parent[block.container] if sums.blocks[block.container] == 1 else block.container for block in blocks
    ]


def frame(reader: Reader, sums: Sums) -> int:
    """The container that holds the main text: from the page inwards to the heaviest, while little is lost."""
    heaviest: dict[int, int] = {}
    for place in range(1, len(reader.parent)):
        above = reader.parent[place]
        if above not in heaviest or sums.weight[place] > sums.weight[heaviest[above]]:
            heaviest[above] = place
    here = place = 0
    while place in heaviest:
        place = heaviest[place]
        held, total = sums.weight[place], sums.weight[0]
        # What other welcome containers hold; inside one that is welcome itself that cannot be told apart.
        rivals = 0.0 if here in reader.welcome else sums.welcome[here] - sums.welcome[place]
        named = place in reader.welcome and held >= WELCOME_SHARE * total and rivals <= RIVAL_SHARE * held
        if named or held >= FRAME_SHARE * total:
            here = place
    if reader.welcome and not sums.welcome[here] and not reader.welcome.intersection(ancestors(here, reader)):
        best = max(reader.welcome, key=sums.weight.__getitem__)
        here = best if sums.weight[best] > SENTENCE else here
    return here


def ancestors(place: int, reader: Reader) -> Iterator[int]:
    """A container and those around it, from the inside out."""
    while place:
        yield place
        place = reader.parent[place]


def without_sections(blocks: Sequence[Block], reader: Reader, sums: Sums, place: int) -> list[Block]:
    """Blocks of the frame ``place``, less sections that a heading calls something else, and less teasers:
    headings that are links, with little text below.
    """
    kept: list[Block] = []
    linked = [block.level > 1 and block.links > 0.8 * block.size for block in blocks]
    row = sum(linked) > 1  # a single one may be a title that leads to its own page
    start, end, level = 0, -1, 0  # containers of the section that is left out, and its heading's rank
    for number, (block, around) in enumerate(zip(blocks, homes(blocks, reader, sums), strict=True)):
        if not start <= block.container <= end or (block.kind == "heading" and block.level <= level):
            end = -1
        is_title = block.kind == "heading" or (block.kind == "text" and block.size < SENTENCE)
        if end < 0 and is_title:
            if SECTIONS.match(block.text):
                limit = SECTION_SHARE * sums.weight[place]
                if sums.weight[around] <= limit or is_light(
                    blocks, number, range(around, reader.last[around] + 1), limit
                ):
                    start, end, level = around, reader.last[around], block.level
            elif row and linked[number] and is_teaser(blocks, number):
                start, end, level = around, reader.last[around], 6
        if end < 0:
            kept.append(block)
    return kept


def is_light(blocks: Sequence[Block], number: int, around: range, limit: float) -> bool:
    """Whether a heading's section, up to the next of its rank or out of the containers ``around``, weighs no more."""
    total, level = 0.0, blocks[number].level
    if level == 0:
        return False
    for following in range(number + 1, len(blocks)):
        block = blocks[following]
        if block.container not in around or (block.kind == "heading" and block.level <= level) or total > limit:
            break
        total += weight(block)
    return total <= limit


def is_teaser(blocks: Sequence[Block], number: int) -> bool:
    """Whether little text stands between a heading and the next."""
    below = takewhile(lambda block: block.kind != "heading", islice(blocks, number + 1, None))
    return sum(block.size for block in below) <= TEASER


def judge(blocks: Sequence[Block], reader: Reader, sums: Sums, place: int) -> list[Verdict]:
    """A verdict on every block, from its own text and links and those of its list, table or container."""
    lists: dict[int, list[Block]] = defaultdict(list)
    for block in blocks:
        if block.is_listed:
            lists[block.container].append(block)
    of_lists = {container: judge_list(listed) for container, listed in lists.items()}
    verdicts: list[Verdict] = []
    since = TEASER  # how much stands between a block and the last that is nothing but a link
    for block in blocks:
        around = (block.container, reader.parent[block.container])
        if not block.is_listed:
            since = 0 if is_headline(block) else since + block.size
        if block.is_listed:
            verdict = of_lists[block.container]
        elif block.kind != "code" and since < TEASER_LINE and any(c > place and sums.is_teasers(c) for c in around):
            verdict = "bad"
        else:
            verdict = judge_text(block)
        if block.kind not in ("code", "heading") and is_phrase(block):
            verdict = "bad"
        verdicts.append(verdict)
    return verdicts


def judge_list(listed: Sequence[Block]) -> Verdict:
    """The verdict on a list or a table."""
    size = sum(block.size for block in listed)
    if sum(block.links for block in listed) > 0.5 * size:
        return "bad"
    mean = size / len(listed)
    return "strong" if mean > 80 else "good" if mean > SHORT else "short"


def judge_text(block: Block) -> Verdict:
    """The verdict on a block that stands for itself."""
    if block.kind == "heading" and block.size < TITLE_SIZE:
        return "heading"
    if block.kind == "code":
        return "strong" if block.links < 0.6 * block.size else "bad"
    if block.links > 0.5 * block.size:
        return "bad"
    if block.size < FEW or (block.size < SENTENCE and not ENDED.search(block.text)):
        return "short"
    return "strong" if block.size > STRONG else "good"


def keep(
    blocks: Sequence[Block], verdicts: Sequence[Verdict], places: Sequence[int], reader: Reader, frame: int
) -> list[Block]:
    """Blocks that stay: the strong ones, and others by where they stand towards them."""
    wanted = "strong" if "strong" in verdicts else "good"
    pillars = [number for number, verdict in enumerate(verdicts) if verdict == wanted]
    if not pillars:
        return []
    first, last = pillars[0], pillars[-1]
    inhabited = {places[number] for number in pillars}
    body = frame if frame in reader.welcome else -1  # where nothing else is expected, also before the first paragraph
    kept: list[Block] = []
    for number, (block, verdict, place) in enumerate(zip(blocks, verdicts, places, strict=True)):
        inside, home = first < number < last, place in inhabited
        near = number > first or not inhabited.isdisjoint(islice(ancestors(place, reader), 3))
        stays = {
            "strong": True,
            "bad": False,
            "heading": number < last or home,
            "good": inside or home or block.is_listed,
            "short": near if block.is_listed else home and (inside or place == body),
        }[verdict]
        if stays:
            kept.append(block)
    while kept and kept[-1].kind == "heading":
        kept.pop()
    return kept
