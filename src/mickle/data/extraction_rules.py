"""Which blocks of a page are its main text: rules 2 to 5 of ``extraction``."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Literal

from mickle.data.extraction_blocks import Block, Reader

Verdict = Literal["strong", "good", "short", "bad", "heading"]

# Characters: of a sentence; of a list's mean item that is none; of no sentence at all; of a paragraph; of a teaser.
SENTENCE, SHORT, FEW, STRONG, TEASER = 60, 30, 15, 100, 500
PHRASE_SIZE, NOTICE_SIZE = 160, 600  # characters: a longer block is no phrase, no notice
FRAME_SHARE, WELCOME_SHARE, RIVAL_SHARE, SECTION_SHARE = 0.9, 0.5, 0.2, 0.3

PHRASES = re.compile(
    r"^\W*(?:"
    r"\d+\s+(?:likes?|shares?|comments?|views?|replies|followers|votes?|retweets?|stars)\b"
    r"|(?:share|tweet|like|email|print|reply|quote|report|edit|next|previous|prev|home|more|advertisement|sponsored)\b"
    r".{0,25}$"
    r"|read (?:more|the full)|continue reading|see also:?$|click here|jump to|skip to|page \d+"
    r"|(?:log|sign) ?(?:in|up|out)\b|subscribe\b|register\b"
    r"|(?:posted|published|written|updated|last (?:updated|modified)|by) (?:on |by |in )?.{0,60}$"
    r"|(?:copyright|©|\(c\)).{0,120}|.{0,120}all rights reserved"
    r"|(?:tags?|categor(?:y|ies)|filed under|labels?|posts|joined|location|share this)\s*:"
    r"|add(?:ed)? to (?:cart|basket|wishlist)|in stock|(?:you are )?visitor\b|powered by"
    r"|(?:created|generated) (?:by|using|with|on)|bookmark the|permalink|this entry was posted"
    r"|(?:we|this (?:web)?site) uses? cookies|your email address|leave a (?:reply|comment)|was this\b.{0,30}\bhelpful"
    r")",
    re.IGNORECASE,
)
NOTICE = re.compile(r"(?:\bwe|\bsite|\bby (?:using|continuing)|\byou)\b.{0,120}\bcookies\b", re.IGNORECASE | re.DOTALL)
SECTIONS = re.compile(
    r"^\W*(?:\d+\s+)?(?:related|comments?\b|leave a|you (?:may|might)|recommended|most (?:read|popular)"
    r"|more (?:from|on|in|stories)|share this|customers? (?:also|reviews?)|reviews?$|recent (?:posts|comments)"
    r"|newsletter|navigation|(?:table of )?contents$|search$|join our|about the author|popular|trending|tags$"
    r"|categories$|archives?$|meta$|who is online|(?:thoughts|responses|replies) (?:on|to))",
    re.IGNORECASE,
)


def weight(block: Block) -> float:
    """How much a block speaks for the containers that it stands in: its characters, less two for each in a link;
    a tenth where it is too short for a sentence.
    """
    if block.kind == "heading":
        return 0.0
    own = max(block.size - 2 * block.links, 0)
    return own if own > SENTENCE or block.kind in ("code", "row") else 0.1 * own


class Sums:
    """Sums over all blocks inside each container: ``weight``; ``welcome``, the weight in containers that are said to
    hold main text; ``size`` and ``links`` in characters; ``count`` of texts and headings, and of those the
    ``teasers``, which are nothing but links.
    """

    def __init__(self, reader: Reader) -> None:
        containers = len(reader.parent)
        self.weight, self.welcome = [0.0] * containers, [0.0] * containers
        self.size, self.links = [0.0] * containers, [0.0] * containers
        self.count, self.teasers = [0.0] * containers, [0.0] * containers
        for block in reader.blocks:
            place = block.container
            self.weight[place] += weight(block)
            self.size[place] += block.size
            self.links[place] += block.links
            if block.kind in ("text", "heading"):
                self.count[place] += 1
                self.teasers[place] += block.links > 0.8 * block.size
        for place in range(containers - 1, 0, -1):  # a container's number is above its parent's
            if place in reader.welcome:
                self.welcome[place] = self.weight[place]
            above = reader.parent[place]
            for sums in (self.weight, self.welcome, self.size, self.links, self.count, self.teasers):
                sums[above] += sums[place]

    def is_teasers(self, place: int) -> bool:
        """Whether a container is a row of teasers: headlines that are links, each with a line of text."""
        teasers = self.teasers[place]
        return teasers > 1 and 4 * teasers >= self.count[place] and self.links[place] > 0.2 * self.size[place]


def select(reader: Reader) -> list[Block]:
    """Blocks of the main text, in order."""
    sums = Sums(reader)
    place = frame(reader, sums)
    blocks = without_sections(reader, sums, place)
    return keep(blocks, judge(blocks, reader, sums, place), homes(blocks, reader))


def homes(blocks: Sequence[Block], reader: Reader) -> list[int]:
    """The container that each block belongs to: where it is alone in an element, the one around that."""
    counts = Counter(block.container for block in blocks)
    return [reader.parent[block.container] if counts[block.container] == 1 else block.container for block in blocks]


def frame(reader: Reader, sums: Sums) -> int:
    """The container that holds the main text: from the page inwards to the heaviest, while little is lost."""
    heaviest: dict[int, int] = {}
    for place in range(1, len(reader.parent)):
        above = reader.parent[place]
        if above not in heaviest or sums.weight[place] > sums.weight[heaviest[above]]:
            heaviest[above] = place
    here = 0
    while here in heaviest:
        best = heaviest[here]
        held, total = sums.weight[best], sums.weight[0]
        # What other welcome containers hold; inside one that is welcome itself that cannot be told apart.
        rivals = 0.0 if here in reader.welcome else sums.welcome[here] - sums.welcome[best]
        named = best in reader.welcome and held >= WELCOME_SHARE * total and rivals <= RIVAL_SHARE * held
        if not named and held < FRAME_SHARE * total:
            break
        here = best
    return here


def without_sections(reader: Reader, sums: Sums, place: int) -> list[Block]:
    """Blocks inside the container ``place``, less sections that a heading calls something else, and less teasers: a
    heading that is a link, with little text below.
    """
    blocks = [block for block in reader.blocks if place <= block.container <= reader.last[place]]
    kept: list[Block] = []
    start, end, level = 0, -1, 0  # containers of the section that is left out, and its heading's rank
    for number, (block, around) in enumerate(zip(blocks, homes(blocks, reader), strict=True)):
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
            elif block.level > 1 and block.links > 0.8 * block.size and is_teaser(blocks, number):
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
    size = 0
    for following in range(number + 1, len(blocks)):
        if blocks[following].kind == "heading" or size > TEASER:
            break
        size += blocks[following].size
    return size <= TEASER


def judge(blocks: Sequence[Block], reader: Reader, sums: Sums, place: int) -> list[Verdict]:
    """A verdict on every block, from its own text and links and those of its list, table or container."""
    lists: dict[int, list[Block]] = defaultdict(list)
    for block in blocks:
        if block.is_listed:
            lists[block.container].append(block)
    of_lists = {container: judge_list(listed) for container, listed in lists.items()}
    verdicts: list[Verdict] = []
    for block in blocks:
        around = (block.container, reader.parent[block.container])
        if block.is_listed:
            verdict = of_lists[block.container]
        elif block.kind != "code" and block.size < 250 and any(c != place and sums.is_teasers(c) for c in around):
            verdict = "bad"
        else:
            verdict = judge_text(block)
        if block.kind not in ("code", "heading") and is_phrase(block):
            verdict = "bad"
        verdicts.append(verdict)
    return verdicts


def is_phrase(block: Block) -> bool:
    """Whether a block is one of the things that stand on every site."""
    if block.size < PHRASE_SIZE and PHRASES.match(block.text):
        return True
    return block.size < NOTICE_SIZE and "cookies" in block.text and bool(NOTICE.search(block.text))


def judge_list(listed: Sequence[Block]) -> Verdict:
    """The verdict on a list or a table."""
    size = sum(block.size for block in listed)
    if sum(block.links for block in listed) > 0.5 * size:
        return "bad"
    mean = size / len(listed)
    return "strong" if mean > 80 else "good" if mean > SHORT else "short"


def judge_text(block: Block) -> Verdict:
    """The verdict on a block that stands for itself."""
    if block.kind == "heading":
        return "heading" if block.size < 300 else "bad"
    if block.kind == "code":
        return "strong" if block.links < 0.6 * block.size else "bad"
    if block.links > 0.5 * block.size:
        return "bad"
    if block.size < FEW or (block.size < SENTENCE and not block.text.endswith((".", "!", "?", ":", ";"))):
        return "short"
    return "strong" if block.size > STRONG else "good"


def keep(blocks: Sequence[Block], verdicts: Sequence[Verdict], places: Sequence[int]) -> list[Block]:
    """Blocks that stay: the strong ones, and others by where they stand towards them."""
    wanted = "strong" if "strong" in verdicts else "good"
    pillars = [place for place, verdict in enumerate(verdicts) if verdict == wanted]
    if not pillars:
        return []
    first, last = pillars[0], pillars[-1]
    inhabited = {places[place] for place in pillars}
    kept: list[Block] = []
    for place, (block, verdict) in enumerate(zip(blocks, verdicts, strict=True)):
        inside, home = first < place < last, places[place] in inhabited
        stays = {
            "strong": True,
            "bad": False,
            "heading": place < last or home,
            "good": inside or home or block.is_listed,
            "short": place > first if block.is_listed else inside and home,
        }[verdict]
        if stays:
            kept.append(block)
    while kept and kept[-1].kind == "heading":
        kept.pop()
    return kept
