"""From what a crawl or a disk holds to main text: HTTP records, bytes in any encoding, HTML.

Every function takes one item and returns it further on, or :class:`Removed` with the reason.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, replace

from mickle.data.extraction import DEFAULT, Extraction, main_text, tidy
from mickle.data.records import Page, Removed, domain_of
from mickle.data.warc import Record

FORMS = {"text/html": "html", "application/xhtml+xml": "html", "text/plain": "text"}
META_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([a-zA-Z0-9_.:-]{2,40})", re.IGNORECASE)
ENCODING_SAMPLE = 1 << 16  # bytes looked at where an encoding must be guessed


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

    ``largest`` bounds the decoded bytes. WARC/1.1; HTTP by FastWARC.
    """
    from fastwarc.warc import WarcRecord, WarcRecordType

    try:
        record = WarcRecord.from_bytes(raw.content)
        kind = record.record_type
        if kind not in (WarcRecordType.response, WarcRecordType.resource, WarcRecordType.conversion):
            return Skipped(f"{str(kind).rpartition('.')[2]} record")
        if kind == WarcRecordType.response:
            record.parse_http(auto_decode="all", quirks_mode=True)
            status = record.http_headers.status_code if record.http_headers else None
            if status != 200:
                return removed_raw(raw, "HTTP status is not 200", float(status or 0), limit=200)
            content_type, charset = record.http_content_type or "", record.http_charset or ""
        else:
            content_type, _, rest = (record.headers.get("Content-Type") or "").partition(";")
            charset = rest.partition("charset=")[2].strip(" \"'")
        form = FORMS.get(content_type.strip().lower(), "")
        if not form or (form == "text" and kind == WarcRecordType.response):
            return removed_raw(raw, "not HTML", 0.0)
        content = record.reader.read(largest + 1)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # FastWARC panics, outside Exception, on some hostile headers
        return removed_raw(raw, f"HTTP record cannot be read ({type(error).__name__})", 0.0)
    if len(content) > largest:
        return removed_raw(raw, "page is too large", float(len(content)), limit=largest)
    return replace(raw, form=form, content=content, charset=charset)


def decode(content: bytes, charset: str = "") -> str:
    """Text of bytes: byte order mark, then the server's charset, the page's own, UTF-8, a guess; errors are replaced.

    A charset that is named but does not fit is not believed while another one fits without errors.
    """
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ):
        if content.startswith(mark):
            return content[len(mark) :].decode(name, "replace")
    declared = META_CHARSET.search(content[:4096])
    named = [charset, declared.group(1).decode("ascii") if declared else ""]
    for name in [*named, "utf-8"]:
        if text := _strictly(content, name):
            return text
    from charset_normalizer import from_bytes

    guess = from_bytes(content[:ENCODING_SAMPLE], threshold=0.3).best()
    return content.decode(guess.encoding if guess else "utf-8", "replace")


def _strictly(content: bytes, name: str) -> str | None:
    try:
        # Browsers read Latin-1 as its superset Windows-1252; so do we.
        name = "cp1252" if name and codecs.lookup(name).name in ("iso8859-1", "ascii") else name
        text = content.decode(name) if name else None
        return text if isinstance(text, str) else None
    except (LookupError, ValueError, TypeError):
        return None


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
    text = decode(raw.content, raw.charset)
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
