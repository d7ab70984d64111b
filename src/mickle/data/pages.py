"""From what a crawl or a disk holds to main text: HTTP records, bytes in any encoding, HTML.

Main text by trafilatura (Barbaresi 2021), the extractor of RefinedWeb (arXiv 2306.01116), with its settings:
comments left out, tables kept. Every function takes one item and returns it further on, or :class:`Removed`
with the reason.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from dataclasses import dataclass

from mickle.data.records import Page, Removed, domain_of
from mickle.data.warc import Record

HTML_TYPES = ("text/html", "application/xhtml+xml")
META_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([a-zA-Z0-9_.:-]{2,40})", re.IGNORECASE)
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
ENCODING_SAMPLE = 1 << 16  # bytes looked at where an encoding must be guessed


@dataclass(frozen=True)
class RawPage:
    """A page as found: ``form`` is "record" (a whole WARC record), "html" or "text"; ``charset`` what its
    server said.
    """

    url: str
    domain: str
    form: str
    content: bytes
    charset: str = ""


@dataclass(frozen=True)
class Skipped:
    """A record that is no page at all, such as a request; counted, and not kept."""

    reason: str


def removed_raw(raw: RawPage, reason: str, value: float, stage: str = "reading") -> Removed:
    """A page taken out before it had a text."""
    return Removed(raw.url, raw.domain, "", "", stage, reason, value)


def read_http(raw: RawPage, largest: int) -> RawPage | Removed | Skipped:
    """The HTML inside a WARC record: a response with status 200 or a resource, decoded from its transfer and
    content codings.

    ``largest`` bounds the decoded bytes. WARC/1.1; HTTP by FastWARC.
    """
    from fastwarc.warc import WarcRecord, WarcRecordType

    try:
        record = WarcRecord.from_bytes(raw.content)
        kind = record.record_type
        if kind not in (WarcRecordType.response, WarcRecordType.resource):
            return Skipped(f"{str(kind).rpartition('.')[2]} record")
        if kind == WarcRecordType.response:
            record.parse_http(auto_decode="all", quirks_mode=True)
            status = record.http_headers.status_code if record.http_headers else None
            if status != 200:
                return removed_raw(raw, "HTTP status is not 200", float(status or 0))
            content_type, charset = record.http_content_type or "", record.http_charset or ""
        else:
            content_type, _, rest = (record.headers.get("Content-Type") or "").partition(";")
            charset = rest.partition("charset=")[2].strip(" \"'")
        if content_type.strip().lower() not in HTML_TYPES:
            return removed_raw(raw, "not HTML", 0.0)
        content = record.reader.read(largest + 1)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # FastWARC panics, outside Exception, on some hostile headers
        return removed_raw(raw, f"HTTP record cannot be read ({type(error).__name__})", 0.0)
    if len(content) > largest:
        return removed_raw(raw, "page is too large", float(len(content)))
    return RawPage(raw.url, raw.domain, "html", content, charset)


def decode(content: bytes, charset: str = "") -> str:
    """Text of bytes: byte order mark, then the server's charset, the page's own, UTF-8, a guess; errors are
    replaced.

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


def tidy(text: str) -> str:
    """Composed characters (NFC), plain newlines and at most one empty line, no control characters, no spaces
    at line ends.
    """
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = CONTROL.sub("", text).replace("\u00a0", " ").replace("\ufeff", "")
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def main_text(html: str) -> str:
    """The main text of an HTML page, without menus, footers and comments; empty where there is none."""
    import trafilatura

    return tidy(
        trafilatura.extract(html, include_comments=False, include_tables=True, deduplicate=False) or ""
    )


def extract(raw: RawPage, largest: int) -> Page | Removed | Skipped:
    """A page as found to its main text, through all that can go wrong on the way."""
    if raw.form == "record":
        found = read_http(raw, largest)
        if not isinstance(found, RawPage):
            return found
        raw = found
    if len(raw.content) > largest:
        return removed_raw(raw, "page is too large", float(len(raw.content)))
    text = decode(raw.content, raw.charset)
    try:
        text = main_text(text) if raw.form == "html" else tidy(text)
    except MemoryError:
        raise
    except Exception as error:  # a hostile page can break the extractor in ways of its own; the run goes on
        return removed_raw(
            raw, f"extractor failed ({type(error).__name__})", float(len(raw.content)), "extraction"
        )
    if not text:
        return removed_raw(raw, "no main text", float(len(raw.content)), "extraction")
    return Page(raw.url, raw.domain, "", text)


def record_page(record: Record) -> RawPage:
    """A framed WARC record as a page still to be read."""
    return RawPage(record.url, domain_of(record.url), "record", record.header + record.block + b"\r\n\r\n")
