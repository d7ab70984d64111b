"""From records and bytes to main text, by pages whose text is known."""

from __future__ import annotations

import gzip
import io
import zlib

import pytest
from fastwarc.stream_io import BrotliWriter, ZstdWriter

from mickle.data.pages import RawPage, Skipped, extract, read_http
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


def encoded(writer: type[BrotliWriter | ZstdWriter]) -> bytes:
    buffer = io.BytesIO()
    with writer(buffer) as stream:
        stream.write(PAGE)
    return buffer.getvalue()


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


PAGE = f"<!doctype html><p>{SENTENCES}</p>".encode()
GZIPPED = gzip.compress(PAGE)
DISAGREEING = {
    "gzip decoded": (PAGE, "Content-Encoding: gzip"),
    "brotli decoded": (PAGE, "Content-Encoding: br"),
    "zstd decoded": (PAGE, "content-encoding: ZSTD"),
    "deflate decoded": (PAGE, "Content-Encoding: deflate"),
    "chunks joined": (PAGE, "Transfer-Encoding: chunked"),
    "both decoded": (PAGE, "Transfer-Encoding: chunked", "Content-Encoding: gzip"),
    "x-gzip": (GZIPPED, "Content-Encoding: x-gzip"),
    "gzip unsaid": (GZIPPED, "Server: x"),
    "gzip twice": (gzip.compress(GZIPPED), "Content-Encoding: gzip, gzip"),
    "two members": (gzip.compress(PAGE[:99]) + gzip.compress(PAGE[99:]), "Content-Encoding: gzip"),
    "two fields": (GZIPPED, "Content-Encoding: identity", "Content-Encoding: gzip"),
    "deflate": (zlib.compress(PAGE), "Content-Encoding: deflate"),
    "raw deflate": (zlib.compress(PAGE, wbits=-15), "Content-Encoding: deflate"),
    "deflate that is gzip": (GZIPPED, "Content-Encoding: deflate"),
    "brotli": (encoded(BrotliWriter), "Content-Encoding: br"),
    "zstd": (encoded(ZstdWriter), "Content-Encoding: zstd"),
    "no coding": (PAGE, "Content-Encoding: utf-8"),
    "chunked": (b"%X ;x=y\r\n%s\r\n0\r\n\r\n" % (len(PAGE), PAGE), "Transfer-Encoding: chunked"),
    "chunks unsaid": (b"5\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (PAGE[:5], len(PAGE) - 5, PAGE[5:]), "Server: x"),
    "false length": (PAGE, "Content-Length: 3"),
}  # fmt: skip


@pytest.mark.parametrize("name", DISAGREEING)
def test_codings_are_undone_where_the_body_has_them(name: str) -> None:
    body, *headers = DISAGREEING[name]
    page = read_http(raw(http(body, "Content-Type: text/html", *headers)), LARGEST)
    assert isinstance(page, RawPage)
    assert page.content == PAGE


def test_of_a_cut_body_what_is_there_stays() -> None:
    for body, header in (
        (GZIPPED[:-20], "Content-Encoding: gzip"),
        (b"ffff\r\n" + PAGE[:300], "Transfer-Encoding: chunked"),
    ):
        page = read_http(raw(http(body, "Content-Type: text/html", header)), LARGEST)
        assert isinstance(page, RawPage)
        assert len(page.content) > 50
        assert PAGE.startswith(page.content)


@pytest.mark.parametrize("status", ["200", "200 OK", " 200 OK"])
def test_a_page_is_known_by_itself_where_its_head_says_too_little(status: str) -> None:
    for block in (http(PAGE, "Server: x", status=status), b"HTTP/2 200\nServer: x\n\n" + PAGE, PAGE):
        page = read_http(raw(block), LARGEST)
        assert isinstance(page, RawPage)
        assert (page.content, page.form) == (PAGE, "html")


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
    "not what it says": (
        raw(http(GZIPPED[5:], "Content-Type: text/html", "Content-Encoding: br")), "content coding cannot be undone"
    ),
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


def test_a_million_open_tags_are_no_danger() -> None:
    deep = RawPage("u", "", "html", b"<html><body>" + b"<div>" * 1_000_000 + b"text")
    assert isinstance(extract(deep, 10 << 20), Page | Removed)


def test_large_pages_are_removed_unread() -> None:
    found = extract(RawPage("u", "", "text", b"x" * (LARGEST + 1)), LARGEST)
    assert isinstance(found, Removed)
    assert (found.reason, found.value) == ("page is too large", LARGEST + 1)
