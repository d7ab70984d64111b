"""A page of a controlled crawl with the truth about it."""

from __future__ import annotations

from dataclasses import dataclass, field

from mickle.data.pages import RawPage
from mickle.data.records import domain_of


@dataclass(frozen=True)
class Planted:
    """A page and the truth about it.

    ``removed_by`` is the stage that should take it out, empty where it should stay. ``text`` is its main text,
    ``noise`` the lines in it that are no text, ``shared`` the passages that other pages have too. Pages of one
    ``family`` (not -1) are copies of one document with a share ``edits`` of its words changed; the first of them
    in the crawl should stay.
    """

    url: str
    kind: str
    removed_by: str
    html: bytes = field(repr=False)
    text: str = field(default="", repr=False)
    noise: tuple[str, ...] = ()
    shared: tuple[str, ...] = field(default=(), repr=False)
    family: int = -1
    edits: float = 0.0
    status: int = 200
    media: str = "text/html"

    @property
    def is_html(self) -> bool:
        """Whether it is a page at all: an answer without error whose type is HTML."""
        return self.status == 200 and self.media == "text/html"

    @property
    def raw(self) -> RawPage:
        """The page as the pipeline reads it; what is no page as the record of a crawl."""
        content = self.html if self.is_html else record(self)
        return RawPage(self.url, domain_of(self.url), "html" if self.is_html else "record", content, "utf-8")


def record(page: Planted) -> bytes:
    """The page as one record of a WARC file (ISO 28500), with its status and type."""
    http = f"HTTP/1.1 {page.status} Answer\r\nContent-Type: {page.media}\r\nContent-Length: {len(page.html)}\r\n\r\n"
    block = http.encode() + page.html
    header = (
        f"WARC/1.1\r\nWARC-Type: response\r\nWARC-Target-URI: {page.url}\r\nWARC-Date: 1970-01-01T00:00:00Z\r\n"
        "WARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000000000000>\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(block)}\r\n\r\n"
    )
    return header.encode() + block + b"\r\n\r\n"
