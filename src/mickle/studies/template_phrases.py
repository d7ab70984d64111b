"""What stands on web pages around their text, made up from phrases: links, teasers, comments, notices, scripts.

Two sets of phrases, so that rules tuned on one are reported on the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from random import Random

# fmt: off
MENU = (
    ("Home", "About us", "Contact", "News", "Sport", "Business", "Opinion", "Travel", "Science", "Video", "Archive",
     "Subscribe", "Log in", "Register", "FAQ", "Search", "Products", "Support", "Forum", "Members", "Weather"),
    ("Start page", "Our team", "Get in touch", "Stories", "Culture", "Economy", "Blog", "Events", "Health", "Gallery",
     "Sitemap", "Newsletter", "Sign in", "Join now", "Help centre", "Catalogue", "Downloads", "Community", "Jobs",
     "Press", "Services", "My account", "Careers"),
)
COOKIES = (
    ("We use cookies to give you the best experience on our website. By continuing you accept our cookie policy.",
     "This site uses cookies for statistics and advertising. You can change your settings at any time."),
    ("Your privacy matters. We and our 214 partners store information on a device, such as unique identifiers, and "
     "process personal data. You may accept or manage your choices below.",
     "By using this service you agree to the placing of cookies as described in our privacy statement."),
)
READ_MORE = (
    ("Read more...", "Continue reading", "Read the full story", "More", "See also:"),
    ("Keep reading →", "Learn more", "Full article »", "View all", "Show details", "You may also like:"),
)
FOOTER = (
    ("© 2021 Example Media Ltd. All rights reserved.", "Terms of use", "Privacy policy", "Powered by OpenPress",
     "Reproduction without written permission is prohibited.", "Imprint", "Advertise with us"),
    ("Copyright 2019-2023 Sample Group. No part of this site may be copied.", "Legal notice", "Accessibility",
     "Proudly hosted by SampleHost", "Registered in England number 01234567.",
     "Cookie settings", "Do not sell my data"),
)
COMMENT = (
    ("Great article, thanks for sharing!", "I do not agree with the second part at all.",
     "Does anybody know whether this still works?", "First!", "My neighbour told me the same thing last year.",
     "Thank you, this helped me a lot when nothing else did."),
    ("Well written, but where are the sources?", "Bookmarked. Looking forward to the next one.",
     "Same here, no idea what causes it.", "Can you say more about the last point please?", "Nonsense.",
     "I have been doing it this way for ten years and never looked back."),
)
SHARE = (
    ("3 likes", "Share on Facebook", "Tweet this", "Email", "Print", "128 shares", "12 comments", "Like"),
    ("41 upvotes", "Pin it", "Send to a friend", "Copy link", "WhatsApp", "7 reposts", "902 views", "Save for later"),
)
SUBJECT = (
    ("The mayor", "A young engineer", "The old harbour", "Our reader", "The committee", "A rare bird", "The team"),
    ("The minister", "A local bakery", "The new stadium", "One family", "The orchestra", "A lost letter", "The jury"),
)
ACT = (
    ("opens the season with", "says no to", "explains", "has plans for", "is worried about", "wins a prize for"),
    ("takes a close look at", "returns with", "raises money for", "loses patience over", "discovers", "defends"),
)
OBJECT = (
    ("a bridge across the valley", "longer opening hours", "the quiet streets", "a museum of bread", "cheaper trains"),
    ("a garden on the roof", "three hundred bicycles", "the winter market", "a forgotten song", "safer crossings"),
)
AUTHOR = (
    ("Anna Berg", "J. Miller", "editor", "Tom W.", "webmaster"),
    ("C. Okoro", "Lea Martin", "admin7", "P. Novak", "Sam"),
)
AD = (
    ("Advertisement", "Sponsored content", "Save 20% today only: order now and get free shipping!"),
    ("Promoted", "Anzeige", "Win a weekend for two: enter your address and take part in the draw!"),
)
# fmt: on


class Filler:
    """Boilerplate of one page, drawn from its seed."""

    def __init__(self, random: Random, heldout: bool) -> None:
        self.random, self.part = random, int(heldout)

    def pick(self, phrases: Sequence[Sequence[str]], count: int = 1) -> list[str]:
        """``count`` different phrases of this page's set, as many as there are."""
        return self.random.sample(list(phrases[self.part]), min(count, len(phrases[self.part])))

    def one(self, phrases: Sequence[Sequence[str]]) -> str:
        """One phrase of this page's set."""
        return self.random.choice(list(phrases[self.part]))

    def number(self, least: int, most: int) -> int:
        """A whole number between both, inclusive."""
        return self.random.randint(least, most)

    def maybe(self, html: str, chance: float = 0.5) -> str:
        """``html``, or nothing."""
        return html if self.random.random() < chance else ""

    def headline(self) -> str:
        """A made-up headline."""
        return f"{self.one(SUBJECT)} {self.one(ACT)} {self.one(OBJECT)}"

    def date(self) -> str:
        """A date as pages write it."""
        month = self.random.choice(("January", "March", "June", "October"))
        return f"{self.number(1, 28)} {month} {self.number(2008, 2023)}"

    def author(self) -> str:
        """A name."""
        return self.one(AUTHOR)

    def menu(self, count: int, shape: str = '<li><a href="/{0}">{1}</a></li>') -> str:
        """Links of a menu."""
        return "\n".join(shape.format(self.number(1, 999), label) for label in self.pick(MENU, count))

    def links(self, count: int, shape: str = '<li><a href="/{0}">{1}</a></li>') -> str:
        """Links with headlines."""
        return "\n".join(shape.format(self.number(1, 9999), self.headline()) for _ in range(count))

    def teasers(self, count: int, shape: str) -> str:
        """Teasers: headline {0}, sentences {1}, a "read more" line {2}."""
        return "\n".join(
            shape.format(self.headline(), f"{self.headline()}. {self.headline()}, and more.", self.one(READ_MORE))
            for _ in range(count)
        )

    def comments(self, count: int, shape: str) -> str:
        """Comments: author {0}, date {1}, text {2}."""
        return "\n".join(
            shape.format(self.author(), self.date(), " ".join(self.pick(COMMENT, self.number(1, 3))))
            for _ in range(count)
        )

    def share(self, shape: str = '<a href="#">{}</a>') -> str:
        """Counters and buttons."""
        return " ".join(shape.format(label) for label in self.pick(SHARE, self.number(3, 6)))

    def cookies(self) -> str:
        """A notice about cookies."""
        return self.one(COOKIES)

    def ad(self) -> str:
        """A line of advertising."""
        return self.one(AD)

    def footer(self, shape: str = "<span>{}</span>") -> str:
        """Lines of a footer."""
        return "\n".join(shape.format(line) for line in self.pick(FOOTER, self.number(3, 6)))

    def script(self) -> str:
        """A script and a description of the page for machines."""
        about = {"@context": "https://schema.org", "@type": "WebPage", "name": self.headline()}
        return (
            f"<script>window.dataLayer=window.dataLayer||[];var id={self.number(1, 999999)};"
            f'if(id<3){{document.write("<p>{self.headline()}</p>")}}</script>'
            f'<script type="application/ld+json">{json.dumps(about)}</script>'
            f"<style>.c{self.number(1, 99)}{{color:#333;margin:0 auto}}</style>"
        )

    def between(self, pieces: Sequence[str], junk: Callable[[], str], chance: float = 0.15) -> str:
        """Pieces of the main text with something foreign between some of them."""
        out = []
        for place, piece in enumerate(pieces):
            if place > 1 and self.random.random() < chance:
                out.append(junk())
            out.append(piece)
        return "\n".join(out)

    def turns(self, pieces: Sequence[str], least: int, most: int) -> Iterator[tuple[int, str]]:
        """The main text spread over posts of ``least`` to ``most`` pieces: how many there are up to its end, and it."""
        end = 0
        while end < len(pieces):
            start, end = end, end + self.number(least, most)
            yield end, "\n".join(pieces[start:end])
