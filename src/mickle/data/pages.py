"""From what a crawl or a disk holds to main text: HTTP records, bytes in any encoding, HTML.

Every function takes one item and returns it further on, or :class:`Removed` with the reason.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from mickle.data.charsets import decode
from mickle.data.extraction import DEFAULT, Extraction, main_text, tidy
from mickle.data.records import Page, Removed, domain_of
from mickle.data.responses import decoded_body, head_and_body, type_and_charset
from mickle.data.warc import Record

FORMS = {"text/html": "html", "application/xhtml+xml": "html", "text/plain": "text"}
PAGES = ("response", "resource", "conversion")  # kinds of WARC records that may hold one
UNTYPED = ("", "application/http")  # of responses whose head, or whose type, is missing
HTML = re.compile(rb"(?:\xef\xbb\xbf)?\s{0,1000}<(?:!doctype\s{1,9}html|html)\b", re.IGNORECASE)
STATUS = re.compile(r"HTTP/\S{1,9}\s{1,9}(\d{3})\b")


@dataclass(frozen=True)
class RawPage:
    """A page as found: ``form`` is "record" (a whole WARC record), "html" or "text"; ``charset`` what its
    server said; ``date`` when it was fetched, where that is known.
    """

    url: str
    domain: str
    form: str
    content: bytes
    charset: str = ""
    date: str = ""


@dataclass(frozen=True)
class Skipped:
    """A record that is no page at all, such as a request; counted, and not kept."""

    reason: str


def removed_raw(raw: RawPage, reason: str, value: float, stage: str = "reading", limit: float = 0.0) -> Removed:
    """A page taken out before it had a text."""
    return Removed(raw.url, raw.domain, "", "", stage, reason, value, date=raw.date, limit=limit)


def read_http(raw: RawPage, largest: int) -> RawPage | Removed | Skipped:
    """The page inside a WARC record: HTML of a response with status 200, decoded from its transfer and content
    codings, or of a resource; plain text of a conversion, which is what WET files hold.

    ``largest`` bounds the decoded bytes. WARC/1.1.
    """
    _, fields, content = head_and_body(raw.content.removesuffix(b"\r\n\r\n"))
    kind = fields.get("warc-type", "unnamed").lower()
    if kind not in PAGES:
        return Skipped(f"{kind} record")
    if kind == "response" and content.startswith(b"HTTP/"):
        status, fields, block = head_and_body(content)
        code = STATUS.match(status)
        if not code or code.group(1) != "200":
            return removed_raw(raw, "HTTP status is not 200", float(code.group(1) if code else 0), limit=200)
        codings = fields.get("transfer-encoding", ""), fields.get("content-encoding", "")
        body = decoded_body(block, *codings, largest)
        if body is None:
            return removed_raw(raw, "content coding cannot be undone", float(len(block)))
        content = body
    named, charset = type_and_charset(fields.get("content-type", ""))
    form = FORMS.get(named, "html" if named in UNTYPED and HTML.match(content) else "")
    if not form or (form == "text" and kind == "response"):
        return removed_raw(raw, "not HTML", 0.0)
    if len(content) > largest:
        return removed_raw(raw, "page is too large", float(len(content)), limit=largest)
    return replace(raw, form=form, content=content, charset=charset)


def extract(raw: RawPage, largest: int, settings: Extraction = DEFAULT) -> Page | Removed | Skipped:
    """A page as found to its main text, through all that can go wrong on the way."""
    if raw.form == "record":
        found = read_http(raw, largest)
        if not isinstance(found, RawPage):
            return found
        raw = found
    size = float(len(raw.content))
    if size > largest:
        return removed_raw(raw, "page is too large", size, limit=largest)
    text = decode(raw.content, raw.charset, html=raw.form == "html")
    try:
        text = main_text(text, settings) if raw.form == "html" else tidy(text)
    except MemoryError:
        raise
    except Exception as error:  # a hostile page can break the extractor in ways of its own; the run goes on
        return removed_raw(raw, f"extractor failed ({type(error).__name__})", size, "extraction")
    if not text:
        return removed_raw(raw, "no main text", size, "extraction")
    return Page(raw.url, raw.domain, "", text, date=raw.date)


def record_page(record: Record) -> RawPage:
    """A framed WARC record as a page still to be read."""
    block = record.header + record.block + b"\r\n\r\n"
    return RawPage(record.url, domain_of(record.url), "record", block, date=record.date)
