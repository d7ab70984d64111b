"""From records and bytes to main text, by pages whose text is known."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mickle.data.pages import RawPage, Skipped, decode, extract, read_http
from mickle.data.records import Page, Removed

LARGEST = 1 << 20
SENTENCES = " ".join(f"Sentence number {i} of the true text speaks of rivers and bridges." for i in range(8))
HTML = (
    "<html><head><title>T</title><script>var evil = 1;</script></head><body><nav><ul><li><a href='/'>Home page</a></li>"
    f"<li><a href='/x'>Other page</a></li></ul></nav><article><h1>Rivers</h1><p>{SENTENCES}</p>"
    "<pre>a = 1\nif a:\n    b = 2</pre></article><footer>Copyright of somebody</footer></body></html>"
)


def raw(block: bytes, kind: str = "response", content_type: str = "application/http") -> RawPage:
    header = f"WARC/1.0\r\nWARC-Type: {kind}\r\nContent-Type: {content_type}\r\nContent-Length: {len(block)}\r\n\r\n"
    return RawPage("http://a.org/", "a.org", "record", header.encode() + block + b"\r\n\r\n")


def http(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", *(headers or ("Content-Type: text/html; charset=utf-8",)), "", ""]
    return "\r\n".join(lines).encode() + body


def test_a_response_gives_its_html_and_charset() -> None:
    page = read_http(raw(http(b"<p>x</p>")), LARGEST)
    assert isinstance(page, RawPage)
    assert (page.content, page.charset, page.form) == (b"<p>x</p>", "utf-8", "html")


def test_chunked_and_compressed_bodies_are_decoded() -> None:
    body = gzip.compress(b"<p>hello</p>")
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    page = read_http(
        raw(http(chunked, "Content-Type: text/html", "Content-Encoding: gzip", "Transfer-Encoding: chunked")), LARGEST
    )
    assert isinstance(page, RawPage)
    assert page.content == b"<p>hello</p>"


def test_a_resource_needs_no_http() -> None:
    page = read_http(raw(b"<p>x</p>", "resource", "text/html; charset=latin-1"), LARGEST)
    assert isinstance(page, RawPage)
    assert (page.content, page.charset) == (b"<p>x</p>", "latin-1")


BOMB = gzip.compress(b"\0" * (20 << 20))
REFUSED = {
    "other status": (raw(http(b"", status="404 Not Found")), "HTTP status is not 200"),
    "image": (raw(http(b"", "Content-Type: image/png")), "not HTML"),
    "no content type": (raw(http(b"x", "Server: y")), "not HTML"),
    "bomb": (raw(http(BOMB, "Content-Type: text/html", "Content-Encoding: gzip")), "page is too large"),
    "no http at all": (raw(b"\xff\xfe\x00garbage"), None),
    "empty block": (raw(b""), None),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_records_without_a_page_are_removed_with_a_reason(name: str) -> None:
    page, reason = REFUSED[name]
    found = extract(page, LARGEST)
    assert isinstance(found, Removed)
    assert reason is None or found.reason == reason


def test_requests_and_the_like_are_skipped() -> None:
    assert read_http(raw(b"GET / HTTP/1.1\r\n\r\n", "request"), LARGEST) == Skipped("request record")


@pytest.mark.parametrize(
    ("content", "charset"),
    [
        ("naïve café".encode(), ""),
        ("naïve café".encode("latin-1"), "iso-8859-1"),
        ("naïve café".encode("utf-16"), ""),
        (b"\xef\xbb\xbf" + "naïve café".encode(), "latin-1"),
        ("naïve café".encode(), "no-such-charset"),
        ("naïve café".encode(), "hex"),  # a codec, but not of text
        ("naïve café".encode(), "us-ascii\0"),
    ],
)
def test_encodings(content: bytes, charset: str) -> None:
    assert decode(content, charset) == "naïve café"


def test_the_page_may_name_its_own_charset() -> None:
    text = '<meta charset="koi8-r"><p>Привет, мир</p>'
    assert decode(text.encode("koi8-r")) == text


def test_mixed_encodings_keep_what_can_be_read() -> None:
    mixed = "résumé of the river ".encode() * 5 + "r\u00e9sum\u00e9".encode("latin-1")
    assert "of the river" in decode(mixed, "utf-8")


@given(st.binary(max_size=300), st.text(max_size=12))
def test_decoding_never_fails(content: bytes, charset: str) -> None:
    assert isinstance(decode(content, charset), str)


def test_a_million_open_tags_are_no_danger() -> None:
    deep = RawPage("u", "", "html", b"<html><body>" + b"<div>" * 1_000_000 + b"text")
    assert isinstance(extract(deep, 10 << 20), Page | Removed)


def test_large_pages_are_removed_unread() -> None:
    found = extract(RawPage("u", "", "text", b"x" * (LARGEST + 1)), LARGEST)
    assert isinstance(found, Removed)
    assert (found.reason, found.value) == ("page is too large", LARGEST + 1)
