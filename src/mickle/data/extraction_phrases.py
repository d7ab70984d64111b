"""Labels, notices and headings that stand on every site and are no part of a page's text."""

from __future__ import annotations

import re

from mickle.data.extraction_blocks import Block

PHRASE_SIZE, NOTICE_SIZE = 160, 600  # a longer block is no phrase, no notice
PHRASES = re.compile(
    r"^\W*(?:"
    r"\d+\s+(?:likes?|shares?|comments?|views?|replies|followers|votes?|retweets?|stars)\b"
    r"|(?:share|tweet|like|email|print|reply|quote|report|edit|next|previous|prev|home|more|advertisement|sponsored)\b"
    r".{0,25}$"
    r"|read (?:more|the full)|continue reading|see also:?$|click here|jump to|skip to|page \d+"
    r"|(?:log|sign) ?(?:in|up|out)\b|subscribe\b|register\b"
    r"|(?:posted|published|written|updated|last (?:updated|modified)|by) (?:on |by |in )?.{0,60}$"
    r"|(?:tags?|categor(?:y|ies)|filed under|labels?|posts|joined|location|share this)\s*:"
    r"|add(?:ed)? to (?:cart|basket|wishlist)|in stock|(?:you are )?visitor\b|powered by"
    r"|(?:created|generated) (?:by|using|with|on)|permalink"
    r")",
    re.IGNORECASE,
)
SPOKEN = re.compile(
    r"\w+\W+\w+\W+\w.*(?<!\.\.)[.?\u3002][\"'\u201d\u2019)]*$", re.DOTALL
)  # a sentence, whatever it begins with
NOTICES = re.compile(
    r"^\W*(?:(?:copyright|\u00a9|\(c\)).{0,120}$|.{0,120}all rights reserved|bookmark the|this entry was posted"
    r"|your email address|leave a (?:reply|comment)|was this\b.{0,30}\bhelpful)",
    re.IGNORECASE,
)
COOKIES = re.compile(r"(?:\bwe|site|\bby (?:using|continuing)|\byou)\b.{0,120}\bcookies\b", re.IGNORECASE | re.DOTALL)
SECTIONS = re.compile(
    r"^\W*(?:\d+\s+)?(?:(?:related|recommended|popular|trending|recent|latest|similar|more)"
    r"(?: (?:articles?|posts?|stories|news|topics?|content|links?|reading|videos?|products?|pages?|comments?|for you"
    r"|like this|from (?:this )?(?:author|site|us)|on this (?:topic|story)))*"
    r"|comments?|leave a (?:reply|comment)|you (?:may|might) (?:also )?(?:like|enjoy|be interested in).{0,20}"
    r"|most (?:read|popular)|share this(?: \w+)?|customers? (?:also|reviews?).{0,20}|reviews?"
    r"|newsletter|navigation|(?:table of )?contents|search|join our .{0,20}|about the author|tags"
    r"|categories|archives?|meta|who is online|(?:thoughts|responses|replies) (?:on|to).{0,80})\W*(?:\d+\W*)?$",
    re.IGNORECASE,
)


def is_phrase(block: Block) -> bool:
    """Whether a block is one of the things that stand on every site."""
    label = PHRASES.match(block.text) and not SPOKEN.match(block.text)
    if block.size < PHRASE_SIZE and (label or NOTICES.match(block.text)):
        return True
    return block.size < NOTICE_SIZE and "cookies" in block.text and bool(COOKIES.search(block.text))


def is_prose(block: Block) -> bool:
    """Whether a block is text, and neither links nor a phrase."""
    return block.links <= 0.5 * block.size and not is_phrase(block)
